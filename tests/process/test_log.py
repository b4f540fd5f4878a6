"""What live daemons say: their log, at the level that is asked for, and `events`, with the worker's."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from lab import wait_for

pytestmark = pytest.mark.root

DONE, FAILED, USAGE = 0, 1, 2
IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
JUNK = """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("{address}", 500))
"""


@contextmanager
def followed(daemon) -> Iterator[Callable[[], list[dict]]]:
    """The events so far, as `events --json` prints them."""
    path = daemon.site.directory / "events"
    with path.open("w") as output:
        process = subprocess.Popen(daemon.words("events", "--json"), stdout=output, stderr=output)
        try:
            # it has no first line: the daemon tells of a level that is set
            assert wait_for(lambda: daemon.cli("log", "info") and path.read_text(), 20)
            yield lambda: [json.loads(line) for line in path.read_text().splitlines()]
        finally:
            process.terminate()
            process.wait(10)


def told(events: list[dict], process: str, event: str) -> list[dict]:
    return [each["fields"] for each in events if (each["process"], each["event"]) == (process, event)]


def test_events_have_a_tunnels_life_as_the_worker_tells_it(ours, theirs):
    ours.start(IKE, ESP)
    theirs.start(IKE, ESP, uid=62011)
    with followed(ours) as ours_events, followed(theirs) as theirs_events:
        # what is followed is not what is shown
        ours.cli("log", "error")
        ours.up(theirs)
        ours.cli("down", "peer")
        assert wait_for(lambda: told(theirs_events(), "worker", "ike-closed"), 20)
        for events in (ours_events(), theirs_events()):
            (established,) = told(events, "worker", "ike-established")
            assert established["connection"] == "peer"
            (installed,) = told(events, "worker", "child-installed")
            assert told(events, "monitor", "installed")[0]["spi_in"] == installed["spi_in"]
            assert told(events, "worker", "child-closed")
        assert told(ours_events(), "worker", "ike-closed")[0]["reason"] == "the operator ordered it down"
        assert told(theirs_events(), "worker", "ike-closed")[0]["reason"] == "the peer deleted it"


def junk(daemon, network) -> None:
    """One octet from the peer's address; the kernel drops what comes from others."""
    run = network.right.command("python3", "-c", JUNK.format(address=daemon.site.outer))
    subprocess.run(run, check=True, timeout=20)


def heard(daemon) -> int:
    return daemon.text().count("worker: debug datagram-dropped")


def test_the_level_is_changed_while_it_runs_and_outlives_the_worker(network, tunnel):
    junk(tunnel, network)
    assert tunnel.cli("log", "debug").returncode == DONE
    assert wait_for(lambda: junk(tunnel, network) or heard(tunnel) == 1, 20)
    assert "notice level-set to=debug about=all" in tunnel.text()
    before = tunnel.processes()
    network.kill(before["worker"])
    assert wait_for(lambda: tunnel.is_ready() and tunnel.processes()["worker"] != before["worker"], 30)
    assert wait_for(lambda: junk(tunnel, network) or heard(tunnel) > 1, 20)
    tunnel.cli("log", "warning")
    lines = len(tunnel.text().splitlines())
    junk(tunnel, network)
    tunnel.cli("up", "peer")
    tunnel.cli("down", "peer")
    assert tunnel.text().splitlines()[lines:] == []
    assert tunnel.cli("log", "loud", check=False).returncode == USAGE
    assert tunnel.cli("log", "info", "nowhere", check=False).returncode == FAILED


def test_the_command_line_and_a_connection_have_levels(ours, theirs):
    ours.configure(IKE, ESP)
    ours.config.write_text(
        ours.config.read_text().replace("[connection.peer]\n", '[connection.peer]\nlog = "notice"\n')
    )
    ours.options = ("--log-level", "error")
    ours.launch()
    theirs.start(IKE, ESP, uid=62011)
    ours.up(theirs)
    lines = ours.text().splitlines()
    assert any(line.startswith("worker: notice ike-established connection=peer ") for line in lines)
    assert any(line.startswith("notice installed connection=peer ") for line in lines)
    assert not any("epoch-began" in line or " info " in line for line in lines)
