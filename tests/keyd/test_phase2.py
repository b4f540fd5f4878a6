"""What keyd refuses in phase 2, that a refusal leaves the exchange as it was, and what time and Drop end."""

import dataclasses
import ipaddress
import os

import pytest

from keyd import agreement, message_ids, phase1, phase2
from keyd.handles import Quota
from privsep.algorithms import ChildSuite, Group
from privsep.errors import Violation
from privsep.iana import PayloadType
from privsep.payloads import join_chain
from privsep.schema import keyd as ops
from privsep.schema.keyd import Refusal
from privsep.schema.keymat import NotRedeemable, Redeemed, RedeemedOutbound
from privsep.types import Mode, TrafficSelector

ESP = ChildSuite.parse("aes256gcm16")
PFS = ChildSuite.parse("aes256gcm16-curve25519")


class RefusedFor:
    """Equal to any refusal for that reason, whatever it says besides."""

    def __init__(self, why: Refusal) -> None:
        self.why = why

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ops.Refused) and other.why is self.why

    __hash__ = None


refused = RefusedFor


def with_another_hash(ciphertext: bytes) -> bytes:
    """The same chain of payloads with other octets in the HASH: in CBC this bit changes its octets 12 to 28 only."""
    return ciphertext[:16] + bytes((ciphertext[16] ^ 1,)) + ciphertext[17:]


# Quick Mode


def test_a_message_id_is_accepted_once_rfc2409_5_5(world, build):
    ike = world.main_mode()
    first = world.left.do(world.quick_offer(ike.left, build.ESP))
    opening = ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext)
    assert isinstance(world.right.do(opening), ops.QuickOpened)
    assert world.right.do(opening) == refused(Refusal.REUSED_MESSAGE_ID)
    info = ops.InfoOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext)
    assert world.right.do(info) == refused(Refusal.REUSED_MESSAGE_ID)


def test_our_own_message_sent_back_is_a_reused_message_id(world, build):
    ike = world.main_mode()
    first = world.left.do(world.quick_offer(ike.left, build.ESP))
    opening = ops.QuickOpen(ike=ike.left, message_id=first.message_id, ciphertext=first.ciphertext)
    assert world.left.do(opening) == refused(Refusal.REUSED_MESSAGE_ID)


def test_message_id_zero_is_phase_1s_rfc2408_3_1(world):
    ike = world.main_mode()
    opening = ops.QuickOpen(ike=ike.left, message_id=0, ciphertext=bytes(32))
    assert world.left.do(opening) == refused(Refusal.REUSED_MESSAGE_ID)


def test_a_forged_first_message_burns_neither_the_message_id_nor_the_chain(world, build):
    ike = world.main_mode()
    first = world.left.do(world.quick_offer(ike.left, build.ESP))
    forged = with_another_hash(first.ciphertext)
    for bad in (b"", bytes(5), os.urandom(96), first.ciphertext[:-16], first.ciphertext[::-1], forged):
        opening = ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=bad)
        assert world.right.do(opening) == refused(Refusal.BAD_HASH)
    opening = ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext)
    assert isinstance(world.right.do(opening), ops.QuickOpened)


@pytest.mark.parametrize("operation", [ops.QuickOpen, ops.InfoOpen])
def test_what_does_not_parse_is_refused_as_late_as_a_wrong_hash(world, monkeypatch, operation):
    ike = world.main_mode()
    hash_1, made = phase2.ikev1.hash_1, []
    monkeypatch.setattr(phase2.ikev1, "hash_1", lambda *args: made.append(hash_1(*args)) or made[-1])
    forged = operation(ike=ike.right, message_id=7, ciphertext=os.urandom(96))
    assert world.right.do(forged) == refused(Refusal.BAD_HASH)
    assert len(made) == 1


def test_forged_second_and_third_messages_do_not_end_a_quick_mode(world, build):
    ike = world.main_mode()
    first = world.left.do(world.quick_offer(ike.left, build.ESP))
    opened = world.right.do(ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext))
    second = world.right.do(world.quick_answer(opened.quick, build.ESP))
    world.right.redeem_inbound(second.keymat)
    for bad in (b"", os.urandom(64), second.ciphertext[16:], with_another_hash(second.ciphertext)):
        assert world.left.do(ops.QuickFinish(quick=first.quick, ciphertext=bad)) == refused(Refusal.BAD_HASH)
    world.left.do(ops.QuickFinish(quick=first.quick, ciphertext=second.ciphertext))
    third = world.left.do(ops.QuickAccept(quick=first.quick))
    for bad in (b"", os.urandom(48), second.ciphertext, with_another_hash(third.ciphertext)):
        assert world.right.do(ops.QuickConfirm(quick=opened.quick, ciphertext=bad)) == refused(Refusal.BAD_HASH)
        assert world.right.redeem_outbound(second.keymat) == NotRedeemable()
    confirm = ops.QuickConfirm(quick=opened.quick, ciphertext=third.ciphertext)
    assert world.right.do(confirm) == ops.Done()


