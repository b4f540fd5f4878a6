"""Foreign packets: what strongSwan and libreswan send is understood as tshark understands it, octet for octet.

Every mutation of them is understood otherwise or refused, and nothing else.
"""

import contextlib

import pytest

from privsep.algorithms import ChildSuite, IkeSuite
from privsep.errors import PeerError
from privsep.iana import EncapsulationMode, PayloadType
from privsep.isakmp.association import SecurityAssociation
from privsep.isakmp.child_proposals import accepted_child, describe_child, select_child
from privsep.isakmp.identification import parse_identity, parse_selector
from privsep.isakmp.payloads import (
    Delete,
    Identification,
    NatDiscovery,
    Nonce,
    Notification,
    VendorId,
    encode_chain,
    parse_chain,
    parse_payload,
)
from privsep.payloads import split_chain
from privsep.types import Auth
from worker.codec.header import HEADER_OCTETS, parse_header
from worker.codec.proposals import accepted_ike, describe_ike, select_ike
from worker.codec.rules import check, check_header
from worker.codec.vendor import recognise

IKE = [IkeSuite.parse("aes256-sha256-modp2048"), IkeSuite.parse("aes128-sha1-modp2048")]
CHILD = [ChildSuite.parse("aes256gcm16-modp2048"), ChildSuite.parse("aes128-sha256-modp2048")]


def understand(octets, number):
    """All that the worker does with a message before it answers, plaintext standing for ciphertext."""
    header = parse_header(octets)
    row = check_header(header, number)
    pairs = split_chain(header.next_payload, octets[HEADER_OCTETS:], padding=header.encrypted)
    sealed, open_ = pairs[: len(row.sealed)], pairs[len(row.sealed) :]
    check(row, [kind for kind, _ in open_])
    payloads = [parse_payload(*pair) for pair in sealed + open_]
    for payload in payloads:
        match payload:
            case SecurityAssociation() if row.encrypted:
                describe_child(payload)
                select_child(payload, CHILD, EncapsulationMode.TUNNEL)
                # no message is the answer to itself: its SPI is reflected, or it has several transforms
                with contextlib.suppress(PeerError):
                    accepted_child(payload, payload)
            case SecurityAssociation():
                describe_ike(payload)
                select_ike(payload, IKE, Auth.PSK)
                with contextlib.suppress(PeerError):
                    accepted_ike(payload, payload)
            case Identification():
                (parse_identity if row.sealed[0] == PayloadType.ID else parse_selector)(payload)
            case VendorId():
                recognise(payload.data)
    return payloads


def numbers(values):
    return [str(int(value)) for value in values]


def seen(payloads):
    """The fields that tshark prints, by its names, from what we parsed."""
    fields = {}

    def add(name, *values):
        fields.setdefault(name, []).extend(values)

    for payload in payloads:
        match payload:
            case SecurityAssociation():
                for proposal in payload.proposals:
                    add("prop.number", *numbers([proposal.number]))
                    add("prop.protoid", *numbers([proposal.protocol]))
                    add("spi", *([proposal.spi.hex()] if proposal.spi else []))
                    for transform in proposal.transforms:
                        add("trans.number", *numbers([transform.number]))
                        add("trans.id", *numbers([transform.transform_id]))
                        attributes(add, proposal.protocol, transform)
            case Identification():
                add("id.type", *numbers([payload.id_type]))
                add("id.protoid", *numbers([payload.protocol]))
                add("id.port", *numbers([payload.port]))
            case Notification():
                add("notify.msgtype", *numbers([payload.type]))
                add("spi", *([payload.spi.hex()] if payload.spi else []))
            case Delete():
                add("delete.spi", *[spi.hex() for spi in payload.spis])
            case Nonce():
                add("nonce", payload.data.hex())
            case NatDiscovery():
                add("ike.nat_hash", payload.data.hex())
    return {name: values for name, values in fields.items() if values}


NAMES = {
    1: ("ike", {1: "encryption_algorithm", 2: "hash_algorithm", 3: "authentication_method", 4: "group_description",
                12: "life_duration", 14: "key_length"}),
    3: ("ipsec", {2: "life_duration", 3: "group_description", 4: "encap_mode", 5: "auth_algorithm", 6: "key_length"}),
}  # fmt: skip


