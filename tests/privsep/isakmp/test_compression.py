"""IPComp beside ESP or AH in phase 2 proposals (RFC 2393 section 4.1, RFC 2407 section 4.4.5, RFC 2408 section 4.2)."""

from dataclasses import replace

import pytest

from privsep.algorithms import ChildSuite, Group
from privsep.errors import PeerError
from privsep.iana import EncapsulationMode, NotifyType, ProtocolId
from privsep.isakmp.association import (
    Attribute,
    Proposal,
    SecurityAssociation,
    Transform,
    encode_association,
    parse_association,
)
from privsep.isakmp.child_proposals import accepted_child, describe_child, offer_child, select_child

TUNNEL = EncapsulationMode.TUNNEL
GCM = ChildSuite.parse("aes256gcm16-modp2048")
CBC = ChildSuite.parse("aes128-sha256-modp2048")
SPI_I, SPI_R, CPI_I, CPI_R = 0xC41F70A7, 0xD0000002, 0xE9F6 & 0x7FFF, 0x1234

STRONGSWAN = bytes.fromhex(
    "0000000100000001"
    "0200002801030401c41f70a70000001c01140000800601008003000e800400018001000180020f78"
    "0200001e01040201e9f60000001401020000800400018001000180020f78"
    "0000002802030401c41f70a70000001c01140000800601008003000e800400018001000180020f78"
)
"""The SA payload of strongSwan 5.9.8 with `ipcomp = yes`: ESP and IPComp of one number, then the same ESP alone.

Its CPI, 0xe9f6, is in the range of those that are negotiated.
"""
ESP, IPCOMP, ALONE = parse_association(STRONGSWAN).proposals


def deflate(*changes, transform_id=2, number=1):
    return Transform(number, transform_id, changes or (Attribute(4, 1), Attribute(1, 1), Attribute(2, 3960)))


def beside(*transforms, spi=b"\xe9\xf6"):
    """strongSwan's offer with another IPComp proposal."""
    return SecurityAssociation((ESP, Proposal(1, 4, spi, transforms), ALONE))


def select(sa, *, ipcomp=True):
    return select_child(sa, [GCM], TUNNEL, ipcomp=ipcomp)


def test_strongswans_offer_is_understood_and_answered_in_kind():
    selection = select(parse_association(STRONGSWAN))
    assert (selection.suite, selection.spi, selection.compression.cpi) == (GCM, 0xC41F70A7, 0xE9F6)
    assert selection.answer(SPI_R, CPI_R).proposals == (
        replace(ESP, spi=b"\xd0\0\0\2"),
        replace(IPCOMP, spi=b"\x12\x34"),
    )


def test_who_does_not_compress_takes_the_offer_without_although_only_one_transform_names_a_group_rfc2409_5_5():
    selection = select(parse_association(STRONGSWAN), ipcomp=False)
    assert (selection.proposal, selection.compression) == (ALONE, None)
    assert selection.answer(SPI_R).proposals == (replace(ALONE, spi=b"\xd0\0\0\2"),)


def test_our_offer_has_the_form_of_strongswans():
    offer = offer_child([GCM], Group.MODP_2048, TUNNEL, SPI_I, 3960, 0xE9F6)
    assert [(each.number, each.protocol, each.spi) for each in offer.proposals] == [
        (each.number, each.protocol, each.spi) for each in (ESP, IPCOMP, ALONE)
    ]
    (transform,) = offer.proposals[1].transforms
    assert (transform.transform_id, transform.attributes[:2]) == (2, (Attribute(4, 1), Attribute(1, 1)))
    assert offer.proposals[0].transforms == offer.proposals[2].transforms
    assert describe_child(offer) == (
        "aes256gcm16-modp2048 mode TUNNEL",
        "IPComp DEFLATE mode TUNNEL",
        "aes256gcm16-modp2048 mode TUNNEL",
    )


def test_an_offer_without_a_cpi_has_no_bundle():
    assert len(offer_child([GCM], Group.MODP_2048, TUNNEL, SPI_I, 60).proposals) == 1


@pytest.mark.parametrize("protocol", [ProtocolId.ESP, ProtocolId.AH])
@pytest.mark.parametrize(("theirs", "cpi"), [(True, CPI_R), (False, None)])
def test_an_answer_survives_the_wire_with_and_without_compression(protocol, theirs, cpi):
    suite = ChildSuite.parse("sha256" if protocol is ProtocolId.AH else "aes256gcm16", protocol)
    offer = offer_child([suite], None, TUNNEL, SPI_I, 3600, CPI_I)
    selection = select_child(parse_association(encode_association(offer)), [suite], TUNNEL, ipcomp=theirs)
    answer = parse_association(encode_association(selection.answer(SPI_R, cpi)))
    accepted = accepted_child(offer, answer)
    assert (accepted.suite, accepted.spi) == (suite, SPI_R)
    assert (accepted.compression.cpi if accepted.compression else None) == cpi


