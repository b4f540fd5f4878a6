"""NAT traversal (RFC 3947, RFC 3948): address translation simulated by rewriting what is on the wire."""

import dataclasses

import pytest

from privsep.algorithms import ChildSuite
from privsep.config.model import Encap, Start
from privsep.iana import ProtocolId
from privsep.schema.install import Moved, Outcome
from privsep.types import Endpoint
from worker.effects import Send
from worker.nat import KEEPALIVE, Nat


class Translator:
    """The left stands behind a NAT: its packets come from another address, with ports of the NAT's choice."""

    def __init__(self, make, world) -> None:
        self.inside, self.outside = make.LEFT, make.address("203.0.113.9")
        self.first_port = 40000
        world.sites[self.outside] = world.left
        world.rewrite = self

    def __call__(self, send: Send) -> tuple[Endpoint, Endpoint]:
        source, target = send.local, send.remote
        if source.address == self.inside:
            source = Endpoint(self.outside, self.first_port + source.port)
        if target.address == self.outside:
            target = Endpoint(self.inside, target.port - self.first_port)
        return source, target


def behind_nat(make, **changes):
    ours = make.connection(**changes)
    theirs = dataclasses.replace(make.mirrored(ours), remote=make.RemoteAny())
    world = make.Pair(ours, theirs)
    return world, Translator(make, world)


def test_a_nat_is_seen_and_everything_moves_to_port_4500_rfc3947_4(make):
    world, _ = behind_nat(make)
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 1
    (left,), (right,) = world.left.status(), world.right.status()
    assert (left.nat, right.nat) == ("local", "remote")
    assert (left.local.port, left.remote.port, right.local.port) == (4500, 4500, 4500)
    assert right.remote == Endpoint(make.address("203.0.113.9"), 44500)
    assert [each.encap for each, _ in (*world.left.pairs.values(), *world.right.pairs.values())] == [True, True]
    ports = [send.local.port for send in world.left.sent]
    assert ports == [500, 500, 4500, 4500, 4500]
    assert all(send.data.startswith(bytes(4)) for send in world.left.sent if send.local.port == 4500)
    world.settled()


def test_no_nat_no_encapsulation_and_no_keepalive(make):
    world = make.Pair()
    world.up()
    world.run(100.0)
    assert not any(each.encap for each, _ in world.left.pairs.values())
    assert {send.local.port for send in world.left.sent + world.right.sent} == {500}
    assert KEEPALIVE not in [send.data for send in world.left.sent + world.right.sent]


def test_who_is_behind_the_nat_keeps_it_open_rfc3948_4(make):
    world, _ = behind_nat(make)
    world.up()
    world.left.sent.clear()
    world.run(100.0)
    assert [send.data for send in world.left.sent] == [KEEPALIVE] * 5
    assert KEEPALIVE not in [send.data for send in world.right.sent]
    world.left.down()
    world.left.sent.clear()
    world.run(100.0)
    assert KEEPALIVE not in [send.data for send in world.left.sent]


def ah_and_esp(make):
    networks = {"local_ts": make.selectors("10.3.0.0/16"), "remote_ts": make.selectors("10.4.0.0/16")}
    authenticated = make.child("authenticated", suites=(ChildSuite.parse("sha256", ProtocolId.AH),), **networks)
    return behind_nat(make, children=(make.child(), authenticated))[0]


def test_ah_is_not_tried_through_a_nat_rfc3715_2_1(make):
    world = ah_and_esp(make)
    order = world.left.up(child="authenticated")
    assert world.run(60.0, lambda: world.left.outcome(order) is not None)
    assert "AH does not pass the NAT between the two (RFC 3715 section 2.1)" in world.left.outcome(order).text
    assert world.left.pairs == {}
    assert world.left.logged("ike-established"), "phase 1 was no obstacle"


@pytest.mark.parametrize("believes_in_nat", [True, False])
def test_a_responder_does_not_agree_to_ah_through_a_nat_rfc3715_2_1(make, believes_in_nat):
    world = ah_and_esp(make)
    order = world.left.up(child="lan")
    assert world.run(60.0, lambda: world.left.outcome(order) is not None)
    # an initiator that does not care, and a control where nobody does
    for site in (world.left,) if believes_in_nat else (world.left, world.right):
        (sa,) = site.engine._context.sas.all()
        sa.nat, sa.encap = Nat.NONE, False
    order = world.left.up(child="authenticated")
    assert world.run(60.0, lambda: world.left.outcome(order) is not None)
    outcome = world.left.outcome(order)
    if believes_in_nat:
        assert outcome.outcome is Outcome.FAILED
        reasons = [each["reason"] for each in world.right.logged("quick-mode-failed")]
        assert reasons == ["AH does not pass the NAT between the two (RFC 3715 section 2.1); esp would be right"]
    else:
        assert outcome.outcome is Outcome.DONE


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_encapsulation_can_be_forced_without_a_nat_rfc3948_2_1(make, side):
    forced = {"left": (Encap.FORCE, Encap.AUTO), "right": (Encap.AUTO, Encap.FORCE), "both": (Encap.FORCE,) * 2}[side]
    ours = make.connection(encap=forced[0])
    world = make.Pair(ours, dataclasses.replace(make.mirrored(ours), encap=forced[1]))
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 1
    assert all(each.encap for each, _ in (*world.left.pairs.values(), *world.right.pairs.values()))


