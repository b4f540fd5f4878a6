"""Two services against each other: Main Mode and Quick Mode with a pre-shared key, whole (RFC 2409 5.4, 5.5, 5.7)."""

import pytest

from privsep.algorithms import ChildSuite, Group, Hash, IkeCipher
from privsep.errors import Violation
from privsep.iana import PayloadType
from privsep.isakmp.association import parse_association
from privsep.payloads import join_chain, split_chain
from privsep.schema import keyd as ops
from privsep.schema.keymat import NotRedeemable, Redeemed, RedeemedOutbound
from privsep.types import Role

FAST_GROUP = "curve25519"
IKE_SUITES = (
    [f"{cipher.keyword}-sha256-{FAST_GROUP}" for cipher in IkeCipher]
    + [f"aes256-{hash_.keyword}-{FAST_GROUP}" for hash_ in Hash]
    + [f"3des-sha1-{FAST_GROUP}"]
    + [f"aes128-sha1-{group.keyword}" for group in Group if group.public_octets <= 512]
)
CHILD_SUITES = (
    "aes128-sha1",
    "aes192-sha256",
    "aes256-sha512",
    "aes256-sha384-ecp256",
    "aes128gcm16",
    "aes256gcm16-modp2048",
    "aes192gcm16-curve25519",
    "aes256gcm16-modp1024",
)


@pytest.mark.parametrize("suite", IKE_SUITES)
def test_main_mode_authenticates_both_sides_for_each_suite_rfc2409_5_4(make_world, build, suite):
    world = make_world(suite)
    ike = world.main_mode()
    assert ike.at_left == ops.Authenticated(connection="paris", identity=build.RIGHT_ID, next_payload=0, payloads=b"")
    assert ike.at_right == ops.Authenticated(connection="paris", identity=build.LEFT_ID, next_payload=0, payloads=b"")


@pytest.mark.parametrize("suite", CHILD_SUITES)
def test_quick_mode_gives_both_monitors_the_same_keys_in_opposite_directions_rfc2409_5_5(make_world, build, suite):
    world = make_world(children=(suite,))
    child_suite = ChildSuite.parse(suite)
    quick = world.quick_mode(world.main_mode(), child_suite)
    left, right = world.left.redeem_inbound(quick.left), quick.right_in
    assert isinstance(left, Redeemed)
    assert isinstance(right, Redeemed)
    left_out, right_out = world.left.redeem_outbound(quick.left), world.right.redeem_outbound(quick.right)
    assert (left.role, right.role) == (Role.INITIATOR, Role.RESPONDER)
    assert (left.identity, right.identity) == (build.RIGHT_ID, build.LEFT_ID)
    assert (left.connection, left.child, left.suite) == ("paris", "lan", child_suite)
    assert (left.spi_in, left.spi_out) == (right.spi_out, right.spi_in) == (0x1001, 0x2002)
    assert (left.encryption_in, left.integrity_in) == (right_out.encryption_out, right_out.integrity_out)
    assert (left_out.encryption_out, left_out.integrity_out) == (right.encryption_in, right.integrity_in)
    assert left.encryption_in != left_out.encryption_out
    assert len(left.encryption_in) == child_suite.cipher.key_octets
    assert len(left.integrity_in) == (child_suite.integrity.key_octets if child_suite.integrity else 0)


def test_quick_mode_messages_hold_sa_nonce_ke_and_ids_in_the_order_of_rfc2409_5_5(make_world):
    world = make_world(children=("aes256gcm16-curve25519",))
    quick = world.quick_mode(world.main_mode(), ChildSuite.parse("aes256gcm16-curve25519"))
    order = [PayloadType.SA, PayloadType.NONCE, PayloadType.KE, PayloadType.ID, PayloadType.ID]
    assert [kind for kind, _ in quick.at_right] == order
    assert [kind for kind, _ in quick.at_left] == order
    spis = [parse_association(payloads[0][1]).proposals[0].spi.hex() for payloads in (quick.at_right, quick.at_left)]
    assert spis == ["00001001", "00002002"]


def test_each_quick_mode_of_an_ike_sa_has_keys_of_its_own(world, build):
    ike = world.main_mode()
    keys = set()
    for _ in range(3):
        quick = world.quick_mode(ike, build.ESP)
        keys.add(world.left.redeem_inbound(quick.left).encryption_in)
        keys.add(quick.right_in.encryption_in)
    assert len(keys) == 6


