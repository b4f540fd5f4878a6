"""Which connections have one secret, as keyd tells it: places, and nothing of the secrets."""

import struct

import pytest

from monitor.claimants import Claimants
from privsep.config.loader import MAX_CONNECTIONS
from privsep.errors import Violation
from privsep.schema.keymat import REPLIES, Ready


def told(*places: int) -> bytes:
    return struct.pack(f">{len(places)}H", *places)


@pytest.fixture
def three(kit):
    gateway = kit.gateway()
    names = [connection.name for connection in gateway.connections]
    assert len(names) >= 3
    return gateway, names


def test_connections_that_name_the_same_first_one_share_a_secret(three):
    gateway, names = three
    claimants = Claimants()
    places = list(range(len(names)))
    places[2] = 0
    claimants.learn(gateway, told(*places))
    assert claimants.share_secret(names[0], names[2])
    assert claimants.share_secret(names[1], names[1])
    assert not claimants.share_secret(names[0], names[1])
    assert not claimants.share_secret(names[2], names[1])


def test_before_keyd_has_told_what_was_judged_before_stands(three):
    _, names = three
    assert Claimants().share_secret(names[0], names[1])


def test_what_keyd_tells_last_counts(three):
    gateway, names = three
    claimants = Claimants()
    claimants.learn(gateway, told(*[0] * len(names)))
    assert claimants.share_secret(names[0], names[1])
    claimants.learn(gateway, told(*range(len(names))))
    assert not claimants.share_secret(names[0], names[1])


@pytest.mark.parametrize("fault", ["none", "one too few", "one too many", "a later one", "not the first", "nowhere"])
def test_what_cannot_be_is_a_violation(three, fault):
    gateway, names = three
    places = list(range(len(names)))
    wrong = {
        "none": b"",
        "one too few": told(*places[:-1]),
        "one too many": told(*places, 0),
        "a later one": told(1, *places[1:]),
        "not the first": told(0, 0, 1, *places[3:]),
        "nowhere": told(*places[:-1], 65535),
    }[fault]
    with pytest.raises(Violation):
        Claimants().learn(gateway, wrong)


def test_ready_has_room_for_all_connections():
    ready = Ready(same_secret=told(*range(MAX_CONNECTIONS)))
    assert REPLIES.decode(REPLIES.encode(ready, 0))[0] == ready
