"""Quick Mode: child SAs under an IKE SA, with and without perfect forward secrecy (RFC 2409 section 5.5).

keyd makes all payloads and KEYMAT, and gives KEYMAT to the monitor, which compares and installs. Nothing that the peer
sends is lost: the initiator installs both SAs before it sends message 3, the responder the inbound one before it sends
message 2, on which the peer may send, and the outbound one on message 3. So what the monitor denies, it denies while
the peer can still be told (RFC 2408 section 3.14.1), and neither has a pair.
"""

from collections.abc import Collection
from dataclasses import dataclass

from privsep.algorithms import ChildSuite, Group
from privsep.config.model import Child
from privsep.errors import PeerError
from privsep.iana import ExchangeType, NotifyType, PayloadType, ProtocolId
from privsep.isakmp.association import SecurityAssociation
from privsep.isakmp.identification import parse_selector
from privsep.isakmp.payloads import (
    Identification,
    Notification,
    Payload,
    parse_payload,
)
from privsep.log import Level
from privsep.payloads import split_chain
from privsep.schema.install import Allocated, AllocateSpi, Denial, InstallInbound, InstallOutbound
from privsep.schema.keyd import (
    Done,
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
)
from privsep.types import Address, Cpi, MessageId, Mode, Role, Spi, TrafficSelector
from worker.child import ChildSa, Flow
from worker.codec import rules
from worker.context import Context
from worker.errors import Failed, KeydRefused, MonitorDenied, NoneChosen, SaClosed
from worker.exchange import Exchange, Received
from worker.ikev1 import dpd, informational
from worker.isakmp_sa import IkeSa, IkeState, Peer
from worker.moving import authenticated_from
from worker.negotiate import AH_AND_NAT, choose_child, listed
from worker.peers import add_child, count_message_id, not_opened, serving


async def initiate(context: Context, sa: IkeSa, flow: Flow) -> ChildSa:
    """An installed child SA pair for that flow; Failed says why not.

    A Quick Mode has one group or none (RFC 2409 section 5.5): where the peer takes no proposal, the next group follows.
    """
    *others, last = _groups(sa, flow)
    refused: list[Group | None] = []
    for group in others:
        try:
            return await _initiate(context, sa, flow, group, refused)
        except NoneChosen:
            refused.append(group)
    return await _initiate(context, sa, flow, last, refused)


def _groups(sa: IkeSa, flow: Flow) -> list[Group | None]:
    """As configured, but first what the peer agreed to for the pair in place, which it takes again."""
    configured = dict.fromkeys(suite.group for suite in flow.child.suites)
    pair = serving(sa.peer, flow) if sa.peer is not None else None
    return sorted(configured, key=lambda group: pair is None or group is not pair.suite.group)


async def _initiate(
    context: Context, sa: IkeSa, flow: Flow, group: Group | None, refused: Collection[Group | None]
) -> ChildSa:
    """With the proposals of one group; the peer has refused those of some before."""
    allocated = await _allocate(context, sa, flow)
    try:
        return await _Initiator(context, sa, flow, (group, refused), allocated).run()
    except BaseException:
        context.release(Spi(allocated.spi))
        raise


