"""A pre-shared key is not guessed online: few wrong proofs for an IKE SA, few for a network (RFC 2409 section 5.4)."""

import ipaddress
import os

import pytest

from keyd.guesses import FORGET_SECONDS, MAX_MEASURES, MAX_REMEMBERED, MAX_WRONG, Guesses
from keyd.handles import State
from privsep.errors import Violation
from privsep.schema import keyd as ops
from privsep.schema.keyd import Refusal

FAILED, TOO_OFTEN = ops.Refused(why=Refusal.AUTHENTICATION_FAILED), ops.Refused(why=Refusal.WRONG_TOO_OFTEN)
HELD_OFF = ops.Refused(why=Refusal.HELD_OFF)
ROAD = ipaddress.ip_address("198.51.100.7")


def waiting(world, role):
    """A side that waits for the other's proof, its handle, and that proof."""
    ike = world.keyed()
    fifth = world.left.do(ops.AuthSeal(ike=ike.left, next_payload=0, payloads=b"")).ciphertext
    if role == "responder":
        return world.right, ike.right, fifth
    world.right.do(ops.AuthOpen(ike=ike.right, ciphertext=fifth))
    sixth = world.right.do(ops.AuthSeal(ike=ike.right, next_payload=0, payloads=b"")).ciphertext
    return world.left, ike.left, sixth


def guess(side, ike):
    return side.do(ops.AuthOpen(ike=ike, ciphertext=os.urandom(64)))


BOTH = pytest.mark.parametrize("role", ["responder", "initiator"])


@BOTH
def test_the_fifth_wrong_proof_ends_the_ike_sa_in_keyd(world, role):
    side, ike, _ = waiting(world, role)
    assert [guess(side, ike) for _ in range(5)] == [FAILED] * 4 + [TOO_OFTEN]
    assert side.service._registry.get(ike).state is State.DEAD


@BOTH
def test_a_worker_that_goes_on_guessing_ends_the_epoch(world, role):
    side, ike, right = waiting(world, role)
    for _ in range(MAX_WRONG):
        guess(side, ike)
    with pytest.raises(Violation):
        side.do(ops.AuthOpen(ike=ike, ciphertext=right))
    assert side.do(ops.Drop(handle=ike)) == ops.Done()


@BOTH
def test_the_true_proof_is_taken_after_four_wrong_ones(world, role):
    side, ike, right = waiting(world, role)
    for _ in range(MAX_WRONG - 1):
        guess(side, ike)
    assert isinstance(side.do(ops.AuthOpen(ike=ike, ciphertext=right)), ops.Authenticated)


@BOTH
def test_a_proof_that_comes_again_is_no_new_guess_rfc2408_5_1(world, role):
    """A peer with another key repeats its message as long as it has patience."""
    side, ike, right = waiting(world, role)
    same = os.urandom(64)
    assert {side.do(ops.AuthOpen(ike=ike, ciphertext=same)).why for _ in range(100)} == {FAILED.why}
    assert isinstance(side.do(ops.AuthOpen(ike=ike, ciphertext=right)), ops.Authenticated)


@BOTH
def test_what_cannot_be_a_ciphertext_is_no_guess_rfc2409_appendix_b(world, role):
    side, ike, right = waiting(world, role)
    for octets in range(100):
        assert octets % 16 == 0 or side.do(ops.AuthOpen(ike=ike, ciphertext=bytes(octets))) == FAILED
    assert isinstance(side.do(ops.AuthOpen(ike=ike, ciphertext=right)), ops.Authenticated)


def roadside(build, world):
    """A responder for peers from anywhere, and how many guesses one handshake from an address admits."""
    peers = build.mirrored(build.connection())
    values = {name: getattr(peers, name) for name in peers.__slots__}
    side = build.Side(build.gateway(type(peers)(**values | {"remote": build.ANY})), build.Secrets(default=b"same"))

    def handshake(remote) -> int:
        keys = world.left.do(world.offer())
        reply = side.do(world.answer(keys.ke, keys.nonce, remote=remote))
        if reply == HELD_OFF:
            return 0
        for guessed in range(1, MAX_WRONG + 1):
            if guess(side, reply.ike) == TOO_OFTEN:
                return guessed
        raise AssertionError("guessed without end")

    return side, handshake


def test_an_address_has_twenty_wrong_proofs_and_then_five_a_minute(build, world):
    side, handshake = roadside(build, world)
    assert sum(handshake(ROAD) for _ in range(1000)) == 20
    guessed = 0
    for _ in range(3600):
        side.now += 1.0
        guessed += handshake(ROAD)
    assert guessed <= 3600 / 60 * 5 + 1


def test_handshakes_that_were_begun_before_get_one_guess_each(build, world):
    """A thousand half-open SAs of one address are no way around its measure."""
    side, _ = roadside(build, world)
    handles = []
    for _ in range(50):
        keys = world.left.do(world.offer())
        handles.append(side.do(world.answer(keys.ke, keys.nonce, remote=ROAD)).ike)
    replies = [guess(side, ike) for ike in handles]
    assert replies == [FAILED] * 20 + [TOO_OFTEN] * 30


def test_others_are_not_held_off(build, world):
    side, handshake = roadside(build, world)
    while handshake(ROAD):
        pass
    assert handshake(ROAD + 1) == MAX_WRONG
    side.now += FORGET_SECONDS * (MAX_MEASURES - 1) + 1
    assert handshake(ROAD)


def test_a_network_is_held_off_as_a_whole_when_many_of_its_hosts_guess(build, world):
    _, handshake = roadside(build, world)
    network = list(ipaddress.ip_network("198.51.100.0/24"))
    assert sum(handshake(address) for _ in range(4) for address in network) == 200
    assert handshake(ipaddress.ip_address("198.51.101.1")) == MAX_WRONG


def test_a_host_of_ipv6_is_its_64_bit_prefix():
    known = Guesses()
    for number in range(20):
        known.add(ipaddress.ip_address("2001:db8::") + number * 2**50, 0.0)
    assert not known.admits(ipaddress.ip_address("2001:db8:0:0:ffff::1"), 0.0)
    assert known.admits(ipaddress.ip_address("2001:db8:0:1::1"), 0.0)


def test_what_is_remembered_of_networks_is_bounded_and_the_silent_are_forgotten_first():
    known = Guesses()
    for number in range(2 * MAX_REMEMBERED):
        known.add(ROAD, 0.0)
        known.add(ipaddress.ip_address(0x0A000000 + number * 256), 0.0)
    assert len(known) == MAX_REMEMBERED
    assert not known.admits(ROAD, 0.0)
