"""Main Mode with a pre-shared key: the operations on an IKE SA until both sides have authenticated (RFC 2409 5.4)."""

import hmac
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from keyd import ikev1
from keyd.ciphers import CbcChain, phase1_iv
from keyd.context import Context
from keyd.groups import BadPublicValue, KeyPair
from keyd.guesses import Guesses, WrongProofs
from keyd.handles import Entry, Quota, Refuse, State
from keyd.message_ids import MessageIds
from keyd.messages import AUTH_EXTRAS, NONCE_OCTETS, id_body, identity_of, with_extras
from keyd.secret import Secret
from privsep.algorithms import IkeSuite
from privsep.config.model import Connection
from privsep.errors import PeerError, Violation
from privsep.iana import NotifyType, PayloadType
from privsep.payloads import join_chain, only, split_chain
from privsep.schema.keyd import (
    Authenticated,
    AuthOpen,
    AuthSeal,
    Done,
    IkeAgree,
    IkeAnswer,
    IkeKeys,
    IkeOffer,
    Refusal,
    Sealed,
)
from privsep.types import Address, Auth, Identity, Role

IKE_SAS = Quota(65536)
"""About 100 MB: 1.3 KB each. Owners are the connections."""
OF_ONE_IDENTITY = Quota(each=32)
"""A peer has one, two while it renews it, and a few that it has forgotten. A worker keeps half as many, so that it is
this worker that lets go of one and tells the peer (`worker/established.py`)."""
HALF_OPEN = Quota(4096)
"""Of strangers and our own, twice as many as the worker keeps of strangers. Owners are the remote addresses."""
HALF_OPEN_LIFETIME = 300.0
"""Seconds; longer than any peer retransmits."""
MAX_NAMED = 4
"""Connections that are looked at to say who was expected."""
LIFETIME_MARGIN = 120.0
"""Seconds that an IKE SA outlives its configured lifetime, so that an honest worker can still say DELETE."""


@dataclass(slots=True, kw_only=True, repr=False, eq=False, weakref_slot=True)
class MainMode:
    """What phase 1 works with and nobody needs after it."""

    cky_i: bytes
    cky_r: bytes
    sai_b: bytes
    local: Address
    remote: Address
    psk: Secret
    keypair: KeyPair
    g_xi: bytes = b""
    g_xr: bytes = b""
    ni_b: bytes = b""
    nr_b: bytes = b""
    skeyid: Secret
    claimed: Connection | None
    """Initiator: the connection whose identity we claim, which the peer's identity must match too."""
    wrong: WrongProofs = field(default_factory=WrongProofs)


class IkeSa(Entry):
    """An ISAKMP SA. `chain` ends phase 1 with its last CBC block; phase 2 branches off it."""

    __slots__ = (
        "chain",
        "cipher_key",
        "connection",
        "identity",
        "main",
        "message_ids",
        "remote",
        "role",
        "skeyid_a",
        "skeyid_d",
        "suite",
    )

    def __init__(self, state: State, expires: float, role: Role, suite: IkeSuite, main: MainMode) -> None:
        super().__init__(state, expires)
        self.role = role
        self.suite = suite
        self.main: MainMode | None = main
        self.remote = main.remote
        self.cipher_key = Secret()
        self.chain: CbcChain | None = None
        self.skeyid_d = Secret()
        self.skeyid_a = Secret()
        self.connection: Connection | None = None
        self.identity: Identity | None = None
        self.message_ids = MessageIds()

    @property
    def owner(self) -> Hashable:
        """The connection; before both sides have authenticated, the address that the peer is at."""
        if self.state is not State.AUTHENTICATED or self.connection is None:
            return self.remote
        return self.connection.name

    def quotas(self) -> Iterable[tuple[Quota, Hashable]]:
        """Strangers do not use up what authenticated peers have, nor one of these what is the others'."""
        if self.state is not State.AUTHENTICATED:
            return ((HALF_OPEN, self.owner),)
        return ((OF_ONE_IDENTITY, (self.owner, self.identity)), (IKE_SAS, self.owner))

    def wipe(self) -> None:
        """Overwrite the secrets."""
        self.forget_main_mode()
        self.skeyid_d.wipe()
        self.skeyid_a.wipe()
        self.cipher_key.wipe()
        self.chain = None

    def forget_main_mode(self) -> None:
        """Phase 1 is over."""
        if self.main is not None:
            self.main.skeyid.wipe()
            self.main = None

    def in_main_mode(self) -> tuple[MainMode, CbcChain]:
        """Both while the state is one of phase 1 after the peer's KE."""
        if self.main is None or self.chain is None:
            raise Violation("the IKE SA is not in phase 1")
        return self.main, self.chain


