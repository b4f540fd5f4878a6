"""Notify and Delete (RFC 2408 sections 5.14 and 5.15), dead peer detection (RFC 3706)."""

import struct

import pytest
from exchange_tools import clear, sealed

from privsep.iana import ExchangeType, NotifyType, ProtocolId
from privsep.isakmp.payloads import Delete, Notification, parse_chain
from privsep.schema.keyd import InfoOpen, InfoSeal
from worker.effects import Send


@pytest.fixture
def world(make):
    made = make.Pair()
    made.up()
    return made


def test_r_u_there_is_acknowledged_with_its_sequence_number_rfc3706_5_4(world):
    (sa,) = world.left.engine._context.sas.all()
    ask = Notification(
        protocol=ProtocolId.ISAKMP, type=NotifyType.R_U_THERE, spi=sa.cky_i + sa.cky_r, data=struct.pack(">I", 77)
    )
    world.right.sent.clear()
    world.transmit(world.left, sealed(world, world.left, [ask]))
    world.run(1.0)
    (answer,) = world.right.sent
    opened = world.left.keyd_requests[-1]
    assert isinstance(opened, InfoOpen)
    assert int.from_bytes(answer.data[20:24], "big") == opened.message_id
    composed = [each for each in world.right.keyd_requests if isinstance(each, InfoSeal)][-1]
    (ack,) = parse_chain(composed.next_payload, composed.payloads)
    assert (ack.type, ack.spi, ack.data) == (NotifyType.R_U_THERE_ACK, ask.spi, ask.data)


def test_a_replayed_r_u_there_is_not_acknowledged_cve_2009_0790(world):
    (sa,) = world.left.engine._context.sas.all()
    ask = Notification(protocol=ProtocolId.ISAKMP, type=NotifyType.R_U_THERE, spi=sa.cky_i + sa.cky_r, data=bytes(4))
    send = sealed(world, world.left, [ask])
    world.transmit(world.left, send)
    world.run(1.0)
    world.right.sent.clear()
    world.transmit(world.left, send)
    world.run(1.0)
    assert world.right.sent == []


@pytest.mark.parametrize(
    "kind", [NotifyType.INITIAL_CONTACT, NotifyType.INVALID_COOKIE, NotifyType.AUTHENTICATION_FAILED, 40001]
)
def test_notifications_in_clear_change_nothing_rfc2409_5_7_cve_2004_0164(world, kind):
    (sa,) = world.left.engine._context.sas.all()
    notify = Notification(protocol=ProtocolId.ISAKMP, type=kind, spi=sa.cky_i + sa.cky_r)
    world.right.engine.datagram(clear(sa, [notify]), sa.remote, sa.local, world.now)
    world.run(5.0)
    assert world.mirror() == len(world.right.pairs) == 1
    assert len(world.right.established()) == 1


def test_a_delete_in_clear_changes_nothing_rfc2408_5_15_cve_2019_10155(world):
    (sa,) = world.left.engine._context.sas.all()
    (spi,) = world.left.pairs
    for delete in (
        Delete(protocol=ProtocolId.ISAKMP, spis=(sa.cky_i + sa.cky_r,)),
        Delete(protocol=ProtocolId.ESP, spis=(spi.to_bytes(4, "big"),)),
    ):
        world.right.engine.datagram(clear(sa, [delete]), sa.remote, sa.local, world.now)
        # the encryption flag alone does not make it encrypted
        lying = bytearray(clear(sa, [delete]))
        lying[19] |= 1
        world.right.engine.datagram(bytes(lying), sa.remote, sa.local, world.now)
    world.run(5.0)
    assert world.mirror() == len(world.right.pairs) == 1
    assert len(world.right.established()) == 1
    assert world.right.errors == []


def test_a_peer_can_delete_its_own_sas_only(world):
    (ours,) = world.right.pairs
    outbound = next(iter(world.right.pairs.values()))[0].spi_out
    spis = [ours, ours ^ 1, 0, 255]
    delete = Delete(protocol=ProtocolId.ESP, spis=tuple(spi.to_bytes(4, "big") for spi in spis))
    world.transmit(world.left, sealed(world, world.left, [delete]))
    world.run(1.0)
    assert len(world.right.pairs) == 1
    twice = Delete(protocol=ProtocolId.ESP, spis=(outbound.to_bytes(4, "big"),) * 2)
    world.transmit(world.left, sealed(world, world.left, [twice, twice]))
    world.run(1.0)
    assert world.right.pairs == {}
    world.settled()


def test_a_bit_flipped_delete_is_not_obeyed(world):
    outbound = next(iter(world.right.pairs.values()))[0].spi_out
    send = sealed(world, world.left, [Delete(protocol=ProtocolId.ESP, spis=(outbound.to_bytes(4, "big"),))])
    for index in range(28, len(send.data)):
        data = bytearray(send.data)
        data[index] ^= 0x10
        world.transmit(world.left, Send(send.local, send.remote, bytes(data)))
    world.run(1.0)
    assert len(world.right.pairs) == 1
    world.transmit(world.left, send)
    world.run(1.0)
    assert world.right.pairs == {}


def test_the_commit_bit_is_legal_and_ignored_rfc2408_3_1(make):
    world = make.Pair()
    flagged = lambda data: data[:19] + bytes((data[19] | 2,)) + data[20:]  # noqa: E731
    transmit = world.transmit
    world.transmit = lambda site, send: transmit(site, Send(send.local, send.remote, flagged(send.data)))
    world.up()
    assert world.mirror() == 1


def test_a_first_message_that_comes_back_to_its_sender_is_dropped(make):
    world = make.Pair()
    world.fate = lambda site, send: []
    world.left.up()
    (first,) = world.left.sent
    world.left.engine.datagram(first.data, first.local, first.remote, world.now)
    world.left.carry_out()
    assert world.left.sent == [first]
    assert len(world.left.engine._context.sas) == 1


def test_a_quick_modes_message_id_is_not_taken_twice_rfc2409_5_5(world, debugging):
    quick = [send for send in world.left.sent if send.data[18] == ExchangeType.QUICK_MODE]
    world.run(100.0)
    world.right.sent.clear()
    for send in quick:
        world.transmit(world.left, send)
    world.run(100.0)
    assert world.right.sent == []
    assert len(world.right.pairs) == 1
    assert "the message id was used before" in {each["reason"] for each in world.right.logged("message-ignored")}
