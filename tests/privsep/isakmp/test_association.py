"""SA payloads with proposals, transforms and attributes (RFC 2408 sections 3.3 to 3.6, 5.4 to 5.6)."""

import struct

import pytest
from cost import ratio
from hypothesis import given
from hypothesis import strategies as st

from privsep.errors import MalformedError, PeerError
from privsep.iana import NotifyType
from privsep.isakmp.association import (
    MAX_ATTRIBUTES,
    MAX_PROPOSALS,
    MAX_SPI,
    MAX_TRANSFORMS,
    MAX_VALUE,
    Attribute,
    Proposal,
    SecurityAssociation,
    Transform,
    encode_association,
    encode_attributes,
    parse_association,
    parse_attributes,
)
from worker.codec.header import MAX_MESSAGE

OCTET = st.integers(0, 255)
ATTRIBUTE = st.builds(Attribute, st.integers(0, 0x7FFF), st.integers(0, 0xFFFF) | st.binary(max_size=20))
TRANSFORM = st.builds(Transform, OCTET, OCTET, st.lists(ATTRIBUTE, max_size=6).map(tuple))
PROPOSAL = st.builds(
    Proposal,
    OCTET,
    OCTET,
    st.binary(max_size=MAX_SPI),
    st.lists(TRANSFORM, min_size=1, max_size=4).map(tuple),
)
ASSOCIATION = st.builds(SecurityAssociation, st.lists(PROPOSAL, min_size=1, max_size=4).map(tuple))

TRIPLE_DES = Transform(1, 1, (Attribute(1, 5), Attribute(12, b"\0\1\x51\x80")))
SIMPLE = SecurityAssociation((Proposal(1, 1, b"", (TRIPLE_DES,)),))


def refusal(body):
    with pytest.raises(PeerError) as caught:
        parse_association(body)
    return caught.value.notify


def changed(body, offset, octets):
    return body[:offset] + octets + body[offset + len(octets) :]


@given(ASSOCIATION)
def test_parsing_what_was_encoded_gives_the_same_association_known_numbers_or_not(sa):
    assert parse_association(encode_association(sa)) == sa


def test_an_association_looks_as_rfc2408_3_4_to_3_6_draw_it():
    assert encode_association(SIMPLE).hex(" ", -4) == (
        "00000001 00000001"  # DOI IPSEC, SIT_IDENTITY_ONLY
        " 0000001c 01010001"  # proposal 1: ISAKMP, no SPI, one transform
        " 00000014 01010000"  # transform 1: KEY_IKE
        " 80010005 000c0004 00015180"
    )


def test_several_proposals_and_transforms_are_chained_with_types_2_and_3_rfc2408_3_5():
    sa = SecurityAssociation(
        (Proposal(1, 3, b"spi1", (TRIPLE_DES, TRIPLE_DES)), Proposal(2, 3, b"spi2", (TRIPLE_DES,)))
    )
    body = encode_association(sa)
    first, second = 8, 8 + 12 + 40
    assert (body[first], body[first + 12], body[first + 32], body[second], body[second + 12]) == (2, 3, 0, 0, 0)
    assert parse_association(body) == sa


@given(ASSOCIATION, st.data())
def test_a_truncated_association_is_refused(sa, data):
    body = encode_association(sa)
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(PeerError):
        parse_association(body[:cut])


@given(ASSOCIATION)
def test_octets_after_the_last_proposal_are_refused(sa):
    with pytest.raises(MalformedError):
        parse_association(encode_association(sa) + b"\0")


@given(ASSOCIATION, st.data())
def test_any_changed_octet_parses_or_is_refused_and_nothing_else(sa, data):
    body = encode_association(sa)
    offset = data.draw(st.integers(0, len(body) - 1))
    try:
        parsed = parse_association(changed(body, offset, data.draw(st.binary(min_size=1, max_size=1))))
    except PeerError:
        return
    assert len(encode_association(parsed)) == len(body)


