"""The ISAKMP header (RFC 2408 sections 3.1, 5.1 and 5.2)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep.errors import MalformedError, PeerError
from privsep.iana import ExchangeType, HeaderFlag, NotifyType, PayloadType
from privsep.schema.codec import Blob
from worker.codec.header import HEADER_OCTETS, MAX_MESSAGE, Header, encode_message, parse_header

COOKIE = st.binary(min_size=8, max_size=8)
MESSAGE = encode_message(
    cky_i=b"initiato",
    cky_r=b"responde",
    exchange=ExchangeType.QUICK_MODE,
    flags=HeaderFlag.ENCRYPTION,
    message_id=0x01020304,
    first=PayloadType.HASH,
    body=b"body",
)


def refusal(data):
    with pytest.raises(PeerError) as caught:
        parse_header(data)
    return caught.value.notify


def test_the_header_looks_as_rfc2408_3_1_draws_it():
    assert b"initiato" + b"responde" + bytes.fromhex("08 10 20 01 01020304 00000020") + b"body" == MESSAGE


@given(
    cky_i=COOKIE.filter(any),
    cky_r=COOKIE,
    exchange=st.integers(0, 255),
    flags=st.integers(0, 255),
    message_id=st.integers(0, 2**32 - 1),
    first=st.integers(0, 255),
    body=st.binary(max_size=64),
)
def test_parsing_what_was_encoded_gives_the_same_header_known_numbers_or_not(**fields):
    header = parse_header(encode_message(**fields))
    body = fields.pop("body")
    fields["next_payload"] = fields.pop("first")
    assert header == Header(length=HEADER_OCTETS + len(body), **fields)


def test_flags_are_read_as_rfc2408_3_1_numbers_them():
    header = parse_header(MESSAGE)
    assert header.encrypted
    assert not header.commit
    header = parse_header(MESSAGE[:19] + b"\x02" + MESSAGE[20:])
    assert not header.encrypted
    assert header.commit


@pytest.mark.parametrize("length", range(HEADER_OCTETS))
def test_a_runt_is_malformed_cve_2013_4564(length):
    with pytest.raises(MalformedError):
        parse_header(MESSAGE[:length])


@pytest.mark.parametrize("length", [0, 27, 28, 31, 33, 2**31, 2**32 - 1])
def test_a_length_that_is_not_the_datagrams_is_rejected_rfc2408_5_1(length):
    data = MESSAGE[:24] + length.to_bytes(4, "big") + MESSAGE[28:]
    assert refusal(data) is NotifyType.UNEQUAL_PAYLOAD_LENGTHS


def test_a_truncated_or_padded_datagram_is_rejected_rfc2408_5_1():
    assert refusal(MESSAGE[:-1]) is NotifyType.UNEQUAL_PAYLOAD_LENGTHS
    assert refusal(MESSAGE + b"\0") is NotifyType.UNEQUAL_PAYLOAD_LENGTHS


def test_the_longest_message_still_fits_into_a_frame_to_keyd():
    assert Blob.__metadata__[0].high >= MAX_MESSAGE
    fields = {"cky_i": b"initiato", "cky_r": bytes(8), "exchange": 2, "flags": 0, "message_id": 0, "first": 1}
    longest = encode_message(**fields, body=bytes(MAX_MESSAGE - HEADER_OCTETS))
    assert parse_header(longest).length == MAX_MESSAGE
    too_long = encode_message(**fields, body=bytes(MAX_MESSAGE - HEADER_OCTETS + 1))
    assert refusal(too_long) is NotifyType.UNEQUAL_PAYLOAD_LENGTHS


@pytest.mark.parametrize(
    ("version", "notify"),
    [
        (0x20, NotifyType.INVALID_MAJOR_VERSION),
        (0x00, NotifyType.INVALID_MAJOR_VERSION),
        (0x11, NotifyType.INVALID_MINOR_VERSION),
    ],
)
def test_other_versions_are_refused_rfc2408_5_2(version, notify):
    assert refusal(MESSAGE[:17] + bytes((version,)) + MESSAGE[18:]) is notify


def test_an_initiator_cookie_of_zero_is_refused_rfc2408_5_2():
    assert refusal(bytes(8) + MESSAGE[8:]) is NotifyType.INVALID_COOKIE
