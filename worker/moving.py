"""A peer behind a NAT may turn up at another address or port: believed from authenticated messages only.

RFC 3947 section 4 and RFC 3948 section 3; a peer that is behind no NAT does not move.
"""

from privsep.log import Level
from privsep.types import Endpoint, Spi
from worker.context import Context
from worker.effects import Send
from worker.exchange import Received
from worker.isakmp_sa import IkeSa, IkeState
from worker.nat import KEEPALIVE, KEEPALIVE_SECONDS

MOVE_SECONDS = 10.0
"""Between two moves that are followed: every one costs new child SAs."""


def comes_from_peer(sa: IkeSa, received: Received) -> bool:
    """Whether a message may be looked at: from where the peer is, or may have moved to."""
    return sa.encap or received.remote is sa.remote or received.remote == sa.remote


def authenticated_from(context: Context, sa: IkeSa, received: Received) -> None:
    """A new message of the peer's was verified, and this is where it came from."""
    context.established.use(sa)
    if received.remote == sa.remote and received.local == sa.local:
        return
    connection = sa.connection
    if connection is None or not sa.encap or context.now - sa.moved < MOVE_SECONDS:
        return
    if not connection.describes(received.local.address, received.remote.address):
        return
    context.log(Level.NOTICE, "peer-moved", **sa.label, to=received.remote)
    sa.moved = context.now
    sa.local, sa.remote = received.local, received.remote
    context.watcher.moved(sa)


def followed(context: Context, spi: Spi, remote: Endpoint) -> None:
    """The data plane sends this pair's ESP to another port, from which the peer's came, or to where the peer has moved.

    IKE has the same port (RFC 3947 section 4), so for a port nothing has to be negotiated anew.
    """
    child = context.children.get(spi)
    if child is None:
        return
    before, child.remote = child.remote, remote
    for sa in child.peer.ike_sas:
        if sa.encap and sa.remote == before:
            sa.remote = remote
            context.log(Level.NOTICE, "peer-followed", **sa.label)


def keep_alive(context: Context, sa: IkeSa) -> None:
    """RFC 3948 section 4: whoever is behind a NAT sends an octet now and then, so that the NAT does not forget it."""
    if sa.nat.local and sa.state is IkeState.ESTABLISHED:
        sa.keepalive = context.after(KEEPALIVE_SECONDS, lambda: _send_keepalive(context, sa))


def _send_keepalive(context: Context, sa: IkeSa) -> None:
    context.outbox.append(Send(sa.local, sa.remote, KEEPALIVE))
    keep_alive(context, sa)
