"""Main Mode with a pre-shared key (RFC 2409 sections 5 and 5.4), with NAT traversal (RFC 3947).

keyd makes KE, nonce, ID and HASH and verifies the peer's; what the worker does is choose, pass on and send.
"""

from dataclasses import dataclass

from privsep.algorithms import Hash, IkeSuite
from privsep.config.model import Connection, Encap
from privsep.errors import PeerError
from privsep.iana import ExchangeType, NotifyType, PayloadType
from privsep.isakmp.association import encode_association
from privsep.isakmp.payloads import KeyExchange, NatDiscovery, Nonce, encode_chain
from privsep.isakmp.terms import MIN_IKE_LIFETIME, agreed_lifetime
from privsep.log import Level
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
from privsep.types import Endpoint, MessageId, Role
from worker.codec import rules
from worker.codec.header import ZERO_COOKIE
from worker.codec.proposals import IkeSelection, accepted_ike, describe_ike, offer_ike
from worker.context import Context
from worker.demux import UNAUTHENTICATED_OCTETS
from worker.errors import Failed, KeydRefused, SaClosed
from worker.exchange import Exchange, Received
from worker.half_open import HalfOpen, Offer
from worker.ikev1 import informational
from worker.ikev1.diagnosis import differs, silence
from worker.ikev1.first_message import (
    association,
    knows_dpd,
    knows_nat_traversal,
    new_cookie,
    parse_message,
    vendor_ids,
)
from worker.isakmp_sa import IkeSa, IkeState
from worker.nat import NATT_PORT, Nat, detect, nat_d
from worker.negotiate import listed
from worker.peers import first_contact, forget_ike, join

PHASE_1 = MessageId(0)


async def initiate(context: Context, connection: Connection, local: Endpoint, remote: Endpoint) -> IkeSa:
    """An established IKE SA with the peer at that address; Failed says why not."""
    sa = IkeSa(
        serial=next(context.serials),
        role=Role.INITIATOR,
        cky_i=new_cookie(context),
        local=local,
        remote=remote,
        created=context.now,
        connection=connection,
    )
    context.sas.add(sa)
    exchange = Exchange(context, sa, ExchangeType.MAIN_MODE, PHASE_1)
    try:
        await _Initiator(context, connection, exchange).run()
    except BaseException:
        forget_ike(context, sa)
        raise
    exchange.close()
    return sa


