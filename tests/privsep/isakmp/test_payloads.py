"""Payload bodies (RFC 2408 sections 3.7 to 3.16, RFC 2407 section 4.6.2, RFC 3947 section 5.2)."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep.algorithms import IkeSuite
from privsep.errors import MalformedError, PeerError
from privsep.iana import NotifyType, PayloadType
from privsep.isakmp.payloads import (
    MAX_BODY,
    MAX_DELETED,
    Certificate,
    CertificateRequest,
    Delete,
    Hash,
    Identification,
    KeyExchange,
    NatDiscovery,
    NatOriginalAddress,
    Nonce,
    Notification,
    Signature,
    Unknown,
    VendorId,
    encode_chain,
    encode_payload,
    parse_chain,
    parse_payload,
)
from privsep.payloads import split_chain
from privsep.schema.codec import NonceField, PublicValue
from privsep.types import Auth
from worker.codec.proposals import offer_ike

OCTET = st.integers(0, 255)
U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
SPIS = st.integers(1, 16).flatmap(
    lambda size: st.lists(st.binary(min_size=size, max_size=size), min_size=1, max_size=5).map(tuple)
)
SA = offer_ike([IkeSuite.parse("aes256-sha256-modp2048")], Auth.PSK, 3600)
PAYLOAD = st.one_of(
    st.just(SA),
    st.builds(KeyExchange, st.binary(min_size=1, max_size=64)),
    st.builds(Identification, id_type=OCTET, protocol=OCTET, port=U16, data=st.binary(max_size=32)),
    st.builds(Certificate, encoding=OCTET, data=st.binary(max_size=32)),
    st.builds(CertificateRequest, encoding=OCTET, data=st.binary(max_size=32)),
    st.builds(Hash, st.binary(min_size=1, max_size=64)),
    st.builds(Signature, st.binary(max_size=64)),
    st.builds(Nonce, st.binary(min_size=8, max_size=256)),
    st.builds(Notification, doi=U32, protocol=OCTET, type=U16, spi=st.binary(max_size=16), data=st.binary(max_size=32)),
    st.builds(Delete, doi=U32, protocol=OCTET, spis=SPIS),
    st.builds(VendorId, st.binary(max_size=32)),
    st.builds(NatDiscovery, st.binary(min_size=1, max_size=64)),
    st.builds(NatOriginalAddress, st.ip_addresses()),
    st.builds(Unknown, st.sampled_from([14, 15, 19, 22, 127, 128, 130, 255]), st.binary(max_size=32)),
)


@given(PAYLOAD)
def test_parsing_what_was_encoded_gives_the_same_payload(payload):
    assert parse_payload(*encode_payload(payload)) == payload


@given(st.lists(PAYLOAD, max_size=6))
def test_parsing_an_encoded_chain_gives_the_same_payloads(payloads):
    assert parse_chain(*encode_chain(payloads)) == payloads


@given(st.lists(PAYLOAD, max_size=3), st.binary(max_size=16))
def test_padding_after_a_decrypted_chain_is_left_away_rfc2409_appendix_b(payloads, padding):
    first, data = encode_chain(payloads)
    assert parse_chain(first, data + padding, padding=True) == payloads


@given(PAYLOAD, st.data())
def test_a_truncated_body_parses_to_another_value_or_is_refused(payload, data):
    kind, body = encode_payload(payload)
    cut = body[: data.draw(st.integers(0, max(0, len(body) - 1)))]
    try:
        parsed = parse_payload(kind, cut)
    except PeerError:
        return
    assert encode_payload(parsed) == (kind, cut)


@given(st.integers(0, 255), st.binary(max_size=200))
def test_any_octets_parse_to_a_value_that_encodes_the_same_or_are_refused(kind, body):
    try:
        payload = parse_payload(kind, body)
    except PeerError:
        return
    assert encode_payload(payload) == (kind, body)


@given(st.integers(0, 255), st.binary(max_size=300), st.booleans())
def test_any_chain_parses_or_is_refused_and_nothing_else(first, data, padding):
    try:
        payloads = parse_chain(first, data, padding=padding)
    except PeerError:
        return
    assert len(payloads) == len(split_chain(first, data, padding=padding))


def test_a_notification_looks_as_rfc2408_3_14_draws_it():
    value = Notification(protocol=1, type=NotifyType.R_U_THERE, spi=b"cookie-icookie-r", data=b"\0\0\0\1")
    body = bytes.fromhex("00000001 01 10 8d28") + b"cookie-icookie-r" + b"\0\0\0\1"
    assert encode_payload(value) == (PayloadType.NOTIFY, body)


@pytest.mark.parametrize("spi_size", [17, 24, 255])
def test_a_notification_whose_spi_is_too_long_is_malformed(spi_size):
    with pytest.raises(MalformedError):
        parse_payload(PayloadType.NOTIFY, bytes.fromhex("00000001 01") + bytes((spi_size,)) + bytes(300))


def test_a_delete_looks_as_rfc2408_3_15_draws_it():
    body = bytes.fromhex("00000001 03 04 0002 aabbccdd 11223344")
    value = Delete(protocol=3, spis=(b"\xaa\xbb\xcc\xdd", b"\x11\x22\x33\x44"))
    assert encode_payload(value) == (PayloadType.DELETE, body)
    assert parse_payload(PayloadType.DELETE, body) == value


@pytest.mark.parametrize(
    "octets",
    [
        "03 04 ffff aabbccdd",  # CVE-2004-0221: far more SPIs than there are octets
        "03 04 0002 aabbccdd",
        "03 04 0001 aabbccdd 11223344",
        "03 04 0000",
        "03 04 0000 aabbccdd",
        "03 00 0004 aabbccdd",  # size 0 times anything
        "03 00 0000",
        "03 00 ffff",
        "03 11 0001" + "00" * 17,
        "03 ff 0001 aabbccdd",
    ],
)
def test_a_delete_whose_count_and_size_do_not_fit_its_length_is_malformed(octets):
    with pytest.raises(MalformedError):
        parse_payload(PayloadType.DELETE, bytes.fromhex("00000001" + octets))


def test_the_number_of_deleted_spis_is_bounded():
    spis = tuple(number.to_bytes(4, "big") for number in range(MAX_DELETED + 1))
    assert parse_payload(*encode_payload(Delete(protocol=3, spis=spis[:-1]))) == Delete(protocol=3, spis=spis[:-1])
    with pytest.raises(MalformedError):
        parse_payload(*encode_payload(Delete(protocol=3, spis=spis)))


def test_spis_of_different_sizes_in_one_delete_are_our_error():
    with pytest.raises(ValueError, match="one size"):
        encode_payload(Delete(protocol=3, spis=(b"1234", b"12345678")))


@pytest.mark.parametrize(("kind", "schema"), [(PayloadType.NONCE, NonceField), (PayloadType.KE, PublicValue)])
def test_a_nonce_or_public_value_that_parses_is_one_that_keyd_takes_rfc2409_5(kind, schema):
    bounds = schema.__metadata__[0]
    for length in (bounds.low, bounds.high):
        parse_payload(kind, bytes(length))
    for length in (bounds.low - 1, bounds.high + 1):
        with pytest.raises(MalformedError):
            parse_payload(kind, bytes(length))


def test_an_identification_that_parses_is_one_that_keyd_takes():
    parse_payload(PayloadType.ID, bytes(1024))
    for length in (0, 3, 1025):
        with pytest.raises(MalformedError):
            parse_payload(PayloadType.ID, bytes(length))


def test_the_reserved_octets_of_a_nat_oa_are_ignored_rfc3947_5_2():
    """A peer fills in protocol and port, as in an ID payload. Ours are zero."""
    value = parse_payload(PayloadType.NAT_OA, bytes.fromhex("0111 01f4 0a000001"))
    assert value == parse_payload(PayloadType.NAT_OA, bytes.fromhex("01000000 0a000001"))
    assert encode_payload(value) == (PayloadType.NAT_OA, bytes.fromhex("01000000 0a000001"))


@pytest.mark.parametrize(
    "octets",
    ["", "01", "01000000", "01000000 0a0000", "01000000 0a00000100", "05000000 0a000001", "02000000 0a000001",
     "04000000 0a000000ffffff00"],
)  # fmt: skip
def test_a_nat_oa_that_is_no_single_address_is_malformed_rfc3947_5_2(octets):
    with pytest.raises(MalformedError):
        parse_payload(PayloadType.NAT_OA, bytes.fromhex(octets))


def test_a_nat_oa_looks_as_rfc3947_5_2_draws_it():
    payload = NatOriginalAddress(ipaddress.ip_address("10.0.0.1"))
    assert encode_payload(payload) == (PayloadType.NAT_OA, bytes.fromhex("01000000 0a000001"))


def test_payloads_without_a_closer_bound_are_bounded():
    for kind in (PayloadType.CERT, PayloadType.VENDOR_ID, PayloadType.SIG, PayloadType.NOTIFY):
        with pytest.raises(MalformedError):
            parse_payload(kind, bytes(MAX_BODY + 100))


def test_an_unknown_payload_keeps_its_number_and_octets():
    assert parse_payload(200, b"abc") == Unknown(200, b"abc")
