"""What peers send that is not quite as the RFCs have it, or that few send: it is taken."""

import dataclasses
import itertools

import pytest

from keyd import phase1
from privsep.algorithms import Group, Hash, IkeCipher, IkeSuite
from privsep.iana import IdType, NotifyType, PayloadType, ProtocolId
from privsep.isakmp.payloads import CertificateRequest, Delete, Notification, VendorId, encode_payload
from privsep.payloads import join_chain, split_chain
from privsep.schema.install import Outcome
from privsep.schema.keyd import InfoSeal
from privsep.types import Identity
from worker.codec.header import HEADER_OCTETS

MORE = [
    CertificateRequest(encoding=4, data=b""),
    CertificateRequest(encoding=4, data=b"a name"),
    Notification(protocol=ProtocolId.ISAKMP, type=40_001),
    VendorId(b"somebody"),
]


def with_more(data, payloads):
    """A message in clear with payloads at its end."""
    listed = split_chain(data[16], data[HEADER_OCTETS:])
    first, chain = join_chain([*listed, *map(encode_payload, payloads)])
    length = HEADER_OCTETS + len(chain)
    return data[:16] + bytes((first,)) + data[17:24] + length.to_bytes(4, "big") + chain


@pytest.mark.parametrize("more", [*([each] for each in MORE), MORE])
def test_some_payloads_may_stand_anywhere_in_phase_1_rfc2408_3_10(make, more):
    """A request for a certificate in message 1 was a reason to refuse it."""
    world = make.Pair()
    transmit, changed = world.transmit, []

    def transmitting(site, send):
        if send.data[18] == 2 and not send.data[19] & 1:
            send = dataclasses.replace(send, data=with_more(send.data, more))
            changed.append(send)
        transmit(site, send)

    world.transmit = transmitting
    assert world.up().outcome is Outcome.DONE
    assert len(changed) == 4
    assert world.mirror() == 1


@pytest.mark.parametrize("ports", [(0, 0), (17, 0), (17, 500), (17, 4500)])
def test_an_identity_may_name_ikes_ports_rfc2407_4_6_2_rfc3947_4(make, monkeypatch, ports):
    protocol, port = ports
    body = phase1.id_body
    monkeypatch.setattr(
        phase1, "id_body", lambda each: body(each)[:1] + bytes((protocol,)) + port.to_bytes(2, "big") + body(each)[4:]
    )
    world = make.Pair()
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 1


@pytest.mark.parametrize(
    ("kind", "sent", "expected", "accepted"),
    [
        (IdType.FQDN, b"GW1.Example.ORG", b"gw1.example.org", True),
        (IdType.FQDN, b"gw1.example.org", b"GW1.EXAMPLE.ORG", True),
        (IdType.USER_FQDN, b"alice@Example.ORG", b"alice@example.org", True),
        (IdType.USER_FQDN, b"Alice@example.org", b"alice@example.org", False),
        (IdType.KEY_ID, b"KEY", b"key", False),
    ],
)
def test_the_case_of_a_name_means_nothing_rfc4945_3_1_2(make, kind, sent, expected, accepted):
    ours = make.connection(local_id=Identity(kind, sent))
    theirs = dataclasses.replace(make.mirrored(ours), remote_id=Identity(kind, expected))
    world = make.Pair(ours, theirs)
    assert (world.up().outcome is Outcome.DONE) is accepted
    assert world.mirror() == accepted


def test_two_hundred_transforms_are_taken_rfc2408_3_5(make):
    every = [IkeSuite(*each) for each in itertools.product(IkeCipher, Hash, Group)]
    wanted = IkeSuite.parse("aes256-sha256-curve25519")
    suites = (*(each for each in every if each != wanted), wanted)[-200:]
    ours = make.connection(suites=suites)
    world = make.Pair(ours, dataclasses.replace(make.mirrored(ours), suites=(wanted,)))
    assert world.up().outcome is Outcome.DONE
    assert len(world.left.sent[0].data) > 6900
    assert world.mirror() == 1


BROKEN = (PayloadType.NOTIFY, b"\0\0\0\x01\x01\xff\x8d\x28")
"""A notification whose SPI is longer than itself."""


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("bad", ["cut off", "no sequence number", "a payload that has no place"])
def test_a_delete_is_heard_beside_a_notification_that_is_of_no_form_rfc2408_5_15(make, order, bad):
    """libreswan sends them in one message."""
    world = make.Pair()
    world.up()
    (sa,) = world.left.engine._context.sas.all()
    (spi,) = world.left.pairs
    dead = Notification(protocol=ProtocolId.ISAKMP, type=NotifyType.R_U_THERE, spi=sa.cky_i + sa.cky_r)
    beside = {
        "cut off": BROKEN,
        "no sequence number": encode_payload(dead),
        "a payload that has no place": (PayloadType.VENDOR_ID, b"x"),
    }[bad]
    listed = [encode_payload(Delete(protocol=ProtocolId.ESP, spis=(spi.to_bytes(4, "big"),))), beside][::order]
    handle, seal = world.left.keyd.handle, []

    def sealing(request):
        if isinstance(request, InfoSeal) and not seal:
            seal.append(request)
            first, chain = join_chain(listed)
            request = dataclasses.replace(request, next_payload=first, payloads=chain)
        return handle(request)

    world.left.keyd.handle = sealing
    world.left.down(child="lan")
    world.run(1.0)
    assert world.right.pairs == {}
    world.settled()
