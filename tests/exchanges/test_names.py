"""A peer by name: the worker waits for an address, begins where the monitor says, and follows to another one."""

import dataclasses

import pytest

from privsep.config.model import Start
from privsep.config.names import RemoteName
from privsep.schema.install import Adopted, Outcome
from privsep.schema.keymat import Known
from privsep.schema.names import Located, Resolved

NAME = "gw2.example.org"


@pytest.fixture
def elsewhere(make):
    return make.address("192.0.2.3")


@pytest.fixture
def named(make):
    """Two gateways, of which the left one knows the right by name."""

    def world(start=Start.WAIT):
        ours = make.connection(remote=RemoteName(NAME, 4), children=(make.child(start=start),))
        return make.Pair(ours, dataclasses.replace(make.mirrored(make.connection()), local=None))

    return world


def tell(world, address, name="paris"):
    """As the monitor does. Here keyd and the worker have one configuration: what one knows, the other does."""
    resolved = Resolved(located=(Located(connection=name, address=address),))
    world.left.event(resolved)
    assert world.left.keyd.answer(resolved) == Known()


def test_without_an_address_nothing_is_sent_and_the_order_fails_at_once(make, named):
    world = named()
    outcome = world.up(1.0)
    assert (outcome.outcome, outcome.text) == (Outcome.FAILED, f"lan: {NAME} has no address yet")
    assert world.left.sent == []


def test_with_an_address_the_tunnel_comes_up_in_both_roles(make, named):
    world = named()
    world.right.up()
    world.run(60.0)
    assert world.left.pairs == world.right.pairs == {}, "no connection describes whoever is there"
    tell(world, make.RIGHT)
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() >= 1
    world.settled()


def test_what_starts_by_itself_starts_when_there_is_an_address(make, named):
    world = named(Start.UP)
    world.run(30.0)
    assert world.left.sent == []
    tell(world, make.RIGHT)
    assert world.run(3.0, lambda: bool(world.left.pairs))


def test_another_address_hastens_the_next_attempt(make, named, elsewhere):
    world = named(Start.UP)
    tell(world, elsewhere)
    world.run(300.0)
    assert world.left.pairs == {}
    tell(world, make.RIGHT)
    assert world.run(3.0, lambda: bool(world.left.pairs))


def test_a_peer_that_does_not_answer_has_its_name_looked_up_again(make, named, elsewhere):
    world = named()
    tell(world, elsewhere)
    world.up(60.0)
    assert world.left.monitor.unanswered == ["paris"]


def test_a_peer_with_an_address_of_its_own_has_no_name_to_look_up(make, elsewhere):
    world = make.Pair(make.connection(remote=elsewhere), make.mirrored(make.connection()))
    world.up(60.0)
    assert world.left.monitor.unanswered == []


def test_a_peer_that_moves_takes_its_tunnel_along_and_the_old_one_serves_until_then(make, named, elsewhere):
    world = named()
    tell(world, make.RIGHT)
    world.up()
    (old,) = world.left.pairs
    # the same gateway, at another address
    world.sites[elsewhere] = world.sites.pop(make.RIGHT)
    tell(world, elsewhere)
    assert old in world.left.pairs
    assert world.run(10.0, lambda: len(world.left.pairs) == 2)
    assert {asked.remote.address for _, asked in world.left.pairs.values()} == {make.RIGHT, elsewhere}
    world.run(10.0)
    assert [asked.remote.address for _, asked in world.left.pairs.values()] == [elsewhere]
    assert world.left.errors == world.right.errors == []


def test_a_name_server_that_lies_ends_nothing_that_is_up(make, named, elsewhere):
    """Whoever is there has to prove who he is; nobody is."""
    world = named()
    tell(world, make.RIGHT)
    world.up()
    (pair,), (sa,) = world.left.pairs, world.left.established()
    tell(world, elsewhere)
    world.run(600.0)
    assert list(world.left.pairs) == [pair]
    assert [each.cky_i for each in world.left.established()] == [sa.cky_i]
    # asked a few times, with pauses of 20 s to 5 min between attempts of 41 s, and no more
    attempts = {send.data[:8] for send in world.left.sent if send.remote.address == elsewhere}
    assert 3 <= len(attempts) <= 8
    tell(world, make.RIGHT)
    world.run(600.0)
    assert {send.data[:8] for send in world.left.sent if send.remote.address == elsewhere} == attempts


def test_an_earlier_worker_s_pair_is_replaced_once_it_is_known_where_the_peer_is(make, named):
    world = named()
    endpoint = make.Endpoint
    world.left.event(
        Adopted(
            connection="paris",
            child="lan",
            identity=world.left.config.connections[0].remote_id,
            spi_in=0x5000,
            spi_out=0x6000,
            local=endpoint(make.LEFT, 500),
            remote=endpoint(make.RIGHT, 500),
            left_s=3000,
        )
    )
    world.run(30.0)
    assert world.left.sent == []
    tell(world, make.RIGHT)
    assert world.run(5.0, lambda: bool(world.left.pairs))
    world.run(10.0)
    assert 0x5000 in world.left.monitor.removed


def test_what_is_told_of_nobody_or_of_who_has_an_address_changes_nothing(make, elsewhere):
    world = make.Pair()
    for name in ("nobody", "paris"):
        tell(world, elsewhere, name)
    assert world.left.config.connections[0].remote == make.RIGHT
    assert world.up().outcome is Outcome.DONE
