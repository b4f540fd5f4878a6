"""Quick Mode and Informational exchanges: the operations on an authenticated IKE SA (RFC 2409 sections 5.5, 5.7)."""

import hmac

from keyd import agreement, ikev1
from keyd.agreement import Agreement, Payloads
from keyd.ciphers import CbcChain
from keyd.context import Context
from keyd.groups import BadPublicValue
from keyd.handles import Refuse, State
from keyd.messages import (
    INFO_EXTRAS,
    NONCE_OCTETS,
    put_hash,
    take_hash,
    take_nonce_and_ke,
    with_extras,
)
from keyd.phase1 import IkeSa
from keyd.quick import Keymat, Quick
from privsep.algorithms import Group
from privsep.config.model import Child
from privsep.errors import PeerError, Violation
from privsep.iana import NotifyType, PayloadType
from privsep.payloads import Chain, join_chain, split_chain
from privsep.schema import keymat as keymat_schema
from privsep.schema.keyd import (
    Done,
    InfoOpen,
    InfoSeal,
    Opened,
    QuickAccept,
    QuickAgreed,
    QuickAnswer,
    QuickConfirm,
    QuickFinish,
    QuickKeyed,
    QuickOffer,
    QuickOffered,
    QuickOpen,
    QuickOpened,
    Refusal,
    SealedNew,
)
from privsep.schema.keymat import NotRedeemable, RedeemInbound
from privsep.types import Role

QUICK_LIFETIME = 300.0
"""Seconds from a Quick Mode's first message to its last."""
KEYMAT_LIFETIME = 60.0
"""Seconds that verified keymat waits for the monitor."""