class Phase1:
    """The operations. Each finds its handle, does its work, and only then moves the state on."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._own: WeakValueDictionary[bytes, MainMode] = WeakValueDictionary()
        """Our public values of every phase 1 under way: none of them is ever a peer's."""
        self._guesses = Guesses()

    def offer(self, request: IkeOffer) -> IkeKeys:
        """Message 3 at the initiator: KE and Ni."""
        context = self._context
        connection = context.gateway.connection(request.connection)
        if connection is None:
            raise Violation("a connection that the configuration does not have")
        if connection.auth is not Auth.PSK or not connection.describes(request.local, request.remote):
            raise Refuse(Refusal.NO_CONNECTION)
        if request.suite not in connection.suites:
            raise Refuse(Refusal.BAD_PROPOSAL)
        psk = context.credentials.psk_for(connection)
        if psk is None:
            raise Refuse(Refusal.NO_PSK)
        sa = self._new(request, Role.INITIATOR, State.OFFERED, psk, connection)
        main = self._main(sa)
        main.g_xi, main.ni_b = main.keypair.public, context.random(NONCE_OCTETS)
        return IkeKeys(ike=context.registry.mint(sa).handle, ke=main.g_xi, nonce=main.ni_b)

    def agree(self, request: IkeAgree) -> Done:
        """Message 4 at the initiator: the peer's KE and Nr."""
        sa = self._context.registry.find(request.ike, IkeSa, IkeAgree)
        main = self._main(sa)
        g_xy = self._agree(main.keypair, request.ke)
        main.g_xr, main.nr_b = request.ke, request.nonce
        _derive(sa, main, g_xy)
        sa.advance(IkeAgree)
        return Done()

    def answer(self, request: IkeAnswer) -> IkeKeys:
        """Message 3 at the responder: the peer's KE and Ni; ours for message 4.

        The identity comes in message 5, encrypted under the PSK: in Main Mode it is the address that decides which PSK
        applies (RFC 2409 section 5.4), by the most specific connection that has the suite.
        """
        context = self._context
        if not self._guesses.admits(request.remote, context.clock()):
            raise Refuse(Refusal.HELD_OFF)
        candidates = [
            connection
            for connection in context.gateway.candidates(request.local, request.remote)
            if connection.auth is Auth.PSK and request.suite in connection.suites
        ]
        if not candidates:
            raise Refuse(Refusal.NO_CONNECTION)
        psk = context.credentials.psk_for(candidates[0])
        if psk is None:
            raise Refuse(Refusal.NO_PSK)
        sa = self._new(request, Role.RESPONDER, State.KEYED_R, psk, None)
        main = self._main(sa)
        g_xy = self._agree(main.keypair, request.ke)
        main.g_xi, main.ni_b = request.ke, request.nonce
        main.g_xr, main.nr_b = main.keypair.public, context.random(NONCE_OCTETS)
        _derive(sa, main, g_xy)
        return IkeKeys(ike=context.registry.mint(sa).handle, ke=main.g_xr, nonce=main.nr_b)

    def seal(self, request: AuthSeal) -> Sealed:
        """Message 5 or 6, ours: IDii, HASH_I or IDir, HASH_R."""
        sa = self._context.registry.find(request.ike, IkeSa, AuthSeal)
        main, chain = sa.in_main_mode()
        connection = main.claimed or sa.connection
        if connection is None:
            raise Violation("nobody to claim to be")
        body = id_body(connection.local_id)
        payloads = [(PayloadType.ID, body), (PayloadType.HASH, _hash_of(sa.role, sa, main, body))]
        _, data = with_extras(payloads, request.next_payload, request.payloads, AUTH_EXTRAS)
        sealed = Sealed(ciphertext=chain.seal(data))
        self._advance(sa, AuthSeal)
        return sealed

    def open(self, request: AuthOpen) -> Authenticated:
        """Message 5 or 6, the peer's: HASH compared, identity matched, connection selected.

        Until the HASH is verified every fault is the same refusal; the one too many ends the SA, any other changes
        nothing. A peer that proved to know the PSK but claims an identity that no connection accepts ends the SA too.
        """
        sa = self._context.registry.find(request.ike, IkeSa, AuthOpen)
        main, chain = sa.in_main_mode()
        peer = Role.RESPONDER if sa.role is Role.INITIATOR else Role.INITIATOR
        plaintext = chain.open(request.ciphertext)
        if plaintext is None:
            raise Refuse(Refusal.AUTHENTICATION_FAILED)
        try:
            payloads = split_chain(PayloadType.ID, plaintext, padding=True)
            body, received = only(payloads, PayloadType.ID), only(payloads, PayloadType.HASH)
        except PeerError:
            # it fails below, as late as a wrong HASH: time would tell an attacker which ciphertexts parse
            payloads, body, received = [], plaintext, b""
        if not hmac.compare_digest(_hash_of(peer, sa, main, body), received):
            raise self._wrong(sa, main, request.ciphertext)
        chain.accept(request.ciphertext)
        try:
            identity = identity_of(body)
        except PeerError as error:
            raise self._unknown(sa, f"the peer's identity is not usable: {error.reason}") from None
        connection = self._select(sa, main, identity)
        if connection is None:
            raise self._unknown(sa, f"the peer proved to be {identity}, {self._expected(sa, main)}")
        sa.identity, sa.connection = identity, connection
        next_payload, rest = join_chain(
            (kind, each) for kind, each in payloads if kind not in (PayloadType.ID, PayloadType.HASH)
        )
        self._advance(sa, AuthOpen)
        return Authenticated(connection=connection.name, identity=identity, next_payload=next_payload, payloads=rest)

    def _unknown(self, sa: IkeSa, reason: str) -> Refuse:
        """Nobody whom the configuration accepts, though it has the secret."""
        fault = PeerError(reason, NotifyType.INVALID_ID_INFORMATION)
        return self._context.registry.reject(sa, AuthOpen, Refusal.UNKNOWN_IDENTITY, fault)

    def _expected(self, sa: IkeSa, main: MainMode) -> str:
        """Whom the connections of these addresses, this suite and this secret accept, for people."""
        candidates = self._context.gateway.candidates(main.local, main.remote)
        likely = [main.claimed] if main.claimed is not None else candidates
        accepted = [
            f"{each.name} expects {each.remote_id or 'anybody whom no other connection names'}"
            for each in likely[:MAX_NAMED]
            if sa.suite in each.suites and self._has_psk(each, main.psk)
        ]
        return ", ".join(accepted) or "whom no connection expects"

    def _wrong(self, sa: IkeSa, main: MainMode, ciphertext: bytes) -> Refuse:
        """A guess, or junk on the way. From a network that guesses already one is enough: it may have many SAs open."""
        if main.wrong.add(ciphertext):
            now = self._context.clock()
            held_off = not self._guesses.admits(main.remote, now)
            self._guesses.add(main.remote, now)
            if main.wrong.too_many or held_off:
                return self._context.registry.reject(sa, AuthOpen, Refusal.WRONG_TOO_OFTEN)
        return Refuse(Refusal.AUTHENTICATION_FAILED)

    def _new(
        self, request: IkeOffer | IkeAnswer, role: Role, state: State, psk: Secret, claimed: Connection | None
    ) -> IkeSa:
        main = MainMode(
            cky_i=request.cky_i,
            cky_r=request.cky_r,
            sai_b=request.sai_b,
            local=request.local,
            remote=request.remote,
            psk=psk,
            keypair=self._context.pool.take(request.suite.group),
            skeyid=Secret(),
            claimed=claimed,
        )
        self._own[main.keypair.public] = main
        return IkeSa(state, self._context.clock() + HALF_OPEN_LIFETIME, role, request.suite, main)

    def _agree(self, keypair: KeyPair, peer: bytes) -> Secret:
        """g^xy. A value of ours that comes back, from whichever SA, is a reflection and no peer's."""
        if peer in self._own:
            raise Refuse(Refusal.BAD_PUBLIC_VALUE)
        try:
            return keypair.agree(peer)
        except BadPublicValue:
            raise Refuse(Refusal.BAD_PUBLIC_VALUE) from None

    @staticmethod
    def _main(sa: IkeSa) -> MainMode:
        if sa.main is None:
            raise Violation("the IKE SA is not in phase 1")
        return sa.main

    def _advance(self, sa: IkeSa, operation: type[AuthSeal | AuthOpen]) -> None:
        """Move on; at the end of phase 1 forget what only phase 1 needs, and start the lifetime."""
        sa.advance(operation)
        if sa.state is State.AUTHENTICATED and sa.connection is not None:
            sa.forget_main_mode()
            sa.expires = self._context.clock() + sa.connection.lifetime + LIFETIME_MARGIN
            self._context.registry.count(sa)

    def _select(self, sa: IkeSa, main: MainMode, identity: Identity) -> Connection | None:
        """The most specific connection: one that names the identity before one that takes any, then by address.

        Only connections whose own PSK is the one that was proved. At the initiator it must be the connection that we
        claimed to be, or one as specific.
        """
        accepting = [
            connection
            for connection in self._context.gateway.accepting(main.local, main.remote, identity)
            if connection.auth is Auth.PSK
            and sa.suite in connection.suites
            # nobody else is who we are: that would be ourselves, reflected
            and connection.local_id != identity
            and self._has_psk(connection, main.psk)
        ]
        accepting.sort(key=lambda connection: connection.remote_id is None)
        if not accepting or main.claimed is None:
            return accepting[0] if accepting else None
        best = accepting[0]
        as_specific = [each for each in accepting if (each.remote, each.remote_id) == (best.remote, best.remote_id)]
        return main.claimed if main.claimed in as_specific else None

    def _has_psk(self, connection: Connection, psk: Secret) -> bool:
        configured = self._context.credentials.psk_for(connection)
        return configured is not None and hmac.compare_digest(configured, psk)


