"""`start = "trap"`: the first packet has the kernel ask for an SA (ACQUIRE), and its flow works."""

import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
FAMILIES = {
    4: ("10.1.0.1", "10.2.0.1", "192.0.2.1", "192.0.2.2"),
    6: ("fd01::1", "fd02::1", "2001:db8::1", "2001:db8::2"),
}


@pytest.fixture
def trapped(network, ours, theirs):
    """Both daemons, ours with a trap; the left's inner address and the right's. To be called with both IP versions."""

    def start(inner, outer):
        ours.when = "trap"
        here, there = FAMILIES[inner][:2]
        left, right = FAMILIES[outer][2:]
        if 6 in (inner, outer):
            for site, at in ((network.left, 0), (network.right, 1)):
                network.ip(site, "address", "add", f"{FAMILIES[6][at]}/128", "dev", "lo")
                network.ip(site, "address", "add", f"{FAMILIES[6][at + 2]}/64", "dev", "wire0", "nodad")
                network.ip(site, "-6", "route", "add", "default", "via", FAMILIES[6][3 - at])
        for gateway, uid in ((ours, 62001), (theirs, 62011)):
            gateway.configure(IKE, ESP, uid=uid)
            text = gateway.config.read_text()
            for old, new in zip(FAMILIES[4], (here, there, left, right), strict=True):
                text = text.replace(f"{old}/32", f"{new}/{128 if inner == 6 else 32}").replace(f'"{old}"', f'"{new}"')
            gateway.config.write_text(text)
            secrets = gateway.secrets.read_text()
            gateway.secrets.write_text(secrets.replace("192.0.2.1", left).replace("192.0.2.2", right))
        with ThreadPoolExecutor() as pool:
            for started in [pool.submit(each.launch) for each in (ours, theirs)]:
                started.result()
        return here, there

    return start


def flow(site, source, target, count):
    """Sequence numbers of the answers to pings, ten a second."""
    words = ("ping", "-n", "-c", str(count), "-i", "0.1", "-W", "1", "-I", source, target)
    done = subprocess.run(site.command(*words), capture_output=True, text=True, check=False)
    return [int(number) for number in re.findall(r"icmp_seq=(\d+) .*time=", done.stdout)]


@pytest.mark.parametrize(("inner", "outer"), [(4, 4), (6, 6)])
def test_the_first_packet_brings_it_up_and_the_flow_works_within_a_second(network, ours, trapped, inner, outer):
    here, there = trapped(inner, outer)
    assert ours.children() == []
    answered = flow(network.left, here, there, 60)
    # ten pings make a second; an emulated machine computes some ten times as long as a real one
    assert answered[0] <= 40
    assert answered == list(range(answered[0], 61))
    # the kernel's larval SA, by which it asked, made room for the real one
    assert re.findall(r"proto esp spi (\S+)", ours.xfrm("state")).count("0x00000000") == 0
    assert ours.xfrm("state").count("proto esp") == 2


def test_a_trap_that_was_taken_down_or_failed_traps_again(network, ours, theirs, trapped):
    here, there = trapped(4, 4)
    assert flow(network.left, here, there, 60)
    ours.order("down")
    assert network.wait_for(lambda: not ours.xfrm("state"))
    assert flow(network.left, here, there, 60)
    ours.order("down")
    theirs.stop()
    subprocess.run(network.left.command("sysctl", "-qw", "net.core.xfrm_acq_expires=3"), check=True)
    assert flow(network.left, here, there, 10) == []
    assert network.wait_for(lambda: "child-failed" in ours.text(), 90)
    theirs.launch()
    began = time.monotonic()
    while not flow(network.left, here, there, 20):
        assert time.monotonic() - began < 60, ours.text()
    assert len(ours.children()) == 1
