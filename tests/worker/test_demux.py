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


def test_a_first_message_is_known_by_its_cookie_and_its_sender():
    table, theirs = SaTable(), sa(cky_r=b"r" * 8)
    table.add(theirs)
    table.remember_first(theirs)
    assert table.find_first(b"i" * 8, theirs.remote) is theirs
    assert table.find_first(b"i" * 8, Endpoint(theirs.remote.address, 501)) is None
    table.forget_first(theirs)
    assert table.find_first(b"i" * 8, theirs.remote) is None


@pytest.mark.parametrize(("total", "per_address"), [(3, 10), (10, 3)])
def test_the_oldest_makes_room_for_the_newest(total, per_address):
    budget = Budget(total, per_address)
    sas = [sa() for _ in range(5)]
    evicted = [budget.add(each) for each in sas]
    assert evicted == [None, None, None, sas[0], sas[1]]
    assert len(budget) == 3


def test_one_address_cannot_take_the_places_of_others():
    budget = Budget(10, 2)
    other = sa(remote="192.0.2.3")
    budget.add(other)
    assert other not in [budget.add(sa()) for _ in range(50)]
    assert len(budget) == 3


def test_who_leaves_the_budget_leaves_it_by_the_address_that_it_came_by():
    budget, moving = Budget(10, 2), sa()
    budget.add(moving)
    assert budget.add(moving) is None
    moving.remote = Endpoint(ipaddress.ip_address("203.0.113.1"), 4500)
    budget.remove(moving)
    budget.remove(moving)
    assert len(budget) == 0
    assert budget._by_address == {}
