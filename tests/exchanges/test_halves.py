"""The inbound SA stands before the peer may use it, and what the monitor denies is told while nobody has a pair.

RFC 2409 section 5.5: the initiator may send after message 2, the responder after message 3.
"""

import pytest

from privsep.iana import ExchangeType
from privsep.schema.install import Denial, Outcome
from worker.codec.header import parse_header


def watching(world, look):
    """Have `look(site)` called for each Quick Mode message that leaves, before it does."""

    def fate(site, send):
        if parse_header(send.data).exchange == ExchangeType.QUICK_MODE:
            look(site)
        return [0.01]

    world.fate = fate


def test_each_end_receives_before_the_message_leaves_on_which_the_other_may_send(make):
    world, seen = make.Pair(), []
    watching(world, lambda site: seen.append((site.name, len(site.monitor.receiving), len(site.pairs))))
    assert world.up().outcome is Outcome.DONE
    # message 1; message 2, our inbound SA stands; message 3, both of the initiator's do
    assert seen == [("left", 0, 0), ("right", 1, 0), ("left", 0, 1)]
    assert world.mirror() == 1
    world.settled()


def test_a_rekeying_peer_never_sends_into_nothing(make):
    """The successor's inbound SA stands at both ends before either could send by it."""
    world = make.Pair()
    assert world.up().outcome is Outcome.DONE
    for _ in range(10):
        (old,) = (child for child in world.left.engine._context.children.values() if child.state.name == "INSTALLED")
        sent, received = [], []
        watching(
            world,
            lambda site, sent=sent, received=received: (
                sent.append(site.name),
                received.append(len(world.right.monitor.receiving) + len(world.right.pairs)),
            ),
        )
        before = len(world.right.pairs)
        world.left.engine._context.watcher._renewal.renew_child(old)
        world.left.carry_out()
        world.run(3.0)
        assert sent == ["left", "right", "left"]
        assert received[1] == before + 1
    world.settled()


TOLD = {
    Denial.SELECTORS: "INVALID_ID_INFORMATION",
    Denial.OVERLAP: "INVALID_ID_INFORMATION",
    Denial.QUOTA: "NO_PROPOSAL_CHOSEN",
    Denial.IDENTITY: "NO_PROPOSAL_CHOSEN",
}


@pytest.mark.parametrize("when", ["deny_early", "deny"])
@pytest.mark.parametrize("denial", TOLD)
def test_the_peer_of_a_denied_quick_mode_is_told_before_it_believes_in_a_pair_rfc2408_3_14_1(make, denial, when):
    world = make.Pair()
    setattr(world.right.monitor, when, denial)
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert TOLD[denial] in done.text
    assert (world.left.pairs, world.right.pairs) == ({}, {})
    (report,) = world.right.logged("quick-mode-failed")
    assert report["reason"] == f"the monitor refuses: {denial.value}"
    # message 2 never left, so there was no message 3
    assert len([each for each in world.left.keyd_requests if type(each).__name__ == "QuickAccept"]) == 0
    world.settled()


@pytest.mark.parametrize("denial", [Denial.OVERLAP, Denial.QUOTA])
def test_what_our_own_monitor_would_deny_is_not_begun(make, denial):
    world, sent = make.Pair(), []
    world.left.monitor.deny_early = denial
    watching(world, lambda site: sent.append(site.name))
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert f"the monitor refuses: {denial.value}" in done.text
    assert sent == []
    world.settled()


def test_what_our_own_monitor_denies_after_message_2_is_told_and_the_peer_has_no_pair(make):
    world, sent = make.Pair(), []
    world.left.monitor.deny = Denial.OVERLAP
    watching(world, lambda site: sent.append(site.name))
    assert world.up().outcome is Outcome.FAILED
    assert sent[:2] == ["left", "right"]
    assert "left" not in sent[2:]
    world.run(120.0)
    assert (world.left.pairs, world.right.pairs) == ({}, {})
    world.settled()


def test_a_message_3_that_never_comes_leaves_no_inbound_sa(make):
    world, quick = make.Pair(), []

    def fate(site, send):
        if parse_header(send.data).exchange == ExchangeType.QUICK_MODE and site.name == "left":
            quick.append(send.data)
        return [0.01] if len(set(quick)) < 2 or site.name == "right" else []

    world.fate = fate
    world.left.up()
    world.run(5.0)
    assert len(world.right.monitor.receiving) == 1
    world.run(300.0)
    assert world.right.monitor.receiving == {}
    assert world.right.pairs == {}
    assert world.right.monitor.allocated == {}


def test_an_outbound_sa_that_is_denied_takes_the_pair_along_and_the_peer_hears_of_it(make):
    world = make.Pair()
    world.right.monitor.deny_outbound = Denial.DATAPLANE
    world.up()
    world.run(5.0)
    assert (world.left.pairs, world.right.pairs) == ({}, {})
    world.settled()
