"""Two of our daemons: both data paths, raw and UDP-encapsulated ESP."""

import pytest

pytestmark = [pytest.mark.root]

IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"


@pytest.mark.parametrize("encap", ["auto", "force"])
def test_pings_pass_encrypted_over_raw_esp_and_over_udp_rfc4303_rfc3948(network, ours, other_ours, wiretap, encap):
    ours.start(IKE, ESP, encap=encap)
    other_ours.start(IKE, ESP, encap=encap, uid=62011)
    ours.up(other_ours)
    assert network.left.ping(network.right.inner) == 3
    assert network.right.ping(network.left.inner) == 3
    counts = wiretap.counts()
    assert counts["encrypted"] == 12
    assert counts["cleartext"] == 0


def test_before_the_tunnel_nothing_passes_in_clear(network, ours, other_ours, wiretap):
    ours.start(IKE, ESP)
    other_ours.start(IKE, ESP, uid=62011)
    assert network.left.ping(network.right.inner, count=1) == 0
    assert wiretap.counts()["cleartext"] == 0


def test_a_clean_stop_leaves_no_route_no_device_and_no_process(network, ours, other_ours):
    ours.start(IKE, ESP)
    other_ours.start(IKE, ESP, uid=62011)
    ours.up(other_ours)
    pids = ours.pids()
    assert ours.stop() == 0
    assert network.wait_for(lambda: not any(network.alive(pid) for pid in pids))
    assert "pike" not in network.ip(network.left, "link")
    assert "10.2.0.1" not in network.ip(network.left, "route", "show", "table", "all")
    assert network.wait_for(lambda: other_ours.children() == [])


@pytest.mark.parametrize("victim", ["worker", "keyd"])
def test_a_killed_child_is_restarted_and_installed_sas_carry_on(network, ours, other_ours, victim):
    ours.start(IKE, ESP)
    other_ours.start(IKE, ESP, uid=62011)
    ours.up(other_ours)
    before = ours.processes()
    network.kill(before[victim])
    assert network.left.ping(network.right.inner) == 3
    assert network.wait_for(lambda: len(ours.processes()) == 4 and ours.processes()[victim] != before[victim], 20)
    assert network.left.ping(network.right.inner) == 3
    assert "signal=SIGKILL" in ours.text() or "SIGKILL" in ours.text()
    ours.up(other_ours)
    assert network.left.ping(network.right.inner) == 3


def test_the_audit_finds_nothing_weaker_than_designed(network, ours):
    ours.start(IKE, ESP)
    assert ours.cli("audit").returncode == 0
