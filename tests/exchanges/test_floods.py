"""Floods of strangers: what they make is bounded in octets, and a real peer gets through at once.

"At once" is the first attempt: whoever needs a retransmission needs a second at least (`worker.retransmit.BACK_OFF`).
"""

import dataclasses
import ipaddress
import struct
import tracemalloc
from itertools import count

import pytest
from spoof import padded

from privsep.schema.install import Outcome
from privsep.types import Endpoint
from worker.demux import (
    MAX_UNAUTHENTICATED,
    MAX_UNAUTHENTICATED_OCTETS,
    MAX_UNAUTHENTICATED_PER_ORIGIN,
    UNAUTHENTICATED_OCTETS,
)
from worker.exchange import Exchange
from worker.half_open import GENERATION_SECONDS, LARGE_OCTETS, LIFETIME, ORDINARY_OCTETS
from worker.retransmit import LINGER, MAX_RESENDS, RESEND_INTERVAL

STEP = 0.01
ROUND_TRIP = 0.3
AT_ONCE = 4.5 * ROUND_TRIP + 0.3
"""Nine messages, each half a round trip, and some slack; less than a round trip and a retransmission."""


def half_open(site):
    return site.engine._context.half_open


def sas(site):
    return site.engine._context.sas


def first_message(world):
    """Message 1 as `left` sends it, without its cookie; and where it goes."""
    world.left.up()
    first = world.left.sent[0]
    world.left.down()
    return first.data[8:], first.remote


def with_vendor_ids(body, *identifiers):
    """A message without its cookie, with these vendor IDs behind its payloads."""
    message = bytearray(body)
    for identifier in identifiers:
        offset = 20
        while message[offset]:
            offset += int.from_bytes(message[offset + 2 : offset + 4], "big")
        message[offset] = 13
        message += struct.pack(">BBH", 0, 0, 4 + len(identifier)) + identifier
    message[16:20] = struct.pack(">I", 8 + len(message))
    return bytes(message)


class Flood:
    """Spoofed first messages to `right`, so many a second, for as long as the world runs."""

    def __init__(self, world, per_second, *, source, body=None):
        template, self.target = first_message(world)
        self.world, self.each, self.source = world, int(per_second * STEP), source
        self.body = body or (lambda number: template)
        self.template = template
        self.numbers = count(1)
        self._step()

    def _step(self):
        for _ in range(self.each):
            self.send()
        self.world.later(STEP, self._step)

    def send(self):
        number = next(self.numbers)
        message = struct.pack(">II", 0xABCDEF01, number) + self.body(number)
        engine = self.world.right.engine
        engine.datagram(message, self.target, self.source(number), self.world.now)
        engine.take_effects()


def anybody(make, **changes):
    ours = make.connection(**changes)
    return make.Pair(ours, dataclasses.replace(make.mirrored(ours), remote=make.RemoteAny()))


def far(world):
    """The real peer is a long way off."""
    world.fate = lambda site, send: [ROUND_TRIP / 2]
    return world


def handshakes(world, number):
    """How many of that many succeed at once."""
    succeeded = 0
    for _ in range(number):
        order = world.left.up()
        if world.run(AT_ONCE, lambda order=order: world.left.outcome(order) is not None):
            succeeded += world.left.outcome(order).outcome is Outcome.DONE
        world.left.down()
        world.run(1.0)
    return succeeded


def configured(make):
    return lambda number: Endpoint(make.LEFT, 1 + number % 65535)


def random_sources(number):
    return Endpoint(ipaddress.ip_address(0x0A000000 + number * 2654435761 % (1 << 24)), 500)


def test_spoofing_a_configured_peer_a_thousand_times_a_second_denies_it_nothing(make):
    """0 of 8 succeeded where 256 first messages of one address were kept: it took a quarter of a second."""
    world = far(make.Pair())
    Flood(world, 1000, source=configured(make))
    world.run(2.0)
    assert handshakes(world, 8) == 8
    assert half_open(world.right).octets <= ORDINARY_OCTETS


def test_five_thousand_random_sources_a_second_deny_nobody_anything(make):
    world = far(anybody(make))
    Flood(world, 5000, source=random_sources)
    world.run(6.0)
    assert handshakes(world, 3) == 3
    assert half_open(world.right).octets <= ORDINARY_OCTETS


