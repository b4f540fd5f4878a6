"""What our own machine does not let out: the reason is told at once, and the exchange goes on for as long as it would.

A route may come back, an address may be moved here, a firewall may be mended; the peer has done nothing wrong.
"""

import errno
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep.log import Level
from privsep.schema.install import Outcome
from worker.control import HINT_PATIENCE

NO_ROUTE = (
    "no interface of this machine has 192.0.2.1, or there is no route from it to 192.0.2.2; "
    "`local` must be one of our addresses"
)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errno.ENETUNREACH, NO_ROUTE),
        (errno.EHOSTUNREACH, "192.0.2.2 is not reachable: its next hop does not answer, or a route refuses it"),
        (errno.EADDRNOTAVAIL, "no interface of this machine has 192.0.2.1; `local` must be one of our addresses"),
        # what the kernel says to a source in IPV6_PKTINFO that is not ours
        (errno.EINVAL, "no interface of this machine has 192.0.2.1; `local` must be one of our addresses"),
        (errno.EPERM, "a firewall of this machine drops what goes to 192.0.2.2[500]"),
        (errno.EACCES, "a route of this machine prohibits 192.0.2.2"),
        (errno.EMSGSIZE, "the message is longer than the way to 192.0.2.2 takes"),
        (errno.ENETDOWN, "the interface towards 192.0.2.2 is down"),
        (errno.ENOBUFS, "a queue of this machine is full"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_who_orders_a_tunnel_hears_at_once_why_nothing_leaves(make, error, told):
    world = make.Pair()
    world.refuses = lambda site, send: error
    sequence = world.left.up()
    world.run(0.1)
    assert world.left.monitor.progress[-1] == f"   cannot send: {told}"
    assert world.run(HINT_PATIENCE, lambda: world.left.outcome(sequence) is not None)
    outcome = world.left.outcome(sequence)
    assert (outcome.outcome, outcome.text) == (Outcome.FAILED, f"lan: cannot send: {told}")


def test_without_a_local_address_of_its_own_there_can_only_be_no_route(make):
    ours = make.connection(local=None)
    world = make.Pair(ours, make.mirrored(make.connection()))
    world.refuses = lambda site, send: errno.ENETUNREACH
    world.left.up()
    world.run(0.1)
    assert world.left.monitor.progress[-1] == "   cannot send: there is no route to 192.0.2.2"


def test_it_is_a_warning_and_logged_once_an_exchange(make):
    world = make.Pair()
    world.refuses = lambda site, send: errno.ENETUNREACH
    world.left.up()
    world.run(60.0)
    warned = [(code, fields["reason"]) for level, code, fields in world.left.log if level is Level.WARNING]
    assert warned.count(("cannot-send", NO_ROUTE)) == 1
    assert len(world.left.sent) == 6
    (failed,) = world.left.logged("ike-failed")
    assert failed["reason"] == f"cannot send Main Mode 1/6: {NO_ROUTE}"


def test_what_gets_out_at_last_brings_the_tunnel_up(make):
    """RFC 2408 section 5.1: a retransmission does not know why the one before was lost."""
    world = make.Pair()
    transmissions = itertools.count()
    world.refuses = lambda site, send: errno.ENETUNREACH if site is world.left and next(transmissions) < 2 else 0
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 1
    world.settled()


def test_a_peer_that_does_not_answer_what_got_out_is_not_said_to_be_out_of_reach(make):
    world = make.Pair()
    world.refuses = lambda site, send: errno.ENETUNREACH if len(site.sent) == 1 else 0
    world.fate = lambda site, send: []
    world.left.up()
    world.run(60.0)
    (failed,) = world.left.logged("ike-failed")
    assert failed["reason"] == "192.0.2.2 does not answer Main Mode 1/6"


def test_an_ike_sa_is_not_given_up_because_our_own_machine_has_no_route(make):
    """RFC 2408 section 2.1: the peer's silence would tell that it lost the SA, and it was not asked."""
    world = make.Pair()
    world.up()
    (sa,) = world.left.established()
    world.left.down("paris", "lan")
    world.refuses = lambda site, send: errno.ENETUNREACH
    world.left.up()
    world.run(60.0)
    assert [each.cky_i for each in world.left.established()] == [sa.cky_i]
    (failed,) = world.left.logged("child-failed")
    assert failed["reason"].startswith("cannot send Quick Mode 1/3")
    world.refuses = lambda site, send: 0
    assert world.up().outcome is Outcome.DONE
    assert [each.cky_i for each in world.left.established()] == [sa.cky_i]


@given(st.binary(max_size=64), st.integers(1, 4095), st.sampled_from([500, 4500]))
def test_whatever_could_not_be_sent_harms_nothing(make, data, error, port):
    world = make.Pair()
    send = make.Send(make.Endpoint(make.LEFT, port), make.Endpoint(make.RIGHT, port), data)
    world.left.engine.unsent(send, error, world.now)
    assert world.left.errors == []
