"""What both roles of Quick Mode do (RFC 2409 section 5.5): SPI, installation in two halves, refusal under protection.

keyd makes all payloads and KEYMAT, and gives KEYMAT to the monitor, which compares and installs. Nothing that the peer
sends is lost: the initiator installs both SAs before it sends message 3, the responder the inbound one before it sends
message 2, on which the peer may send, and the outbound one on message 3. So what the monitor denies, it denies while
the peer can still be told (RFC 2408 section 3.14.1), and neither has a pair.
"""

from dataclasses import dataclass

from privsep.algorithms import ChildSuite
from privsep.config.model import Child
from privsep.errors import PeerError
from privsep.iana import NotifyType
from privsep.isakmp.payloads import Notification
from privsep.log import Level
from privsep.schema.install import Allocated, AllocateSpi, Denial, InstallInbound
from privsep.schema.keyd import Refusal
from privsep.types import Address, Mode, Role, Spi
from worker.child import ChildSa, Flow
from worker.context import Context
from worker.errors import Failed, KeydRefused, MonitorDenied
from worker.exchange import Exchange
from worker.ikev1 import dpd, informational
from worker.isakmp_sa import IkeSa, IkeState, Peer
from worker.peers import add_child


@dataclass(slots=True, frozen=True)
class Terms:
    """What was agreed on. `lifetime` in seconds is the shortest of all that were named and heard."""

    suite: ChildSuite
    spi_in: Spi
    spi_out: Spi
    lifetime: int


async def allocate(context: Context, sa: IkeSa, flow: Flow) -> Allocated:
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


async def install_inbound(context: Context, sa: IkeSa, keymat: bytes, flow: Flow, terms: Terms, role: Role) -> ChildSa:
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


def adopt(context: Context, exchange: Exchange, pair: ChildSa) -> None:
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


async def refuse(context: Context, sa: IkeSa, notify: NotifyType | None, protocol: int, spi: bytes) -> None:
    """Tell the peer why, under protection."""
    if notify is not None and sa.state is IkeState.ESTABLISHED:
        notification = Notification(protocol=protocol, type=notify, spi=spi)
        try:
            await informational.send(context, sa, [notification])
        except Failed as failed:
            context.log_rarely(Level.INFO, "notification-unsent", **sa.label, reason=failed.reason)


def ignored_for(refused: KeydRefused) -> PeerError | KeydRefused:
    """A message that does not verify was never awaited; other refusals end the exchange."""
    return PeerError(refused.reason) if refused.why is Refusal.BAD_HASH else refused


def original_addresses(sa: IkeSa, child: Child, role: Role) -> tuple[Address, ...]:
    """NAT-OAi, NAT-OAr (RFC 3947 section 5.2): in transport mode through a NAT, the addresses as we see them."""
    if not sa.encap or child.mode is not Mode.TRANSPORT:
        return ()
    ours, theirs = sa.local.address, sa.remote.address
    return (ours, theirs) if role is Role.INITIATOR else (theirs, ours)


def _peer(sa: IkeSa) -> Peer:
    if sa.peer is None:
        raise Failed("the IKE SA belongs to no peer")
    return sa.peer
