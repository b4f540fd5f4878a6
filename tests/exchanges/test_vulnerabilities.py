"""Classes of vulnerabilities that other IKE daemons had, if no other test is about them (docs/vulnerabilities.md)."""

import dataclasses
import gc
import itertools
import struct
import sys

import pytest
from exchange_tools import sealed

from keyd.agreement import Offer
from privsep.algorithms import ChildSuite, IkeSuite
from privsep.iana import ExchangeType, IdType, NotifyType, PayloadType, ProtocolId
from privsep.isakmp.association import encode_association
from privsep.isakmp.payloads import Delete, Notification
from privsep.schema import install, keyd
from privsep.schema.install import Outcome
from privsep.types import Endpoint, Identity

PHASE_1 = (keyd.IkeOffer, keyd.IkeAnswer, keyd.IkeAgree, keyd.AuthSeal, keyd.AuthOpen)
KEEPALIVE = b"\xff"
ENCRYPTED = 1


def is_main_mode(send):
    return send.data[18] == ExchangeType.MAIN_MODE


def deliver(world, site, send, data):
    """As if it came from the sender of that datagram."""
    site.engine.datagram(data, send.remote, send.local, world.now)
    site.carry_out()


def first_message(world):
    """Message 1 as left sends it."""
    fate, world.fate = world.fate, lambda site, send: []
    world.left.up()
    first = world.left.sent[0]
    world.left.down()
    world.fate = fate
    return first


# what is refused or ignored leaves nothing behind


def test_refused_proposals_garbage_and_keepalives_leave_no_memory_behind(make):
    """Class 12 (CVE-2008-3651, CVE-2009-1632): a leak for each bad proposal or keepalive."""
    ours = make.connection()
    world = make.Pair(ours, dataclasses.replace(make.mirrored(ours), suites=(IkeSuite.parse("aes256-sha512-ecp384"),)))
    first = first_message(world)
    right = world.right
    numbers = itertools.count(1)

    def round_of_each() -> int:
        for number in itertools.islice(numbers, 400):
            cookie = struct.pack(">II", 0xABCDEF01, number)
            deliver(world, right, first, cookie + first.data[8:])
            deliver(world, right, first, cookie + first.data[8:60])
            right.engine.datagram(KEEPALIVE, Endpoint(make.RIGHT, 4500), Endpoint(make.LEFT, 4500), world.now)
            # a Quick Mode of an SA that nobody has
            deliver(
                world, right, first, cookie + cookie + bytes((8, 0x10, 32, 1)) + struct.pack(">II", 7, 60) + bytes(32)
            )
            world.run(1.0)
        world.run(600.0)
        assert right.errors == []
        for grown in (right.sent, right.log, right.keyd_requests, world.left.sent, world.left.log):
            grown.clear()
        gc.collect()
        return sys.getallocatedblocks()

    # what is bounded fills first
    filled = [round_of_each() for _ in range(6)][-1]
    assert [round_of_each() for _ in range(6)][-1] - filled < 400, "9600 datagrams later"
    assert len(right.engine._context.sas) == len(right.engine._context.half_open) == 0


def test_a_question_for_life_on_an_ike_sa_that_has_ended_or_ends_meanwhile_is_not_answered(make):
    """Class 13 (CVE-2009-0790): R-U-THERE (RFC 3706 section 5.4) on an SA that is no more."""
    world = make.Pair()
    world.up()
    (sa,) = world.left.engine._context.sas.all()
    ask = [Notification(protocol=ProtocolId.ISAKMP, type=NotifyType.R_U_THERE, spi=sa.cky_i + sa.cky_r, data=bytes(4))]
    during, after = sealed(world, world.left, ask), sealed(world, world.left, ask)
    world.fate = lambda site, send: []
    world.right.keyd_delay = 5.0
    deliver(world, world.right, during, during.data)
    world.right.down()
    world.right.keyd_delay = 0.0
    world.run(60.0)
    world.right.sent.clear()
    deliver(world, world.right, after, after.data)
    world.run(60.0)
    assert [send for send in world.right.sent if not is_main_mode(send)] == []
    assert world.right.errors == []
    assert len(world.right.engine._context.sas) == 0


# before the peer is authenticated


