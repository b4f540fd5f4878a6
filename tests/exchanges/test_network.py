"""What the network does to exchanges: loss, duplication, reordering, silence (RFC 2408 section 5.1)."""

import pytest

from privsep.config.model import Start
from privsep.schema.install import Outcome

MESSAGES = range(9)
"""Main Mode's six and Quick Mode's three."""


class Lossy:
    """Loses, doubles and delays at random."""

    def __init__(self, world, loss: float, duplication: float = 0.0, jitter: float = 0.0) -> None:
        self.world, self.loss, self.duplication, self.jitter = world, loss, duplication, jitter

    def __call__(self, site, send) -> list[float]:
        rng = self.world.rng
        if rng.random() < self.loss:
            return []
        copies = 2 if rng.random() < self.duplication else 1
        return [0.01 + rng.random() * self.jitter for _ in range(copies)]


@pytest.mark.parametrize("lost", MESSAGES)
def test_the_loss_of_any_one_message_is_made_good(make, lost):
    world = make.Pair()
    seen = []

    def fate(site, send):
        seen.append(send)
        return [] if len(seen) == lost + 1 else [make.LATENCY]

    world.fate = fate
    assert world.up().outcome is Outcome.DONE
    world.run(5.0)
    assert world.mirror() == 1
    assert len(world.left.pairs) == len(world.right.pairs) == 1
    world.settled()


@pytest.mark.parametrize("doubled", MESSAGES)
@pytest.mark.parametrize("delay", [0.0, 0.3, 5.0])
def test_a_duplicate_of_any_message_changes_nothing(make, doubled, delay):
    world = make.Pair()
    seen = []

    def fate(site, send):
        seen.append(send)
        return [make.LATENCY, make.LATENCY + delay] if len(seen) == doubled + 1 else [make.LATENCY]

    world.fate = fate
    assert world.up().outcome is Outcome.DONE
    world.run(20.0)
    assert world.mirror() == len(world.left.pairs) == len(world.right.pairs) == 1
    assert len(world.left.established()) == len(world.right.established()) == 1
    world.settled()


@pytest.mark.parametrize("seed", range(25))
def test_a_tunnel_comes_up_over_a_network_that_loses_a_third_and_mixes_the_rest(make, seed):
    world = make.Pair(make.connection(children=(make.child(start=Start.UP),)), seed=seed)
    world.fate = Lossy(world, loss=0.3, duplication=0.2, jitter=0.5)
    assert world.run(900.0, lambda: world.left.pairs and world.mirror() >= 1)
    world.fate = lambda site, send: [make.LATENCY]
    world.run(100.0)
    assert world.mirror() >= 1
    world.settled()


def test_a_silent_peer_is_given_up_and_the_operator_told(make):
    world = make.Pair()
    world.fate = lambda site, send: []
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert "192.0.2.2 does not answer Main Mode 1/6" in done.text
    assert len(world.left.sent) == 6
    assert world.left.status() == []
    world.settled()


def test_a_responder_of_main_mode_sends_one_datagram_for_one_first_message_cve_2016_5361(make):
    world = make.Pair()
    world.fate = lambda site, send: [make.LATENCY] if site is world.left and len(world.left.sent) == 1 else []
    world.left.up()
    world.run(200.0)
    assert len(world.right.sent) == 1
    first, answer = world.left.sent[0], world.right.sent[0]
    assert len(answer.data) <= len(first.data)
    assert len(world.right.engine._context.sas) == 0


def test_a_peer_that_lost_the_ike_sa_gets_a_new_one(make):
    world = make.Pair(
        make.connection(children=(make.child("lan"), make.child("dmz", remote_ts=make.selectors("10.3.0.0/16"))))
    )
    world.left.up(child="lan")
    world.run(5.0)
    (old,) = world.left.established()
    # the peer comes back without its memory
    make.restart(world, "right")
    sequence = world.left.up(child="dmz")
    assert world.run(120.0, lambda: world.left.outcome(sequence) is not None)
    assert world.left.outcome(sequence).outcome is Outcome.DONE
    (new,) = world.left.established()
    assert new.cky_i != old.cky_i
    world.settled()


def test_start_up_is_tried_again_with_back_off_and_shown_until_the_peer_is_there(make):
    world = make.Pair(make.connection(children=(make.child(start=Start.UP),)))
    world.fate = lambda site, send: []
    world.run(300.0)
    (status,) = world.left.status()
    assert status.state == "negotiating" or "next attempt in" in status.state
    attempts = {send.data[:8] for send in world.left.sent}
    assert 3 <= len(attempts) <= 8
    world.fate = lambda site, send: [make.LATENCY]
    assert world.run(300.0, lambda: len(world.left.pairs) == 1)
    world.settled()