class _Initiator:
    """RFC 2409 section 5.4, initiator.

    HDR, SA -->                <-- HDR, SA
    HDR, KE, Ni -->            <-- HDR, KE, Nr
    HDR*, IDii, HASH_I -->     <-- HDR*, IDir, HASH_R
    """

    def __init__(self, context: Context, connection: Connection, exchange: Exchange) -> None:
        self._context = context
        self._connection = connection
        self._exchange = exchange
        self._sa = exchange.sa
        self._offer = offer_ike(connection.suites, connection.auth, connection.lifetime)

    async def run(self) -> None:
        context, exchange, sa, connection = self._context, self._exchange, self._sa, self._connection
        peer = sa.remote.address
        exchange.proposals = listed(map(str, connection.suites))
        exchange.report(f"-> {peer} Main Mode 1/6: offering {exchange.proposals}")
        first = exchange.message([self._offer, *vendor_ids(nat_traversal=connection.encap is not Encap.OFF)])
        chosen = await exchange.ask(first, self._message_2, "Main Mode 1/6")
        suite = chosen.selection.suite
        sa.suite = suite
        exchange.report(f"<- {peer} Main Mode 2/6: chose {suite}")
        if connection.encap is Encap.FORCE and not chosen.nat_traversal:
            raise Failed("the peer does not know NAT traversal (RFC 3947), and encap is force")

        keys = await context.ask(
            IkeOffer(
                connection=connection.name,
                suite=suite,
                cky_i=sa.cky_i,
                cky_r=sa.cky_r,
                sai_b=encode_association(self._offer),
                local=sa.local.address,
                remote=sa.remote.address,
            ),
            IkeKeys,
        )
        sa.handle = keys.ike
        exchange.report(f"-> {peer} Main Mode 3/6: public value and nonce, made in keyd")
        nat_ds = _nat_ds(context, sa, suite.hash, connection.encap) if chosen.nat_traversal else ()
        third = exchange.message([KeyExchange(keys.ke), Nonce(keys.nonce), *nat_ds])
        answer = await exchange.ask(third, self._message_4, "Main Mode 3/6")
        exchange.report(f"<- {peer} Main Mode 4/6: public value and nonce; keyd derives the keys")
        if chosen.nat_traversal:
            _traverse(sa, suite, connection.encap, answer.nat_ds)
            if sa.encap:
                exchange.report(f"   NAT: {sa.nat.value}; going on at port {NATT_PORT}, ESP in UDP")
                if sa.local.port != NATT_PORT:
                    # RFC 3947 section 4: the initiator moves both ports, with this message
                    sa.local = Endpoint(sa.local.address, NATT_PORT)
                    sa.remote = Endpoint(sa.remote.address, NATT_PORT)

        extras = [informational.initial_contact(sa)] if first_contact(context, connection) else []
        next_payload, payloads = encode_chain(extras)
        sealed = await context.ask(AuthSeal(ike=sa.handle, next_payload=next_payload, payloads=payloads), Sealed)
        exchange.report(f"-> {peer} Main Mode 5/6: who we are ({connection.local_id}) and proof, encrypted")
        fifth = exchange.sealed(PayloadType.ID, sealed.ciphertext)
        proven = await exchange.ask(fifth, self._message_6, "Main Mode 5/6", suspicion=silence(sa))
        exchange.report(f"<- {peer} Main Mode 6/6: {proven.identity} proved that it has the pre-shared key")
        _establish(context, sa, connection, proven, chosen.selection.lifetime)

    async def _message_2(self, received: Received) -> "_Chosen":
        """HDR, SA: the responder's choice and its cookie."""
        sa, cky_r = self._sa, received.header.cky_r
        _from_peer(sa, received)
        payloads = parse_message(received, 2)
        if cky_r == ZERO_COOKIE:
            raise PeerError("responder cookie is zero", NotifyType.INVALID_COOKIE)
        answer = association(payloads)
        try:
            selection = accepted_ike(self._offer, answer)
        except PeerError as error:
            offered = f"we offered {self._exchange.proposals}, it answers {listed(describe_ike(answer))}"
            raise PeerError(f"{error.reason}: {offered}", error.notify) from None
        self._context.sas.complete(sa, cky_r)
        # bound to all addresses we learn only now which one this peer sees
        sa.local = received.local
        sa.knows_dpd = knows_dpd(payloads)
        traversal = knows_nat_traversal(payloads) and self._connection.encap is not Encap.OFF
        return _Chosen(selection, traversal)

    async def _message_4(self, received: Received) -> "_KeyMessage":
        """HDR, KE, Nr."""
        _from_peer(self._sa, received)
        message = _key_message(received, 4)
        try:
            await self._context.ask(IkeAgree(ike=self._sa.handle, ke=message.ke, nonce=message.nonce), Done)
        except KeydRefused as refused:
            raise _ignored_for(refused, Refusal.BAD_PUBLIC_VALUE, NotifyType.INVALID_KEY_INFORMATION) from None
        return message

    async def _message_6(self, received: Received) -> Authenticated:
        """HDR*, IDir, HASH_R."""
        rules.check_header(received.header, 6)
        try:
            return await self._context.ask(AuthOpen(ike=self._sa.handle, ciphertext=received.body), Authenticated)
        except KeydRefused as refused:
            if refused.why is Refusal.AUTHENTICATION_FAILED:
                self._exchange.suspect(differs(self._sa.peer_name))
            raise _ignored_for(refused, Refusal.AUTHENTICATION_FAILED, NotifyType.AUTHENTICATION_FAILED) from None


