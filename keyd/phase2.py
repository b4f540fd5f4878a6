"""Quick Mode and Informational exchanges: the operations on an authenticated IKE SA (RFC 2409 sections 5.5, 5.7)."""

import hmac
from collections.abc import Hashable
from typing import ClassVar

from keyd import ikev1
from keyd.ciphers import CbcChain
from keyd.context import Context
from keyd.groups import BadPublicValue, KeyPair
from keyd.handles import Entry, Quota, Refuse, State
from keyd.ikev1 import SaKeys
from keyd.messages import (
    INFO_EXTRAS,
    NONCE_OCTETS,
    QUICK_EXTRAS,
    put_hash,
    take_hash,
    take_nonce_and_ke,
    with_extras,
)
from keyd.phase1 import IkeSa
from keyd.secret import Secret
from privsep.algorithms import ChildSuite, Group
from privsep.config.model import Child
from privsep.errors import PeerError, Violation
from privsep.iana import PayloadType
from privsep.payloads import Chain
from privsep.schema.keyd import (
    Done,
    InfoOpen,
    InfoSeal,
    Opened,
    QuickAccept,
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
from privsep.schema.keymat import NotRedeemable, Redeem, Redeemed
from privsep.types import Identity, Role

QUICK_LIFETIME = 300.0
"""Seconds from a Quick Mode's first message to its last."""
KEYMAT_LIFETIME = 60.0
"""Seconds that verified keymat waits for the monitor."""


class Quick(Entry):
    """One Quick Mode, with the nonces and the KE secret that it uses once."""

    __slots__ = ("chain", "child", "g_qm_xy", "group", "ke", "keymat", "keypair", "message_id", "ni_b", "nr_b", "sa")
    quota: ClassVar[Quota] = Quota(8192)

    def __init__(self, state: State, expires: float, sa: IkeSa, message_id: int, chain: CbcChain) -> None:
        super().__init__(state, expires)
        self.sa = sa
        self.message_id = message_id
        self.chain = chain
        self.child: Child | None = None
        self.group: Group | None = None
        self.keypair: KeyPair | None = None
        self.ke: bytes | None = None
        """The peer's KE; at the responder, kept until the suite names the group."""
        self.g_qm_xy: Secret | None = None
        self.ni_b = b""
        self.nr_b = b""
        self.keymat: Keymat | None = None

    def wipe(self) -> None:
        """Overwrite the secrets."""
        self.keypair = None
        if self.g_qm_xy is not None:
            self.g_qm_xy.wipe()


class Keymat(Entry):
    """KEYMAT of both SAs of a child, and for whom it was derived."""

    __slots__ = ("child", "connection", "identity", "inbound", "outbound", "role", "spi_in", "spi_out", "suite")
    quota: ClassVar[Quota] = Quota(8192)

    def __init__(
        self, state: State, expires: float, quick: Quick, role: Role, suite: ChildSuite, spi_in: int, spi_out: int
    ) -> None:
        super().__init__(state, expires)
        sa = quick.sa
        if sa.connection is None or sa.identity is None or quick.child is None:
            raise Violation("keymat for nobody")
        self.connection: str = sa.connection.name
        self.child: str = quick.child.name
        self.identity: Identity = sa.identity
        self.role = role
        self.suite = suite
        self.spi_in = spi_in
        self.spi_out = spi_out
        self.inbound = _keys(quick, suite, spi_in)
        self.outbound = _keys(quick, suite, spi_out)

    @property
    def owner(self) -> Hashable:
        """It outlives its Quick Mode."""
        return self.connection

    def wipe(self) -> None:
        """Overwrite the keys."""
        self.inbound.wipe()
        self.outbound.wipe()


def _keys(quick: Quick, suite: ChildSuite, spi: int) -> SaKeys:
    material = ikev1.keymat(
        quick.sa.suite.hash,
        quick.sa.skeyid_d,
        g_qm_xy=quick.g_qm_xy,
        protocol=suite.protocol,
        spi=spi,
        ni_b=quick.ni_b,
        nr_b=quick.nr_b,
        octets=ikev1.keymat_octets(suite),
    )
    keys = ikev1.split(suite, material)
    material.wipe()
    return keys


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
        """Message 1 at the initiator: HASH(1), SA, Ni [, KE] [, IDci, IDcr]."""
        context = self._context
        sa = context.registry.find(request.ike, IkeSa, QuickOffer)
        child = _child(sa, request.child)
        if all(suite.group is not request.group for suite in child.suites):
            raise Refuse(Refusal.BAD_PROPOSAL)
        context.registry.room(sa)
        message_id = self._new_message_id(sa)
        quick = Quick(State.QUICK_OFFERED, context.clock() + QUICK_LIFETIME, sa, message_id, _branch(sa, message_id))
        quick.child, quick.group = child, request.group
        quick.ni_b = context.random(NONCE_OCTETS)
        rest = self._compose(quick, quick.ni_b, request)
        value = ikev1.hash_1(sa.suite.hash, sa.skeyid_a, message_id, rest[1])
        ciphertext = quick.chain.seal(put_hash(value, rest))
        sa.advance(QuickOffer)
        return QuickOffered(quick=context.registry.mint(quick, sa).handle, message_id=message_id, ciphertext=ciphertext)

    def finish(self, request: QuickFinish) -> Opened:
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
            quick.nr_b, ke = take_nonce_and_ke(rest)
        except PeerError:
            raise registry.reject(quick, QuickFinish, Refusal.BAD_MESSAGE) from None
        if (ke is None) != (quick.keypair is None):
            raise registry.reject(quick, QuickFinish, Refusal.BAD_MESSAGE)
        if ke is not None and quick.keypair is not None:
            try:
                quick.g_qm_xy = quick.keypair.agree(ke)
            except BadPublicValue:
                raise registry.reject(quick, QuickFinish, Refusal.BAD_PUBLIC_VALUE) from None
        quick.advance(QuickFinish)
        return Opened(next_payload=rest[0], payloads=rest[1])

    def accept(self, request: QuickAccept) -> QuickKeyed:
        """Message 3 at the initiator: HASH(3). The responder has proved itself with HASH(2)."""
        context = self._context
        quick = context.registry.find(request.quick, Quick, QuickAccept)
        if quick.child is None or request.suite.group is not quick.group:
            raise Refuse(Refusal.BAD_PROPOSAL)
        _check(quick.child, request)
        keymat = self._derive(quick, Role.INITIATOR, State.REDEEMABLE, request)
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
            quick.ni_b, quick.ke = take_nonce_and_ke(rest)
        except PeerError:
            raise Refuse(Refusal.BAD_MESSAGE) from None
        sa.advance(QuickOpen)
        return QuickOpened(quick=context.registry.mint(quick, sa).handle, next_payload=rest[0], payloads=rest[1])

    def answer(self, request: QuickAnswer) -> QuickKeyed:
        """Message 2 at the responder: HASH(2), SA, Nr [, KE] [, IDci, IDcr]."""
        context = self._context
        quick = context.registry.find(request.quick, Quick, QuickAnswer)
        sa = quick.sa
        child, group = _child(sa, request.child), request.suite.group
        if (group is None) != (quick.ke is None):
            raise Refuse(Refusal.BAD_PROPOSAL)
        _check(child, request)
        quick.child, quick.group = child, group
        quick.nr_b = context.random(NONCE_OCTETS)
        rest = self._compose(quick, quick.nr_b, request)
        if quick.keypair is not None and quick.ke is not None:
            try:
                quick.g_qm_xy = quick.keypair.agree(quick.ke)
            except BadPublicValue:
                raise Refuse(Refusal.BAD_PUBLIC_VALUE) from None
        keymat = self._derive(quick, Role.RESPONDER, State.DERIVED, request)
        value = ikev1.hash_2(sa.suite.hash, sa.skeyid_a, quick.message_id, quick.ni_b, rest[1])
        ciphertext = quick.chain.seal(put_hash(value, rest))
        quick.keymat = context.registry.mint(keymat, quick)
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

    def redeem(self, request: Redeem) -> Redeemed | NotRedeemable:
        """The monitor's only request. The monitor forwards what the worker named, so nothing here is its fault."""
        registry = self._context.registry
        keymat = registry.get(request.keymat)
        if not isinstance(keymat, Keymat) or keymat.state is not State.REDEEMABLE:
            return NotRedeemable()
        if keymat.expires <= self._context.clock():
            registry.drop(keymat)
            return NotRedeemable()
        redeemed = Redeemed(
            connection=keymat.connection,
            child=keymat.child,
            identity=keymat.identity,
            role=keymat.role,
            suite=keymat.suite,
            spi_in=keymat.spi_in,
            spi_out=keymat.spi_out,
            encryption_in=bytes(keymat.inbound.encryption),
            integrity_in=bytes(keymat.inbound.integrity),
            encryption_out=bytes(keymat.outbound.encryption),
            integrity_out=bytes(keymat.outbound.integrity),
        )
        keymat.advance(Redeem)
        registry.drop(keymat)
        return redeemed

    def _derive(self, quick: Quick, role: Role, state: State, request: QuickAccept | QuickAnswer) -> Keymat:
        return Keymat(state, quick.expires, quick, role, request.suite, request.spi_in, request.spi_out)

    def _compose(self, quick: Quick, nonce: bytes, request: QuickOffer | QuickAnswer) -> Chain:
        """SA, nonce [, KE] [, IDci, IDcr] and the worker's extras; makes the key pair if a group was agreed."""
        if len(request.ids) == 1:
            raise Violation("one client identity where none or two are right")
        payloads = [(PayloadType.SA, request.sa), (PayloadType.NONCE, nonce)]
        if quick.group is not None:
            quick.keypair = self._context.pool.take(quick.group)
            payloads.append((PayloadType.KE, quick.keypair.public))
        payloads.extend((PayloadType.ID, body) for body in request.ids)
        return with_extras(payloads, request.next_payload, request.payloads, QUICK_EXTRAS)

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


def _check(child: Child, request: QuickAccept | QuickAnswer) -> None:
    """The suite is one of the child's. KEYMAT differs by direction only in the SPI: equal ones would share a key."""
    if request.suite not in child.suites or request.spi_in == request.spi_out:
        raise Refuse(Refusal.BAD_PROPOSAL)


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
