"""Strangers wait in a bounded queue, take turns, and get half of the worker's time."""

import ipaddress
from itertools import count, pairwise

import pytest

from privsep.types import Endpoint
from worker.intake import (
    MAX_CREDIT,
    MAX_WAITING,
    MAX_WAITING_OCTETS,
    MAX_WAITING_OF_ONE,
    SHARE,
    Intake,
    Stray,
)

HERE = Endpoint(ipaddress.ip_address("192.0.2.1"), 500)


def stray(whose: int, octets: int = 100, family: int = 4) -> Stray:
    first = 0x0A000000 if family == 4 else 0x20010DB8 << 96
    return Stray(bytes(octets), HERE, Endpoint(ipaddress.ip_address(first + whose), 500))


def test_there_is_room_for_a_bounded_number():
    intake = Intake(0.0)
    assert [intake.put(stray(number)) for number in range(MAX_WAITING + 5)] == [True] * MAX_WAITING + [False] * 5
    intake.take()
    assert intake.put(stray(0))
    assert len(intake) == MAX_WAITING


def test_there_is_room_for_a_bounded_number_of_octets():
    intake = Intake(0.0)
    assert sum(intake.put(stray(number, 16384)) for number in range(MAX_WAITING)) == MAX_WAITING_OCTETS // 16384


@pytest.mark.parametrize("family", [4, 6])
def test_one_address_or_prefix_does_not_take_the_place_of_others(family):
    intake = Intake(0.0)
    whose = [7] * 3000 if family == 4 else range(3000)
    assert sum(intake.put(stray(number, family=family)) for number in whose) == MAX_WAITING_OF_ONE
    assert intake.put(stray(8, family=4))


def test_all_take_turns_and_keep_their_order():
    intake = Intake(0.0)
    for octets in (1, 2, 3):
        for whose in (1, 2) if octets == 3 else (1, 2, 3):
            intake.put(stray(whose, octets))
    taken = [intake.take() for _ in range(len(intake))]
    assert [(each.remote.address.packed[3], len(each.data)) for each in taken] == [
        (1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2), (1, 3), (2, 3)
    ]  # fmt: skip
    assert intake._octets == 0
    assert intake._queues == {}


@pytest.mark.parametrize("cost", [0.0001, 0.003, 0.5])
def test_strangers_have_half_of_the_time_however_many_come(cost):
    intake, now, spent, numbers = Intake(0.0), 0.0, 0.0, count()
    while now < 20.0:
        while len(intake) < 100:
            intake.put(stray(next(numbers)))
        if intake.ready(now):
            intake.take()
            now += cost
            spent += cost
            intake.spend(cost)
        else:
            assert intake.ready_at() > now
            now = intake.ready_at() + 1e-9
    assert spent == pytest.approx(20.0 * SHARE, rel=0.1)


def test_after_a_rest_they_are_served_at_once_and_not_for_long():
    intake = Intake(0.0)
    for number in range(MAX_WAITING):
        intake.put(stray(number))
    now, times = 100.0, []
    while len(intake):
        if not intake.ready(now):
            now = intake.ready_at() + 1e-9
            continue
        intake.take()
        times.append(now)
        now += 0.001
        intake.spend(0.001)
    at_once = next(number for number, (one, other) in enumerate(pairwise(times)) if other - one > 0.0015)
    assert MAX_CREDIT / 0.001 <= at_once <= 2 * MAX_CREDIT / 0.001 + 2
    assert intake.ready_at() is None