class _Initiator:
    """RFC 2409 section 5.5, initiator.

    HDR*, HASH(1), SA, Ni [, KE] [, IDci, IDcr] -->
                                                <-- HDR*, HASH(2), SA, Nr [, KE] [, IDci, IDcr]
    HDR*, HASH(3) -->
    """

    def __init__(
        self,
        context: Context,
        sa: IkeSa,
        flow: Flow,
        groups: tuple[Group | None, Collection[Group | None]],
        allocated: Allocated,
    ) -> None:
        """`groups`: that of the proposals, and those whose proposals were refused."""
        self._context = context
        self._sa = sa
        self._flow = flow
        self._group, self._refused = groups
        self._spi = Spi(allocated.spi)
        self._cpi = _cpi(allocated)
        self._quick = b""

    async def run(self) -> ChildSa:
        context, sa, flow, spi = self._context, self._sa, self._flow, self._spi
        child, peer = flow.child, sa.remote.address
        if child.protocol is ProtocolId.AH and not sa.passes_ah:
            raise Failed(AH_AND_NAT)
        group = self._group
        _admit(sa)
        offered = await context.ask(
            QuickOffer(
                ike=sa.handle,
                child=child.name,
                group=group,
                encap=sa.encap,
                spi_in=spi,
                cpi_in=self._cpi,
                local_ts=flow.local_ts,
                remote_ts=flow.remote_ts,
                originals=_original_addresses(sa, child, Role.INITIATOR),
            ),
            QuickOffered,
        )
        self._quick = offered.quick
        count_message_id(context, sa)
        _admit(sa)
        exchange = Exchange(context, sa, ExchangeType.QUICK_MODE, MessageId(offered.message_id), subject=child.name)
        exchange.protocol, exchange.ours = child.protocol, spi
        exchange.selectors = f"{flow.local_ts} with {flow.remote_ts}"
        compression = " with or without IPComp" if self._cpi is not None else ""
        offering = listed(suite.described for suite in child.suites if suite.group is group) + compression
        so_far = (*self._refused, group)
        exchange.proposals = listed(suite.described for suite in child.suites if suite.group in so_far) + compression
        try:
            exchange.report(f"-> {peer} Quick Mode 1/3 for {child.name}: {exchange.selectors}, offering {offering}")
            message = exchange.sealed(PayloadType.HASH, offered.ciphertext)
            agreed = await exchange.ask(message, self._message_2, f"Quick Mode 1/3 for {child.name}")
            _parse(2, agreed)
            exchange.theirs = Spi(agreed.spi_out)
            exchange.report(f"<- {peer} Quick Mode 2/3 for {child.name}: chose {_described(agreed)}")

            keyed = await context.ask(QuickAccept(quick=self._quick), QuickKeyed)
            self._quick = b""
            exchange.report("   the monitor fetches the keys from keyd, compares and installs")
            terms = _Terms(agreed.suite, spi, Spi(agreed.spi_out), agreed.lifetime)
            pair = await _install_inbound(context, sa, keyed.keymat, flow, terms, Role.INITIATOR)
            await context.install(InstallOutbound(spi_in=spi))
            exchange.report(f"-> {peer} Quick Mode 3/3 for {child.name}: confirmation")
            exchange.transmit(exchange.sealed(PayloadType.HASH, keyed.ciphertext))
        except (PeerError, KeydRefused, MonitorDenied) as error:
            exchange.close()
            await _refuse(context, sa, error.notify, child.protocol, b"")
            raise error if isinstance(error, Failed) else Failed(error.reason, error.notify) from None
        except BaseException:
            exchange.close()
            raise
        finally:
            if self._quick:
                context.drop(self._quick)
        exchange.linger()
        _adopt(context, exchange, pair)
        return pair

    async def _message_2(self, received: Received) -> QuickAgreed:
        """HDR*, HASH(2), ..."""
        rules.check_header(received.header, 2)
        try:
            agreed = await self._context.ask(QuickFinish(quick=self._quick, ciphertext=received.body), QuickAgreed)
        except KeydRefused as refused:
            if refused.why in (Refusal.BAD_MESSAGE, Refusal.BAD_PUBLIC_VALUE):
                # keyd has let go of it
                self._quick = b""
            raise _ignored_for(refused) from None
        authenticated_from(self._context, self._sa, received)
        return agreed


async def respond(context: Context, sa: IkeSa, first: Received) -> None:
    """Answer the peer's Quick Mode."""
    row = rules.check_header(first.header, 1)
    exchange = Exchange(context, sa, ExchangeType.QUICK_MODE, first.header.message_id, first.data)
    sa.answering += 1
    try:
        opened = await _open(context, sa, first)
        if opened is not None:
            await _respond(context, exchange, opened, first, row)
    finally:
        sa.answering -= 1
        exchange.close()


async def _open(context: Context, sa: IkeSa, first: Received) -> QuickOpened | None:
    """What the peer says; None where HASH(1) does not prove that it is the peer, or says it again."""
    sa.opening += 1
    try:
        request = QuickOpen(ike=sa.handle, message_id=first.header.message_id, ciphertext=first.body)
        opened = await context.ask(request, QuickOpened)
    except KeydRefused as refused:
        not_opened(context, sa, refused)
        return None
    finally:
        sa.opening -= 1
    count_message_id(context, sa)
    return opened


async def _respond(
    context: Context, exchange: Exchange, opened: QuickOpened, first: Received, row: rules.Message
) -> None:
    sa = exchange.sa
    responder = _Responder(context, sa, exchange, opened)
    try:
        exchange.check()
        authenticated_from(context, sa, first)
        await responder.run(row)
    except (PeerError, KeydRefused, MonitorDenied) as error:
        notify = error.notify if isinstance(error, PeerError) else error.notify or NotifyType.NO_PROPOSAL_CHOSEN
        if not responder.answered:
            await _refuse(context, sa, notify, *responder.offered)
        raise
    finally:
        responder.release()