def attributes(add, protocol, transform):
    family, names = NAMES[protocol]
    for attribute in transform.attributes:
        add(f"{family}.attr.type", *numbers([attribute.type]))
        if attribute.type in names:
            add(f"{family}.attr.{names[attribute.type]}", *numbers([attribute.number]))


def test_a_foreign_message_is_understood(golden):
    understand(golden.header + golden.body, golden.number)


def test_a_foreign_message_is_understood_as_tshark_does(golden):
    payloads = parse_chain(golden.header[16], golden.body, padding=not golden.clear)
    tshark = {name: values for name, values in golden.tshark.items() if name != "typepayload"}
    assert seen(payloads) == tshark
    kinds = [kind for kind, _ in split_chain(golden.header[16], golden.body, padding=not golden.clear)]
    # tshark also counts proposals and transforms
    assert numbers(kinds) == [kind for kind in golden.tshark["typepayload"] if kind not in ("2", "3")]


def test_encoding_what_was_parsed_gives_the_foreign_octets_again(golden):
    first, octets = encode_chain(parse_chain(golden.header[16], golden.body, padding=not golden.clear))
    assert first == golden.header[16]
    assert golden.body.startswith(octets)
    assert len(golden.body) - len(octets) in (range(1) if golden.clear else range(17))


def association(golden_messages, name):
    message = next(message for message in golden_messages if message.name == name)
    payloads = parse_chain(message.header[16], message.body, padding=True)
    return next(payload for payload in payloads if isinstance(payload, SecurityAssociation))


@pytest.mark.parametrize(
    ("initiator", "responder"), [("strongswan", "libreswan"), ("libreswan", "strongswan")], ids=" to ".join
)
def test_we_accept_what_a_foreign_responder_made_of_a_foreign_offer(golden_messages, initiator, responder):
    senders = {"strongswan": "strongSwan", "libreswan": "libreswan"}

    def sa(exchange, number, sender):
        return association(golden_messages, f"{initiator}-initiator {exchange}-{number} {senders[sender]}")

    mode = EncapsulationMode.TUNNEL if initiator == "strongswan" else EncapsulationMode.UDP_TUNNEL
    offer, answer = sa("main", 1, initiator), sa("main", 2, responder)
    accepted = accepted_ike(offer, answer)
    selected = select_ike(offer, IKE, Auth.PSK)
    assert (accepted.suite, accepted.lifetime) == (selected.suite, selected.lifetime)
    offer, answer = sa("quick", 1, initiator), sa("quick", 2, responder)
    accepted = accepted_child(offer, answer)
    selected = select_child(offer, CHILD, mode)
    assert (accepted.suite, accepted.lifetime) == (selected.suite, selected.lifetime)
    assert str(accepted.suite) == "aes256gcm16-modp2048"


def test_every_truncation_of_a_foreign_message_is_refused(golden):
    octets = golden.header + golden.body
    for cut in range(len(octets)):
        with pytest.raises(PeerError):
            understand(octets[:cut], golden.number)
    end = len(encode_chain(parse_chain(golden.header[16], golden.body, padding=not golden.clear))[1])
    for cut in range(HEADER_OCTETS, HEADER_OCTETS + end):
        honest = octets[:24] + cut.to_bytes(4, "big") + octets[28:cut]
        with pytest.raises(PeerError):
            understand(honest, golden.number)


def test_every_changed_octet_of_a_foreign_message_is_understood_or_refused(golden):
    octets = golden.header + golden.body
    for offset, octet in enumerate(octets):
        for value in {0, 1, 0x7F, 0xFF, octet ^ 1, octet ^ 0x80, (octet + 1) & 0xFF} - {octet}:
            mutant = bytearray(octets)
            mutant[offset] = value
            try:
                understand(bytes(mutant), golden.number)
            except PeerError as error:
                reason = error.reason
            else:
                reason = ""
            assert reason.isascii()


ALIKE = {
    **{f"main-{number}": {(number - 1) // 2 * 2 + 1, (number - 1) // 2 * 2 + 2} for number in range(1, 7)},
    "quick-1": {1, 2},
    "quick-2": {1, 2},
    "quick-3": {3},
    "informational-1": {1},
}


def test_a_foreign_message_in_the_place_of_another_is_refused(golden):
    octets = golden.header + golden.body
    understood = set()
    for number in range(1, 8):
        with contextlib.suppress(PeerError):
            understand(octets, number)
            understood.add(number)
    # a message and its answer have the same payloads
    assert understood == ALIKE[golden.name.split()[1]]