@pytest.mark.parametrize("side", ["left", "right"])
def test_encap_off_does_not_speak_nat_traversal(make, side):
    ours = make.connection()
    theirs = make.mirrored(ours)
    off = {"left": (dataclasses.replace(ours, encap=Encap.OFF), theirs)}.get(
        side, (ours, dataclasses.replace(theirs, encap=Encap.OFF))
    )
    world = make.Pair(*off)
    assert world.up().outcome is Outcome.DONE
    assert {send.local.port for send in world.left.sent} == {500}


def test_a_new_mapping_is_believed_from_an_authenticated_message_only_rfc3947_7(make):
    world, nat = behind_nat(make)
    world.up()
    (before,) = world.right.pairs
    replayed = world.left.sent[-1]
    nat.first_port = 50000
    # a replay and garbage from a new port change nothing
    for data in (replayed.data, replayed.data[:-1] + b"!", bytes(4) + replayed.data[4:32]):
        world.right.engine.datagram(data, Endpoint(make.RIGHT, 4500), Endpoint(nat.outside, 54500), world.now)
    world.run(1.0)
    assert world.right.status()[0].remote.port == 44500
    # a fresh protected message does
    world.left.up(child="lan")
    world.left.down(child="lan")
    world.run(1.0)
    assert world.right.status()[0].remote.port == 54500
    assert world.right.logged("peer-moved")
    assert before not in world.right.pairs


def test_a_peer_moves_only_to_where_its_connection_may_be(make):
    """What its key proves is who it is: an address that another connection is for is not its to take."""
    ours = make.connection()
    world = make.Pair(ours, dataclasses.replace(make.mirrored(ours), remote=make.address("203.0.113.9")))
    nat = Translator(make, world)
    assert world.up().outcome is Outcome.DONE
    nat.outside = make.address("203.0.113.66")
    world.sites[nat.outside] = world.left
    world.run(60.0)
    world.left.down(child="lan")
    world.run(1.0)
    assert world.right.pairs == {}, "the message was verified and obeyed"
    assert world.right.status()[0].remote == Endpoint(make.address("203.0.113.9"), 44500)
    assert world.right.logged("peer-moved") == []


def test_pairs_follow_a_moved_peer(make):
    lan, dmz = make.child("lan"), make.child("dmz", remote_ts=make.selectors("10.3.0.0/16"))
    world, nat = behind_nat(make, children=(lan, dmz))
    world.up(60.0)
    nat.first_port = 50000
    world.left.down(child="dmz")
    world.run(60.0)
    assert {asked.remote.port for _, asked in world.right.pairs.values()} == {54500}
    assert world.mirror() == 1
    world.settled()


def test_a_peer_without_nat_does_not_move(make):
    world = make.Pair()
    world.up()
    stranger = Endpoint(make.address("203.0.113.66"), 500)
    world.left.down(child="lan")
    delete = world.left.sent[-1]
    world.run(0.0)
    requests = len(world.right.keyd_requests)
    world.right.engine.datagram(delete.data, delete.remote, stranger, world.now)
    world.right.carry_out()
    assert len(world.right.keyd_requests) == requests


def test_esp_and_keepalives_on_port_4500_are_not_ike_rfc3948_2(make):
    world, _ = behind_nat(make)
    world.up()
    before = len(world.right.log)
    for data in (b"\xff", b"", b"\0\0\0", b"\0\0\0\1" + bytes(60)):
        world.right.engine.datagram(data, Endpoint(make.RIGHT, 4500), Endpoint(make.LEFT, 4500), world.now)
    assert len(world.right.log) == before
    assert world.right.engine.take_effects() == []


def test_three_hours_behind_a_nat_without_a_gap(make):
    world, _ = behind_nat(make, lifetime=3600, children=(make.child(start=Start.UP, lifetime=1800),))
    world.run(10.0)
    first = world.left.established()[0].cky_i
    gaps = 0
    while world.now < 1000.0 + 3 * 3600:
        world.run(10.0)
        gaps += not world.mirror()
    assert gaps == 0
    assert all(sa.cky_i != first and sa.nat == "local" for sa in world.left.established())
    assert len(world.left.pairs) <= 2
    world.settled()


def test_ike_follows_where_the_data_plane_saw_the_peer_rfc3947_4(make):
    world, translator = behind_nat(make)
    world.up()
    ((spi, _),) = world.right.pairs.items()
    translator.first_port = 50000
    moved = Endpoint(translator.outside, 54500)
    world.right.event(Moved(spi_in=spi, remote=moved))
    assert world.right.status()[0].remote == moved
    pairs = dict(world.right.pairs)
    world.right.down()
    assert world.run(10.0, lambda: not world.left.pairs), "the DELETE went to the old port"
    assert list(pairs) == [spi], "nothing was negotiated anew"
    world.settled()


def test_a_move_of_a_pair_that_the_worker_does_not_have_is_nothing(make):
    world, _ = behind_nat(make)
    world.up()
    before = world.right.status()[0].remote
    world.right.event(Moved(spi_in=0x1234, remote=Endpoint(make.address("203.0.113.66"), 1)))
    assert world.right.status()[0].remote == before