def test_quick_modes_of_both_directions_run_interleaved_with_iv_chains_of_their_own_rfc2409_appendix_b(world, build):
    ike = world.main_mode()
    one = world.left.do(world.quick_offer(ike.left, build.ESP))
    backwards = {"spi_in": 400, "local_ts": build.RIGHT_NET, "remote_ts": build.LEFT_NET}
    other = world.right.do(world.quick_offer(ike.right, build.ESP, **backwards))
    one_opened = world.right.do(ops.QuickOpen(ike=ike.right, message_id=one.message_id, ciphertext=one.ciphertext))
    other_opened = world.left.do(ops.QuickOpen(ike=ike.left, message_id=other.message_id, ciphertext=other.ciphertext))
    other_second = world.left.do(world.quick_answer(other_opened.quick, build.ESP, spi_in=300))
    one_second = world.right.do(world.quick_answer(one_opened.quick, build.ESP))
    world.left.do(ops.QuickFinish(quick=one.quick, ciphertext=one_second.ciphertext))
    world.right.do(ops.QuickFinish(quick=other.quick, ciphertext=other_second.ciphertext))
    for side, keyed in ((world.left, other_second), (world.right, one_second)):
        assert isinstance(side.redeem_inbound(keyed.keymat), Redeemed)
    one_third = world.left.do(ops.QuickAccept(quick=one.quick))
    other_third = world.right.do(ops.QuickAccept(quick=other.quick))
    confirm = ops.QuickConfirm
    assert world.right.do(confirm(quick=one_opened.quick, ciphertext=one_third.ciphertext)) == ops.Done()
    assert world.left.do(confirm(quick=other_opened.quick, ciphertext=other_third.ciphertext)) == ops.Done()


def test_informationals_go_both_ways_under_message_ids_of_their_own_rfc2409_5_7(world):
    ike = world.main_mode()
    first, chain = join_chain([(PayloadType.NOTIFY, bytes(8)), (PayloadType.DELETE, bytes(12))])
    seen = set()
    for sender, sender_ike, receiver, receiver_ike in (
        (world.left, ike.left, world.right, ike.right),
        (world.right, ike.right, world.left, ike.left),
        (world.left, ike.left, world.right, ike.right),
    ):
        sealed = sender.do(ops.InfoSeal(ike=sender_ike, next_payload=first, payloads=chain))
        opened = receiver.do(ops.InfoOpen(ike=receiver_ike, message_id=sealed.message_id, ciphertext=sealed.ciphertext))
        assert opened == ops.Opened(next_payload=first, payloads=chain)
        seen.add(sealed.message_id)
    assert len(seen) == 3
    assert 0 not in seen


def test_extras_of_the_worker_follow_id_and_hash_rfc2408_3_1(world):
    ike = world.keyed()
    first, chain = join_chain([(PayloadType.NOTIFY, b"initial contact?")])
    fifth = world.left.do(ops.AuthSeal(ike=ike.left, next_payload=first, payloads=chain))
    opened = world.right.do(ops.AuthOpen(ike=ike.right, ciphertext=fifth.ciphertext))
    assert split_chain(opened.next_payload, opened.payloads) == [(PayloadType.NOTIFY, b"initial contact?")]


def test_the_responders_outbound_half_is_redeemable_only_after_hash_3_rfc2409_5_5(world, build):
    ike = world.main_mode()
    first = world.left.do(world.quick_offer(ike.left, build.ESP))
    opened = world.right.do(ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext))
    second = world.right.do(world.quick_answer(opened.quick, build.ESP))
    assert world.right.redeem_outbound(second.keymat) == NotRedeemable()
    # message 2 is not out yet
    assert isinstance(world.right.redeem_inbound(second.keymat), Redeemed)
    assert world.right.redeem_outbound(second.keymat) == NotRedeemable()
    world.left.do(ops.QuickFinish(quick=first.quick, ciphertext=second.ciphertext))
    third = world.left.do(ops.QuickAccept(quick=first.quick))
    assert world.right.redeem_outbound(second.keymat) == NotRedeemable()
    world.right.do(ops.QuickConfirm(quick=opened.quick, ciphertext=third.ciphertext))
    assert isinstance(world.right.redeem_outbound(second.keymat), RedeemedOutbound)


def test_each_half_of_keymat_is_redeemed_once_the_inbound_one_first(world, build):
    quick = world.quick_mode(world.main_mode(), build.ESP)
    assert world.left.redeem_outbound(quick.left) == NotRedeemable()
    assert isinstance(world.left.redeem_inbound(quick.left), Redeemed)
    assert world.left.redeem_inbound(quick.left) == NotRedeemable()
    assert isinstance(world.left.redeem_outbound(quick.left), RedeemedOutbound)
    assert world.left.redeem_outbound(quick.left) == NotRedeemable()


def test_a_half_that_was_handed_over_is_wiped(world, build):
    quick = world.quick_mode(world.main_mode(), build.ESP)
    entry = world.left.service._registry.get(quick.left)
    world.left.redeem_inbound(quick.left)
    assert bytes(entry.inbound.encryption) == b""
    assert bytes(entry.outbound.encryption) != b""
    world.left.redeem_outbound(quick.left)
    assert bytes(entry.outbound.encryption) == b""


def test_message_3_before_the_inbound_sa_is_a_violation(world, build):
    """An honest worker sends message 2 when it is in place."""
    ike = world.main_mode()
    first = world.left.do(world.quick_offer(ike.left, build.ESP))
    opened = world.right.do(ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext))
    second = world.right.do(world.quick_answer(opened.quick, build.ESP))
    world.left.do(ops.QuickFinish(quick=first.quick, ciphertext=second.ciphertext))
    third = world.left.do(ops.QuickAccept(quick=first.quick))
    with pytest.raises(Violation):
        world.right.do(ops.QuickConfirm(quick=opened.quick, ciphertext=third.ciphertext))


def test_an_ike_handle_is_not_redeemable(world):
    assert world.left.redeem_inbound(world.main_mode().left) == NotRedeemable()