def _derive(sa: IkeSa, main: MainMode, g_xy: Secret) -> None:
    """RFC 2409 section 5: SKEYID and what follows from it; appendix B: the cipher's key and first IV."""
    hash_, cipher = sa.suite.hash, sa.suite.cipher
    main.skeyid = ikev1.skeyid_for_pre_shared_key(hash_, main.psk, main.ni_b, main.nr_b)
    keys = ikev1.derive(hash_, main.skeyid, g_xy, main.cky_i, main.cky_r)
    g_xy.wipe()
    sa.skeyid_d, sa.skeyid_a = keys.skeyid_d, keys.skeyid_a
    sa.cipher_key = ikev1.cipher_key(hash_, cipher, keys.skeyid_e)
    sa.chain = CbcChain.of_phase1(cipher, sa.cipher_key, phase1_iv(hash_, cipher, main.g_xi, main.g_xr))
    keys.skeyid_e.wipe()


def _hash_of(author: Role, sa: IkeSa, main: MainMode, id_b: bytes) -> bytes:
    """HASH_I or HASH_R over an author's ID body."""
    hash_, m = sa.suite.hash, main
    if author is Role.INITIATOR:
        return ikev1.hash_i(
            hash_, m.skeyid, g_xi=m.g_xi, g_xr=m.g_xr, cky_i=m.cky_i, cky_r=m.cky_r, sai_b=m.sai_b, idii_b=id_b
        )
    return ikev1.hash_r(
        hash_, m.skeyid, g_xi=m.g_xi, g_xr=m.g_xr, cky_i=m.cky_i, cky_r=m.cky_r, sai_b=m.sai_b, idir_b=id_b
    )