@pytest.mark.parametrize("reached", range(1, 6))
def test_before_a_peer_is_authenticated_no_exchange_but_main_mode_reaches_keyd_or_changes_anything(make, reached):
    """Class 24 (CVE-2014-2338): every exchange type, in every state of Main Mode, at both ends."""
    world = make.Pair()
    seen = itertools.count(1)
    asked: list[tuple[object, int]] = []

    def forge_then_pass(site, send):
        if is_main_mode(send) and next(seen) == reached:
            for target in (world.left, world.right):
                back = target is site
                ends = (send.local, send.remote) if back else (send.remote, send.local)
                before = len(target.keyd_requests)
                for exchange, flags, number in itertools.product(range(256), (0, ENCRYPTED), (0, 7)):
                    if exchange == ExchangeType.MAIN_MODE:
                        continue
                    head = send.data[:16] + bytes((PayloadType.HASH, 0x10, exchange, flags))
                    target.engine.datagram(head + struct.pack(">II", number, 28 + 48) + bytes(48), *ends, world.now)
                asked.append((target, before))
                assert target.established() == []
                assert target.pairs == {}
        return [make.LATENCY]

    world.fate = forge_then_pass
    done = world.up()
    assert len(asked) == 2
    assert done.outcome is Outcome.DONE
    for site in (world.left, world.right):
        first_quick = next(n for n, each in enumerate(site.keyd_requests) if not isinstance(each, PHASE_1))
        assert type(site.keyd_requests[first_quick]).__name__.startswith("Quick")
    assert world.mirror() == len(world.left.pairs) == len(world.right.pairs) == 1
    world.settled()


def with_vendor_id(message, body):
    """The same message with one more payload at its end."""
    data, offset = bytearray(message), 28
    while data[offset]:
        offset += int.from_bytes(data[offset + 2 : offset + 4], "big")
    data[offset] = PayloadType.VENDOR_ID
    data += struct.pack(">BBH", 0, 0, 4 + len(body)) + body
    data[24:28] = struct.pack(">I", len(data))
    return bytes(data)


@pytest.mark.parametrize("agrees", [True, False], ids=["message 2", "a refusal"])
def test_an_answer_to_a_stranger_depends_on_nothing_that_was_not_understood(make, agrees):
    """Class 30 (CVE-2016-6415): what is answered has the cookies, the choice and what is ours; nothing is copied."""

    def answers(change):
        ours = make.connection()
        theirs = make.mirrored(ours)
        if not agrees:
            theirs = dataclasses.replace(theirs, suites=(IkeSuite.parse("aes256-sha512-ecp384"),))
        world = make.Pair(ours, theirs, seed=3)
        first = first_message(world)
        world.right.sent.clear()
        deliver(world, world.right, first, change(first.data))
        world.run(1.0)
        return [send.data for send in world.right.sent]

    plain = answers(lambda data: data)
    assert len(plain) == 1
    for marked in (b"\xaa" * 16, b"\xaa" * 600, bytes(range(256)) * 8):
        assert answers(lambda data, marked=marked: with_vendor_id(data, marked)) == plain
    # reserved octets of a payload's head; RFC 2408 section 3.2 has zero there
    assert answers(lambda data: data[:29] + b"\xaa" + data[30:]) in (plain, [])


def test_a_stranger_without_the_secret_learns_nothing_of_who_is_configured(make):
    """Class 35 (CVE-2018-5389): with a wrong secret, a right identity and a wrong one are answered alike."""

    def answers(local_id):
        ours = make.connection(local_id=Identity(IdType.FQDN, local_id))
        world = make.Pair(ours, make.mirrored(make.connection()), psks=(b"a guess", b"the secret"), seed=3)
        assert world.up().outcome is Outcome.FAILED
        codes = [code for _, code, _ in world.right.log]
        return [(len(send.data), send.data[16:20]) for send in world.right.sent], codes

    known, unknown = answers(b"gw1.example.org"), answers(b"gw9.example.org")
    assert known == unknown
    assert any(is_proof for is_proof in known[1] if is_proof == "authentication-failed")


# what comes after a rejection

REJECTED = {
    "an unknown DOI": lambda data: data[:32] + b"\0\0\0\x09" + data[36:],
    "an unknown situation": lambda data: data[:36] + b"\0\0\0\xff" + data[40:],
    "a proposal for ESP": lambda data: data[:45] + b"\x03" + data[46:],
    "no payload": lambda data: data[:16] + b"\0" + data[17:24] + struct.pack(">I", 28),
    "IKEv2": lambda data: data[:17] + b"\x20" + data[18:],
    "Aggressive Mode": lambda data: data[:18] + b"\x04" + data[19:],
    "a false length": lambda data: data[:24] + b"\xff\xff\xff\xff" + data[28:],
    "both cookies": lambda data: data[:8] + b"r" * 8 + data[16:],
}


