"""Every suite, mode, IP version, peer and NAT that we promise, over real kernels: one start of everybody for all cases.

A case is a line in `tests/shared/cases.py`.
"""

import ipaddress
import re
import subprocess
from collections import Counter
from contextlib import closing

import pytest
import star
from cases import CASES, parsed
from lab import wait_for
from pyroute2 import NFCTSocket

from monitor.xfrm import sa
from monitor.xfrm.messages import GetSa, NewSa
from monitor.xfrm.netlink import XfrmNetlink
from monitor.xfrm.probe import knows_direction
from monitor.xfrm.structs import Way
from privsep.iana import ProtocolId
from privsep.types import Spi

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]

PINGS = 3
SECONDS = 60
"""For what takes less than one on a real processor."""
PROTOCOLS = {"esp": ProtocolId.ESP, "ah": ProtocolId.AH, "comp": ProtocolId.IPCOMP}
KEEPALIVE_SECONDS = 25
"""RFC 3948 section 4: every 20."""

placed_cases = [star.Placed(number, case) for number, case in enumerate(CASES, 1)]
by_name = pytest.mark.parametrize("placed", placed_cases, ids=lambda each: f"{each.case} {each.case.peer}")
natted_cases = [each for each in placed_cases if each.case.nat]
behind_nat = pytest.mark.parametrize("placed", natted_cases, ids=lambda each: f"{each.case.peer} {each.case.initiator}")
followed = pytest.mark.parametrize(
    # libreswan looks at IKE messages only: for that long it sends to where nobody is
    "placed",
    [each for each in natted_cases if each.case.peer != "libreswan"],
    ids=lambda each: f"{each.case.peer} {each.case.initiator}",
)


def forget():
    """Have the namespace's NAT drop its mappings."""
    with NFCTSocket() as connections:
        connections.flush()


def ping(matrix, placed, count, end):
    ends = "-I", placed.inner(end), placed.inner(3 - end)
    words = matrix.star.site(placed, end).command("ping", "-n", "-q", "-c", str(count), "-i", "0.1", "-W", "2", *ends)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    received = re.search(r"(\d+) received", done.stdout)
    assert received, done.stdout + done.stderr
    return int(received[1])


def wait_for_an_answer(matrix, placed, row, end=1):
    """What needs an SA or a mapping first is lost until it is there."""

    def answered():
        row.sent += 1
        row.received += (received := ping(matrix, placed, 1, end))
        return received

    assert wait_for(answered, SECONDS), matrix.text(placed)


def ping_without_loss(matrix, placed, row, end=1):
    row.sent += PINGS
    row.received += (received := ping(matrix, placed, PINGS, end))
    assert received == PINGS, matrix.text(placed)


def assert_sent_to(matrix, placed, ports):
    """What goes inward goes to the NAT, which has ports of its own."""
    assert wait_for(lambda: (found := matrix.ports(placed)) and found <= set(ports), SECONDS), matrix.ports(placed)


def test_the_witness_sees_what_is_in_clear(matrix):
    """On the same wires, between addresses that are no case's."""
    here, there = (star.hop(0, 4, end) for end in (1, 2))
    done = matrix.star.left.command("ping", "-n", "-q", "-c", "1", "-W", "5", there)
    assert subprocess.run(done, capture_output=True, check=False).returncode == 0
    assert matrix.witness.of({here})["clear"] == 2


@by_name
def test_traffic_passes_protected(matrix, placed, row):
    case = placed.case
    line = row(str(case), case.peer, case.initiator)
    if case.initiator == "trap":
        wait_for_an_answer(matrix, placed, line)
    else:
        refused = matrix.initiate(placed)
        assert not refused, f"{refused}\n{matrix.text(placed)}"
    # who initiated is done one message before the other (RFC 2409 section 5.5)
    assert wait_for(lambda: matrix.is_up(placed), SECONDS), matrix.text(placed)
    ping_without_loss(matrix, placed, line)
    child, seen = matrix.ours.child(placed.name), matrix.witness.of(placed.addresses)
    line.protected, line.clear = seen["protected"], seen["clear"]
    received, sent = child["packets_in"], child["packets_out"]
    # what a trap sends is lost until the peer has its pair too
    assert received == line.received <= sent <= (line.sent if case.initiator == "trap" else received)
    assert (line.protected, line.clear) == (received + sent, 0)
    suite = parsed(case.suite)
    assert (child["proposal"], child["protocol"]) == (str(suite), suite.protocol.name.lower())
    assert (child["mode"], child["encap"]) == (case.mode, case.nat or case.encap == "force")
    assert child["ipcomp"] == (case.ipcomp == "both")


def asked(work):
    """What `work` finds out over a netlink socket."""
    with closing(XfrmNetlink()) as netlink:
        return work(netlink)


def ways_of(netlink, listed):
    """By the address that an SA goes to, which way it goes, as the kernel was told."""
    ways = Counter()
    for destination, protocol, spi in re.findall(r"dst (\S+)\s+proto (esp|ah|comp) spi (\S+)", listed):
        address, name = ipaddress.ip_address(destination), PROTOCOLS[protocol]
        present = netlink.ask(GetSa.request(0, sa.key(sa.SaId(address, name, Spi(int(spi, 16))))), NewSa)
        ways[destination, present.get_attr("XFRMA_SA_DIR")] += 1
    return ways


def test_a_kernel_that_can_be_told_knows_which_way_each_sa_goes(matrix):
    inside = matrix.star.left.enter
    if not inside(lambda: asked(knows_direction)):
        pytest.skip("XFRMA_SA_DIR is missing: Linux 6.10 has it")
    ways = inside(lambda: asked(lambda netlink: ways_of(netlink, matrix.ours.xfrm("state"))))
    assert len(ways) >= 2 * len(CASES) - len(natted_cases)
    for destination, way in ways:
        assert way == (Way.IN if destination in {each.outer(1) for each in placed_cases} else Way.OUT), destination


@behind_nat
def test_a_nat_is_kept_awake_and_gives_ports_of_its_own_rfc3948_4(matrix, placed):
    assert wait_for(lambda: matrix.witness.of(placed.addresses)["keepalive"], KEEPALIVE_SECONDS)
    assert_sent_to(matrix, placed, star.FIRST_PORTS)


@followed
def test_traffic_follows_a_nat_that_forgot_everything_rfc3948(matrix, placed, row):
    """Who is inside sends on; the other end learns the new port from the first packet that is authentic."""
    line = row(f"{placed.case}, new port", placed.case.peer, placed.case.initiator)
    before = matrix.witness.of(placed.addresses)
    matrix.star.translate(star.LATER_PORTS)
    matrix.star.nat.enter(forget)
    wait_for_an_answer(matrix, placed, line, placed.inside)
    ping_without_loss(matrix, placed, line, placed.inside)
    assert_sent_to(matrix, placed, star.LATER_PORTS)
    passed = matrix.witness.of(placed.addresses) - before
    line.protected, line.clear = passed["protected"], passed["clear"]
    assert line.clear == 0


def test_a_clean_stop_leaves_nothing_behind(matrix):
    assert matrix.ours.xfrm("state")
    for gateway in (matrix.ours, matrix.theirs):
        assert gateway.stop() == 0, gateway.text()
        assert (gateway.xfrm("state"), gateway.xfrm("policy")) == ("", "")
