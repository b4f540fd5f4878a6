"""The chain of generic payload headers (RFC 2408 sections 3.2 and 5.3)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privsep.errors import MalformedError, PeerError
from privsep.iana import NotifyType, PayloadType
from privsep.payloads import GENERIC_HEADER, MAX_PAYLOADS, join_chain, only, split_chain

CHAINS = st.lists(st.tuples(st.integers(1, 255), st.binary(max_size=40)), max_size=8)


@settings(deadline=None)
@given(CHAINS)
def test_splitting_a_joined_chain_gives_the_same_payloads(payloads):
    first, data = join_chain(payloads)
    assert split_chain(first, data) == payloads


def test_a_chain_looks_as_rfc2408_3_2_draws_it():
    assert join_chain([(10, b"nonce"), (4, b"")]) == (10, b"\x04\x00\x00\x09nonce" + b"\x00\x00\x00\x04")


@settings(deadline=None)
@given(CHAINS.filter(bool), st.data())
def test_a_truncated_chain_is_malformed(payloads, data):
    first, octets = join_chain(payloads)
    cut = data.draw(st.integers(0, len(octets) - 1))
    with pytest.raises(MalformedError):
        split_chain(first, octets[:cut])


def test_octets_after_the_last_payload_are_padding_in_plaintext_only_rfc2409_appendix_b():
    first, data = join_chain([(8, b"hash")])
    assert split_chain(first, data + bytes(7), padding=True) == [(8, b"hash")]
    with pytest.raises(MalformedError):
        split_chain(first, data + bytes(7))


@pytest.mark.parametrize("length", [0, 1, 2, 3, 9, 0xFFFF])
def test_a_wrong_payload_length_is_malformed(length):
    with pytest.raises(MalformedError) as caught:
        split_chain(8, bytes((0, 0)) + length.to_bytes(2, "big") + b"hash")
    assert caught.value.notify is NotifyType.PAYLOAD_MALFORMED


def test_a_reserved_octet_that_is_not_zero_is_malformed_rfc2408_5_3():
    with pytest.raises(MalformedError):
        split_chain(8, b"\x00\x01\x00\x08hash")


def test_the_number_of_payloads_is_bounded():
    most = [(13, b"")] * MAX_PAYLOADS
    assert split_chain(*join_chain(most)) == most
    with pytest.raises(MalformedError):
        split_chain(*join_chain([*most, (13, b"")]))


@settings(deadline=None)
@given(st.integers(0, 255), st.binary(max_size=64), st.booleans())
def test_any_octets_give_payloads_that_lie_inside_them_or_a_malformed_error(first, data, padding):
    try:
        payloads = split_chain(first, data, padding=padding)
    except MalformedError:
        return
    used = sum(GENERIC_HEADER + len(body) for _, body in payloads)
    assert used <= len(data)
    assert padding or used == len(data)


def test_only_wants_exactly_one_payload_of_a_type():
    payloads = [(10, b"nonce"), (20, b"a"), (20, b"b")]
    assert only(payloads, PayloadType.NONCE) == b"nonce"
    for kind in (PayloadType.NAT_D, PayloadType.KE):
        with pytest.raises(PeerError) as caught:
            only(payloads, kind)
        assert caught.value.notify is NotifyType.INVALID_PAYLOAD_TYPE
