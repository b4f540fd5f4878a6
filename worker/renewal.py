"""SAs are renewed before they end, and the old one goes after the new one is in use (RFC 2408 section 2.1, 2409 5.5).

Both ends renew and either may come first. Whoever began, a pair that stood before the Quick Mode of its successor began
goes some time after that. Of two that came about at once neither stood before the other, at neither end, so the ends
never remove both. Whoever finds that it is time to renew a pair while a newer one does the same removes it instead.
"""

from collections.abc import Iterable

from privsep.config.model import Connection
from privsep.errors import PeerError
from privsep.iana import ProtocolId
from privsep.log import Level
from privsep.types import Address, Role, Spi
from worker.child import ChildSa, ChildState, renewal_delay
from worker.context import Context
from worker.errors import Failed, Withdrawn
from worker.establish import Establisher
from worker.ikev1 import informational
from worker.isakmp_sa import IkeSa, IkeState, Peer
from worker.peers import forget_child, forget_ike, newest, peers_of, serving

GRACE = 5.0
"""Seconds that a replaced SA still takes what is on its way."""
PEERS_GRACE = 30.0
"""The same where the peer renewed. It removes what it replaced by itself, as soon as it likes; some never do."""
RETRY, MAX_RETRY = 20.0, 300.0
"""Seconds between two attempts to renew; to follow a name, at first and at last."""


