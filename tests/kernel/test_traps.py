"""`start = "trap"`: the first packet has the kernel ask for an SA (ACQUIRE), and its flow works."""

import re
import subprocess
import time

import pytest
from lab import LEFT, LEFT_HOST, RIGHT, RIGHT_HOST, launch

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

FAMILIES = {
    4: (LEFT_HOST, RIGHT_HOST, LEFT, RIGHT),
    6: ("fd01::1", "fd02::1", "2001:db8::1", "2001:db8::2"),
}
PINGS, WITHIN = 30, 10
"""Ten a second."""
SIX = '\n[connection.six]\nlocal = "{}"\nremote = "{}"\nike = ["aes256-sha256-modp2048"]\n'
CHILD = '[connection.six.child.net]\nlocal_ts = ["{}"]\nremote_ts = ["{}"]\nesp = ["aes256gcm16"]\nstart = "{}"\n'


@pytest.fixture(scope="module")
def trapped(couple):
    """Both daemons, ours with a trap for each family."""
    network = couple.network
    for site, at in ((network.left, 0), (network.right, 1)):
        network.ip(site, "address", "add", f"{FAMILIES[6][at]}/128", "dev", "lo")
        network.ip(site, "address", "add", f"{FAMILIES[6][at + 2]}/64", "dev", "wire0", "nodad")
        network.ip(site, "-6", "route", "add", "default", "via", FAMILIES[6][3 - at])
    here, there, left, right = FAMILIES[6]
    couple.ours.when = "trap"
    for gateway, uid, six in (
        (couple.ours, 62001, SIX.format(left, right) + CHILD.format(here, there, "trap")),
        (couple.theirs, 62011, SIX.format(right, left) + CHILD.format(there, here, "wait")),
    ):
        gateway.configure("aes256-sha256-modp2048", "aes256gcm16-modp2048", uid=uid)
        gateway.config.write_text(gateway.config.read_text() + six)
        secret = re.search(r'secret = "(.*)"', gateway.secrets.read_text())[1]
        with gateway.secrets.open("a") as secrets:
            secrets.write(f'[[psk]]\nids = ["{left}", "{right}"]\nsecret = "{secret}"\n')
    launch(couple.ours, couple.theirs)
    return couple


def flow(site, source, target, count):
    """Sequence numbers of the answers to pings, ten a second."""
    words = ("ping", "-n", "-c", str(count), "-i", "0.1", "-W", "1", "-I", source, target)
    done = subprocess.run(site.command(*words), capture_output=True, text=True, check=False)
    return [int(number) for number in re.findall(r"icmp_seq=(\d+) .*time=", done.stdout)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_packet_brings_it_up_and_the_flow_works_within_a_second(trapped, family, row):
    network, ours = trapped.network, trapped.ours
    here, there, *_ = FAMILIES[family]
    answered = flow(network.left, here, there, PINGS)
    assert answered, ours.text()
    line = row(f"aes256gcm16 tunnel IPv{family} trap, answered from {answered[0]}", "ourselves", "trap")
    line.sent, line.received = PINGS, len(answered)
    assert answered[0] <= WITHIN, ours.text()
    assert answered == list(range(answered[0], PINGS + 1))
    # the kernel's larval SA, by which it asked, made room for the real one
    outer = re.escape(FAMILIES[family][3])
    assert len(re.findall(rf"^src \S+ dst {outer}\s+proto esp", ours.xfrm("state"), re.M)) == 1


def test_a_trap_that_was_taken_down_or_failed_traps_again(trapped):
    network, ours, theirs = trapped.network, trapped.ours, trapped.theirs
    here, there, *_ = FAMILIES[4]
    ours.order("down")
    assert network.wait_for(lambda: ours.child("peer") is None)
    assert flow(network.left, here, there, PINGS)
    ours.order("down")
    theirs.stop()
    subprocess.run(network.left.command("sysctl", "-qw", "net.core.xfrm_acq_expires=3"), check=True)
    assert flow(network.left, here, there, 10) == []
    assert network.wait_for(lambda: "child-failed" in ours.text(), 90)
    theirs.launch()
    began = time.monotonic()
    while not flow(network.left, here, there, 20):
        assert time.monotonic() - began < 60, ours.text()
    assert ours.child("peer") is not None
