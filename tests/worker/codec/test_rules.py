"""Which payloads have a place in which message (RFC 2409 sections 5, 5.4, 5.5, 5.7; RFC 2408 sections 5.2, 5.3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep.errors import PeerError
from privsep.iana import ExchangeType, HeaderFlag, NotifyType, PayloadType
from privsep.payloads import MAX_PAYLOADS
from worker.codec.header import Header
from worker.codec.rules import check, check_header, expected

P = PayloadType
MAIN, QUICK, INFORMATIONAL = ExchangeType.MAIN_MODE, ExchangeType.QUICK_MODE, ExchangeType.INFORMATIONAL


def header(exchange, *, first=P.HASH, flags=HeaderFlag.ENCRYPTION, message_id=7):
    return Header(
        cky_i=b"i" * 8,
        cky_r=b"r" * 8,
        next_payload=first,
        exchange=exchange,
        flags=int(flags),
        message_id=message_id,
        length=100,
    )


def main(number):
    return expected(MAIN, number, encrypted=number > 4)


def quick(number):
    return expected(QUICK, number, encrypted=True)


def refusal(call, *args):
    with pytest.raises(PeerError) as caught:
        call(*args)
    return caught.value.notify


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        (main(1), [P.SA]),
        (main(1), [P.SA, P.VENDOR_ID, P.VENDOR_ID]),
        (main(2), [P.SA]),
        (main(3), [P.KE, P.NONCE]),
        (main(3), [P.NONCE, P.NAT_D, P.NAT_D, P.NAT_D, P.KE, P.VENDOR_ID]),
        (main(4), [P.KE, P.NONCE, P.CERTREQ, P.NAT_D, P.NAT_D]),
        (main(5), []),
        (main(5), [P.NOTIFY]),
        (main(6), [P.NOTIFY, P.VENDOR_ID]),
        (quick(1), [P.SA, P.NONCE]),
        (quick(1), [P.SA, P.ID, P.ID, P.KE, P.NONCE, P.NAT_OA, P.NAT_OA, P.NOTIFY]),
        (quick(2), [P.SA, P.NONCE, P.KE]),
        (quick(3), []),
        (expected(INFORMATIONAL, 1, encrypted=True), [P.NOTIFY]),
        (expected(INFORMATIONAL, 1, encrypted=True), [P.DELETE, P.DELETE]),
        (expected(INFORMATIONAL, 1, encrypted=False), [P.NOTIFY]),
        (main(1), [P.SA, 128, 255, 130]),
    ],
)
def test_what_the_rfcs_draw_is_accepted(row, kinds):
    check(row, kinds)


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        (main(1), []),
        (main(1), [P.VENDOR_ID]),
        (main(1), [P.SA, P.SA]),  # section 5: there MUST NOT be multiple SA payloads
        (main(1), [P.VENDOR_ID, P.SA]),  # section 5: SA MUST precede all other payloads
        (main(1), [P.SA, P.KE, P.NONCE]),
        (main(1), [P.SA] + [P.VENDOR_ID] * 33),
        (main(1), [P.SA, P.PROPOSAL]),
        (main(1), [P.SA, 14]),  # reserved, not private
        (main(1), [P.SA, 127]),
        (main(3), [P.KE]),
        (main(3), [P.NONCE]),
        (main(3), [P.KE, P.KE, P.NONCE]),
        (main(3), [P.KE, P.NONCE, P.SA]),
        (main(3), [P.KE, P.NONCE, P.ID, P.HASH]),
        (main(3), [P.KE, P.NONCE] + [P.NAT_D] * 17),
        (main(5), [P.HASH]),
        (main(5), [P.ID]),
        (main(5), [P.DELETE]),
        (main(5), [P.NOTIFY] * 9),
        (quick(1), [P.NONCE, P.SA]),  # section 5.5: SA MUST immediately follow the HASH
        (quick(1), [P.SA]),
        (quick(1), [P.SA, P.NONCE, P.ID]),  # identities in pairs
        (quick(1), [P.SA, P.NONCE, P.ID, P.ID, P.ID]),
        (quick(1), [P.SA, P.NONCE, P.KE, P.KE]),
        (quick(1), [P.SA, P.NONCE, P.NAT_OA]),
        (quick(1), [P.SA, P.NONCE, P.HASH]),
        (quick(1), [P.SA, P.NONCE, P.DELETE]),
        (quick(3), [P.SA]),
        (expected(INFORMATIONAL, 1, encrypted=True), []),
        (expected(INFORMATIONAL, 1, encrypted=True), [P.VENDOR_ID]),
        (expected(INFORMATIONAL, 1, encrypted=True), [P.NOTIFY, P.SA]),
        (expected(INFORMATIONAL, 1, encrypted=False), [P.DELETE]),  # RFC 2408 section 5.15: always protected
        (expected(INFORMATIONAL, 1, encrypted=False), [P.NOTIFY, P.NOTIFY]),
    ],
)
def test_anything_missing_surplus_or_misplaced_is_refused_rfc2408_5_3(row, kinds):
    assert refusal(check, row, kinds) is NotifyType.INVALID_PAYLOAD_TYPE


@given(
    st.sampled_from([main(1), main(3), main(5), quick(1), quick(3)]),
    st.lists(st.integers(0, 255), max_size=MAX_PAYLOADS),
)
def test_any_list_of_payloads_is_accepted_or_refused_and_nothing_else(row, kinds):
    try:
        check(row, kinds)
    except PeerError:
        return
    assert all(kind in row.payloads or kind >= 128 for kind in kinds)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_main_mode_begins_in_clear_and_message_id_zero_rfc2408_3_1(number):
    clear = {"first": P.SA, "flags": HeaderFlag.NONE, "message_id": 0}
    assert check_header(header(MAIN, **clear), number) is main(number)
    assert refusal(check_header, header(MAIN, **clear | {"message_id": 1}), number) is NotifyType.INVALID_MESSAGE_ID
    encrypted = clear | {"flags": HeaderFlag.ENCRYPTION}
    assert refusal(check_header, header(MAIN, **encrypted), number) is NotifyType.INVALID_FLAGS


@pytest.mark.parametrize("number", [5, 6])
def test_main_mode_ends_encrypted_with_an_identity_rfc2409_5_4(number):
    assert check_header(header(MAIN, first=P.ID, message_id=0), number).sealed == (P.ID, P.HASH)
    clear = header(MAIN, first=P.ID, message_id=0, flags=HeaderFlag.NONE)
    assert refusal(check_header, clear, number) is NotifyType.INVALID_FLAGS
    assert refusal(check_header, header(MAIN, message_id=0), number) is NotifyType.INVALID_PAYLOAD_TYPE


@pytest.mark.parametrize("number", [1, 2, 3])
def test_quick_mode_is_encrypted_begins_with_a_hash_and_has_a_message_id_rfc2409_5_5(number):
    assert check_header(header(QUICK), number) is quick(number)
    assert check_header(header(QUICK, flags=HeaderFlag.ENCRYPTION | HeaderFlag.COMMIT), number) is quick(number)
    for wrong, notify in [
        ({"flags": HeaderFlag.NONE}, NotifyType.INVALID_FLAGS),
        ({"first": P.SA}, NotifyType.INVALID_PAYLOAD_TYPE),
        ({"message_id": 0}, NotifyType.INVALID_MESSAGE_ID),
    ]:
        assert refusal(check_header, header(QUICK, **wrong), number) is notify


@pytest.mark.parametrize("flags", [0x04, 0x05, 0x09, 0x81])
def test_authentication_only_and_unassigned_flags_are_refused_rfc2408_5_2(flags):
    assert refusal(check_header, header(INFORMATIONAL, flags=flags), 1) is NotifyType.INVALID_FLAGS


def test_an_informational_message_may_be_clear_with_any_message_id_rfc2409_5_7():
    for message_id in (0, 9):
        row = check_header(header(INFORMATIONAL, first=P.NOTIFY, flags=HeaderFlag.NONE, message_id=message_id), 1)
        assert not row.encrypted


@pytest.mark.parametrize("exchange", [0, 1, 3, 4, 6, 31, 33, 240, 255])
def test_other_exchanges_are_refused_rfc2408_5_2(exchange):
    assert refusal(check_header, header(exchange), 1) is NotifyType.UNSUPPORTED_EXCHANGE_TYPE


@pytest.mark.parametrize(("exchange", "number"), [(MAIN, 7), (MAIN, 0), (QUICK, 4), (INFORMATIONAL, 2)])
def test_an_exchange_has_a_fixed_number_of_messages_rfc2409_5(exchange, number):
    assert refusal(check_header, header(exchange), number) is NotifyType.INVALID_EXCHANGE_TYPE