class Phase2:
    """The operations. Each finds its handle, does its work, and only then moves the state on."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def info_seal(self, request: InfoSeal) -> SealedNew:
        """RFC 2409 section 5.7: HDR*, HASH(1), N/D under a message id of its own."""
        sa = self._context.registry.find(request.ike, IkeSa, InfoSeal)
        rest = with_extras((), request.next_payload, request.payloads, INFO_EXTRAS)
        message_id = self._new_message_id(sa)
        value = ikev1.hash_1(sa.suite.hash, sa.skeyid_a, message_id, rest[1])
        ciphertext = _branch(sa, message_id).seal(put_hash(value, rest))
        sa.advance(InfoSeal)
        return SealedNew(message_id=message_id, ciphertext=ciphertext)

    def info_open(self, request: InfoOpen) -> Opened:
        """RFC 2409 section 5.7: the peer's HDR*, HASH(1), N/D."""
        sa = self._context.registry.find(request.ike, IkeSa, InfoOpen)
        (first, data), _ = self._open_first(sa, request.message_id, request.ciphertext)
        sa.advance(InfoOpen)
        return Opened(next_payload=first, payloads=data)

    def offer(self, request: QuickOffer) -> QuickOffered:
        """Message 1 at the initiator: HASH(1), SA, Ni [, KE], IDci, IDcr [, NAT-OAi, NAT-OAr]."""
        context = self._context
        sa = context.registry.find(request.ike, IkeSa, QuickOffer)
        offer = agreement.offer(_child(sa, request.child), request)
        context.registry.room(sa)
        message_id = self._new_message_id(sa)
        quick = Quick(State.QUICK_OFFERED, context.clock() + QUICK_LIFETIME, sa, message_id, _branch(sa, message_id))
        quick.offer = offer
        quick.ni_b = context.random(NONCE_OCTETS)
        rest = self._compose(quick, request.group, quick.ni_b, *offer.payloads(request.originals))
        value = ikev1.hash_1(sa.suite.hash, sa.skeyid_a, message_id, rest[1])
        ciphertext = quick.chain.seal(put_hash(value, rest))
        sa.advance(QuickOffer)
        return QuickOffered(quick=context.registry.mint(quick, sa).handle, message_id=message_id, ciphertext=ciphertext)

    def finish(self, request: QuickFinish) -> QuickAgreed:
        """Message 2 at the initiator: HASH(2), SA, Nr [, KE] [, IDci, IDcr]."""
        registry = self._context.registry
        quick = registry.find(request.quick, Quick, QuickFinish)
        sa = quick.sa
        received, rest = _open(quick.chain, request.ciphertext)
        expected = ikev1.hash_2(sa.suite.hash, sa.skeyid_a, quick.message_id, quick.ni_b, rest[1])
        if not hmac.compare_digest(expected, received):
            raise Refuse(Refusal.BAD_HASH)
        quick.chain.accept(request.ciphertext)
        try:
            agreed = _read_answer(quick, rest)
        except PeerError as error:
            why = Refusal.BAD_PUBLIC_VALUE if isinstance(error, BadPublicValue) else Refusal.BAD_MESSAGE
            raise registry.reject(quick, QuickFinish, why, error) from None
        quick.agreement = agreed
        quick.advance(QuickFinish)
        return QuickAgreed(
            suite=agreed.suite,
            spi_out=agreed.spi_out,
            cpi_out=agreed.cpi_out,
            lifetime=agreed.lifetime,
            next_payload=rest[0],
            payloads=rest[1],
        )

    def accept(self, request: QuickAccept) -> QuickKeyed:
        """Message 3 at the initiator: HASH(3). The responder has proved itself with HASH(2)."""
        context = self._context
        quick = context.registry.find(request.quick, Quick, QuickAccept)
        if quick.agreement is None:
            raise Violation("nothing was agreed on")
        keymat = self._derive(quick, Role.INITIATOR, State.CONFIRMED, quick.agreement)
        keymat.expires = context.clock() + KEYMAT_LIFETIME
        value = _hash_3(quick)
        ciphertext = quick.chain.seal(put_hash(value, (PayloadType.NONE, b"")))
        context.registry.mint(keymat)
        quick.advance(QuickAccept)
        context.registry.drop(quick)
        return QuickKeyed(keymat=keymat.handle, ciphertext=ciphertext)

    def open(self, request: QuickOpen) -> QuickOpened:
        """Message 1 at the responder: HASH(1), SA, Ni [, KE] [, IDci, IDcr]."""
        context = self._context
        sa = context.registry.find(request.ike, IkeSa, QuickOpen)
        context.registry.room(sa)
        rest, chain = self._open_first(sa, request.message_id, request.ciphertext)
        quick = Quick(State.QUICK_OPENED, context.clock() + QUICK_LIFETIME, sa, request.message_id, chain)
        try:
            payloads = split_chain(*rest)
            quick.ni_b, quick.ke = take_nonce_and_ke(payloads)
            quick.question = agreement.question(payloads)
        except PeerError as error:
            raise Refuse(Refusal.BAD_MESSAGE, error) from None
        sa.advance(QuickOpen)
        return QuickOpened(quick=context.registry.mint(quick, sa).handle, next_payload=rest[0], payloads=rest[1])

    def answer(self, request: QuickAnswer) -> QuickKeyed:
        """Message 2 at the responder: HASH(2), SA, Nr [, KE] [, IDci, IDcr] and what agreement.answer adds."""
        context = self._context
        quick = context.registry.find(request.quick, Quick, QuickAnswer)
        sa = quick.sa
        child, group = _child(sa, request.child), request.suite.group
        if quick.question is None or (group is None) != (quick.ke is None):
            raise Refuse(Refusal.BAD_PROPOSAL)
        agreed, our_sa, extras = agreement.answer(child, quick.question, request)
        quick.nr_b = context.random(NONCE_OCTETS)
        rest = self._compose(quick, group, quick.nr_b, our_sa, extras)
        if quick.keypair is not None and quick.ke is not None:
            try:
                quick.g_qm_xy = quick.keypair.agree(quick.ke)
            except BadPublicValue as error:
                raise Refuse(Refusal.BAD_PUBLIC_VALUE, error) from None
        keymat = self._derive(quick, Role.RESPONDER, State.DERIVED, agreed)
        value = ikev1.hash_2(sa.suite.hash, sa.skeyid_a, quick.message_id, quick.ni_b, rest[1])
        ciphertext = quick.chain.seal(put_hash(value, rest))
        quick.agreement, quick.keymat = agreed, context.registry.mint(keymat, quick)
        quick.advance(QuickAnswer)
        return QuickKeyed(keymat=keymat.handle, ciphertext=ciphertext)

    def confirm(self, request: QuickConfirm) -> Done:
        """Message 3 at the responder: HASH(3), the proof that the initiator is alive."""
        context = self._context
        quick = context.registry.find(request.quick, Quick, QuickConfirm)
        received, _ = _open(quick.chain, request.ciphertext)
        if not hmac.compare_digest(_hash_3(quick), received):
            raise Refuse(Refusal.BAD_HASH)
        keymat = quick.keymat
        if keymat is None or keymat.state is State.GONE:
            raise Refuse(Refusal.UNKNOWN_HANDLE)
        keymat.advance(QuickConfirm)
        keymat.expires = context.clock() + KEYMAT_LIFETIME
        context.registry.detach(keymat)
        quick.advance(QuickConfirm)
        context.registry.drop(quick)
        return Done()

    def redeem(self, request: keymat_schema.Redemption) -> keymat_schema.Reply:
        """The monitor's requests. It forwards what the worker named, so nothing here is its fault."""
        registry = self._context.registry
        keymat = registry.get(request.keymat)
        if not isinstance(keymat, Keymat) or not keymat.admits(type(request)):
            return NotRedeemable()
        if keymat.expires <= self._context.clock():
            registry.drop(keymat)
            return NotRedeemable()
        reply = keymat.inbound_half() if isinstance(request, RedeemInbound) else keymat.outbound_half()
        keymat.advance(type(request))
        if keymat.state is State.GONE:
            registry.drop(keymat)
        return reply

    def _derive(self, quick: Quick, role: Role, state: State, agreed: Agreement) -> Keymat:
        return Keymat(state, quick.expires, quick, role, agreed)

    def _compose(self, quick: Quick, group: Group | None, nonce: bytes, sa: bytes, rest: Payloads) -> Chain:
        """SA, nonce [, KE] and the rest; makes the key pair if there is a group."""
        payloads: Payloads = [(PayloadType.SA, sa), (PayloadType.NONCE, nonce)]
        if group is not None:
            quick.keypair = self._context.pool.take(group)
            payloads.append((PayloadType.KE, quick.keypair.public))
        return join_chain([*payloads, *rest])

    def _new_message_id(self, sa: IkeSa) -> int:
        """A random one that the IKE SA has not used (RFC 2408 section 3.1), used from now on."""
        if sa.message_ids.used_up:
            raise Refuse(Refusal.WORN_OUT)
        message_id = 0
        while message_id in sa.message_ids:
            message_id = int.from_bytes(self._context.random(4), "big")
        sa.message_ids.add(message_id)
        return message_id

    def _open_first(self, sa: IkeSa, message_id: int, ciphertext: bytes) -> tuple[Chain, CbcChain]:
        """The peer's first message under a new message id, which is used up if HASH(1) is right, and only then."""
        if message_id in sa.message_ids:
            raise Refuse(Refusal.REUSED_MESSAGE_ID)
        if sa.message_ids.used_up:
            raise Refuse(Refusal.WORN_OUT)
        chain = _branch(sa, message_id)
        received, rest = _open(chain, ciphertext)
        if not hmac.compare_digest(ikev1.hash_1(sa.suite.hash, sa.skeyid_a, message_id, rest[1]), received):
            raise Refuse(Refusal.BAD_HASH)
        chain.accept(ciphertext)
        sa.message_ids.add(message_id)
        return rest, chain


