"""Daemons that are killed while packets flow: none is lost, a successor adopts what is there, nothing is left over."""

import re
import subprocess

import pytest
from flow import Flow
from lab import launch

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
PATIENCE = 60


@pytest.fixture(scope="module")
def tunnel(couple):
    """Between both daemons, up; each test leaves it so, but for the last."""
    couple.ours.configure(IKE, ESP)
    couple.theirs.configure(IKE, ESP, uid=62011)
    launch(couple.ours, couple.theirs)
    couple.ours.order("up")
    assert couple.network.left.ping(couple.network.right.inner) == 3
    return couple


@pytest.fixture
def flowing(tunnel):
    """A flow through it."""
    flow = Flow(tunnel.network.left, tunnel.network.right.inner)
    yield flow
    flow.close()


def spis(gateway):
    return set(re.findall(r"proto esp spi (0x[0-9a-f]+)", gateway.xfrm("state")))


def counts(gateway):
    """SAs and policies."""
    return len(spis(gateway)), gateway.xfrm("policy").count("dir ")


def assert_journal_is_private(ours):
    journal = ours.run_dir / "journal"
    status = journal.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o600)
    written = journal.read_bytes()
    keys = re.findall(r"aead \S+ 0x([0-9a-f]+)", ours.xfrm("state"))
    assert len(set(keys)) == 2
    for key in map(bytes.fromhex, keys):
        assert not any(key[at : at + 4] in written for at in range(len(key) - 3))


def settled(ours, theirs, before, old):
    """What was adopted is replaced and removed at both ends; as many SAs and policies as before."""
    return lambda: counts(ours) == counts(theirs) == before and not old & spis(ours)


def test_killed_children_cost_no_packet_and_leave_nothing_over(tunnel, flowing, row):
    line = row("kill -9 of worker, keyd, both, under 200 packets/s", "ourselves", "we")
    network, ours, theirs = tunnel.network, tunnel.ours, tunnel.theirs
    before = counts(ours)
    for victims in (("worker",), ("keyd",), ("worker", "keyd")):
        old, present = spis(ours), ours.processes()
        for victim in victims:
            network.kill(present[victim])
        restarted = network.wait_for(
            lambda gone=present["keyd"]: ours.is_ready() and ours.processes().get("keyd", gone) != gone, ours.patience
        )
        assert restarted, ours.text()
        assert network.wait_for(settled(ours, theirs, before, old), PATIENCE), (ours.xfrm("state"), ours.text())
    sent, lost = flowing.end()
    line.sent, line.received = sent, sent - lost
    assert (sent > 1000, lost) == (True, 0)
    assert ours.status()["adopted"] == []


def test_a_killed_monitor_costs_no_packet_and_its_successor_adopts_replaces_and_leaves_nothing_over(
    tunnel, flowing, row
):
    line = row("kill -9 of the monitor, under 200 packets/s", "ourselves", "we")
    network, ours, theirs = tunnel.network, tunnel.ours, tunnel.theirs
    assert_journal_is_private(ours)
    before, old = counts(ours), spis(ours)
    ours.kill()
    assert (counts(ours), spis(ours)) == (before, old)
    ours.launch()
    assert "notice earlier-pairs adopted=1 removed=0 forgotten=0" in ours.text()
    assert network.wait_for(settled(ours, theirs, before, old), PATIENCE), (ours.xfrm("state"), ours.text())
    sent, lost = flowing.end()
    line.sent, line.received = sent, sent - lost
    assert (sent > 1000, lost) == (True, 0)
    assert ours.status()["adopted"] == []


def test_a_pair_that_did_not_send_yet_is_adopted_and_larval_sas_expire_by_themselves(tunnel):
    """As when the monitor ends in the second before a new pair takes over (RFC 2409 section 5.5: message 3 first)."""
    network, ours, theirs = tunnel.network, tunnel.ours, tunnel.theirs
    subprocess.run(ours.site.command("sysctl", "-qw", "net.core.xfrm_acq_expires=5"), check=True)
    larval = ("src", network.right.outer, "dst", network.left.outer, "proto", "esp", "mode", "tunnel")
    network.ip(ours.site, "xfrm", "state", "allocspi", *larval, "min", "0x5000", "max", "0x5fff")
    before, old = counts(theirs), spis(ours)
    ours.kill()
    drop_sa(network, ours, network.right.outer)
    ours.launch()
    assert "notice earlier-pairs adopted=1 removed=0 forgotten=0" in ours.text()
    assert network.wait_for(settled(ours, theirs, before, old), PATIENCE), (ours.xfrm("state"), ours.text())
    assert network.left.ping(network.right.inner) == 3


def test_a_pair_by_which_nothing_arrives_is_removed(tunnel):
    network, ours = tunnel.network, tunnel.ours
    ours.kill()
    drop_sa(network, ours, network.left.outer)
    ours.launch()
    assert "notice earlier-pairs adopted=0 removed=1 forgotten=0" in ours.text()
    assert counts(ours) == (0, 3)
    ours.order("up")
    assert network.left.ping(network.right.inner) == 3
    assert counts(ours) == (2, 3)


def test_what_is_not_configured_any_more_is_removed_and_what_is_not_ours_stays(tunnel):
    network, ours = tunnel.network, tunnel.ours

    def ip(*words):
        network.ip(ours.site, "xfrm", *words)

    foreign = ("src", "198.51.100.1", "dst", "198.51.100.2", "proto", "esp", "spi", "0x4711")
    ip("state", "add", *foreign, "mode", "tunnel", "aead", "rfc4106(gcm(aes))", "0x" + "5a" * 20, "128")
    template = ("tmpl", "src", "198.51.100.1", "dst", "198.51.100.2", "proto", "esp", "reqid", "1", "mode", "tunnel")
    traffic = ("src", "10.77.0.0/16", "dst", "10.78.0.0/16", "dir", "out", "priority", "4803000")
    ip("policy", "add", *traffic, *template)
    ours.kill()
    assert counts(ours) == (3, 4)
    text = ours.config.read_text()
    ours.config.write_text(text.replace(f"{network.right.inner}/32", "10.99.0.0/16"))
    ours.launch()
    assert "notice earlier-pairs adopted=0 removed=1 forgotten=0" in ours.text()
    assert spis(ours) == {"0x00004711"}
    policies = ours.xfrm("policy")
    assert network.right.inner not in policies
    assert "10.78.0.0/16" in policies
    assert policies.count("10.99.0.0/16") == 3
    assert ours.stop() == 0
    assert counts(ours) == (1, 1)
    assert not (ours.run_dir / "journal").exists()


def drop_sa(network, ours, destination):
    """One of the two."""
    (spi,) = re.findall(rf"dst {destination}\s+proto esp spi (0x[0-9a-f]+)", ours.xfrm("state"))
    network.ip(ours.site, "xfrm", "state", "delete", "dst", destination, "proto", "esp", "spi", spi)
