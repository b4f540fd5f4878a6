"""Quick Mode at the initiator (RFC 2409 section 5.5)."""

from collections.abc import Collection

from privsep.algorithms import Group
from privsep.errors import PeerError
from privsep.iana import ExchangeType, PayloadType, ProtocolId
from privsep.isakmp.payloads import parse_payload
from privsep.payloads import split_chain
from privsep.schema.install import Allocated, InstallOutbound
from privsep.schema.keyd import QuickAccept, QuickAgreed, QuickFinish, QuickKeyed, QuickOffer, QuickOffered, Refusal
from privsep.types import Cpi, MessageId, Role, Spi
from worker.child import ChildSa, Flow
from worker.codec import rules
from worker.context import Context
from worker.errors import Failed, KeydRefused, MonitorDenied, NoneChosen, SaClosed
from worker.exchange import Exchange, Received
from worker.ikev1.quick import Terms, adopt, allocate, ignored_for, install_inbound, original_addresses, refuse
from worker.isakmp_sa import IkeSa, IkeState
from worker.moving import authenticated_from
from worker.negotiate import AH_AND_NAT, listed
from worker.peers import count_message_id, serving


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
    allocated = await allocate(context, sa, flow)
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
                originals=original_addresses(sa, child, Role.INITIATOR),
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
            _check(agreed)
            exchange.theirs = Spi(agreed.spi_out)
            exchange.report(f"<- {peer} Quick Mode 2/3 for {child.name}: chose {_described(agreed)}")

            keyed = await context.ask(QuickAccept(quick=self._quick), QuickKeyed)
            self._quick = b""
            exchange.report("   the monitor fetches the keys from keyd, compares and installs")
            terms = Terms(agreed.suite, spi, Spi(agreed.spi_out), agreed.lifetime)
            pair = await install_inbound(context, sa, keyed.keymat, flow, terms, Role.INITIATOR)
            await context.install(InstallOutbound(spi_in=spi))
            exchange.report(f"-> {peer} Quick Mode 3/3 for {child.name}: confirmation")
            exchange.transmit(exchange.sealed(PayloadType.HASH, keyed.ciphertext))
        except (PeerError, KeydRefused, MonitorDenied) as error:
            exchange.close()
            await refuse(context, sa, error.notify, child.protocol, b"")
            raise error if isinstance(error, Failed) else Failed(error.reason, error.notify) from None
        except BaseException:
            exchange.close()
            raise
        finally:
            if self._quick:
                context.drop(self._quick)
        exchange.linger()
        adopt(context, exchange, pair)
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
            raise ignored_for(refused) from None
        authenticated_from(self._context, self._sa, received)
        return agreed


def _cpi(allocated: Allocated) -> Cpi | None:
    return Cpi(allocated.cpi) if allocated.cpi is not None else None


def _admit(sa: IkeSa) -> None:
    """RFC 2409 section 5.5: Quick Mode needs an authenticated IKE SA."""
    if sa.state is not IkeState.ESTABLISHED:
        raise SaClosed("the IKE SA was closed")


def _described(agreed: QuickAgreed) -> str:
    """For people."""
    return agreed.suite.described + (" with IPComp" if agreed.cpi_out is not None else "")


def _check(agreed: QuickAgreed) -> None:
    """PeerError unless message 2 has the payloads that it may have, well-formed. What SA and IDs say keyd has read."""
    row = rules.expected(ExchangeType.QUICK_MODE, 2, encrypted=True)
    listed = split_chain(agreed.next_payload, agreed.payloads)
    rules.check(row, (kind for kind, _ in listed))
    for kind, body in listed:
        parse_payload(kind, body)
