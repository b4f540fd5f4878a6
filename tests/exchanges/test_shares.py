"""What one peer has leaves room for others: IKE SAs of an identity and a connection, message ids of an IKE SA."""

import dataclasses

import pytest

from keyd import message_ids
from keyd.message_ids import MAX_MESSAGE_IDS
from privsep.iana import IdType
from privsep.isakmp.payloads import Delete, Notification
from privsep.schema.install import Outcome
from privsep.types import Identity
from worker import established, peers
from worker.established import MAX_OF_ONE_IDENTITY
from worker.ikev1 import informational


def begin(world, site):
    """One more IKE SA, as a peer begins that has forgotten the others."""
    context = site.engine._context
    establisher = site.engine._keeper._establisher
    before = len(site.established())
    context.spawn(_ignoring(establisher.ike(site.config.connections[0])), "x", dict)
    world.run(1.0)
    return len(site.established()) - before


async def _ignoring(coroutine):
    await coroutine


def ike_deletes(site):
    return [each for each in site.logged("ike-closed") if each["reason"] == "its peer or its connection has too many"]


def test_an_identity_keeps_its_newest_ike_sas_and_is_told_which_go_rfc2408_3_15(make):
    """One authenticated peer opened IKE SAs until nobody else got in, for an hour."""
    world = make.Pair()
    world.up()
    for _ in range(30):
        begin(world, world.left)
        assert len(world.right.established()) <= MAX_OF_ONE_IDENTITY
    assert len(ike_deletes(world.left)) + len(ike_deletes(world.right)) == 31 - MAX_OF_ONE_IDENTITY
    assert len(world.left.established()) == len(world.right.established()) == MAX_OF_ONE_IDENTITY
    assert world.mirror() == 1, "child SAs outlive the IKE SA that they came by"
    world.settled()


def test_an_ike_sa_that_is_used_stays_where_another_goes(make):
    world = make.Pair()
    world.up()
    first = world.right.engine._context.sas.all()[0]
    for _ in range(MAX_OF_ONE_IDENTITY - 1):
        begin(world, world.left)
    world.right.engine._context.established.use(first)
    world.left.engine._context.established.use(world.left.engine._context.sas.all()[0])
    begin(world, world.left)
    assert first in world.right.engine._context.sas.all()


def test_a_connection_with_many_identities_leaves_room_for_another(make, monkeypatch):
    monkeypatch.setattr(established, "MAX_ESTABLISHED", 6)
    world = make.World()
    road = make.connection(name="road", remote=make.RemoteAny(), remote_id=None, local=make.LEFT)
    paris = make.connection()
    hub = world.add("hub", make.gateway(road, paris), make.LEFT)
    honest = world.add("honest", make.gateway(make.mirrored(paris)), make.RIGHT)
    honest.up()
    world.run(2.0)
    for number in range(20):
        address = make.RIGHT + 10 + number
        liar = dataclasses.replace(
            make.mirrored(paris), local=address, local_id=Identity(IdType.FQDN, b"%d.example.org" % number)
        )
        site = world.add(f"liar {number}", make.gateway(liar), address)
        begin(world, site)
    assert len(hub.established()) == 6
    assert len(honest.established()) == 1
    assert [sa.connection for sa in hub.established()].count("paris") == 1


def notify(world, count):
    """That many notifications of the left's under its IKE SA."""
    context = world.left.engine._context
    for _ in range(count):
        (sa, *_) = [each for each in context.sas.all() if each.state.value == "established"]
        notice = Notification(protocol=1, type=40_001)
        context.spawn(informational.send(context, sa, [notice]), "x", dict)
        world.run(0.02)


def test_an_ike_sa_is_replaced_before_its_message_ids_are_used_up_rfc2408_3_1(make, monkeypatch):
    assert peers.ENOUGH_MESSAGE_IDS == MAX_MESSAGE_IDS * 3 // 4
    monkeypatch.setattr(peers, "ENOUGH_MESSAGE_IDS", 30)
    monkeypatch.setattr(message_ids, "MAX_MESSAGE_IDS", 40)
    world = make.Pair()
    world.up()
    (before,) = world.left.established()
    notify(world, 29)
    world.run(10.0)
    assert before.cky_i not in {each.cky_i for each in world.left.established()}
    notify(world, 1)
    assert world.right.logged("message-ignored") == []
    assert world.mirror() == 1
    world.settled()


def test_what_cannot_be_answered_does_not_keep_a_delete_from_being_heard(make, monkeypatch):
    """Dead peer detection asks under an IKE SA without message ids for an answer, and a Delete stands behind it."""
    world = make.Pair()
    world.up()
    (sa,) = world.left.engine._context.sas.all()
    (spi,) = world.left.pairs
    ask = Notification(protocol=1, type=36136, spi=sa.cky_i + sa.cky_r, data=bytes(4))
    gone = Delete(protocol=3, spis=(spi.to_bytes(4, "big"),))
    world.left.engine._context.spawn(informational.send(world.left.engine._context, sa, [ask, gone]), "x", dict)
    world.run(0.001)
    (theirs,) = world.right.engine._context.sas.all()
    used = len(world.right.keyd._registry.get(theirs.handle).message_ids)
    monkeypatch.setattr(message_ids, "MAX_MESSAGE_IDS", used + 1)
    world.run(1.0)
    assert world.right.pairs == {}


@pytest.mark.parametrize("message", ["informational", "quick mode"])
def test_an_ike_sa_that_keyd_has_let_go_of_is_forgotten_when_the_peer_uses_it(make, monkeypatch, message):
    world = make.Pair()
    world.up()
    (sa,) = world.right.engine._context.sas.all()
    registry = world.right.keyd._registry
    registry.drop(registry.get(sa.handle))
    if message == "informational":
        notify(world, 1)
    else:
        world.left.down(child="lan")
        world.left.up()
    world.run(1.0)
    assert sa not in world.right.engine._context.sas.all()
    assert world.up().outcome is Outcome.DONE or message == "informational"