class _Responder:
    """RFC 2409 section 5.5, responder.

    HDR*, HASH(1), SA, Ni [, KE] [, IDci, IDcr] -->
                                                <-- HDR*, HASH(2), SA, Nr [, KE] [, IDci, IDcr]
    HDR*, HASH(3) -->
    """

    def __init__(self, context: Context, sa: IkeSa, exchange: Exchange, opened: QuickOpened) -> None:
        self._context = context
        self._sa = sa
        self._exchange = exchange
        self._opened = opened
        self._quick = opened.quick
        self._spi: Spi | None = None
        self.offered = (int(ProtocolId.ESP), b"")
        """Protocol and SPI of the peer's first proposal, for a notification."""
        self.answered = False
        """Message 2 is out: what goes wrong now is told by a Delete."""

    def release(self) -> None:
        """Give back what was not used."""
        if self._quick:
            self._context.drop(self._quick)
        if self._spi is not None:
            self._context.release(self._spi)

    async def run(self, row: rules.Message) -> None:
        context, sa, exchange = self._context, self._sa, self._exchange
        connection = sa.connection
        if connection is None:
            raise Failed("the IKE SA belongs to no connection")
        listed = split_chain(self._opened.next_payload, self._opened.payloads)
        rules.check(row, (kind for kind, _ in listed))
        payloads = [parse_payload(kind, body) for kind, body in listed]
        offer = _sa(payloads)
        self.offered = (offer.proposals[0].protocol, offer.proposals[0].spi)
        local_ts, remote_ts = _selectors(sa, payloads)
        pfs = any(kind == PayloadType.KE for kind, _ in listed)
        choice = choose_child(connection, offer, (local_ts, remote_ts), pfs=pfs, encap=sa.encap, passes_ah=sa.passes_ah)
        child, selection = choice.child, choice.selection
        exchange.subject = child.name
        flow = Flow(connection=connection, child=child, local_ts=local_ts, remote_ts=remote_ts, peer=sa.peer)

        allocated = await _allocate(context, sa, flow)
        spi = self._spi = Spi(allocated.spi)
        keyed = await context.ask(
            QuickAnswer(
                quick=self._quick,
                child=child.name,
                suite=selection.suite,
                encap=sa.encap,
                spi_in=spi,
                cpi_in=allocated.cpi,
                originals=_original_addresses(sa, child, Role.RESPONDER),
            ),
            QuickKeyed,
        )
        terms = _Terms(selection.suite, spi, selection.spi, selection.agreed_lifetime(child.lifetime))
        pair = await _install_inbound(context, sa, keyed.keymat, flow, terms, Role.RESPONDER)
        exchange.check()
        exchange.protocol, exchange.ours, exchange.theirs = child.protocol, spi, selection.spi
        self.answered = True
        try:
            # repeated by timer: the peer is authenticated, and it has nothing to repeat once it has sent message 3
            message = exchange.sealed(PayloadType.HASH, keyed.ciphertext)
            await exchange.ask(message, self._message_3, f"Quick Mode 2/3 for {child.name}")
            self._quick = b""
            await context.install(InstallOutbound(spi_in=spi))
            exchange.check()
        except Failed:
            # the peer may believe that it has a pair now
            await _withdraw(context, sa, child.protocol, spi)
            raise
        self._spi = None
        _adopt(context, exchange, pair)
        if (pair.local, pair.remote) != (sa.local, sa.remote):
            # message 3 came from elsewhere than message 1
            context.watcher.moved(sa)

    async def _message_3(self, received: Received) -> None:
        """HDR*, HASH(3): the initiator is alive."""
        rules.check_header(received.header, 3)
        try:
            await self._context.ask(QuickConfirm(quick=self._quick, ciphertext=received.body), Done)
        except KeydRefused as refused:
            raise _ignored_for(refused) from None
        authenticated_from(self._context, self._sa, received)


@dataclass(slots=True, frozen=True)
class _Terms:
    """What was agreed on. `lifetime` in seconds is the shortest of all that were named and heard."""

    suite: ChildSuite
    spi_in: Spi
    spi_out: Spi
    lifetime: int


async def _allocate(context: Context, sa: IkeSa, flow: Flow) -> Allocated:
    """An inbound SPI. MonitorDenied where a pair for this flow would not be installed.

    What a dead peer holds of the flow's traffic makes way; it takes some seconds to find out that the peer is dead.
    """
    newcomer = _peer(sa)
    request = AllocateSpi(
        connection=flow.connection.name,
        child=flow.child.name,
        identity=newcomer.identity,
        local=sa.local,
        remote=sa.remote,
        local_ts=flow.local_ts,
        remote_ts=flow.remote_ts,
    )
    try:
        return await context.allocate(request)
    except MonitorDenied as denied:
        if denied.why is not Denial.OVERLAP or not await dpd.make_way(context, flow, newcomer):
            raise
    return await context.allocate(request)