def _read_answer(quick: Quick, rest: Chain) -> Agreement:
    """Message 2 says what was agreed on, and has a nonce, and a KE just if ours had one. PeerError."""
    payloads = split_chain(*rest)
    quick.nr_b, ke = take_nonce_and_ke(payloads)
    if quick.offer is None:
        raise Violation("nothing was offered")
    if (ke is None) != (quick.keypair is None):
        raise PeerError("a KE payload too many or none where we sent one", NotifyType.INVALID_KEY_INFORMATION)
    agreed = agreement.accepted(quick.offer, payloads)
    if ke is not None and quick.keypair is not None:
        quick.g_qm_xy = quick.keypair.agree(ke)
    return agreed


def _branch(sa: IkeSa, message_id: int) -> CbcChain:
    if sa.chain is None:
        raise Violation("the IKE SA has no keys")
    return sa.chain.branch(sa.suite.hash, message_id)


def _open(chain: CbcChain, ciphertext: bytes) -> tuple[bytes, Chain]:
    """The HASH value and the rest, not verified yet. What does not parse has the empty value, which never verifies:
    refused here, it would tell by its time which ciphertexts parse.
    """
    plaintext = chain.open(ciphertext)
    if plaintext is None:
        raise Refuse(Refusal.BAD_HASH)
    try:
        return take_hash(plaintext)
    except PeerError:
        return b"", (PayloadType.NONE, plaintext)


def _hash_3(quick: Quick) -> bytes:
    sa = quick.sa
    return ikev1.hash_3(sa.suite.hash, sa.skeyid_a, quick.message_id, quick.ni_b, quick.nr_b)


def _child(sa: IkeSa, name: str) -> Child:
    child = sa.connection.child(name) if sa.connection is not None else None
    if child is None:
        raise Violation("a child that the connection does not have")
    return child
