"""Quick Mode at the responder (RFC 2409 section 5.5)."""

from privsep.errors import PeerError
from privsep.iana import ExchangeType, NotifyType, PayloadType, ProtocolId
from privsep.isakmp.identification import parse_selector
from privsep.isakmp.payloads import Identification, Payload, parse_payload
from privsep.log import Level
from privsep.payloads import split_chain
from privsep.schema.install import InstallOutbound
from privsep.schema.keyd import Done, QuickAnswer, QuickConfirm, QuickKeyed, QuickOpen, QuickOpened
from privsep.types import Role, Spi, TrafficSelector
from worker.child import Flow
from worker.codec import rules
from worker.context import Context
from worker.errors import Failed, KeydRefused, MonitorDenied
from worker.exchange import Exchange, Received
from worker.ikev1 import informational
from worker.ikev1.first_message import association
from worker.ikev1.quick import Terms, adopt, allocate, ignored_for, install_inbound, original_addresses, refuse
from worker.isakmp_sa import IkeSa
from worker.moving import authenticated_from
from worker.negotiate import choose_child
from worker.peers import count_message_id, not_opened


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
            await refuse(context, sa, notify, *responder.offered)
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
        offer = association(payloads)
        self.offered = (offer.proposals[0].protocol, offer.proposals[0].spi)
        local_ts, remote_ts = _selectors(sa, payloads)
        pfs = any(kind == PayloadType.KE for kind, _ in listed)
        choice = choose_child(connection, offer, (local_ts, remote_ts), pfs=pfs, encap=sa.encap, passes_ah=sa.passes_ah)
        child, selection = choice.child, choice.selection
        exchange.subject = child.name
        flow = Flow(connection=connection, child=child, local_ts=local_ts, remote_ts=remote_ts, peer=sa.peer)

        allocated = await allocate(context, sa, flow)
        spi = self._spi = Spi(allocated.spi)
        keyed = await context.ask(
            QuickAnswer(
                quick=self._quick,
                child=child.name,
                suite=selection.suite,
                encap=sa.encap,
                spi_in=spi,
                cpi_in=allocated.cpi,
                originals=original_addresses(sa, child, Role.RESPONDER),
            ),
            QuickKeyed,
        )
        terms = Terms(selection.suite, spi, selection.spi, selection.agreed_lifetime(child.lifetime))
        pair = await install_inbound(context, sa, keyed.keymat, flow, terms, Role.RESPONDER)
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
        adopt(context, exchange, pair)
        if (pair.local, pair.remote) != (sa.local, sa.remote):
            # message 3 came from elsewhere than message 1
            context.watcher.moved(sa)

    async def _message_3(self, received: Received) -> None:
        """HDR*, HASH(3): the initiator is alive."""
        rules.check_header(received.header, 3)
        try:
            await self._context.ask(QuickConfirm(quick=self._quick, ciphertext=received.body), Done)
        except KeydRefused as refused:
            raise ignored_for(refused) from None
        authenticated_from(self._context, self._sa, received)


async def _withdraw(context: Context, sa: IkeSa, protocol: ProtocolId, spi: Spi) -> None:
    try:
        await informational.delete_spis(context, sa, ((protocol, spi),))
    except Failed as failed:
        context.log_rarely(Level.INFO, "notification-unsent", **sa.label, reason=failed.reason)


def _selectors(sa: IkeSa, payloads: list[Payload]) -> tuple[TrafficSelector, TrafficSelector]:
    """Ours and the peer's: IDcr and IDci, or where they are absent the two outer addresses (RFC 2409 section 5.5)."""
    ids = [parse_selector(payload) for payload in payloads if isinstance(payload, Identification)]
    if not ids:
        return TrafficSelector.of_host(sa.local.address), TrafficSelector.of_host(sa.remote.address)
    idci, idcr = ids
    return idcr, idci