async def _install_inbound(
    context: Context, sa: IkeSa, keymat: bytes, flow: Flow, terms: _Terms, role: Role
) -> ChildSa:
    """The pair, of which only the inbound SA is in place. MonitorDenied if the second opinion is against it."""
    peer = _peer(sa)
    local, remote, encap = sa.local, sa.remote, sa.encap
    await context.install(InstallInbound(keymat=keymat, local=local, remote=remote))
    return ChildSa(
        peer=peer,
        child=flow.child,
        role=role,
        suite=terms.suite,
        spi_in=terms.spi_in,
        spi_out=terms.spi_out,
        local=local,
        remote=remote,
        encap=encap,
        local_ts=flow.local_ts,
        remote_ts=flow.remote_ts,
        installed=context.now,
        expires=context.now + terms.lifetime,
    )


def _adopt(context: Context, exchange: Exchange, pair: ChildSa) -> None:
    """From here on the pair is the peer's, whatever becomes of the exchange."""
    pair.began = exchange.began
    add_child(context, pair)
    context.log(
        Level.NOTICE,
        "child-installed",
        **pair.label,
        role=pair.role.value,
        suite=pair.suite.described,
        local_ts=pair.local_ts,
        remote_ts=pair.remote_ts,
    )
    context.watcher.installed(pair)


async def _refuse(context: Context, sa: IkeSa, notify: NotifyType | None, protocol: int, spi: bytes) -> None:
    """Tell the peer why, under protection."""
    if notify is not None and sa.state is IkeState.ESTABLISHED:
        notification = Notification(protocol=protocol, type=notify, spi=spi)
        try:
            await informational.send(context, sa, [notification])
        except Failed as failed:
            context.log_rarely(Level.INFO, "notification-unsent", **sa.label, reason=failed.reason)


async def _withdraw(context: Context, sa: IkeSa, protocol: ProtocolId, spi: Spi) -> None:
    try:
        await informational.delete_spis(context, sa, ((protocol, spi),))
    except Failed as failed:
        context.log_rarely(Level.INFO, "notification-unsent", **sa.label, reason=failed.reason)


def _cpi(allocated: Allocated) -> Cpi | None:
    return Cpi(allocated.cpi) if allocated.cpi is not None else None


def _admit(sa: IkeSa) -> None:
    """RFC 2409 section 5.5: Quick Mode needs an authenticated IKE SA."""
    if sa.state is not IkeState.ESTABLISHED:
        raise SaClosed("the IKE SA was closed")


def _ignored_for(refused: KeydRefused) -> PeerError | KeydRefused:
    """A message that does not verify was never awaited; other refusals end the exchange."""
    return PeerError(refused.reason) if refused.why is Refusal.BAD_HASH else refused


def _described(agreed: QuickAgreed) -> str:
    """For people."""
    return agreed.suite.described + (" with IPComp" if agreed.cpi_out is not None else "")


def _parse(number: int, opened: QuickAgreed) -> list[Payload]:
    row = rules.expected(ExchangeType.QUICK_MODE, number, encrypted=True)
    listed = split_chain(opened.next_payload, opened.payloads)
    rules.check(row, (kind for kind, _ in listed))
    return [parse_payload(kind, body) for kind, body in listed]


def _sa(payloads: list[Payload]) -> SecurityAssociation:
    first = payloads[0]
    if not isinstance(first, SecurityAssociation):
        raise PeerError("message begins with the wrong payload", NotifyType.INVALID_PAYLOAD_TYPE)
    return first


def _selectors(sa: IkeSa, payloads: list[Payload]) -> tuple[TrafficSelector, TrafficSelector]:
    """Ours and the peer's: IDcr and IDci, or where they are absent the two outer addresses (RFC 2409 section 5.5)."""
    ids = [parse_selector(payload) for payload in payloads if isinstance(payload, Identification)]
    if not ids:
        return TrafficSelector.of_host(sa.local.address), TrafficSelector.of_host(sa.remote.address)
    idci, idcr = ids
    return idcr, idci


def _original_addresses(sa: IkeSa, child: Child, role: Role) -> tuple[Address, ...]:
    """NAT-OAi, NAT-OAr (RFC 3947 section 5.2): in transport mode through a NAT, the addresses as we see them."""
    if not sa.encap or child.mode is not Mode.TRANSPORT:
        return ()
    ours, theirs = sa.local.address, sa.remote.address
    return (ours, theirs) if role is Role.INITIATOR else (theirs, ours)


def _peer(sa: IkeSa) -> Peer:
    if sa.peer is None:
        raise Failed("the IKE SA belongs to no peer")
    return sa.peer
