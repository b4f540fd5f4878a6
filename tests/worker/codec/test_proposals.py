"""Phase 1 proposals (RFC 2409 section 5 and appendix A, RFC 2408 section 4.2)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep.algorithms import Group, Hash, IkeCipher, IkeSuite
from privsep.errors import PeerError
from privsep.iana import IkeAttribute, NotifyType
from privsep.isakmp.association import (
    Attribute,
    Proposal,
    SecurityAssociation,
    Transform,
    encode_association,
    parse_association,
)
from privsep.types import Auth
from worker.codec.proposals import accepted_ike, describe_ike, offer_ike, select_ike

SUITE = st.builds(IkeSuite, st.sampled_from(IkeCipher), st.sampled_from(Hash), st.sampled_from(Group))
SUITES = st.lists(SUITE, min_size=1, max_size=8, unique=True)
STRONG = IkeSuite.parse("aes256-sha512-curve25519")
USUAL = IkeSuite.parse("aes128-sha256-modp2048")
OLD = IkeSuite.parse("3des-sha1-modp1024")
LIFE = (Attribute(11, 1), Attribute(12, 28800))
USUAL_ATTRIBUTES = (Attribute(1, 7), Attribute(14, 128), Attribute(2, 4), Attribute(3, 1), Attribute(4, 14))


def offered(*attributes, transform_id=1, protocol=1):
    transform = Transform(1, transform_id, tuple(attributes))
    return SecurityAssociation((Proposal(1, protocol, b"", (transform,)),))


def refusal(call, *args):
    with pytest.raises(PeerError) as caught:
        call(*args)
    return caught.value.notify


@given(SUITES, st.integers(60, 2**31))
def test_an_offer_survives_the_wire_and_is_understood_in_its_order(suites, lifetime):
    sa = parse_association(encode_association(offer_ike(suites, Auth.PSK, lifetime)))
    assert describe_ike(sa) == tuple(map(str, suites))
    selection = select_ike(sa, suites, Auth.PSK)
    assert (selection.suite, selection.lifetime) == (suites[0], lifetime)


def test_an_offer_is_one_proposal_with_a_transform_for_each_suite_rfc2409_5():
    sa = offer_ike([STRONG, OLD], Auth.PSK, 3600)
    assert len(sa.proposals) == 1
    life = (Attribute(11, 1), Attribute(12, b"\0\0\x0e\x10"))
    aes = (Attribute(1, 7), Attribute(14, 256), Attribute(2, 6), Attribute(3, 1), Attribute(4, 31))
    # 3DES has no key length: its length is fixed (RFC 2409 appendix A)
    triple_des = (Attribute(1, 5), Attribute(2, 2), Attribute(3, 1), Attribute(4, 2))
    assert sa.proposals[0].transforms == (Transform(1, 1, aes + life), Transform(2, 1, triple_des + life))


@given(SUITES, SUITES)
def test_the_responders_order_decides(theirs, ours):
    selection = select_ike(offer_ike(theirs, Auth.PSK, 3600), ours, Auth.PSK)
    common = [suite for suite in ours if suite in theirs]
    assert (selection.suite if selection else None) == (common[0] if common else None)


@given(SUITES, st.data())
def test_the_answer_is_the_chosen_transform_unchanged_and_the_initiator_accepts_it_rfc2408_4_2(suites, data):
    offer = offer_ike(suites, Auth.PSK, 86400)
    ours = data.draw(st.permutations(suites))
    selection = select_ike(offer, ours, Auth.PSK)
    ((proposal,),) = (selection.answer.proposals,)
    assert proposal.number == 1
    assert proposal.transforms == (offer.proposals[0].transforms[suites.index(ours[0])],)
    accepted = accepted_ike(offer, parse_association(encode_association(selection.answer)))
    assert (accepted.suite, accepted.lifetime) == (ours[0], 86400)


def test_an_offer_in_any_attribute_order_and_encoding_is_understood():
    reordered = (Attribute(11, 1), Attribute(12, b"\0\0\0\0\0\0\x70\x80"), *reversed(USUAL_ATTRIBUTES))
    selection = select_ike(offered(*reordered), [USUAL], Auth.PSK)
    assert selection.lifetime == 28800
    assert selection.answer == offered(*reordered)


def test_a_lifetime_in_kilobytes_besides_seconds_is_understood_rfc2407_4_5_2():
    life = (Attribute(11, 2), Attribute(12, b"\0\1\x86\xa0"), Attribute(11, 1), Attribute(12, 3600))
    assert select_ike(offered(*USUAL_ATTRIBUTES, *life), [USUAL], Auth.PSK).lifetime == 3600


@pytest.mark.parametrize("life", [(), (Attribute(11, 1), Attribute(12, 0)), (Attribute(11, 2), Attribute(12, 9))])
def test_without_a_lifetime_in_seconds_eight_hours_are_assumed_rfc2407_4_5(life):
    assert select_ike(offered(*USUAL_ATTRIBUTES, *life), [USUAL], Auth.PSK).lifetime == 28800


def changed(position, *replacement):
    attributes = list(USUAL_ATTRIBUTES)
    attributes[position : position + 1] = replacement
    return offered(*attributes, *LIFE)


@pytest.mark.parametrize(
    "sa",
    [
        changed(0, Attribute(1, 1)),  # DES
        changed(0, Attribute(1, 65001)),
        changed(0, Attribute(1, b"\0\7")),  # basic attributes MUST NOT be encoded as variable
        changed(1),  # AES without a key length
        changed(1, Attribute(14, 0)),
        changed(1, Attribute(14, 127)),
        changed(1, Attribute(14, 1024)),
        changed(0, Attribute(1, 5)),  # CVE-2011-3380: key length for a cipher of fixed length
        changed(2, Attribute(2, 1)),  # MD5
        changed(2),
        changed(3),
        changed(3, Attribute(3, 65001)),
        changed(3, Attribute(3, 3)),
        changed(4, Attribute(4, 1025)),  # CVE-2014-9221: group numbers that nobody assigned
        changed(4, Attribute(4, 22)),
        changed(4),
        changed(4, Attribute(4, 14), Attribute(5, 1)),
        changed(4, Attribute(4, 14), Attribute(6, b"\xff" * 256)),
        changed(4, Attribute(4, 14), Attribute(16384, 1)),
        offered(*USUAL_ATTRIBUTES, *LIFE, transform_id=2),
        offered(),
    ],
)
def test_a_transform_with_anything_that_we_do_not_know_is_passed_over(sa):
    assert select_ike(sa, [USUAL, OLD, STRONG], Auth.PSK) is None
    assert len(describe_ike(sa)) == 1
    good = offer_ike([USUAL], Auth.PSK, 3600).proposals[0].transforms
    both = Proposal(1, 1, b"", sa.proposals[0].transforms + good)
    assert select_ike(SecurityAssociation((both,)), [USUAL], Auth.PSK).answer.proposals[0].transforms == good


def test_no_group_number_of_65536_is_taken_for_another_cve_2014_9221():
    """Class 25: internal numbers are never reached from outside."""
    suites = [IkeSuite(IkeCipher.AES_128, Hash.SHA2_256, group) for group in Group]
    taken = {
        number: selection.suite.group
        for number in range(0x10000)
        if (selection := select_ike(changed(4, Attribute(4, number)), suites, Auth.PSK))
    }
    assert taken == {group.number: group for group in Group}


@pytest.mark.parametrize(
    ("attribute", "right"),
    [
        (IkeAttribute.ENCRYPTION_ALGORITHM, 7),
        (IkeAttribute.HASH_ALGORITHM, 4),
        (IkeAttribute.AUTHENTICATION_METHOD, 1),
        (IkeAttribute.KEY_LENGTH, 128),
    ],
)
def test_no_number_of_65536_is_taken_for_an_algorithm_that_is_not_configured(attribute, right):
    """Class 25 (CVE-2014-9221)."""

    def taken(number):
        others = [each for each in USUAL_ATTRIBUTES if each.type != attribute]
        try:
            return select_ike(offered(*others, Attribute(attribute, number), *LIFE), [USUAL], Auth.PSK) is not None
        except PeerError:
            return False

    assert {number for number in range(0x10000) if taken(number)} == {right}


@pytest.mark.parametrize(
    "surplus",
    [
        (Attribute(2, 2),),
        (Attribute(11, 1), Attribute(12, 3600)),
        (Attribute(12, 3600),),  # a duration MUST follow a life type
        (Attribute(11, 1), Attribute(12, bytes(9))),
    ],
)
def test_conflicting_attributes_abort_the_set_up_rfc2407_4_5_2(surplus):
    sa = offered(*USUAL_ATTRIBUTES, *LIFE, *surplus)
    assert refusal(select_ike, sa, [USUAL], Auth.PSK) is NotifyType.ATTRIBUTES_NOT_SUPPORTED
    assert len(describe_ike(sa)) == 1


def test_repeated_attributes_that_agree_are_allowed_rfc2407_4_5_2():
    assert select_ike(offered(*USUAL_ATTRIBUTES, *USUAL_ATTRIBUTES, *LIFE, *LIFE), [USUAL], Auth.PSK)


def test_several_proposals_in_phase_1_are_refused_rfc2409_5():
    proposal = offer_ike([USUAL], Auth.PSK, 3600).proposals[0]
    sa = SecurityAssociation((proposal, proposal))
    assert refusal(select_ike, sa, [USUAL], Auth.PSK) is NotifyType.BAD_PROPOSAL_SYNTAX


def test_a_proposal_for_another_protocol_is_refused_rfc2408_5_5():
    sa = offered(*USUAL_ATTRIBUTES, protocol=3)
    assert refusal(select_ike, sa, [USUAL], Auth.PSK) is NotifyType.INVALID_PROTOCOL_ID


def test_the_spi_of_a_phase_1_proposal_is_ignored_and_echoed_rfc2408_3_5():
    transforms = offered(*USUAL_ATTRIBUTES, *LIFE).proposals[0].transforms
    sa = SecurityAssociation((Proposal(7, 1, b"cookies!", transforms),))
    assert select_ike(sa, [USUAL], Auth.PSK).answer == sa


OFFER = offer_ike([STRONG, USUAL], Auth.PSK, 28800)
GOOD = OFFER.proposals[0].transforms[1]


def answer(*transforms, proposals=1, protocol=1):
    return SecurityAssociation((Proposal(1, protocol, b"", transforms),) * proposals)


def test_an_answer_may_change_numbers_order_and_encoding_rfc2409_appendix_a():
    # charon numbers its answers from one again and sorts the attributes its own way
    attributes = (*reversed(GOOD.attributes[:5]), *LIFE)
    assert accepted_ike(OFFER, answer(Transform(9, 1, attributes))).suite == USUAL


@pytest.mark.parametrize(
    "wrong",
    [
        answer(GOOD, GOOD),
        answer(GOOD, proposals=2),
        answer(GOOD, protocol=3),
        answer(Transform(1, 2, GOOD.attributes)),
        answer(Transform(1, 1, GOOD.attributes[1:])),
        answer(Transform(1, 1, GOOD.attributes[:-2])),
        answer(Transform(1, 1, (*GOOD.attributes, Attribute(16384, 0)))),
        answer(Transform(1, 1, (Attribute(1, 5), *GOOD.attributes[1:]))),
        answer(Transform(1, 1, (*GOOD.attributes[:-1], Attribute(12, 3600)))),
        answer(offer_ike([OLD], Auth.PSK, 28800).proposals[0].transforms[0]),
    ],
)
def test_an_answer_that_we_did_not_offer_is_rejected_rfc2409_5(wrong):
    assert refusal(accepted_ike, OFFER, wrong) is NotifyType.BAD_PROPOSAL_SYNTAX


def test_an_answer_that_means_no_suite_is_rejected_even_if_it_was_offered():
    unknown = changed(0, Attribute(1, 65001))
    assert refusal(accepted_ike, unknown, unknown) is NotifyType.BAD_PROPOSAL_SYNTAX


def test_what_no_keyword_names_is_described_by_its_numbers():
    sa = changed(0, Attribute(1, 65001))
    assert describe_ike(sa) == ("cipher 65001 bits 128 hash 4 group 14 authentication 1",)
    assert describe_ike(changed(3, Attribute(3, 3))) == ("aes128-sha256-modp2048 authentication 3",)
    assert describe_ike(changed(1, Attribute(14, b"\xff" * 9)))[0].startswith("cipher 7 bits of 9 octets")


ATTRIBUTE = st.builds(Attribute, st.sampled_from(IkeAttribute), st.integers(0, 99) | st.binary(max_size=9))


@given(st.lists(ATTRIBUTE, max_size=9))
def test_any_transform_is_selected_passed_over_or_refused_and_can_be_described(attributes):
    sa = offered(*attributes)
    assert len(describe_ike(sa)) == 1
    try:
        selection = select_ike(sa, [USUAL, OLD], Auth.PSK)
    except PeerError:
        return
    assert selection is None or selection.suite in (USUAL, OLD)