@pytest.mark.parametrize(
    ("offset", "octets", "notify"),
    [
        (0, bytes(4), NotifyType.DOI_NOT_SUPPORTED),
        (0, b"\xff\xff\xff\xff", NotifyType.DOI_NOT_SUPPORTED),
        (4, bytes(4), NotifyType.SITUATION_NOT_SUPPORTED),
        (4, b"\0\0\0\3", NotifyType.SITUATION_NOT_SUPPORTED),  # CVE-2015-3204: labelled or unassigned
        (4, b"\x80\0\0\1", NotifyType.SITUATION_NOT_SUPPORTED),
        (8, b"\3", NotifyType.BAD_PROPOSAL_SYNTAX),  # after a proposal only a proposal
        (8, b"\2", NotifyType.PAYLOAD_MALFORMED),  # announced and missing
        (9, b"\1", NotifyType.BAD_PROPOSAL_SYNTAX),
        (10, b"\0\7", NotifyType.BAD_PROPOSAL_SYNTAX),
        (10, b"\0\x1b", NotifyType.PAYLOAD_MALFORMED),
        (10, b"\xff\xff", NotifyType.PAYLOAD_MALFORMED),
        (14, b"\x11", NotifyType.BAD_PROPOSAL_SYNTAX),  # SPI longer than a cookie pair
        (14, b"\4", NotifyType.BAD_PROPOSAL_SYNTAX),  # SPI eats into the transform
        (15, b"\0", NotifyType.BAD_PROPOSAL_SYNTAX),
        (15, b"\2", NotifyType.BAD_PROPOSAL_SYNTAX),
        (15, b"\xff", NotifyType.BAD_PROPOSAL_SYNTAX),
        (16, b"\3", NotifyType.BAD_PROPOSAL_SYNTAX),
        (17, b"\1", NotifyType.BAD_PROPOSAL_SYNTAX),
        (18, b"\0\7", NotifyType.BAD_PROPOSAL_SYNTAX),
        (18, b"\0\x15", NotifyType.PAYLOAD_MALFORMED),
        (22, b"\0\1", NotifyType.BAD_PROPOSAL_SYNTAX),  # RESERVED2
        (30, b"\0\5", NotifyType.PAYLOAD_MALFORMED),  # attribute longer than its transform
        (30, b"\0\3", NotifyType.PAYLOAD_MALFORMED),
    ],
)
def test_each_wrong_field_is_refused_as_rfc2408_5_4_to_5_6_say(offset, octets, notify):
    assert refusal(changed(encode_association(SIMPLE), offset, octets)) is notify


def test_the_number_of_proposals_is_bounded():
    proposals = tuple(Proposal(number, 3, b"", (TRIPLE_DES,)) for number in range(MAX_PROPOSALS + 1))
    assert len(parse_association(encode_association(SecurityAssociation(proposals[:-1]))).proposals) == MAX_PROPOSALS
    assert refusal(encode_association(SecurityAssociation(proposals))) is NotifyType.BAD_PROPOSAL_SYNTAX


def test_the_number_of_transforms_in_all_proposals_is_bounded():
    half = Proposal(1, 3, b"", (TRIPLE_DES,) * (MAX_TRANSFORMS // 2))
    most = SecurityAssociation((half, half, Proposal(2, 3, b"", (TRIPLE_DES,))))
    assert parse_association(encode_association(most)) == most
    more = SecurityAssociation((half, half, Proposal(2, 3, b"", (TRIPLE_DES,) * 2)))
    assert refusal(encode_association(more)) is NotifyType.BAD_PROPOSAL_SYNTAX


def test_one_proposal_is_taken_with_as_many_transforms_as_its_octet_counts_rfc2408_3_5():
    whole = SecurityAssociation((Proposal(1, 1, b"", (TRIPLE_DES,) * 255),))
    assert parse_association(encode_association(whole)) == whole


def test_the_number_of_attributes_is_bounded():
    most = (Attribute(1, 1),) * MAX_ATTRIBUTES
    assert parse_attributes(encode_attributes(most)) == most
    with pytest.raises(PeerError):
        parse_attributes(encode_attributes((*most, Attribute(1, 1))))


def test_the_length_of_an_attribute_is_bounded():
    most = (Attribute(6, bytes(MAX_VALUE)),)
    assert parse_attributes(encode_attributes(most)) == most
    with pytest.raises(MalformedError):
        parse_attributes(encode_attributes((Attribute(6, bytes(MAX_VALUE + 1)),)))


def test_a_duration_reads_the_same_in_each_encoding_rfc2409_appendix_a():
    assert Attribute(12, 28800).number == Attribute(12, b"\x70\x80").number == Attribute(12, b"\0\0\x70\x80").number


def test_the_worst_message_costs_in_proportion_to_its_length():
    def filled(transforms):
        each = Transform(1, 1, (Attribute(1, 1),) * MAX_ATTRIBUTES)
        return encode_association(SecurityAssociation((Proposal(1, 1, b"", (each,) * transforms),)))

    def endless(octets):
        return struct.pack(">II", 1, 1) + struct.pack(">BBHBBBB", 2, 0, 8 + 8, 1, 1, 0, 1) + bytes(octets)

    most, quarter = filled(MAX_TRANSFORMS), filled(MAX_TRANSFORMS // 4)
    assert ratio(lambda: parse_association(most), lambda: parse_association(quarter)) < 8
    most, quarter = endless(MAX_MESSAGE), endless(MAX_MESSAGE // 4)
    assert ratio(lambda: refusal(most), lambda: refusal(quarter)) < 8
