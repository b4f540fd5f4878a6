"""A captured worker tries to have a peer agree to something else than what keys are derived for (RFC 2409 section 5.5).

The peer's keyd is honest. What it agrees to is read from its own redemption.
"""

import ipaddress
from dataclasses import replace

import pytest
from counterpart import CHILD_SUITE, Peer, Session
from weakened import ANY_TRAFFIC, FREE, UNREAD

from keyd import agreement
from privsep.algorithms import ChildSuite
from privsep.payloads import split_chain
from privsep.schema import keyd as ops
from privsep.schema.keyd import Refusal
from privsep.schema.keymat import Redeemed, RedeemedOutbound, RedeemInbound, RedeemOutbound
from privsep.types import TrafficSelector


@pytest.fixture
def careless(monkeypatch):
    """The peer does not mind its own SPI in an answer, as strongSwan 5.9 does not."""
    accepted_child = agreement.accepted_child

    def with_any_spi(offer, answer):
        proposals = tuple(replace(each, spi=bytes(4)) for each in offer.proposals)
        return accepted_child(replace(offer, proposals=proposals), answer)

    monkeypatch.setattr(agreement, "accepted_child", with_any_spi)


def what_the_peer_has(s, first, second) -> tuple[Redeemed, RedeemedOutbound]:
    s.peer.do(ops.QuickFinish(quick=first.quick, ciphertext=second))
    third = s.peer.do(ops.QuickAccept(quick=first.quick))
    halves = (RedeemInbound(keymat=third.keymat), RedeemOutbound(keymat=third.keymat))
    return tuple(map(s.peer.service.redeem, halves))


def has_one_key(receives: Redeemed, sends: RedeemedOutbound) -> bool:
    return receives.encryption_in == sends.encryption_out


def test_it_cannot_have_the_peer_use_one_key_for_both_directions(shipped, without, record, careless):
    """Equal SPIs in message 2: with a counter for an IV the peer would repeat nonces under one key."""

    def attack(worker):
        s = Session(worker, Peer())
        s.respond()
        quick, first = s.quick_opened()
        return s, first, worker.keyd(s.quick_answer(quick, s.spi_out))

    assert attack(shipped)[2] == ops.Refused(why=Refusal.BAD_PROPOSAL)
    s, first, keyed = attack(without(FREE))
    assert has_one_key(*what_the_peer_has(s, first, keyed.ciphertext))
    record("keyd: the SPI of the answer is that of KEYMAT and not the peer's", "off: one key in both directions")


def test_it_cannot_have_another_spi_sealed_than_the_one_that_keys_are_derived_from(shipped, without, record, careless):
    """It names one SPI to keyd and wants the peer to see another: there is no word for that any more."""

    def attack(worker):
        s = Session(worker, Peer())
        s.respond()
        quick, first = s.quick_opened()
        keyed = worker.keyd(s.quick_answer(quick, 0x1001))
        return s.spi_out, *what_the_peer_has(s, first, keyed.ciphertext)

    spi, receives, sends = attack(shipped)
    assert (receives.spi_in, receives.spi_out, has_one_key(receives, sends)) == (spi, 0x1001, False)
    spi, receives, sends = attack(without(UNREAD))
    assert (receives.spi_in, receives.spi_out, has_one_key(receives, sends)) == (spi, spi, True)
    record("keyd composes the SA payload", "composed by the worker: one key in both directions")


WIDE = {
    "the peer's": {"remote_ts": "0.0.0.0/0"},
    "ours": {"local_ts": "10.0.0.0/8"},
    "of the other family": {"local_ts": "fd01::/64", "remote_ts": "fd04::/64"},
}


@pytest.mark.parametrize("whose", WIDE)
def test_it_cannot_have_the_peer_agree_to_selectors_outside_the_child(shipped, without, record, whose):
    asked = {side: TrafficSelector(ipaddress.ip_network(text)) for side, text in WIDE[whose].items()}

    def attack(worker):
        s = Session(worker, Peer())
        s.initiate()
        return s, worker.keyd(s.quick_offer(s.ours, **asked))

    assert attack(shipped)[1] == ops.Refused(why=Refusal.BAD_SELECTORS)
    s, offered = attack(without(ANY_TRAFFIC))
    theirs = s.peer.do(ops.QuickOpen(ike=s.theirs, message_id=offered.message_id, ciphertext=offered.ciphertext))
    bodies = [body for _, body in split_chain(theirs.next_payload, theirs.payloads)]
    packed = next(iter(asked.values())).network.network_address.packed
    assert any(packed in body for body in bodies[-2:])
    record("keyd: selectors inside the child's", "off: sealed")


CHOICES = {
    "a suite that nobody proposes": ({"suite": ChildSuite.parse("aes128-sha1-modp2048")}, Refusal.BAD_PROPOSAL),
    "no PFS": ({"suite": CHILD_SUITE.without_group()}, Refusal.BAD_PROPOSAL),
    "UDP that the peer does not offer": ({"encap": True}, Refusal.BAD_PROPOSAL),
    "compression that is not configured": ({"cpi_in": 300}, Refusal.BAD_PROPOSAL),
}


@pytest.mark.parametrize("name", CHOICES)
def test_it_cannot_answer_with_what_the_peer_does_not_offer_or_the_child_does_not_have(shipped, record, name):
    changes, why = CHOICES[name]
    s = Session(shipped, Peer())
    s.respond()
    quick, _ = s.quick_opened()
    assert shipped.keyd(s.quick_answer(quick, 0x1001, **changes)) == ops.Refused(why=why)
    assert isinstance(shipped.keyd(s.quick_answer(quick, 0x1001)), ops.QuickKeyed)
    record(f"keyd reads the peer's offer ({why.name})", "what is offered and configured: answered")


COMPOSE = """
frame = msgpack.unpackb(ops.REQUESTS.encode(ops.QuickOffer(
    ike=bytes.fromhex(ike), child="net", group=algorithms.Group.MODP_2048, encap=False, spi_in=300, cpi_in=None,
    local_ts=types.TrafficSelector(ipaddress.ip_network("10.1.0.0/24")),
    remote_ts=types.TrafficSelector(ipaddress.ip_network("10.4.0.0/24")), originals=(),
), 2**41))
me.raw_keyd(msgpack.packb([*frame, *([bytes.fromhex(more)] if more else [])]))
result = type(me.wait(2**41, me._turn)).__name__
"""


def test_it_has_no_word_for_octets_of_a_quick_mode(shipped, record):
    """An SA payload of its own, as there was a field for."""
    s = Session(shipped, Peer())
    s.initiate()
    assert shipped.world.attack(COMPOSE, ike=s.ours.hex(), more="") == "QuickOffered"
    s = Session(shipped, Peer())
    s.initiate()
    mark = shipped.world.mark()
    shipped.world.attempt(COMPOSE, ike=s.ours.hex(), more="00000001" * 4)
    assert shipped.world.logged(mark, r"epoch-ends .*wrong number of fields"), shipped.world.log_since(mark)
    shipped.world.recover()
    record("the channel's table of operations and fields", "the frame without the field: sealed")
