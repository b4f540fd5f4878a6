"""Membership: SAs join the peer that they lead to, and leave it. Nothing here tells the other end."""

from privsep.config.model import Connection
from privsep.log import Level
from privsep.schema.install import MonitorReply
from privsep.schema.keyd import Refusal
from privsep.tasks import Future
from privsep.types import Identity
from worker.child import ChildSa, ChildState, Flow
from worker.context import Context
from worker.errors import KeydRefused, SaClosed
from worker.isakmp_sa import IkeSa, IkeState, Peer

ENOUGH_MESSAGE_IDS = 12288
"""Of one IKE SA, before it is replaced: three quarters of what keyd keeps (`keyd/message_ids.py`)."""
GONE = frozenset({Refusal.EXPIRED, Refusal.UNKNOWN_HANDLE, Refusal.WORN_OUT})
"""Refusals after which an IKE SA is of no more use."""


def peers_of(context: Context, connection: str) -> tuple[Peer, ...]:
    """All identities that we have SAs with under that connection."""
    return tuple(context.peers.get(connection, {}).values())


def first_contact(context: Context, connection: Connection) -> bool:
    """RFC 2407 section 4.6.3.3: whether we know of no SA with the peer, so that it may forget all that it knows of."""
    known = any(peer.ike_sas or peer.children for peer in peers_of(context, connection.name))
    return not known and not context.adopted.of(connection.name)


def join(context: Context, sa: IkeSa, connection: Connection, identity: Identity) -> None:
    """An authenticated IKE SA."""
    peers = context.peers.setdefault(connection.name, {})
    peer = peers.get(identity)
    if peer is None:
        peer = peers[identity] = Peer(connection, identity)
    sa.peer = peer
    peer.ike_sas.append(sa)


def newest(peer: Peer) -> IkeSa | None:
    """The IKE SA to use with the peer."""
    return peer.ike_sas[-1] if peer.ike_sas else None


def serving(peer: Peer, flow: Flow) -> ChildSa | None:
    """The newest pair that does what the flow asks for."""
    return next((child for child in reversed(peer.children.values()) if child.serves(flow)), None)


def count_message_id(context: Context, sa: IkeSa) -> None:
    """An exchange of phase 2 has used one more; the IKE SA is replaced in time."""
    sa.message_ids += 1
    if sa.message_ids == ENOUGH_MESSAGE_IDS:
        context.watcher.worn(sa)


def not_opened(context: Context, sa: IkeSa, refused: KeydRefused) -> None:
    """Keyd does not open a message: somebody else's, or one that came before. Or it has let go of the IKE SA."""
    context.log_rarely(Level.DEBUG, "message-ignored", **sa.label, reason=refused.reason)
    if refused.why in GONE:
        forget_ike(context, sa, refused.reason)


def forget_ike(context: Context, sa: IkeSa, reason: str = "the IKE SA was closed") -> None:
    """An IKE SA is no more; its exchanges end. Its children stay (RFC 2408 section 2.1). Harmless when it is gone."""
    if sa.state is IkeState.CLOSED:
        return
    established = sa.state is IkeState.ESTABLISHED
    sa.state = IkeState.CLOSED
    context.sas.remove(sa)
    context.established.leave(sa)
    for timer in (sa.renewal, sa.keepalive):
        if timer is not None:
            timer.cancel()
    if sa.peer is not None:
        sa.peer.ike_sas.remove(sa)
        _tidy(context, sa.peer)
    if sa.handle:
        context.drop(sa.handle)
    if established:
        context.log(Level.NOTICE, "ike-closed", **sa.label, reason=reason)
    exchanges = tuple(sa.exchanges.values())
    sa.exchanges.clear()
    for exchange in exchanges:
        exchange.abort(lambda: SaClosed(reason))


def add_child(context: Context, child: ChildSa) -> None:
    """A pair was installed."""
    peer = child.peer
    context.children[child.spi_in] = peer.children[child.spi_in] = child
    peer.by_spi_out[child.suite.protocol, child.spi_out] = child
    # the peer may have lost its last IKE SA while the monitor worked
    context.peers.setdefault(peer.connection.name, {}).setdefault(peer.identity, peer)


def forget_child(context: Context, child: ChildSa, reason: str) -> Future[MonitorReply] | None:
    """A pair is no more in use: the monitor removes it and answers then. Harmless, and None, when it is gone."""
    if child.state is ChildState.CLOSED:
        return None
    child.state = ChildState.CLOSED
    if child.renewal is not None:
        child.renewal.cancel()
    peer = child.peer
    del context.children[child.spi_in], peer.children[child.spi_in]
    if peer.by_spi_out.get((child.suite.protocol, child.spi_out)) is child:
        del peer.by_spi_out[child.suite.protocol, child.spi_out]
    _tidy(context, peer)
    removal = context.release(child.spi_in)
    context.log(Level.NOTICE, "child-closed", **child.label, reason=reason)
    context.watcher.lost(child)
    return removal


def _tidy(context: Context, peer: Peer) -> None:
    peers = context.peers.get(peer.connection.name)
    if peers is not None and not peer.ike_sas and not peer.children and peers.get(peer.identity) is peer:
        del peers[peer.identity]
        if not peers:
            del context.peers[peer.connection.name]
