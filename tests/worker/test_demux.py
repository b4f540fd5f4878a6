"""Tables of SAs and their budgets."""

import ipaddress
from itertools import count

import pytest

from privsep.types import Endpoint, Role
from worker.codec.header import ZERO_COOKIE
from worker.demux import Budget, SaTable
from worker.isakmp_sa import IkeSa

HERE = Endpoint(ipaddress.ip_address("192.0.2.1"), 500)
_serials = count(1)


def sa(cky_i=b"i" * 8, cky_r=ZERO_COOKIE, remote="192.0.2.2", port=500):
    return IkeSa(
        serial=next(_serials),
        role=Role.INITIATOR,
        cky_i=cky_i,
        cky_r=cky_r,
        local=HERE,
        remote=Endpoint(ipaddress.ip_address(remote), port),
        created=0.0,
    )


def test_an_initiators_sa_is_found_before_and_after_the_responders_cookie_is_known_rfc2408_2_5_3():
    table, ours = SaTable(), sa()
    table.add(ours)
    assert table.find(b"i" * 8 + b"r" * 8) is ours
    table.complete(ours, b"r" * 8)
    assert table.find(b"i" * 8 + b"r" * 8) is ours
    assert table.find(b"i" * 8 + b"x" * 8) is None
    assert table.find(b"i" * 8 + ZERO_COOKIE) is None
    table.remove(ours)
    table.remove(ours)
    assert len(table) == 0
    assert table.find(b"i" * 8 + b"r" * 8) is None


@pytest.mark.parametrize(("total", "per_origin", "octets"), [(3, 10, 1000), (10, 3, 1000), (10, 10, 35)])
def test_the_oldest_makes_room_for_the_newest(total, per_origin, octets):
    budget = Budget(total, per_origin, octets)
    sas = [sa() for _ in range(5)]
    evicted = [budget.add(each, 10) for each in sas]
    assert evicted == [[], [], [], [sas[0]], [sas[1]]]
    assert len(budget) == 3


def test_a_large_one_takes_the_place_of_several():
    budget = Budget(10, 10, 100)
    sas = [sa() for _ in range(5)]
    for each in sas:
        budget.add(each, 20)
    assert budget.add(sa(), 60) == sas[:3]


def test_the_addresses_of_one_ipv6_prefix_are_one_stranger_rfc4291_2_5_4():
    budget = Budget(10, 2, 1000)
    sas = [sa(remote=f"2001:db8::{number}") for number in range(4)]
    assert [budget.add(each, 10) for each in sas] == [[], [], [sas[0]], [sas[1]]]
    assert budget.add(sa(remote="2001:db8:0:1::1"), 10) == []


def test_one_address_cannot_take_the_places_of_others():
    budget = Budget(10, 2, 1000)
    other = sa(remote="192.0.2.3")
    budget.add(other, 10)
    assert [other] not in [budget.add(sa(), 10) for _ in range(50)]
    assert len(budget) == 3


def test_who_leaves_the_budget_leaves_it_by_the_address_that_it_came_by():
    budget, moving = Budget(10, 2, 1000), sa()
    budget.add(moving, 10)
    moving.remote = Endpoint(ipaddress.ip_address("203.0.113.1"), 4500)
    budget.remove(moving)
    budget.remove(moving)
    assert len(budget) == 0
    assert budget._by_origin == {}
    assert budget._taken == 0