def test_the_operators_order_of_suites_comes_before_compression():
    compressed = offer_child([CBC], Group.MODP_2048, TUNNEL, SPI_I, 3600, CPI_I).proposals
    plain = replace(offer_child([GCM], Group.MODP_2048, TUNNEL, SPI_I, 3600).proposals[0], number=3)
    sa = SecurityAssociation((*compressed, plain))
    for ours, suite, is_compressed in (([GCM, CBC], GCM, False), ([CBC, GCM], CBC, True)):
        selection = select_child(sa, ours, TUNNEL, ipcomp=True)
        assert (selection.suite, selection.compression is not None) == (suite, is_compressed)


def test_of_several_algorithms_the_known_one_is_answered():
    lzs = deflate(transform_id=3, number=1)
    selection = select(beside(lzs, deflate(number=2)))
    assert selection.answer(SPI_R, CPI_R).proposals[1].transforms == (deflate(number=2),)


def test_a_cpi_in_four_octets_is_read():
    assert select(beside(deflate(), spi=b"\0\0\xe9\xf6")).compression.cpi == 0xE9F6


@pytest.mark.parametrize(
    "offer",
    [
        beside(deflate(transform_id=3)),  # LZS alone
        beside(deflate(Attribute(4, 2))),  # another mode than the ESP beside
        beside(deflate(Attribute(4, 3))),
        beside(deflate(Attribute(4, 1), Attribute(3, 15))),  # another group
        beside(deflate(Attribute(4, 1), Attribute(9, 1))),  # what we do not know
        beside(deflate(), spi=b"\0\xff"),  # RFC 2393 section 3.3: reserved
        beside(deflate(), spi=b"\xf0\0"),  # private
        beside(deflate(), spi=b"\1\0\xe9\xf6"),
        beside(deflate(), spi=b"\xe9"),
        beside(deflate(), spi=b""),
        SecurityAssociation((ESP, IPCOMP, IPCOMP, ALONE)),
        SecurityAssociation((ESP, IPCOMP, replace(ESP, protocol=2), ALONE)),
    ],
)
def test_a_bundle_that_we_cannot_agree_to_is_passed_over_whole_rfc2408_4_2(offer):
    selection = select(offer)
    assert (selection.proposal, selection.compression) == (ALONE, None)
    assert select(SecurityAssociation(offer.proposals[:-1])) is None


def test_ipcomp_without_esp_is_nothing():
    assert select(SecurityAssociation((IPCOMP,))) is None
    assert select(SecurityAssociation((IPCOMP, ALONE))).compression is None


OFFER = offer_child([GCM], Group.MODP_2048, TUNNEL, SPI_I, 3600, CPI_I)
ANSWER = select(OFFER).answer(SPI_R, CPI_R)


def test_the_honest_answer_is_taken():
    assert accepted_child(OFFER, ANSWER).compression.cpi == CPI_R


def test_strongswan_answers_with_its_esp_twice_and_means_one():
    esp, ipcomp = ANSWER.proposals
    accepted = accepted_child(OFFER, SecurityAssociation((esp, ipcomp, replace(esp, number=2))))
    assert (accepted.proposal, accepted.compression.cpi) == (esp, CPI_R)


@pytest.mark.parametrize(
    "lie",
    [
        lambda esp, ipcomp: (ipcomp,),
        lambda esp, ipcomp: (esp, ipcomp, replace(esp, number=2, spi=b"\xd0\0\0\3")),
        lambda esp, ipcomp: (esp, ipcomp, replace(esp, number=2, protocol=2)),
        lambda esp, ipcomp: (esp, ipcomp, ipcomp),
        lambda esp, ipcomp: (esp, replace(ipcomp, number=2)),
        lambda esp, ipcomp: (replace(esp, number=2), replace(ipcomp, number=2)),
        lambda esp, ipcomp: (esp, replace(ipcomp, spi=b"\0\1")),
        lambda esp, ipcomp: (esp, replace(ipcomp, transforms=ipcomp.transforms * 2)),
        lambda esp, ipcomp: (esp, replace(ipcomp, transforms=(replace(ipcomp.transforms[0], transform_id=3),))),
        lambda esp, ipcomp: (esp, replace(ipcomp, transforms=(deflate(),))),  # another lifetime
    ],
)
def test_an_answer_that_was_not_offered_is_refused_rfc2408_4_2(lie):
    with pytest.raises(PeerError) as caught:
        accepted_child(OFFER, SecurityAssociation(lie(*ANSWER.proposals)))
    assert caught.value.notify is NotifyType.BAD_PROPOSAL_SYNTAX


def test_compression_that_was_not_offered_is_refused():
    with pytest.raises(PeerError, match="not the IPComp that we offered"):
        accepted_child(offer_child([GCM], Group.MODP_2048, TUNNEL, SPI_I, 3600), ANSWER)