@pytest.mark.parametrize("rejected", REJECTED.values(), ids=REJECTED)
def test_the_second_message_after_each_rejection_finds_nothing_and_harms_nothing(make, rejected):
    """Class 40 (CVE-2020-1763, CVE-2022-23094): a reply or a line of the log about an SA that does not exist."""
    world = make.Pair()
    first = first_message(world)
    world.run(60.0)
    for number in range(3):
        for data in (rejected(first.data), first.data[:8] + b"r" * 8 + first.data[16:], rejected(first.data)):
            deliver(world, world.right, first, data)
            clear_reply = data[:18] + bytes((ExchangeType.INFORMATIONAL, 0)) + struct.pack(">I", number) + data[24:]
            deliver(world, world.right, first, clear_reply)
    world.run(1.0)
    assert world.right.errors == []
    assert world.right.established() == []
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 1
    world.settled()


def test_an_spi_that_was_refused_may_come_again_and_is_then_taken(make):
    """Class 40 (CVE-2023-30570): an SPI that is used again after the SA was rejected."""
    children = (make.child("lan"), make.child("other", suites=(ChildSuite.parse("aes128-sha1"),)))
    ours = make.connection(children=children)
    theirs = make.mirrored(ours)
    refusing = dataclasses.replace(theirs.children[1], suites=(ChildSuite.parse("aes256-sha512"),))
    world = make.Pair(ours, dataclasses.replace(theirs, children=(theirs.children[0], refusing)))
    allocate, spi = world.left.monitor.answer, 0xC0FFEE01

    def answer(request):
        if isinstance(request, install.AllocateSpi):
            world.left.monitor.allocated[spi] = request
            return install.Allocated(spi=spi, cpi=None)
        return allocate(request)

    world.left.monitor.answer = answer
    for child, outcome in (("other", Outcome.FAILED), ("other", Outcome.FAILED), ("lan", Outcome.DONE)):
        order = world.left.up(child=child)
        world.run(120.0, lambda order=order: world.left.outcome(order) is not None)
        assert world.left.outcome(order).outcome is outcome, child
        world.run(5.0)
    assert list(world.left.pairs) == [spi]
    assert world.mirror() == len(world.right.pairs) == 1
    world.settled()


# a peer that is authenticated

V4, SUBNET4, RANGE4, V6, SUBNET6 = 1, 4, 7, 5, 6
"""Identity types of RFC 2407 section 4.6.2.1."""
INSIDE, OUTSIDE = bytes((10, 1, 0, 0, 255, 255, 0, 0)), bytes((10, 2, 0, 0, 255, 255, 0, 0))


def id_body(kind, data, protocol=0, port=0):
    return struct.pack(">BBH", kind, protocol, port) + data


CLIENT_IDS = {
    "two families": (id_body(SUBNET4, INSIDE), id_body(SUBNET6, bytes(32))),
    "an address of IPv6 with four octets": (id_body(V6, bytes(4)), id_body(SUBNET4, OUTSIDE)),
    "a subnet with a mask of holes": (
        id_body(SUBNET4, bytes((10, 1, 0, 0, 255, 0, 255, 0))),
        id_body(SUBNET4, OUTSIDE),
    ),
    "a range that ends before it begins": (
        id_body(RANGE4, bytes((10, 1, 9, 9, 10, 1, 0, 0))),
        id_body(SUBNET4, OUTSIDE),
    ),
    "a range that is no subnet": (id_body(RANGE4, bytes((10, 1, 0, 1, 10, 1, 0, 9))), id_body(SUBNET4, OUTSIDE)),
    "a name": (id_body(2, b"gw1.example.org"), id_body(SUBNET4, OUTSIDE)),
    "type 0": (id_body(0, INSIDE), id_body(SUBNET4, OUTSIDE)),
    "type 255": (id_body(255, INSIDE), id_body(255, OUTSIDE)),
    "nothing but a head": (id_body(SUBNET4, b""), id_body(SUBNET4, b"")),
    "no head": (b"", b""),
    "a port without a protocol": (id_body(SUBNET4, INSIDE, 0, 443), id_body(SUBNET4, OUTSIDE)),
    "one": (id_body(SUBNET4, INSIDE),),
    "three": (id_body(SUBNET4, INSIDE), id_body(SUBNET4, OUTSIDE), id_body(SUBNET4, OUTSIDE)),
}