def test_a_child_that_the_connection_does_not_have_is_a_violation(world, build):
    ike = world.main_mode()
    with pytest.raises(Violation):
        world.left.do(world.quick_offer(ike.left, build.ESP, child="wan"))


def test_a_group_outside_the_proposals_is_refused(world, build):
    ike = world.main_mode()
    offer = world.quick_offer(ike.left, build.ESP, group=Group.MODP_1024)
    assert world.left.do(offer) == refused(Refusal.BAD_PROPOSAL)


@pytest.mark.parametrize(
    ("suite", "changes", "why"),
    [
        (ChildSuite.parse("aes128-sha1"), {}, Refusal.BAD_PROPOSAL),
        (PFS, {}, Refusal.BAD_PROPOSAL),
        (ESP, {"spi_in": 0x1001}, Refusal.BAD_PROPOSAL),
        (ESP, {"encap": True}, Refusal.BAD_PROPOSAL),
        (ESP, {"cpi_in": 300}, Refusal.BAD_PROPOSAL),
        (ESP, {"child": "elsewhere"}, Refusal.BAD_SELECTORS),
        (ESP, {"child": "host"}, Refusal.BAD_PROPOSAL),
    ],
    ids=["suite", "group", "equal SPIs", "UDP", "IPComp", "selectors of another child", "mode of another child"],
)
def test_what_the_peer_did_not_offer_or_the_child_does_not_have_is_not_answered(build, suite, changes, why):
    """RFC 2408 section 4.2: the responder chooses from what is offered; RFC 2409 section 5.5 for equal SPIs."""
    world = several_children(build)
    ike = world.main_mode()
    first = world.left.do(world.quick_offer(ike.left, build.ESP))
    opened = world.right.do(ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext))
    assert world.right.do(world.quick_answer(opened.quick, suite, **changes)) == refused(why)
    second = world.right.do(world.quick_answer(opened.quick, build.ESP))
    world.left.do(ops.QuickFinish(quick=first.quick, ciphertext=second.ciphertext))
    assert isinstance(world.left.do(ops.QuickAccept(quick=first.quick)), ops.QuickKeyed)


def several_children(build):
    """Both sides have children with other suites, selectors and modes beside the one that Quick Mode is for."""
    lan = build.child(suites=(build.ESP, PFS))
    elsewhere = dataclasses.replace(
        lan, name="elsewhere", local_ts=(net("10.8.0.0/16"),), remote_ts=(net("10.9.0.0/16"),)
    )
    children = (lan, elsewhere, dataclasses.replace(lan, name="host", mode=Mode.TRANSPORT))
    world = build.World(build.IKE, (build.ESP,), (b"same", b"same"))
    ours = build.connection(children=children)
    world.left = build.Side(build.gateway(ours), build.Secrets(default=b"same"))
    world.right = build.Side(build.gateway(build.mirrored(ours)), build.Secrets(default=b"same"))
    return world


def net(text: str) -> TrafficSelector:
    return TrafficSelector(ipaddress.ip_network(text))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"local_ts": net("10.0.0.0/8")}, Refusal.BAD_SELECTORS),
        ({"remote_ts": net("0.0.0.0/0")}, Refusal.BAD_SELECTORS),
        ({"local_ts": net("10.2.0.0/16"), "remote_ts": net("10.1.0.0/16")}, Refusal.BAD_SELECTORS),
        ({"cpi_in": 300}, Refusal.BAD_PROPOSAL),
    ],
)
def test_selectors_outside_the_child_and_ipcomp_that_it_has_not_are_not_offered(world, build, changes, why):
    ike = world.main_mode()
    assert world.left.do(world.quick_offer(ike.left, build.ESP, **changes)) == refused(why)


def test_one_original_address_alone_is_a_violation_rfc3947_5_2(world, build):
    ike = world.main_mode()
    with pytest.raises(Violation):
        world.left.do(world.quick_offer(ike.left, build.ESP, originals=(build.LEFT,)))


def test_an_offer_with_a_ke_is_not_answered_without_one_nor_the_reverse(make_world, build):
    world = make_world(children=(str(build.ESP), str(PFS)))
    ike = world.main_mode()
    for offered, answered in ((build.ESP, PFS), (PFS, build.ESP)):
        first = world.left.do(world.quick_offer(ike.left, offered))
        opened = world.right.do(ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext))
        assert world.right.do(world.quick_answer(opened.quick, answered)) == refused(Refusal.BAD_PROPOSAL)