class Renewal:
    """Timers of all SAs, and what happens when they end."""

    def __init__(self, context: Context, establisher: Establisher) -> None:
        self._context = context
        self._establisher = establisher

    # child SAs

    def watch_child(self, child: ChildSa) -> None:
        """A new pair: see to it in time."""
        delay = renewal_delay(child.expires - child.installed, child.role, self._context.random)
        child.renewal = self._context.after(delay, lambda: self.renew_child(child))

    def renew_child(self, child: ChildSa) -> None:
        """Replace the pair, or remove it if that has happened already."""
        if child.state is not ChildState.INSTALLED:
            return
        if child.renewal is not None:
            child.renewal.cancel()
        if serving(child.peer, child.flow) is not child:
            self.delete_child(child, "a newer pair is in use")
        elif self._context.now >= child.expires:
            self.delete_child(child, "its lifetime is over")
        else:
            child.state = ChildState.RENEWING
            self._context.spawn(self._renew_child(child), "renewal-failed", lambda: child.label)

    async def _renew_child(self, child: ChildSa) -> None:
        context = self._context
        try:
            await self._establisher.child(child.flow, (child.local, child.remote))
        except (Failed, PeerError):
            if child.state is ChildState.RENEWING:
                child.state = ChildState.INSTALLED
                wait = max(0.0, min(RETRY, child.expires - context.now))
                child.renewal = context.after(wait, lambda: self.renew_child(child))
            raise
        if child.state is ChildState.RENEWING:
            self._retire(child, GRACE)

    def retire_earlier(self, successor: ChildSa) -> None:
        """A pair came up, whoever began: what did the same before is not needed much longer."""
        grace = {Role.INITIATOR: GRACE, Role.RESPONDER: PEERS_GRACE}[successor.role]
        for child in successor.peer.children.values():
            in_use = child.state in (ChildState.INSTALLED, ChildState.RENEWING)
            if in_use and child.installed < successor.began and child.serves(successor.flow):
                self._retire(child, grace)

    def _retire(self, child: ChildSa, seconds: float) -> None:
        """Take what is on its way, then remove the pair and tell the peer (RFC 2408 section 5.15)."""
        if child.renewal is not None:
            child.renewal.cancel()
        child.state = ChildState.REPLACED
        child.renewal = self._context.after(seconds, lambda: self.delete_child(child, "replaced"))

    def delete_child(self, child: ChildSa, reason: str) -> None:
        """Remove the pair here and tell the peer."""
        if child.state is not ChildState.CLOSED:
            forget_child(self._context, child, reason)
            self.tell_deleted(child.peer, ((child.suite.protocol, child.spi_in),))

    def tell_deleted(self, peer: Peer, spis: Iterable[tuple[ProtocolId, Spi]]) -> None:
        """Delete, if there is an IKE SA to say it under."""
        sa = newest(peer)
        if sa is not None:
            self._context.spawn(
                informational.delete_spis(self._context, sa, tuple(spis)), "notification-unsent", lambda: sa.label
            )

    # IKE SAs

    def watch_ike(self, sa: IkeSa) -> None:
        """A new IKE SA: see to it in time. Others may have to go for it."""
        for old in self._context.established.enter(sa):
            self.delete_ike(old, "its peer or its connection has too many")
        delay = renewal_delay(sa.expires - sa.established, sa.role, self._context.random)
        sa.renewal = self._context.after(delay, lambda: self.renew_ike(sa))

    def renew_ike(self, sa: IkeSa) -> None:
        """Replace the IKE SA, or let it go when it is replaced, of no more use, or over."""
        peer = sa.peer
        if sa.state is not IkeState.ESTABLISHED or peer is None:
            return
        if sa.renewal is not None:
            sa.renewal.cancel()
        if newest(peer) is not sa:
            self.delete_ike(sa, "a newer one is in use")
        elif not peer.children:
            self.delete_ike(sa, "nothing needs it")
        elif self._context.now >= sa.expires:
            self.delete_ike(sa, "its lifetime is over")
        else:
            self._context.spawn(self._renew_ike(sa, peer), "renewal-failed", lambda: sa.label)

    async def _renew_ike(self, sa: IkeSa, peer: Peer) -> None:
        context = self._context
        try:
            await self._establisher.ike(peer.connection, (sa.local, sa.remote))
        except (Failed, PeerError):
            wait = max(0.0, min(RETRY, sa.expires - context.now))
            sa.renewal = context.after(wait, lambda: self.renew_ike(sa))
            raise
        sa.renewal = context.after(GRACE, lambda: self.delete_ike(sa, "replaced"))

    def delete_ike(self, sa: IkeSa, reason: str) -> None:
        """Tell the peer, then let go."""
        self._context.spawn(self.close_ike(sa, reason), "notification-unsent", lambda: sa.label)

    async def close_ike(self, sa: IkeSa, reason: str) -> None:
        """Tell the peer, then let go; done when the message is out."""
        if sa.state is not IkeState.ESTABLISHED:
            return
        try:
            await informational.delete_ike(self._context, sa)
        finally:
            forget_ike(self._context, sa, reason)

    # both

    def follow(self, connection: Connection, address: Address, pause: float = RETRY) -> None:
        """The name of the peer leads elsewhere: an IKE SA there, if it is the same peer, then its pairs anew.

        What there is stays until then: a name server's word alone ends nothing. Tried again as long as the name leads
        there.
        """
        away = [
            child
            for peer in peers_of(self._context, connection.name)
            for child in peer.children.values()
            if child.remote.address != address
        ]
        if away and connection.specificity(address) >= 0:
            label: dict[str, object] = {"connection": connection.name, "remote": address}
            self._context.spawn(self._follow(connection, address, pause), "renewal-failed", lambda: label)

    async def _follow(self, connection: Connection, address: Address, pause: float) -> None:
        try:
            sa = await self._establisher.ike(connection)
        except (Failed, PeerError):
            self._context.after(pause, lambda: self.follow(connection, address, min(2 * pause, MAX_RETRY)))
            raise
        for child in tuple(sa.peer.children.values()) if sa.peer is not None else ():
            if child.remote.address != sa.remote.address:
                self.renew_child(child)

    def moved(self, sa: IkeSa) -> None:
        """The peer's address has changed: its pairs send to the old one until they are replaced."""
        if sa.peer is not None:
            for child in tuple(sa.peer.children.values()):
                if child.encap and (child.local, child.remote) != (sa.local, sa.remote):
                    self.renew_child(child)

    async def close(self, connection: str, reason: str) -> None:
        """End all that we have, or begin to have, with the peers of a connection."""
        self.abandon(reason, connection)
        await self.leave(connection, reason)

    def abandon(self, reason: str, connection: str | None = None) -> None:
        """End the IKE SAs that are being negotiated, of one connection or of all."""
        for sa in self._context.sas.all():
            name = sa.connection.name if sa.connection is not None else None
            if sa.state is IkeState.NEGOTIATING and name is not None and connection in (None, name):
                _abandon(sa, reason)
                forget_ike(self._context, sa, reason)

    async def leave(self, connection: str, reason: str) -> None:
        """Delete what its peers have with us: child SAs first, while there is who says it."""
        context = self._context
        for peer in peers_of(context, connection):
            newest_sa = newest(peer)
            making = [
                (each.protocol, each.ours)
                for sa in peer.ike_sas
                for each in sa.exchanges.values()
                if each.ours is not None
            ]
            spis = [*((child.suite.protocol, spi) for spi, child in peer.children.items()), *making]
            for child in tuple(peer.children.values()):
                forget_child(context, child, reason)
            for sa in peer.ike_sas:
                _abandon(sa, reason)
            try:
                if newest_sa is not None:
                    await informational.delete_spis(context, newest_sa, spis)
                for sa in tuple(peer.ike_sas):
                    await self.close_ike(sa, reason)
            except Failed as failed:
                context.log_rarely(Level.INFO, "notification-unsent", connection=connection, reason=failed.reason)


def _abandon(sa: IkeSa, reason: str) -> None:
    """Whoever runs an exchange does not try again: it was not the SA that failed."""
    for exchange in tuple(sa.exchanges.values()):
        exchange.abort(lambda: Withdrawn(reason))