async def respond(context: Context, record: HalfOpen, third: Received) -> None:
    """Go on with a message that brings our cookie back: the peer is where it says it is."""
    offer = record.offer
    context.half_open.remove(record)
    sa = IkeSa(
        serial=next(context.serials),
        role=Role.RESPONDER,
        cky_i=record.cky_i,
        cky_r=record.cky_r,
        local=record.local,
        remote=third.remote,
        created=context.now,
        suite=offer.suite,
        knows_dpd=offer.knows_dpd,
    )
    context.sas.add(sa)
    for evicted in context.sas.unauthenticated.add(sa, UNAUTHENTICATED_OCTETS + len(offer.sai_b)):
        for each in tuple(evicted.exchanges.values()):
            each.abort(lambda: SaClosed("too many half-open IKE SAs"))
    exchange = Exchange(context, sa, ExchangeType.MAIN_MODE, PHASE_1)
    responder = _Responder(context, offer, exchange)
    try:
        await responder.run(third)
    except BaseException as error:
        forget_ike(context, sa)
        if isinstance(error, Failed) and responder.refused:
            # the log has it already
            return
        raise
    exchange.linger()


class _Responder:
    """RFC 2409 section 5.4, responder, from message 3 on; what was before is in `first_message`.

    HDR, SA -->                <-- HDR, SA
    HDR, KE, Ni -->            <-- HDR, KE, Nr
    HDR*, IDii, HASH_I -->     <-- HDR*, IDir, HASH_R
    """

    def __init__(self, context: Context, offer: Offer, exchange: Exchange) -> None:
        self._context = context
        self._offer = offer
        self._exchange = exchange
        self._sa = exchange.sa
        self.refused = False
        """Whether the log and the peer were told why this fails."""
        self._wrong: set[int] = set()
        """Messages 5 that did not decrypt, by their hash in Python: for a count, not for a decision."""

    async def run(self, third: Received) -> None:
        context, exchange, sa, offer = self._context, self._exchange, self._sa, self._offer
        encap, hash_ = offer.connection.encap, offer.suite.hash
        message, keys = await exchange.expect(third, self._message_3, "Main Mode 2/6")
        if offer.nat_traversal:
            _traverse(sa, offer.suite, encap, message.nat_ds)

        nat_ds = _nat_ds(context, sa, hash_, encap) if offer.nat_traversal else ()
        fourth = exchange.message([KeyExchange(keys.ke), Nonce(keys.nonce), *nat_ds])
        try:
            proven = await exchange.answer(fourth, self._message_5, "Main Mode 4/6")
        finally:
            self._report_guesses()
        connection = context.gateway.index.by_name[proven.connection]
        sa.connection = connection

        sealed = await context.ask(AuthSeal(ike=sa.handle, next_payload=PayloadType.NONE, payloads=b""), Sealed)
        if informational.announces_initial_contact(proven):
            informational.honour_initial_contact(context, sa, connection, proven.identity)
        exchange.transmit(exchange.sealed(PayloadType.ID, sealed.ciphertext))
        _establish(context, sa, connection, proven, offer.lifetime)

    async def _message_3(self, received: Received) -> tuple["_KeyMessage", IkeKeys]:
        """HDR, KE, Ni."""
        sa, suite = self._sa, self._offer.suite
        _from_peer(sa, received)
        message = _key_message(received, 3)
        request = IkeAnswer(
            suite=suite,
            cky_i=sa.cky_i,
            cky_r=sa.cky_r,
            sai_b=self._offer.sai_b,
            local=sa.local.address,
            remote=sa.remote.address,
            ke=message.ke,
            nonce=message.nonce,
        )
        try:
            with self._context.agreeing.computing(suite.group, sa.remote.address):
                keys = await self._context.ask(request, IkeKeys)
        except KeydRefused as refused:
            raise _ignored_for(refused, Refusal.BAD_PUBLIC_VALUE, NotifyType.INVALID_KEY_INFORMATION) from None
        sa.handle = keys.ike
        return message, keys

    async def _message_5(self, received: Received) -> Authenticated:
        """HDR*, IDii, HASH_I. Behind a NAT it comes from and goes to port 4500 (RFC 3947 section 4)."""
        context, sa = self._context, self._sa
        rules.check_header(received.header, 5)
        if not sa.encap:
            _from_peer(sa, received)
        elif received.local.port != NATT_PORT:
            raise PeerError("a NAT was seen, and the peer stays on port 500")
        try:
            proven = await context.ask(AuthOpen(ike=sa.handle, ciphertext=received.body), Authenticated)
        except KeydRefused as refused:
            match refused.why:
                case Refusal.AUTHENTICATION_FAILED | Refusal.WRONG_TOO_OFTEN:
                    self._wrong.add(hash(received.body))
                    expected = self._offer.connection.remote_id or sa.peer_name
                    self._refuse(received, differs(expected), NotifyType.AUTHENTICATION_FAILED)
                case Refusal.UNKNOWN_IDENTITY:
                    self._refuse(received, refused.reason, NotifyType.INVALID_ID_INFORMATION)
            raise _ignored_for(refused, Refusal.AUTHENTICATION_FAILED, NotifyType.AUTHENTICATION_FAILED) from None
        sa.local, sa.remote = received.local, received.remote
        return proven

    def _report_guesses(self) -> None:
        """A peer with another key sends one message 5, and that again; whoever sends several searches for the key."""
        if len(self._wrong) > 1:
            label = self._sa.label | {"connection": self._offer.connection.name}
            self._context.log_rarely(Level.WARNING, "key-guessed", **label, guesses=len(self._wrong))

    def _refuse(self, received: Received, reason: str, notify: NotifyType) -> None:
        """Say so once, here and to the peer. Of a wrong HASH nothing else follows: anybody can send one."""
        if self.refused:
            return
        self.refused = True
        self._exchange.hint = reason
        label = self._sa.label | {"connection": self._offer.connection.name}
        self._context.log_rarely(Level.WARNING, "authentication-failed", **label, reason=reason)
        informational.notify_in_clear(self._context, received, notify)