def composing(monkeypatch, payloads):
    """Have the sending side put these payloads where SA, nonce and KE belong; None stands for its own SA."""

    def compose(self, quick, group, nonce, sa, rest):
        if group is not None:
            quick.keypair = self._context.pool.take(group)
        return join_chain([(kind, sa if body is None else body) for kind, body in payloads])

    monkeypatch.setattr(phase2.Phase2, "_compose", compose)


NONCE = (PayloadType.NONCE, bytes(16))
SA = (PayloadType.SA, None)
KE = (PayloadType.KE, bytes(31) + b"\x09")
ID = (PayloadType.ID, b"\x01\0\0\0\x0a\x01\0\x01")


@pytest.mark.parametrize(
    "payloads",
    [
        [SA],
        [SA, NONCE, NONCE],
        [SA, (PayloadType.NONCE, bytes(7))],
        [SA, (PayloadType.NONCE, bytes(257))],
        [SA, NONCE, KE, KE],
        [NONCE],
        [NONCE, SA],
        [SA, SA, NONCE],
        [SA, NONCE, ID],
        [SA, NONCE, ID, ID, ID],
        [SA, NONCE, ID, (PayloadType.ID, bytes(65))],
        [(PayloadType.SA, bytes(agreement.MAX_SA_OCTETS + 1)), NONCE],
    ],
)
def test_a_first_message_needs_one_sa_one_nonce_of_8_to_256_octets_one_ke_at_most_and_two_ids_or_none(
    world, build, monkeypatch, payloads
):
    ike = world.main_mode()
    composing(monkeypatch, payloads)
    first = world.left.do(world.quick_offer(ike.left, build.ESP))
    opening = ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext)
    assert world.right.do(opening) == refused(Refusal.BAD_MESSAGE)
    # it was the peer's, so its message id is used
    assert world.right.do(opening) == refused(Refusal.REUSED_MESSAGE_ID)


@pytest.mark.parametrize(
    ("payloads", "why"),
    [
        ([SA, KE], Refusal.BAD_MESSAGE),
        ([SA, NONCE], Refusal.BAD_MESSAGE),
        ([SA, NONCE, KE, KE], Refusal.BAD_MESSAGE),
        ([SA, NONCE, (PayloadType.KE, bytes(32))], Refusal.BAD_PUBLIC_VALUE),
        ([SA, NONCE, (PayloadType.KE, b"short")], Refusal.BAD_PUBLIC_VALUE),
        ([SA, NONCE, KE, ID], Refusal.BAD_MESSAGE),
        ([SA, NONCE, KE, ID, ID], Refusal.BAD_MESSAGE),
        ([(PayloadType.SA, b"no SA"), NONCE, KE], Refusal.BAD_MESSAGE),
    ],
)
def test_a_second_message_needs_a_nonce_and_a_ke_iff_a_group_was_offered(make_world, monkeypatch, payloads, why):
    world = make_world(children=(str(PFS),))
    ike = world.main_mode()
    first = world.left.do(world.quick_offer(ike.left, PFS))
    opened = world.right.do(ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext))
    composing(monkeypatch, payloads)
    second = world.right.do(world.quick_answer(opened.quick, PFS))
    finish = ops.QuickFinish(quick=first.quick, ciphertext=second.ciphertext)
    assert world.left.do(finish) == refused(why)
    assert world.left.do(finish) == refused(Refusal.UNKNOWN_HANDLE)


def test_a_bad_public_value_in_quick_mode_is_refused_by_the_responder(make_world, monkeypatch):
    world = make_world(children=(str(PFS),))
    ike = world.main_mode()
    with monkeypatch.context() as patch:
        composing(patch, [SA, NONCE, (PayloadType.KE, bytes(32))])
        first = world.left.do(world.quick_offer(ike.left, PFS))
    opened = world.right.do(ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext))
    assert world.right.do(world.quick_answer(opened.quick, PFS)) == refused(Refusal.BAD_PUBLIC_VALUE)


def test_quick_modes_message_ids_and_keymats_are_bounded(world, build, monkeypatch):
    ike = world.main_mode()
    monkeypatch.setattr(phase2.Quick, "quota", Quota(1))
    first, second = (world.left.do(world.quick_offer(ike.left, build.ESP)) for _ in range(2))
    assert world.left.do(ops.Drop(handle=first.quick)) == refused(Refusal.UNKNOWN_HANDLE)
    assert world.left.do(ops.Drop(handle=second.quick)) == ops.Done()
    monkeypatch.setattr(message_ids, "MAX_MESSAGE_IDS", 4)
    info = ops.InfoSeal(ike=ike.left, next_payload=0, payloads=b"")
    assert isinstance(world.left.do(info), ops.SealedNew)
    assert world.left.do(info) == refused(Refusal.WORN_OUT)
    assert world.left.do(ops.InfoOpen(ike=ike.left, message_id=9, ciphertext=bytes(32))) == refused(Refusal.WORN_OUT)
    quick = ops.QuickOpen(ike=ike.left, message_id=9, ciphertext=bytes(32))
    assert world.left.do(quick) == refused(Refusal.WORN_OUT)


