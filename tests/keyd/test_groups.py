"""Diffie-Hellman groups: RFC 2409 section 6, RFC 3526, RFC 5903, RFC 7748, RFC 8031; checks of RFC 6989."""

import time
from pathlib import Path

import pytest

from keyd.groups import BadPublicValue, generate, modp, pool, x25519
from keyd.groups.pool import Pool
from keyd.secret import Secret
from privsep.algorithms import GROUPS, Group

VECTORS = Path(__file__).parent.parent / "vectors"
MODP = [group for group in Group if group.keyword.startswith("modp")]
QUICK_MODP = [group for group in MODP if group.public_octets <= 512]
ECP = [group for group in Group if group.keyword.startswith("ecp")]
QUICK = QUICK_MODP + ECP + [Group.CURVE25519]


def test_primes_are_those_that_rfc2409_6_2_and_rfc3526_print():
    lines = [line.split() for line in (VECTORS / "modp-primes.txt").read_text().splitlines() if line[0] != "#"]
    assert {GROUPS[name]: int(digits, 16) for name, digits in lines} == modp.PRIMES


@pytest.mark.parametrize("group", Group)
def test_both_sides_agree_and_values_have_the_length_of_the_ke_payload_rfc2409_5(group):
    one, other = generate(group), generate(group)
    assert len(one.public) == len(other.public) == group.public_octets
    assert one.agree(other.public) == other.agree(one.public)
    assert isinstance(one.agree(other.public), Secret)


@pytest.mark.parametrize("group", QUICK_MODP)
def test_modp_secret_is_the_power_that_python_computes_and_as_long_as_the_prime_rfc3526(group):
    pair = generate(group)
    prime = modp.PRIMES[group]
    # g^-1 as peer: then g^xy is the inverse of our public value, which needs no secret to know
    inverse = pow(2, -1, prime)
    expected = pow(int.from_bytes(pair.public, "big"), -1, prime).to_bytes(group.public_octets, "big")
    assert pair.agree(inverse.to_bytes(group.public_octets, "big")) == expected


def test_exponents_of_group_2_have_twice_the_bits_of_its_strength_rfc2412_appendix_e():
    """At least 180 bits are recommended there for every exponent; random ones, of which none comes twice."""
    exponents = [generate(Group.MODP_1024)._exponent for _ in range(50)]
    assert min(exponent.bit_length() for exponent in exponents) >= 180
    assert len(set(exponents)) == 50
    # chance decides each bit but the highest
    low, high = exponents[0], exponents[0]
    for exponent in exponents:
        low, high = low & exponent, high | exponent
    assert low.bit_count() == 1
    assert high.bit_count() == high.bit_length()


def test_modp_secret_keeps_its_leading_zeros():
    group = Group.MODP_1536
    shared = [generate(group).agree(generate(group).public) for _ in range(40)]
    assert {len(each) for each in shared} == {group.public_octets}
    # with a small peer value and an exponent of one bit the power itself is small
    pair = modp.Modp1024KeyPair()
    pair._exponent = 1
    assert pair.agree((7).to_bytes(128, "big")) == bytes(127) + b"\x07"


@pytest.mark.parametrize("group", QUICK_MODP)
@pytest.mark.parametrize("bad", ["zero", "one", "p-1", "p", "p+1", "largest"])
def test_modp_values_outside_2_to_p_minus_2_are_refused_rfc6989_2_1(group, bad):
    prime = modp.PRIMES[group]
    value = {
        "zero": 0,
        "one": 1,
        "p-1": prime - 1,
        "p": prime,
        "p+1": prime + 1,
        "largest": (1 << (8 * group.public_octets)) - 1,
    }[bad]
    with pytest.raises(BadPublicValue):
        generate(group).agree(value.to_bytes(group.public_octets, "big"))


@pytest.mark.parametrize("group", QUICK)
def test_values_of_wrong_length_are_refused(group):
    pair, peer = generate(group), generate(group).public
    for wrong in (b"", peer[:-1], b"\0" + peer, peer + b"\0"):
        with pytest.raises(BadPublicValue):
            pair.agree(wrong)


@pytest.mark.parametrize("group", QUICK)
def test_our_own_value_sent_back_is_refused(group):
    pair = generate(group)
    with pytest.raises(BadPublicValue):
        pair.agree(pair.public)


@pytest.mark.parametrize("group", ECP)
def test_points_off_the_curve_are_refused_rfc6989_2_3(group):
    pair, peer = generate(group), bytearray(generate(group).public)
    peer[-1] ^= 1
    for wrong in (bytes(peer), bytes(group.public_octets), b"\xff" * group.public_octets):
        with pytest.raises(BadPublicValue):
            pair.agree(wrong)


@pytest.mark.parametrize(
    "point",
    [
        "00" * 32,
        "01" + "00" * 31,
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    ],
)
def test_points_of_small_order_on_curve25519_are_refused_rfc7748_6_1(point):
    with pytest.raises(BadPublicValue):
        x25519.generate(Group.CURVE25519).agree(bytes.fromhex(point))


def test_pool_fills_to_its_depth_and_hands_each_pair_out_once():
    filled = Pool([Group.CURVE25519, Group.ECP_256])
    made = 0
    while filled.fill():
        made += 1
    assert made == 2 * pool.DEPTH
    taken = {filled.take(Group.CURVE25519).public for _ in range(pool.DEPTH + 3)}
    assert len(taken) == pool.DEPTH + 3
    assert filled.fill()


def test_pool_makes_pairs_of_groups_that_it_does_not_keep():
    assert len(Pool([]).take(Group.ECP_256).public) == 64
    assert not Pool([]).fill()


def seconds(group: Group) -> float:
    """Processor time of one exchange, the least of several."""
    peer, least = generate(group).public, float("inf")
    for _ in range(12):
        began = time.process_time()
        generate(group).agree(peer)
        least = min(least, time.process_time() - began)
    return least


def test_the_costs_of_groups_are_what_they_cost():
    """In relation to each other: what is bounded by cost must not take many times what another takes."""
    measured = {group: seconds(group) / group.cost for group in Group}
    assert max(measured.values()) < 6 * min(measured.values()), measured