@dataclass(slots=True, frozen=True)
class _Chosen:
    """What message 2 says."""

    selection: IkeSelection
    nat_traversal: bool


@dataclass(slots=True, frozen=True)
class _KeyMessage:
    """What message 3 or 4 says."""

    ke: bytes
    nonce: bytes
    nat_ds: tuple[NatDiscovery, ...]


def _key_message(received: Received, number: int) -> _KeyMessage:
    ke = nonce = b""
    nat_ds = []
    for payload in parse_message(received, number):
        match payload:
            case KeyExchange():
                ke = payload.data
            case Nonce():
                nonce = payload.data
            case NatDiscovery():
                nat_ds.append(payload)
    return _KeyMessage(ke, nonce, tuple(nat_ds))


def _from_peer(sa: IkeSa, received: Received) -> None:
    """Nothing authenticates these messages, so they must at least come from where the exchange began."""
    if received.remote != sa.remote:
        raise PeerError("message from another address")


def _ignored_for(refused: KeydRefused, why: Refusal, notify: NotifyType) -> PeerError | KeydRefused:
    """A refusal that leaves keyd as it was makes the message one that was never awaited; others end the exchange."""
    return PeerError(refused.reason, notify) if refused.why is why else refused


def _nat_ds(context: Context, sa: IkeSa, hash_: Hash, encap: Encap) -> tuple[NatDiscovery, NatDiscovery]:
    """The destination's first, then the source's (RFC 3947 section 3.2).

    Where encapsulation is forced, the source's is that of nobody: the peer then sees a NAT before us.
    """
    ours = nat_d(hash_, sa.cky_i, sa.cky_r, sa.local)
    if encap is Encap.FORCE:
        ours = NatDiscovery(context.random(hash_.digest))
    return nat_d(hash_, sa.cky_i, sa.cky_r, sa.remote), ours


def _traverse(sa: IkeSa, suite: IkeSuite, encap: Encap, nat_ds: tuple[NatDiscovery, ...]) -> None:
    sa.nat = detect(suite.hash, sa.cky_i, sa.cky_r, sa.local, sa.remote, nat_ds)
    sa.encap = sa.nat is not Nat.NONE or encap is Encap.FORCE


def _establish(
    context: Context, sa: IkeSa, connection: Connection, proven: Authenticated, offered_lifetime: int
) -> None:
    """Both sides have authenticated: phase 2 may begin."""
    sa.state = IkeState.ESTABLISHED
    sa.established = context.now
    sa.expires = context.now + agreed_lifetime(connection.lifetime, offered_lifetime, MIN_IKE_LIFETIME)
    sa.connection = connection
    context.sas.unauthenticated.remove(sa)
    join(context, sa, connection, proven.identity)
    context.log(
        Level.NOTICE,
        "ike-established",
        **sa.label,
        role=sa.role.value,
        identity=proven.identity,
        suite=sa.suite,
        nat=sa.nat.value,
    )
    context.watcher.established(sa)
