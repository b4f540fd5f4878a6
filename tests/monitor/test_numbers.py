"""Policy numbers are given, wait without a pair, and are given again."""

import itertools

from effort import instructions

from monitor import numbers as module
from monitor.numbers import MAX_POLICIES_PER_CONNECTION, MAX_POLICY_NUMBER, Numbers
from privsep.iana import IdType
from privsep.types import Identity


def identity(number):
    return Identity(IdType.FQDN, b"peer%d" % number)


def come_and_go(numbers, peers, connection="road"):
    """Their numbers, one peer after the other, each of which leaves."""
    for peer in peers:
        number = numbers.next(connection, identity(peer))
        numbers.take(number, (connection, "lan"))
        numbers.rest(number, identity(peer))
        yield number


def test_three_times_a_connections_share_comes_and_goes_and_each_number_serves_three_times_in_turn():
    numbers = Numbers(0)
    share = MAX_POLICIES_PER_CONNECTION
    given = list(come_and_go(numbers, range(3 * share)))
    assert given == list(range(1, share + 1)) * 3


def test_what_a_number_costs_does_not_grow_with_how_many_there_are(monkeypatch):
    def cost(share):
        monkeypatch.setattr(module, "MAX_POLICIES_PER_CONNECTION", share)
        numbers = Numbers(0)
        assert len(list(come_and_go(numbers, range(2 * share)))) == 2 * share
        return instructions(lambda: list(come_and_go(numbers, [1])))

    assert cost(10_000) == cost(10)


def test_all_connections_together_use_every_number_and_none_twice():
    numbers = Numbers(0)
    share = MAX_POLICIES_PER_CONNECTION
    for connection in ("a", "b", "c", "d"):
        for peer in range(share):
            number = numbers.next(connection, identity(peer))
            if number is None:
                assert (connection, peer) == ("d", share - 1)
                break
            numbers.take(number, (connection, "lan"))
    assert [numbers.owner(number) is None for number in (1, MAX_POLICY_NUMBER)] == [False, False]
    assert numbers.owner(MAX_POLICY_NUMBER + 1) is None


def test_what_is_in_use_again_waits_no_longer(monkeypatch):
    monkeypatch.setattr(module, "MAX_POLICIES_PER_CONNECTION", 3)
    numbers = Numbers(0)
    assert list(come_and_go(numbers, range(3))) == [1, 2, 3]
    numbers.take(1, ("road", "lan"))
    assert list(itertools.islice(come_and_go(numbers, range(3, 9)), 4)) == [2, 3, 2, 3]
    numbers.rest(1, identity(0))
    assert list(come_and_go(numbers, [10, 11, 12])) == [2, 3, 1]


def test_numbers_of_an_earlier_instance_are_given_again_once_nothing_stands_under_them():
    numbers = Numbers(4)
    assert numbers.configure(("paris", "lan"), 2) == 2
    assert numbers.next("road", identity(1)) == 5
    numbers.give_back({3})
    assert list(come_and_go(numbers, range(3))) == [4, 1, 5]
    assert numbers.owner(3) is None
