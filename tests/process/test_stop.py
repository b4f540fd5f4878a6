"""What a clean stop leaves: refusal until the next start (`on_stop`), and how it ends for good."""

import re

import pytest
from lab import none_in_clear

pytestmark = pytest.mark.root

DONE, FAILED = 0, 1


@pytest.fixture
def ours(network, ours):
    """With what `on_stop` is where nothing is said."""
    ours.on_stop = "block"
    return ours


def in_place(network) -> bool:
    return "unreachable" in network.ip(network.left, "route", "show", "table", "all")


def test_no_ping_leaves_in_clear_over_a_clean_restart_with_a_default_route(network, tunnel, theirs):
    with none_in_clear(network, least=20):
        assert tunnel.stop() == DONE
        # told that it is gone (RFC 2408 section 5.15)
        assert network.wait_for(lambda: theirs.children() == [])
        assert "pike" not in network.ip(network.left, "link")
        tunnel.launch()
        tunnel.up(theirs)
    assert network.left.ping(network.right.inner) == 3


def test_on_stop_remove_lets_everything_go(network, ours):
    def routing() -> list[str]:
        return [network.ip(network.left, "-4", *words) for words in (["rule"], ["route", "show", "table", "all"])]

    before = routing()
    ours.on_stop = "remove"
    ours.start("aes256-sha256-modp2048", "aes256gcm16-modp2048")
    assert in_place(network)
    assert ours.stop() == DONE
    assert routing() == before


def test_a_connection_that_the_next_configuration_lacks_is_refused_no_longer(network, tunnel, theirs):
    assert tunnel.stop() == DONE
    assert network.left.ping(network.right.inner, count=1) == 0
    theirs.stop()
    text = tunnel.config.read_text()
    tunnel.config.write_text(text.replace(f'remote_ts = ["{network.right.inner}/32"]', 'remote_ts = ["10.99.0.0/16"]'))
    tunnel.launch()
    assert network.left.ping(network.right.inner, count=1) == 1


def test_clear_removes_what_a_stopped_daemon_left_and_nothing_of_one_that_runs(network, tunnel, theirs):
    done = tunnel.cli("clear", check=False)
    assert (done.returncode, "another instance runs" in done.stderr) == (FAILED, True)
    assert network.left.ping(network.right.inner) == 3
    assert tunnel.stop() == DONE
    theirs.stop()
    assert in_place(network)
    assert network.left.ping(network.right.inner, count=1) == 0
    for _ in range(2):
        assert tunnel.cli("clear").returncode == DONE
        assert not in_place(network)
        assert "4500" not in network.ip(network.left, "rule")
    assert network.left.ping(network.right.inner, count=1) == 1
    assert not (tunnel.run_dir / "control.sock").exists()


def test_a_clean_stop_logs_no_error(tunnel, theirs):
    assert tunnel.stop() == DONE
    assert theirs.stop() == DONE
    for daemon in (tunnel, theirs):
        assert "process-ended process=worker" in daemon.text()
        assert [line for line in daemon.text().splitlines() if re.match(r"(\w+: )?error ", line)] == []
