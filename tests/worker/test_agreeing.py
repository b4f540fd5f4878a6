"""Diffie-Hellman for strangers is bounded by what it costs."""

import ipaddress
from contextlib import ExitStack

import pytest

from privsep.algorithms import Group
from privsep.errors import PeerError
from worker.agreeing import MAX_AGREEING, MAX_AGREEING_OF_ONE, Agreeing


def stranger(number: int):
    return ipaddress.ip_address(0x0A000000 + number)


def admitted(group: Group, whose) -> int:
    """How many computations are under way at once when as many are asked for as there is room for."""
    agreeing = Agreeing()
    with ExitStack() as computing:
        for number in range(10_000):
            try:
                computing.enter_context(agreeing.computing(group, whose(number)))
            except PeerError:
                return number
    raise AssertionError("there is no bound")


@pytest.mark.parametrize("group", Group)
def test_what_waits_in_keyd_for_strangers_is_bounded_by_its_cost(group):
    number = admitted(group, stranger)
    assert number == max(1, MAX_AGREEING // group.cost)


def test_the_largest_group_is_admitted_a_hundredth_as_often_as_the_smallest():
    assert admitted(Group.CURVE25519, stranger) > 100 * admitted(Group.MODP_8192, stranger)


@pytest.mark.parametrize("group", Group)
def test_one_stranger_does_not_take_what_is_for_all(group):
    number = admitted(group, lambda _: stranger(1))
    assert number == max(1, MAX_AGREEING_OF_ONE // group.cost)
    assert admitted(group, lambda n: ipaddress.ip_address((0x20010DB8 << 96) + n)) == number, "of one IPv6 prefix"


def test_room_is_given_back():
    agreeing = Agreeing()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), agreeing.computing(Group.MODP_8192, stranger(1)):
            raise ZeroDivisionError
    assert agreeing._cost == 0
    assert agreeing._of == {}
