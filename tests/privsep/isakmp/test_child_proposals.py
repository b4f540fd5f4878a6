"""Phase 2 proposals (RFC 2407 sections 4.4.3 to 4.6.3.1, RFC 2409 section 5.5, RFC 3947 section 5.1, RFC 4304)."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep.algorithms import ChildSuite, EspCipher, Group, Integrity
from privsep.errors import PeerError
from privsep.iana import EncapsulationMode, IpsecAttribute, NotifyType, ProtocolId
from privsep.isakmp.association import (
    Attribute,
    Proposal,
    SecurityAssociation,
    Transform,
    encode_association,
    parse_association,
    parse_attributes,
)
from privsep.isakmp.child_proposals import (
    accepted_child,
    describe_child,
    encapsulation_mode,
    notified_lifetime,
    offer_child,
    responder_lifetime,
    select_child,
)
from privsep.isakmp.payloads import Notification, encode_payload, parse_payload
from privsep.types import Mode

TUNNEL = EncapsulationMode.TUNNEL
SPI_I, SPI_R = 0xC0000001, 0xD0000002
CIPHERS = [cipher for cipher in EspCipher if cipher.number is not None]
INTEGRITIES = st.sampled_from([each for each in Integrity if each.number is not None])
COMBINED = st.builds(
    ChildSuite,
    st.just(ProtocolId.ESP),
    st.sampled_from([c for c in CIPHERS if c.icv]),
    st.none(),
    st.none(),
    esn=st.booleans(),
)
SEPARATE = st.builds(
    ChildSuite,
    st.just(ProtocolId.ESP),
    st.sampled_from([c for c in CIPHERS if not c.icv]),
    INTEGRITIES,
    st.none(),
    esn=st.booleans(),
)
AH = st.builds(ChildSuite, st.just(ProtocolId.AH), st.none(), INTEGRITIES, st.none(), esn=st.booleans())
SUITES = st.lists(COMBINED | SEPARATE, min_size=1, max_size=8, unique=True) | st.lists(
    AH, min_size=1, max_size=8, unique=True
)
GROUP = st.none() | st.sampled_from(Group)

GCM = ChildSuite.parse("aes256gcm16-modp2048")
CBC = ChildSuite.parse("aes128-sha256-modp2048")
NO_PFS = ChildSuite.parse("aes128-sha256")
LIFE = (Attribute(1, 1), Attribute(2, 3600))
CBC_ATTRIBUTES = (Attribute(4, 1), Attribute(6, 128), Attribute(5, 5), Attribute(3, 14))


def with_group(suites, group):
    return [replace(suite, group=group) for suite in suites]


def proposal(*transforms, number=1, protocol=3, spi=b"\xc0\0\0\1"):
    return Proposal(number, protocol, spi, transforms)


def offered(*proposals):
    return SecurityAssociation(proposals)


def cbc(*attributes, transform_id=12):
    return Transform(1, transform_id, attributes or (*CBC_ATTRIBUTES, *LIFE))


def refusal(call, *args):
    with pytest.raises(PeerError) as caught:
        call(*args)
    return caught.value.notify


@given(SUITES, GROUP, st.sampled_from([1, 2, 3, 4]), st.integers(256, 2**32 - 1), st.integers(60, 2**31))
def test_an_offer_survives_the_wire_and_is_understood(suites, group, mode, spi, lifetime):
    suites = with_group(suites, group)
    sa = parse_association(encode_association(offer_child(suites, group, EncapsulationMode(mode), spi, lifetime)))
    selection = select_child(sa, suites, EncapsulationMode(mode))
    assert (selection.suite, selection.spi, selection.lifetime) == (suites[0], spi, lifetime)
    assert describe_child(sa) == tuple(f"{suite.described} mode {EncapsulationMode(mode).name}" for suite in suites)


def test_suites_are_transforms_of_one_esp_proposal_with_one_spi():
    sa = offer_child([GCM, CBC], Group.MODP_2048, TUNNEL, SPI_I, 3600)
    life = (Attribute(1, 1), Attribute(2, b"\0\0\x0e\x10"))
    # RFC 4106 section 8.4: the key length is a MUST; there is no integrity algorithm
    gcm = (Attribute(4, 1), Attribute(6, 256), Attribute(3, 14))
    assert sa.proposals == (
        Proposal(1, 3, b"\xc0\0\0\1", (Transform(1, 20, gcm + life), Transform(2, 12, CBC_ATTRIBUTES + life))),
    )


def test_every_transform_of_an_offer_has_the_group_of_the_ke_payload_rfc2409_5_5():
    assert describe_child(offer_child([GCM, NO_PFS, CBC], Group.MODP_2048, TUNNEL, SPI_I, 60)) == (
        "aes256gcm16-modp2048 mode TUNNEL",
        "aes128-sha256-modp2048 mode TUNNEL",
    )
    assert describe_child(offer_child([GCM, NO_PFS], None, TUNNEL, SPI_I, 60)) == ("aes128-sha256 mode TUNNEL",)
    with pytest.raises(ValueError, match="group"):
        offer_child([GCM], Group.CURVE25519, TUNNEL, SPI_I, 60)


def only_transform(keyword, protocol=ProtocolId.ESP):
    offer = offer_child([ChildSuite.parse(keyword, protocol)], None, TUNNEL, SPI_I, 3600)
    (transform,) = offer.proposals[0].transforms
    return transform.transform_id, {each.type: each.value for each in transform.attributes[:-2]}


@pytest.mark.parametrize(
    ("keyword", "transform_id", "attributes"),
    [
        ("aes192-md5", 12, {4: 1, 6: 192, 5: 1}),
        ("aes256ctr-sha1", 13, {4: 1, 6: 256, 5: 2}),  # RFC 3686 section 5.4
        ("aes128ccm8", 14, {4: 1, 6: 128}),  # RFC 4309 section 7.3
        ("aes192ccm12", 15, {4: 1, 6: 192}),
        ("aes256ccm16", 16, {4: 1, 6: 256}),
        ("aes128gcm8", 18, {4: 1, 6: 128}),  # RFC 4106 section 8.3
        ("aes192gcm12", 19, {4: 1, 6: 192}),
        ("aes256gcm16-esn", 20, {4: 1, 6: 256, 11: 1}),  # RFC 4304 section 2
        ("aes256gmac", 23, {4: 1, 6: 256}),  # RFC 4543 section 5.3
        ("camellia192-aesxcbc", 22, {4: 1, 6: 192, 5: 9}),  # RFC 4312, RFC 3566
        ("3des-sha512", 3, {4: 1, 5: 7}),  # RFC 2407 section 4.5: no key length where it is fixed
        ("null-sha384", 11, {4: 1, 5: 6}),
    ],
)
def test_numbers_are_those_of_the_registry_and_key_lengths_where_the_cipher_has_several(
    keyword, transform_id, attributes
):
    assert only_transform(keyword) == (transform_id, attributes)


@pytest.mark.parametrize(
    ("keyword", "transform_id", "attributes"),
    [
        ("md5", 2, {4: 1, 5: 1}),
        ("sha1", 3, {4: 1, 5: 2}),
        ("sha256-esn", 5, {4: 1, 5: 5, 11: 1}),
        ("sha384", 6, {4: 1, 5: 6}),
        ("sha512", 7, {4: 1, 5: 7}),
        ("aesxcbc", 9, {4: 1, 5: 9}),
    ],
)
def test_ah_says_its_algorithm_as_transform_and_as_attribute_rfc2407_4_4_3(keyword, transform_id, attributes):
    assert only_transform(keyword, ProtocolId.AH) == (transform_id, attributes)
    offer = offer_child([ChildSuite.parse(keyword, ProtocolId.AH)], None, TUNNEL, SPI_I, 3600)
    assert offer.proposals[0].protocol == 2


@pytest.mark.parametrize("keyword", ["chacha20poly1305", "aes128-aescmac"])
def test_what_has_no_number_in_ikev1_is_not_offered_rfc9395(keyword):
    with pytest.raises(ValueError, match="no number"):
        offer_child([ChildSuite.parse(keyword)], None, TUNNEL, SPI_I, 60)


def test_one_offer_has_one_protocol():
    both = [ChildSuite.parse("aes128-sha1"), ChildSuite.parse("sha1", ProtocolId.AH)]
    with pytest.raises(ValueError, match="two protocols"):
        offer_child(both, None, TUNNEL, SPI_I, 60)


@pytest.mark.parametrize("value", [0, 2, b"\0\1"])
def test_extended_sequence_numbers_of_another_kind_abort_the_set_up_rfc4304_3(value):
    esn = ChildSuite.parse("aes128-sha256-modp2048-esn")
    suites = [CBC, esn]
    sa = offered(proposal(cbc(*CBC_ATTRIBUTES, Attribute(11, value)), cbc()))
    assert refusal(select_child, sa, suites, TUNNEL) is NotifyType.ATTRIBUTES_NOT_SUPPORTED
    assert select_child(offered(proposal(cbc(*CBC_ATTRIBUTES, Attribute(11, 1)))), suites, TUNNEL).suite == esn


@pytest.mark.parametrize(
    "transform",
    [
        Transform(1, 3, (Attribute(4, 1), Attribute(5, 5))),  # AH_SHA with HMAC-SHA2-256
        Transform(1, 3, (Attribute(4, 1),)),
        Transform(1, 3, (Attribute(4, 1), Attribute(5, 2), Attribute(6, 128))),
        Transform(1, 8, (Attribute(4, 1), Attribute(5, 2))),
    ],
)
def test_an_ah_transform_that_contradicts_itself_is_passed_over_rfc2407_4_4_3(transform):
    suites = [ChildSuite.parse(keyword, ProtocolId.AH) for keyword in ("sha1", "sha256")]
    assert select_child(offered(proposal(transform, protocol=2)), suites, TUNNEL) is None
    good = Transform(1, 3, (Attribute(4, 1), Attribute(5, 2)))
    assert select_child(offered(proposal(good, protocol=2)), suites, TUNNEL).suite == suites[0]


def test_ah_and_esp_are_never_taken_for_each_other():
    ah, esp = ChildSuite.parse("sha1", ProtocolId.AH), ChildSuite.parse("3des-sha1")
    # both have transform number 3 and the same attributes
    for ours, theirs in ((ah, esp), (esp, ah)):
        assert select_child(offer_child([theirs], None, TUNNEL, SPI_I, 60), [ours], TUNNEL) is None
        assert select_child(offer_child([ours], None, TUNNEL, SPI_I, 60), [ours], TUNNEL).suite == ours


@given(SUITES, SUITES)
def test_the_responders_order_decides(theirs, ours):
    selection = select_child(offer_child(theirs, None, TUNNEL, SPI_I, 3600), ours, TUNNEL)
    common = [suite for suite in ours if suite in theirs]
    assert (selection.suite if selection else None) == (common[0] if common else None)


@given(SUITES, st.data())
def test_the_answer_is_the_chosen_transform_unchanged_with_the_responders_spi_rfc2408_4_2(suites, data):
    offer = offer_child(suites, None, TUNNEL, SPI_I, 3600)
    ours = data.draw(st.permutations(suites))
    answer = select_child(offer, ours, TUNNEL).answer(SPI_R)
    (proposed,) = offer.proposals
    chosen = (proposed.transforms[suites.index(ours[0])],)
    assert answer.proposals == (Proposal(1, proposed.protocol, b"\xd0\0\0\2", chosen),)
    accepted = accepted_child(offer, parse_association(encode_association(answer)))
    assert (accepted.suite, accepted.spi) == (ours[0], SPI_R)


def test_lifetimes_in_seconds_and_kilobytes_are_both_read_rfc2407_4_5_2():
    # the very octets of the RFC's example: 24 hours or 100000 KB
    data = bytes.fromhex("80010001 00020004 00015180 80010002 00020004 000186a0")
    selection = select_child(offered(proposal(cbc(*CBC_ATTRIBUTES, *parse_attributes(data)))), [CBC], TUNNEL)
    assert (selection.lifetime, selection.kilobytes) == (86400, 100000)


def test_without_a_lifetime_eight_hours_are_assumed_rfc2407_4_5():
    selection = select_child(offered(proposal(cbc(*CBC_ATTRIBUTES))), [CBC], TUNNEL)
    assert (selection.lifetime, selection.kilobytes) == (28800, None)


@pytest.mark.parametrize("encapsulation", [mode for mode in EncapsulationMode if mode is not TUNNEL])
def test_another_encapsulation_is_passed_over_rfc3947_5_1(encapsulation):
    sa = offer_child([CBC], Group.MODP_2048, encapsulation, SPI_I, 3600)
    assert select_child(sa, [CBC], TUNNEL) is None
    assert describe_child(sa) == (f"aes128-sha256-modp2048 mode {encapsulation.name}",)


def test_encapsulation_modes_are_those_of_rfc2407_4_5_and_rfc3947_5_1():
    modes = [encapsulation_mode(mode, udp=udp) for udp in (False, True) for mode in (Mode.TUNNEL, Mode.TRANSPORT)]
    assert modes == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "transform",
    [
        cbc(*CBC_ATTRIBUTES[1:], *LIFE),  # no encapsulation mode
        cbc(Attribute(4, 1), Attribute(5, 5), Attribute(3, 14)),  # AES without a key length
        cbc(Attribute(4, 1), Attribute(6, 129), Attribute(5, 5), Attribute(3, 14)),
        cbc(Attribute(4, 1), Attribute(6, 128), Attribute(3, 14)),  # CBC without integrity
        cbc(Attribute(4, 1), Attribute(6, 128), Attribute(5, 1), Attribute(3, 14)),  # HMAC-MD5
        cbc(Attribute(4, 1), Attribute(6, 128), Attribute(5, 61440), Attribute(3, 14)),
        cbc(*CBC_ATTRIBUTES, Attribute(11, 1)),  # extended sequence numbers
        cbc(*CBC_ATTRIBUTES, Attribute(32000, 1)),
        cbc(Attribute(4, b"\0\1"), *CBC_ATTRIBUTES[1:]),
        cbc(Attribute(4, 1), Attribute(5, 5), Attribute(3, 14), transform_id=11),  # NULL
        cbc(Attribute(4, 1), Attribute(5, 5), Attribute(3, 14), transform_id=3),  # 3DES
        cbc(*CBC_ATTRIBUTES, transform_id=3),  # 3DES with a key length
        cbc(*CBC_ATTRIBUTES, transform_id=20),  # GCM with an integrity algorithm
        cbc(*CBC_ATTRIBUTES, transform_id=249),
    ],
)
def test_a_transform_with_anything_that_we_do_not_know_is_passed_over(transform):
    suites = [CBC, ChildSuite.parse("aes128gcm16-modp2048"), NO_PFS]
    assert select_child(offered(proposal(transform)), suites, TUNNEL) is None
    assert len(describe_child(offered(proposal(transform)))) == 1
    assert select_child(offered(proposal(transform, cbc())), suites, TUNNEL).transform == cbc()


@pytest.mark.parametrize(
    "wrong",
    [
        proposal(cbc(), protocol=2),
        proposal(cbc(), protocol=4),
        proposal(cbc(), protocol=200),
        proposal(cbc(), spi=b""),
        proposal(cbc(), spi=b"\0\0\0\0"),
        proposal(cbc(), spi=b"\0\0\0\xff"),  # RFC 4303 section 2.1: reserved
        proposal(cbc(), spi=b"\xc0\0\0\1\0\0\0\0"),
    ],
)
def test_proposals_for_other_protocols_and_with_bad_spis_are_passed_over_rfc2408_5_5(wrong):
    assert select_child(offered(wrong), [CBC], TUNNEL) is None
    good = proposal(cbc(), number=2)
    assert select_child(offered(wrong, good), [CBC], TUNNEL).proposal == good


def test_a_bundle_is_never_taken_apart_rfc2408_4_2():
    bundle = proposal(cbc()), proposal(cbc(*CBC_ATTRIBUTES), protocol=2)
    assert select_child(offered(*bundle), [CBC], TUNNEL) is None
    alone = proposal(cbc(), number=2)
    assert select_child(offered(*bundle, alone), [CBC], TUNNEL).proposal == alone


@pytest.mark.parametrize("other", [CBC_ATTRIBUTES[:3], (*CBC_ATTRIBUTES[:3], Attribute(3, 2))])
def test_proposals_that_differ_in_their_group_are_refused_rfc2409_5_5(other):
    sa = offered(proposal(cbc(), cbc(*other)))
    assert refusal(select_child, sa, [CBC, NO_PFS], TUNNEL) is NotifyType.BAD_PROPOSAL_SYNTAX
    sa = offered(proposal(cbc()), proposal(cbc(*other), number=2))
    assert refusal(select_child, sa, [CBC, NO_PFS], TUNNEL) is NotifyType.BAD_PROPOSAL_SYNTAX


def test_conflicting_attributes_abort_the_set_up_rfc2407_4_5_2():
    sa = offered(proposal(cbc(*CBC_ATTRIBUTES, Attribute(6, 256))))
    assert refusal(select_child, sa, [CBC], TUNNEL) is NotifyType.ATTRIBUTES_NOT_SUPPORTED
    assert describe_child(sa) == ("conflicting attributes",)


OFFER = offer_child([GCM, CBC], Group.MODP_2048, TUNNEL, SPI_I, 3600)
GOOD = OFFER.proposals[0].transforms[1]


def answer(*transforms, spi=b"\xd0\0\0\2", protocol=3):
    return offered(proposal(*transforms, spi=spi, protocol=protocol))


@pytest.mark.parametrize(
    ("wrong", "notify"),
    [
        (answer(GOOD, GOOD), NotifyType.BAD_PROPOSAL_SYNTAX),
        (answer(GOOD, protocol=2), NotifyType.BAD_PROPOSAL_SYNTAX),
        (answer(Transform(1, 20, GOOD.attributes)), NotifyType.BAD_PROPOSAL_SYNTAX),
        (answer(Transform(1, 12, GOOD.attributes[:-2])), NotifyType.BAD_PROPOSAL_SYNTAX),
        (answer(cbc(*CBC_ATTRIBUTES, Attribute(1, 1), Attribute(2, 60))), NotifyType.BAD_PROPOSAL_SYNTAX),
        (answer(cbc(*CBC_ATTRIBUTES[:3], *LIFE)), NotifyType.BAD_PROPOSAL_SYNTAX),  # PFS taken away
        (answer(cbc(Attribute(4, 3), *CBC_ATTRIBUTES[1:], *LIFE)), NotifyType.BAD_PROPOSAL_SYNTAX),
        (answer(GOOD, spi=b"\0\0\0\1"), NotifyType.INVALID_SPI),
        (answer(GOOD, spi=b""), NotifyType.INVALID_SPI),
        (answer(GOOD, spi=b"\xc0\0\0\1"), NotifyType.INVALID_SPI),  # ours, reflected: one key for both directions
    ],
)
def test_an_answer_that_we_did_not_offer_is_rejected_rfc2409_5(wrong, notify):
    assert refusal(accepted_child, OFFER, wrong) is notify


def test_an_answer_that_means_no_suite_is_rejected_even_if_it_was_offered():
    unknown = offered(proposal(cbc(*CBC_ATTRIBUTES, transform_id=249)))
    assert refusal(accepted_child, unknown, unknown) is NotifyType.BAD_PROPOSAL_SYNTAX


def test_an_answer_may_change_numbers_order_and_encoding_rfc2409_appendix_a():
    assert accepted_child(OFFER, answer(Transform(0, 12, (*LIFE, *reversed(CBC_ATTRIBUTES))))).suite == CBC


def test_a_responders_shorter_lifetime_is_told_and_understood_rfc2407_4_6_3_1():
    notification = responder_lifetime(ProtocolId.ESP, SPI_R, 1800)
    assert encode_payload(notification)[1] == bytes.fromhex("00000001 03 04 6000 d0000002 80010001 00020004 00000708")
    assert encode_payload(responder_lifetime(ProtocolId.AH, SPI_R, 1800))[1][4] == 2
    assert notified_lifetime(parse_payload(*encode_payload(notification))) == 1800


def test_a_lifetime_of_an_isakmp_sa_has_phase_1_numbers_rfc2409_appendix_a():
    data = bytes.fromhex("800b0001 000c0004 00000e10")
    assert notified_lifetime(Notification(protocol=1, type=24576, data=data)) == 3600


@given(st.binary(max_size=40), st.sampled_from([1, 3]))
def test_any_notification_data_gives_a_lifetime_none_or_a_refusal(data, protocol):
    try:
        lifetime = notified_lifetime(Notification(protocol=protocol, type=24576, data=data))
    except PeerError:
        return
    assert lifetime is None or lifetime > 0


ATTRIBUTE = st.builds(Attribute, st.sampled_from(IpsecAttribute), st.integers(0, 20) | st.binary(max_size=9))


@given(st.lists(ATTRIBUTE, max_size=9))
def test_any_transform_is_selected_passed_over_or_refused_and_can_be_described(attributes):
    sa = offered(proposal(Transform(1, 12, tuple(attributes))))
    assert len(describe_child(sa)) == 1
    try:
        selection = select_child(sa, [CBC, NO_PFS], TUNNEL)
    except PeerError:
        return
    assert selection is None or selection.suite in (CBC, NO_PFS)


@pytest.mark.parametrize(
    ("place", "right"), enumerate([4, 128, 5, 14]), ids=["mode", "key length", "integrity", "group"]
)
def test_no_number_of_65536_is_taken_for_what_is_not_configured(place, right):
    """Class 25 (CVE-2014-9221): attributes in the order of CBC_ATTRIBUTES."""
    mode = EncapsulationMode.UDP_TUNNEL if place == 0 else TUNNEL
    right = int(mode) if place == 0 else right

    def taken(number):
        attributes = list(CBC_ATTRIBUTES)
        attributes[0] = Attribute(4, int(mode))
        attributes[place] = Attribute(attributes[place].type, number)
        try:
            return select_child(offered(proposal(cbc(*attributes, *LIFE))), [CBC], mode) is not None
        except PeerError:
            return False

    assert {number for number in range(0x10000) if taken(number)} == {right}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_no_transform_id_of_256_is_taken_for_another(protocol):
    """Class 25: ESP's 12 is AES-CBC (RFC 3602), AH's 5 is SHA2-256."""

    def taken(number):
        sa = offered(proposal(cbc(transform_id=number), protocol=protocol))
        try:
            return select_child(sa, [CBC], TUNNEL) is not None
        except PeerError:
            return False

    assert {number for number in range(256) if taken(number)} == ({12} if protocol == 3 else set())
