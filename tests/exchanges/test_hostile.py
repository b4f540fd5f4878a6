"""Bad input and floods: dropped or answered, at bounded cost, and no established SA changes."""

import dataclasses
import ipaddress
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyd import guesses
from privsep.algorithms import Group
from privsep.config.model import Start
from privsep.schema import keyd
from privsep.schema.install import Expired, Outcome
from privsep.types import Endpoint
from worker import agreeing
from worker.half_open import ORDINARY_OCTETS


def record(make):
    """All datagrams of a life, with their sender's side."""
    world = make.Pair()
    world.up()
    world.left.down()
    world.run(1.0)
    return [("left", send) for send in world.left.sent] + [("right", send) for send in world.right.sent]


def play(make, stop: int, mutate):
    """A life in which `mutate(data)` gives the forgeries that go along with each datagram, up to the given number."""
    world = make.Pair(seed=5)
    transmit, seen = world.transmit, []

    def transmitting(site, send):
        seen.append(send)
        if len(seen) <= stop:
            target = world.right if site is world.left else world.left
            for forged in mutate(send.data):
                target.engine.datagram(forged, send.remote, send.local, world.now)
        transmit(site, send)

    world.transmit = transmitting
    return world


MUTATIONS = {
    "truncated": lambda data: [data[:length] for length in range(len(data))],
    "truncated with the right length field": lambda data: [
        data[:24] + struct.pack(">I", length) + data[28:length] for length in range(28, len(data))
    ],
    "one bit": lambda data: [
        data[:index] + bytes((data[index] ^ (1 << (index * 5 % 8)),)) + data[index + 1 :] for index in range(len(data))
    ],
    "one octet 255": lambda data: [data[:index] + b"\xff" + data[index + 1 :] for index in range(len(data))],
    "one octet 0": lambda data: [data[:index] + b"\0" + data[index + 1 :] for index in range(len(data))],
    "longer": lambda data: [
        data + b"\0",
        data + data,
        data[:24] + struct.pack(">I", len(data) + 4) + data[28:] + b"\0\0\0\0",
    ],
    "every first payload": lambda data: [data[:16] + bytes((kind,)) + data[17:] for kind in range(256)],
    "every exchange": lambda data: [data[:18] + bytes((kind,)) + data[19:] for kind in range(256)],
    "every flag": lambda data: [data[:19] + bytes((flags,)) + data[20:] for flags in range(256)],
    "other cookies": lambda data: [
        bytes(8) + data[8:],
        data[:8] + bytes(8) + data[16:],
        data[:8] + b"x" * 8 + data[16:],
    ],
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_established_sas_survive_every_mutation_of_every_message(make, mutation):
    """CVE-2013-6466 and all its kin: each recorded message, mutated, at both ends of a tunnel that is up."""
    messages = record(make)
    world = make.Pair(seed=5)
    world.up()
    forgeries, asked = 0, len(world.right.keyd_requests)
    for side, send in messages:
        target = world.right if side == "left" else world.left
        (sa,) = target.engine._context.sas.all()[:1]
        for cookies in (send.data[:16], sa.cky_i + sa.cky_r):
            for forged in MUTATIONS[mutation](cookies + send.data[16:]):
                target.engine.datagram(forged, send.remote, send.local, world.now)
                forgeries += 1
                target.carry_out()
                world.run(0.0)
    assert forgeries > 30
    if mutation in ("one bit", "one octet 255"):
        assert len(world.right.keyd_requests) - asked > 300, "most of them reach keyd, which refuses"
    assert world.mirror() == len(world.left.pairs) == len(world.right.pairs) == 1
    assert len(world.left.established()) == len(world.right.established()) == 1
    world.run(400.0)
    assert len(world.left.engine._context.sas) == 1
    world.settled()


@pytest.mark.parametrize("mutation", ["truncated", "one octet 255", "every flag", "longer"])
def test_encrypted_messages_are_forged_beside_a_negotiation_in_vain(make, mutation):
    """In clear, whoever sees the cookies can end a Main Mode by a false KE. Behind encryption it takes as many false
    proofs as count for guesses, and in phase 2 nobody can."""

    def forge(data):
        forgeries = MUTATIONS[mutation](data)
        proof = [each for each in forgeries if each[18:20] == b"\x02\x01" and each != data]
        return forgeries if data[18] != 2 else proof[: guesses.MAX_WRONG - 1]

    world = play(make, 100, lambda data: forge(data) if data[19] & 1 else [])
    sequence = world.left.up()
    world.run(100.0)
    assert world.left.outcome(sequence).outcome.value == "done"
    assert world.mirror() == 1
    world.settled()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_no_forgery_in_any_state_raises(make, mutation):
    world = play(make, 100, MUTATIONS[mutation])
    world.left.up()
    world.run(300.0)
    world.settled()


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_datagram_raises_or_changes_an_established_sa(make, data):
    world = make.Pair(seed=5)
    world.up()
    (sa,) = world.right.engine._context.sas.all()
    header = st.builds(
        lambda cookies, first, exchange, flags, message_id, body: (
            cookies + bytes((first, 0x10, exchange, flags)) + struct.pack(">II", message_id, 28 + len(body)) + body
        ),
        st.sampled_from([sa.cky_i + sa.cky_r, sa.cky_i + bytes(8), b"c" * 8 + bytes(8), b"c" * 16]),
        st.integers(0, 255),
        st.sampled_from([1, 2, 4, 5, 32, 33, 99]),
        st.integers(0, 7),
        st.sampled_from([0, 1, 0xFFFFFFFF]),
        st.binary(max_size=200),
    )
    for forged in data.draw(st.lists(st.one_of(st.binary(max_size=100), header), max_size=20)):
        world.right.engine.datagram(forged, sa.local, sa.remote, world.now)
        world.right.carry_out()
    world.run(1.0)
    assert world.mirror() == 1
    assert len(world.right.established()) == 1
    assert world.right.errors == []


def test_a_flood_of_first_messages_has_bounded_memory_and_peers_still_renew(make):
    """CVE-2006-3906: 10^4 spoofed first messages."""
    world = make.Pair(make.connection(children=(make.child(start=Start.UP),)))
    world.run(10.0)
    first = next(send for send in world.left.sent if send.data[18] == 2)
    table, waiting = world.right.engine._context.sas, world.right.engine._context.half_open
    for number in range(10_000):
        source = Endpoint(ipaddress.ip_address(0xC0000201), 1024 + number % 50000)
        forged = struct.pack(">II", 0xABCDEF01, number) + first.data[8:]
        world.right.engine.datagram(forged, first.remote, source, world.now)
        world.right.engine.take_effects()
    assert len(table) == 1
    assert len(waiting) == 10_000
    assert waiting.octets < ORDINARY_OCTETS
    (old,) = world.left.pairs
    world.left.event(Expired(spi_in=old, hard=False))
    world.run(30.0)
    assert old not in world.left.pairs
    assert world.mirror() == 1
    world.run(60.0)
    assert len(table) == 1
    world.settled()


def test_a_flood_from_many_addresses_is_bounded_and_a_new_peer_gets_through(make):
    ours = make.connection()
    world = make.Pair(ours, dataclasses.replace(make.mirrored(ours), remote=make.RemoteAny()))
    world.left.up()
    (first,) = world.left.sent
    table = world.right.engine._context.sas
    for number in range(10_000):
        source = Endpoint(ipaddress.ip_address(0x0A000000 + number), 500)
        forged = struct.pack(">II", 0xABCDEF01, number) + first.data[8:]
        world.right.engine.datagram(forged, first.remote, source, world.now)
        world.right.engine.take_effects()
    assert len(table) == 0
    world.run(30.0)
    assert world.mirror() == 1
    assert world.right.errors == []


def test_notifications_to_strangers_are_few_and_short(make):
    world = make.Pair()
    world.left.up()
    (first,) = world.left.sent
    stranger = Endpoint(ipaddress.ip_address("203.0.113.5"), 500)
    answers = []
    for number in range(1000):
        forged = struct.pack(">II", 0xABCDEF01, number) + first.data[8:]
        world.right.engine.datagram(forged, first.remote, stranger, world.now)
        answers += world.right.engine.take_effects()
    assert len(answers) == 50
    assert all(len(answer.data) < len(first.data) for answer in answers)
    assert len(world.right.log) < 50
    assert len(world.right.engine._context.sas) == 0


def test_garbage_quick_modes_keep_a_bounded_number_of_requests_in_flight(make):
    world = make.Pair()
    world.up()
    (sa,) = world.right.engine._context.sas.all()
    world.right.keyd_delay = 1000.0
    before = len(world.right.keyd_requests)
    for number in range(1, 1000):
        forged = (
            sa.cky_i
            + sa.cky_r
            + bytes((8, 0x10, 32 if number % 2 else 5, 1))
            + struct.pack(">II", number, 28 + 64)
            + bytes(64)
        )
        world.right.engine.datagram(forged, sa.local, sa.remote, world.now)
        world.right.carry_out()
    assert len(world.right.keyd_requests) - before <= 16


def guessing(make, number):
    """A handshake in whose message 5's stead somebody sends as many wrong ones."""
    world = make.Pair(seed=5)

    def fate(site, send):
        if site is world.left and send.data[18:20] == b"\x02\x01":
            for each in range(number):
                guess = send.data[:28] + each.to_bytes(2, "big") + send.data[30:]
                world.later(each / 1000, lambda data=guess: world.right.engine.datagram(
                    data, send.remote, send.local, world.now
                ))  # fmt: skip
            return []
        return [make.LATENCY]

    world.fate = fate
    return world


def test_a_key_is_not_guessed_on_one_half_open_sa_and_the_log_counts_the_guesses_rfc2409_5_4(make):
    """4,005 guesses on one half-open SA, and one log line, before there was a bound."""
    world = guessing(make, 4000)
    world.left.up()
    world.run(10.0)
    asked = [each for each in world.right.keyd_requests if isinstance(each, keyd.AuthOpen)]
    assert len(asked) == guesses.MAX_WRONG
    assert [each["guesses"] for each in world.right.logged("key-guessed")] == [guesses.MAX_WRONG]
    assert len(world.right.logged("authentication-failed")) == 1
    notified = [send for send in world.right.sent if send.data[18] == 5]
    assert len(notified) == 1, "the peer is told once"
    assert len(world.right.engine._context.sas) == 0
    assert world.right.errors == []


def test_a_peer_with_another_key_that_repeats_itself_does_not_guess(make):
    world = make.Pair(psks=(b"one", b"another"))
    world.up()
    assert world.right.logged("key-guessed") == []
    assert len(world.right.logged("authentication-failed")) == 1


def test_a_network_that_guesses_must_wait_and_then_gets_in_with_the_right_key(make):
    world = guessing(make, 100)
    for _ in range(8):
        world.left.up()
        world.run(2.0)
        world.left.down()
    world.fate = lambda site, send: [make.LATENCY]
    assert world.right.established() == []
    assert any("too many wrong proofs" in each["reason"] for each in world.right.logged("main-mode-failed"))
    world.run(guesses.FORGET_SECONDS * guesses.MAX_MEASURES)
    assert world.up().outcome is Outcome.DONE


def test_message_3_waits_while_keyd_has_many_strangers_before_it(make, monkeypatch):
    """Established peers' requests queue behind Diffie-Hellman for strangers, so that has a bound; peers send again."""
    world = make.Pair(make.connection())
    stranger = ipaddress.ip_address("198.51.100.1")
    monkeypatch.setattr(agreeing, "MAX_AGREEING", Group.CURVE25519.cost)
    with world.right.engine._context.agreeing.computing(Group.CURVE25519, stranger):
        order = world.left.up()
        world.run(5.0)
        assert world.left.outcome(order) is None
        assert world.right.established() == []
        assert len(world.right.engine._context.sas) == 0
    world.run(30.0, lambda: world.left.outcome(order) is not None)
    assert world.left.outcome(order).outcome is Outcome.DONE
    world.run(1.0)
    assert world.mirror() == 1


def test_junk_does_not_hide_that_authentication_failed(make):
    """20 datagrams of one octet a second, then a wrong key: the log says so."""
    world = make.Pair(psks=(b"one secret", b"another secret"))
    stranger = Endpoint(ipaddress.ip_address("203.0.113.9"), 500)

    def junk() -> None:
        for site, address in ((world.left, make.LEFT), (world.right, make.RIGHT)):
            for _ in range(20):
                site.engine.datagram(b"x", Endpoint(address, 500), stranger, world.now)
        world.later(0.2, junk)

    junk()
    assert world.up().outcome is Outcome.FAILED
    assert [fields["connection"] for fields in world.right.logged("authentication-failed")] == ["paris"]
    # at DEBUG, which nobody sees: not even what would be left out is counted
    assert not world.right.logged("datagram-dropped")
    assert not world.right.logged("left-out")