@pytest.mark.parametrize("bodies", CLIENT_IDS.values(), ids=CLIENT_IDS)
def test_an_authenticated_peers_malformed_client_identities_are_refused_and_the_next_quick_mode_works(
    make, monkeypatch, bodies
):
    """Class 43 (CVE-2023-23009, CVE-2023-38710, CVE-2023-38711): its key does not make a peer careful."""
    world = make.Pair()
    ids = [(int(PayloadType.ID), body) for body in bodies]
    with monkeypatch.context() as patch:
        patch.setattr(Offer, "payloads", lambda self, _: (encode_association(self.sa), ids))
        assert world.up().outcome is Outcome.FAILED
    assert world.right.pairs == {}
    assert world.right.errors == []
    assert len(world.right.established()) == 1
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 1
    world.settled()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5, 255])
def test_an_authenticated_peers_deletes_of_any_protocol_count_and_size_end_no_more_than_they_name(make, protocol):
    """Class 43 (CVE-2023-38712): the same SPI twice, and again; SPIs that are nobody's, of sizes that do not fit."""
    world = make.Pair()
    world.up()
    (sa,) = world.right.engine._context.sas.all()
    (spi,) = world.left.pairs
    named = spi.to_bytes(4, "big")
    for spis in ((b"\0\0\0\1",) * 2, (b"\0" * 4, b"\xff" * 4), (b"x" * 16,) * 2, (b"",) * 3, (b"\1",) * 200):
        delete = sealed(world, world.left, [Delete(protocol=protocol, spis=spis)])
        deliver(world, world.right, delete, delete.data)
        world.run(1.0)
    assert len(world.right.pairs) == len(world.right.established()) == 1
    for _ in range(2):
        delete = sealed(world, world.left, [Delete(protocol=protocol, spis=(named, named))] * 2)
        deliver(world, world.right, delete, delete.data)
        world.run(1.0)
    assert len(world.right.pairs) == (protocol != ProtocolId.ESP)
    assert world.right.established()[0].cky_i == sa.cky_i
    assert world.right.errors == []


# out of order, too much, or with nothing configured


def test_a_gateway_without_the_secret_answers_nobody_and_one_that_got_it_works(make):
    """Class 44 (CVE-2024-2357): a connection whose pre-shared key is missing, before and after it is mended."""
    world = make.Pair()
    world.right.keyd._credentials.psk_for = lambda connection: None
    for _ in range(3):
        assert world.up().outcome is Outcome.FAILED
        world.run(60.0)
        assert len(world.right.engine._context.sas) == 0
        assert world.right.errors == []
    make.restart(world, "right")
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 1
    world.settled()


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 64, 1000, 14000])
@pytest.mark.parametrize("kind", [PayloadType.VENDOR_ID, 128, 255])
def test_any_number_of_payloads_that_nobody_knows_is_ignored_or_refused_at_bounded_cost(make, kind, count):
    """Class 44 (CVE-2026-12413): an assertion about how many payloads there are."""
    world = make.Pair()
    first = first_message(world)
    data, offset = bytearray(first.data), 28
    while data[offset]:
        offset += int.from_bytes(data[offset + 2 : offset + 4], "big")
    data[offset] = kind
    data += struct.pack(">BBH", kind, 0, 4) * (count - 1) + struct.pack(">BBH", 0, 0, 4)
    data[24:28] = struct.pack(">I", len(data))
    deliver(world, world.right, first, bytes(data))
    world.run(60.0)
    assert world.right.errors == []
    assert world.up().outcome is Outcome.DONE
    world.settled()


def test_messages_of_a_whole_negotiation_in_every_order_raise_nothing_and_install_nothing_that_was_not_agreed(make):
    """Class 44 (OpenBSD 7.8 errata 027): state by the order in which messages come."""
    recorded = make.Pair(seed=11)
    recorded.up()
    ours = [send for send in recorded.left.sent if send.data[18] in (ExchangeType.MAIN_MODE, ExchangeType.QUICK_MODE)]
    assert len(ours) == 5
    for order in itertools.permutations(ours):
        world = make.Pair(seed=11)
        for send in order:
            world.right.engine.datagram(send.data, send.remote, send.local, world.now)
            world.run(0.2)
        assert world.right.errors == []
        assert world.right.pairs == {}, "another life has other secrets"