def test_messages_that_all_differ_deny_nobody_anything(make):
    """Each is judged for itself, and kept with what it says."""
    world = far(make.Pair())
    flood = Flood(world, 1000, source=configured(make))
    flood.body = lambda number: with_vendor_ids(flood.template, number.to_bytes(8, "big"))
    world.run(2.0)
    assert handshakes(world, 3) == 3
    assert half_open(world.right).octets <= ORDINARY_OCTETS


def test_large_messages_push_out_large_ones_only(make):
    world = far(make.Pair())
    flood = Flood(world, 500, source=configured(make))
    flood.body = lambda number: padded(flood.template, 14000, number)
    world.run(5.0)
    table = half_open(world.right)
    assert len(table) > 200
    assert table._large.octets > LARGE_OCTETS // 2
    assert handshakes(world, 3) == 3
    assert table._large.octets <= LARGE_OCTETS
    assert table._ordinary.octets < ORDINARY_OCTETS // 100


@pytest.mark.parametrize("octets", [0, 1900, 14000])
def test_the_memory_of_a_flood_is_bounded_and_given_back(make, octets):
    world = make.Pair()
    flood = Flood(world, 0, source=configured(make))
    world.run(0.0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range({0: 42_000, 1900: 5000, 14000: 350}[octets]):
            flood.body = lambda number: padded(flood.template, octets, number) if octets else flood.template
            flood.send()
        table = half_open(world.right)
        kept, limit = tracemalloc.get_traced_memory()[0] - before, ORDINARY_OCTETS + LARGE_OCTETS
        assert 0.75 * table.octets < kept < 1.25 * table.octets, "what is counted is what is there"
        assert table.octets <= limit
        assert max(table._ordinary.octets / ORDINARY_OCTETS, table._large.octets / LARGE_OCTETS) > 0.8, "it is used"
        world._queue.clear()
        world.run(LIFETIME + 2 * GENERATION_SECONDS)
        assert len(table) == table.octets == 0
        assert tracemalloc.get_traced_memory()[0] - before < limit / 20
        assert world.right.engine.next_deadline() is None
    finally:
        tracemalloc.stop()


def test_a_first_message_may_have_as_many_transforms_as_an_octet_counts_and_no_more_octets(make):
    world = make.Pair()
    flood = Flood(world, 0, source=configured(make))
    flood.body = lambda number: padded(flood.template, 18000, number)
    flood.send()
    assert len(half_open(world.right)) == 0
    flood.body = lambda number: padded(flood.template, 14000, number)
    flood.send()
    assert len(half_open(world.right)) == 1
    assert 255 * 36 < 14000


def test_before_our_cookie_comes_back_there_is_neither_sa_nor_exchange_nor_timer_for_it(make):
    world = make.Pair()
    world.fate = lambda site, send: [make.LATENCY] if site is world.left else []
    world.left.up()
    timers = len(world.right.engine._context.timers._heap)
    world.run(0.5)
    assert len(half_open(world.right)) == 1
    assert len(sas(world.right)) == 0
    assert world.right.keyd_requests == []
    assert len(world.right.engine._context.timers._heap) <= timers + 1
    with pytest.raises(ValueError, match="is not in list"):
        [type(each) for each in world.right.engine._context.outbox].index(Exchange)


def opened(make, world=None):
    """Message 1 has been answered, and message 3 not sent: (world, message 1, message 2, message 3)."""
    world = world or make.Pair()
    held = []
    world.fate = lambda site, send: held.append(send) or [] if send.data[16] == 4 else [make.LATENCY]
    world.left.up()
    world.run(0.5)
    return world, world.left.sent[0], world.right.sent[0], held[0]


def deliver(world, data, local, remote):
    """What `right` answers to a datagram."""
    before = len(world.right.sent)
    world.right.engine.datagram(data, local, remote, world.now)
    world.right.carry_out()
    return [send.data for send in world.right.sent[before:]]


def test_a_duplicate_of_message_1_is_answered_with_the_same_message_2_and_rarely_rfc2408_5_1(make):
    world, first, second, _ = opened(make)
    ends = first.remote, first.local
    assert deliver(world, first.data, *ends) == [second.data]
    assert deliver(world, first.data, *ends) == [], "just answered"
    answers = 1
    for _ in range(2 * MAX_RESENDS):
        world.now += RESEND_INTERVAL
        answers += len(deliver(world, first.data, *ends))
    assert answers == MAX_RESENDS
    assert len(half_open(world.right)) == 1


def test_another_message_with_the_cookie_and_the_sender_of_one_before_changes_nothing(make):
    world, first, second, third = opened(make)
    world.now += 1.0
    other = first.data[:8] + with_vendor_ids(first.data[8:], b"something else")
    assert deliver(world, other, first.remote, first.local) == []
    assert len(half_open(world.right)) == 1
    deliver(world, third.data, third.remote, third.local)
    world.run(0.1)
    assert world.right.sent[-1].data[:16] == second.data[:16]
    assert world.right.sent[-1].data[16] == 4, "message 4"


@pytest.mark.parametrize("source", [("198.51.100.7", 500), ("192.0.2.1", 501)])
def test_our_cookie_is_worth_nothing_from_another_end_rfc2408_2_5_3(make, source):
    world, _, _, third = opened(make)
    elsewhere = Endpoint(ipaddress.ip_address(source[0]), source[1])
    assert deliver(world, third.data, third.remote, elsewhere) == []
    assert world.right.keyd_requests == []
    assert len(sas(world.right)) == 0
    deliver(world, third.data, third.remote, third.local)
    assert len(sas(world.right)) == 1


def test_message_3_that_comes_when_its_record_is_gone_is_dropped(make):
    world, _, _, third = opened(make)
    world.now += LIFETIME + 2 * GENERATION_SECONDS
    world.right.engine.tick(world.now)
    assert len(half_open(world.right)) == 0
    assert deliver(world, third.data, third.remote, third.local) == []
    assert world.right.keyd_requests == []
    assert world.right.errors == []


def test_a_record_serves_a_whole_lifetime(make):
    world, _, _, third = opened(make)
    world.now += LIFETIME - 1.0
    world.right.engine.tick(world.now)
    deliver(world, third.data, third.remote, third.local)
    world.run(0.1)
    assert world.right.sent[-1].data[16] == 4


def strangers(make, number, source, monkeypatch=None):
    """So many strangers that send message 3 and nothing more; how many SAs there are at most."""
    world, first, _, third = opened(make, anybody(make))
    most = 0
    for each in range(number):
        cky_i, remote = struct.pack(">II", 0xABCDEF01, each), source(each)
        (second,) = deliver(world, cky_i + first.data[8:], first.remote, remote)
        deliver(world, second[:16] + third.data[16:], first.remote, remote)
        world.run(0.0)
        most = max(most, len(sas(world.right)))
    return world, most


def test_strangers_that_prove_their_address_and_nothing_more_are_bounded(make):
    world, most = strangers(
        make, MAX_UNAUTHENTICATED + 50, lambda n: Endpoint(ipaddress.ip_address(0x0A000000 + n), 500)
    )
    assert most == MAX_UNAUTHENTICATED
    assert MAX_UNAUTHENTICATED * UNAUTHENTICATED_OCTETS <= MAX_UNAUTHENTICATED_OCTETS
    # those that had to go are wiped in keyd, and a real peer gets in
    world.run(0.1)
    assert len(world.right.keyd._registry) == MAX_UNAUTHENTICATED
    world.fate = lambda site, send: [make.LATENCY]
    world.left.down()
    order = world.left.up()
    world.run(2.0)
    assert world.left.outcome(order).outcome is Outcome.DONE
    world.run(100.0)
    assert len(sas(world.right)) == 1, "they time out"


def test_one_stranger_does_not_take_the_place_of_others(make):
    _, most = strangers(
        make, MAX_UNAUTHENTICATED_PER_ORIGIN + 20, lambda n: Endpoint(ipaddress.ip_address("198.51.100.1"), 1 + n)
    )
    assert most == MAX_UNAUTHENTICATED_PER_ORIGIN


def test_an_sa_of_a_stranger_takes_what_is_counted_for_it(make):
    world, first, _, third = opened(make, anybody(make))
    number = 200

    def come(each):
        cky_i, remote = struct.pack(">II", 0xABCDEF01, each), Endpoint(ipaddress.ip_address(0x0A000000 + each), 500)
        (second,) = deliver(world, cky_i + first.data[8:], first.remote, remote)
        world.right.engine.datagram(second[:16] + third.data[16:], first.remote, remote, world.now)
        (ask,) = world.right.engine.take_effects()
        world.right.engine.keyd_reply(ask.sequence, world.right.keyd.handle(ask.request), world.now)
        world.right.engine.take_effects()

    come(number)
    world.right.sent.clear()
    tracemalloc.start()
    try:
        before = worker_octets()
        for each in range(number):
            come(each)
        world.right.sent.clear()
        half_open(world.right).__init__(lambda: world.now, world.right.engine._context.after, b"")
        assert 0.5 * UNAUTHENTICATED_OCTETS < (worker_octets() - before) / number < UNAUTHENTICATED_OCTETS
    finally:
        tracemalloc.stop()


def worker_octets():
    """What code of the worker has allocated; keyd is in this process too."""
    by_file = [(each.traceback[0].filename, each.size) for each in tracemalloc.take_snapshot().statistics("filename")]
    return sum(size for name, size in by_file if "/worker/" in name or "/privsep/" in name)


def test_messages_that_wait_for_keyd_are_few_and_short(make):
    world, _, _, third = opened(make)
    world.right.keyd_delay = 1000.0
    deliver(world, third.data, third.remote, third.local)
    (sa,) = sas(world.right).all()
    for length in (*range(100, 110), *range(50_000, 50_010)):
        data = third.data[:24] + struct.pack(">I", length) + bytes(length - 28)
        deliver(world, data, third.remote, third.local)
    waiting = sum(len(each.data) for each in sa.exchanges[0]._inbox)
    assert 0 < waiting <= 4 * 2048


def test_a_finished_exchange_answers_duplicates_for_a_while_and_then_leaves(make):
    """RFC 2408 section 5.1: the peer may not have got our last message."""
    world = make.Pair()
    world.up()
    (sa,) = sas(world.right).all()
    fifth = next(send for send in world.left.sent if send.data[18] == 2 and send.data[19] & 1)
    sixth = next(send for send in world.right.sent if send.data[18] == 2 and send.data[19] & 1)
    world.run(LINGER / 2)
    assert deliver(world, fifth.data, fifth.remote, fifth.local) == [sixth.data]
    world.run(LINGER / 2 + 1.0)
    assert sa.exchanges == {}
    assert deliver(world, fifth.data, fifth.remote, fifth.local) == []


@pytest.mark.parametrize("number", [1, 2])
def test_what_an_initiator_waits_for_comes_from_where_it_asked_rfc2408_2_5_3(make, number):
    """Message 2 and message 4 are not authenticated; who does not see ours cannot answer them from elsewhere."""
    world = make.Pair()
    transmit, seen = world.transmit, []

    def transmitting(site, send):
        if site is world.right:
            seen.append(send)
            if len(seen) == number:
                cookies = send.data[:8] + b"\x07" * 8 if number == 1 else send.data[:16]
                forged = cookies + send.data[16:-1] + bytes((send.data[-1] ^ 1,))
                if number == 1:
                    forged = cookies + send.data[16:]
                elsewhere = Endpoint(ipaddress.ip_address("198.51.100.9"), 500)
                world.left.engine.datagram(forged, send.remote, elsewhere, world.now)
                world.left.carry_out()
        transmit(site, send)

    world.transmit = transmitting
    world.up()
    assert len(world.left.established()) == 1
    (sa,) = sas(world.left).all()
    assert sa.cky_r != b"\x07" * 8
    world.settled()


def test_message_5_without_nat_comes_from_where_message_3_came_from(make):
    world = make.Pair()
    held = []
    world.fate = lambda site, send: held.append(send) or [] if send.data[19] & 1 else [make.LATENCY]
    world.left.up()
    world.run(0.5)
    asked = len(world.right.keyd_requests)
    fifth = held[0]
    deliver(world, fifth.data, fifth.remote, Endpoint(ipaddress.ip_address("198.51.100.9"), 500))
    world.run(0.0)
    assert len(world.right.keyd_requests) == asked
    assert len(world.right.established()) == 0
    world.fate = lambda site, send: [make.LATENCY]
    deliver(world, fifth.data, fifth.remote, fifth.local)
    world.run(1.0)
    assert len(world.right.established()) == 1