def test_redeemable_keymat_is_bounded(world, build, monkeypatch):
    ike = world.main_mode()
    monkeypatch.setattr(phase2.Keymat, "quota", Quota(1))
    waits, newer = world.quick_mode(ike, build.ESP), world.quick_mode(ike, build.ESP)
    assert world.right.redeem_outbound(waits.right) == NotRedeemable()
    assert isinstance(world.right.redeem_outbound(newer.right), RedeemedOutbound)


# time and Drop


def test_an_ike_sa_ends_after_its_lifetime_by_keyds_own_clock(world, build):
    ike = world.main_mode()
    world.left.now += 28800 + phase1.LIFETIME_MARGIN - 1
    info = ops.InfoSeal(ike=ike.left, next_payload=0, payloads=b"")
    assert isinstance(world.left.do(info), ops.SealedNew)
    world.left.now += 1
    assert world.left.do(info) == refused(Refusal.EXPIRED)
    assert world.left.do(info) == refused(Refusal.UNKNOWN_HANDLE)


def test_half_open_ike_sas_and_quick_modes_expire(world, build):
    ours = world.left.do(world.offer())
    world.left.now += phase1.HALF_OPEN_LIFETIME
    drop = ops.Drop(handle=ours.ike)
    assert world.left.do(drop) == refused(Refusal.EXPIRED)
    ike = world.main_mode()
    offered = world.left.do(world.quick_offer(ike.left, build.ESP))
    world.left.now += phase2.QUICK_LIFETIME
    finish = ops.QuickFinish(quick=offered.quick, ciphertext=bytes(32))
    assert world.left.do(finish) == refused(Refusal.EXPIRED)


def test_idle_time_wipes_what_has_expired_and_makes_key_pairs_until_nothing_is_left(world):
    world.left.do(world.offer())
    assert len(world.left.service._registry) == 1
    world.left.now += phase1.HALF_OPEN_LIFETIME
    rounds = 0
    while world.left.service.idle():
        rounds += 1
    assert len(world.left.service._registry) == 0
    assert rounds > 1
    assert not world.left.service.idle()


def test_verified_keymat_waits_a_minute_for_the_monitor(world, build):
    quick = world.quick_mode(world.main_mode(), build.ESP)
    world.left.now += phase2.KEYMAT_LIFETIME - 0.1
    world.right.now += phase2.KEYMAT_LIFETIME
    assert isinstance(world.left.redeem_inbound(quick.left), Redeemed)
    assert world.right.redeem_outbound(quick.right) == NotRedeemable()


def test_dropping_an_ike_sa_wipes_quick_modes_but_not_verified_keymat(world, build):
    ike = world.main_mode()
    quick = world.quick_mode(ike, build.ESP)
    first = world.left.do(world.quick_offer(ike.left, build.ESP))
    opened = world.right.do(ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext))
    second = world.right.do(world.quick_answer(opened.quick, build.ESP))
    sa = world.right.service._registry.get(ike.right)
    derived = world.right.service._registry.get(second.keymat)
    assert world.right.do(ops.Drop(handle=ike.right)) == ops.Done()
    assert bytes(sa.skeyid_d + sa.skeyid_a + sa.cipher_key) == b""
    assert bytes(derived.inbound.encryption + derived.outbound.encryption) == b""
    for handle in (ike.right, opened.quick, second.keymat):
        assert world.right.do(ops.Drop(handle=handle)) == refused(Refusal.UNKNOWN_HANDLE)
    assert world.right.redeem_inbound(second.keymat) == NotRedeemable()
    assert isinstance(world.right.redeem_outbound(quick.right), RedeemedOutbound)


def test_a_confirmation_after_the_worker_gave_the_keymat_up_keys_nothing(world, build):
    ike = world.main_mode()
    first = world.left.do(world.quick_offer(ike.left, build.ESP))
    opened = world.right.do(ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext))
    second = world.right.do(world.quick_answer(opened.quick, build.ESP))
    world.left.do(ops.QuickFinish(quick=first.quick, ciphertext=second.ciphertext))
    third = world.left.do(ops.QuickAccept(quick=first.quick))
    world.right.do(ops.Drop(handle=second.keymat))
    confirm = ops.QuickConfirm(quick=opened.quick, ciphertext=third.ciphertext)
    assert world.right.do(confirm) == refused(Refusal.UNKNOWN_HANDLE)
    assert world.right.redeem_inbound(second.keymat) == NotRedeemable()
