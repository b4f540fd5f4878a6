"""An IKE SA or a child SA on demand: an existing IKE SA is used, one in the making is shared, a stale one replaced."""

import ipaddress
from collections.abc import Callable

from privsep.config.model import Connection, Gateway, RemoteAny
from privsep.config.names import RemoteName
from privsep.iana import NotifyType
from privsep.schema.keyd import Refusal
from privsep.tasks import Future
from privsep.types import Address, Endpoint
from worker.child import ChildSa, Flow
from worker.context import Context
from worker.errors import Failed, KeydRefused, SaClosed, TimedOut
from worker.ikev1 import main_mode, quick_initiator
from worker.isakmp_sa import IkeSa
from worker.nat import IKE_PORT
from worker.peers import GONE, forget_ike, newest, peers_of

ATTEMPTS = 3
"""IKE SAs that one Quick Mode may find stale before it gives up."""
_WORN = GONE | {Refusal.QUOTA}
"""Refusals that a new IKE SA helps against."""

Ends = tuple[Endpoint, Endpoint]
"""Ours and the peer's."""


class Establisher:
    """Everybody who needs an SA asks here."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._running: dict[tuple[str, Address], list[Future[IkeSa]]] = {}

    async def child(self, flow: Flow, ends: Ends | None = None) -> ChildSa:
        """A new pair for that flow. `ends` are where the peer was seen, where its address is not configured."""
        for _ in range(ATTEMPTS):
            sa = self._existing(flow)
            fresh = sa is None
            if sa is None:
                sa = await self.ike(flow.connection, ends or self._last_seen(flow))
            try:
                return await quick_initiator.initiate(self._context, sa, flow)
            except SaClosed:
                continue
            except TimedOut as error:
                if fresh:
                    raise
                forget_ike(self._context, sa, error.reason)
            except KeydRefused as error:
                if fresh or error.why not in _WORN:
                    raise
                forget_ike(self._context, sa, error.reason)
        raise Failed("the peer closes every IKE SA")

    def _existing(self, flow: Flow) -> IkeSa | None:
        peers = (flow.peer,) if flow.peer is not None else peers_of(self._context, flow.connection.name)
        return next((sa for peer in peers if (sa := newest(peer)) is not None), None)

    @staticmethod
    def _last_seen(flow: Flow) -> Ends | None:
        children = tuple(flow.peer.children.values()) if flow.peer is not None else ()
        return (children[-1].local, children[-1].remote) if children else None

    async def ike(self, connection: Connection, ends: Ends | None = None) -> IkeSa:
        """A new IKE SA; the one that is being negotiated with that address, if there is one."""
        known = ends or configured_ends(self._context.gateway, connection)
        if known is None:
            raise Failed(_nowhere(connection))
        local, remote = known
        key = (connection.name, remote.address)
        running = self._running.get(key)
        if running is not None:
            future: Future[IkeSa] = Future()
            running.append(future)
            return await future
        waiting = self._running[key] = []
        resolve = _refuser("the negotiation ended by an error of ours, see the log", None)
        try:
            sa = await main_mode.initiate(self._context, connection, local, remote)
            resolve = _giver(sa)
            return sa
        except Failed as error:
            resolve = _refuser(error.reason, error.notify, "ike-failed")
            self._context.failed("ike-failed", error, {"connection": connection.name, "remote": remote})
            error.told = "ike-failed"
            raise
        finally:
            del self._running[key]
            for future in waiting:
                resolve(future)


def _giver(sa: IkeSa) -> Callable[[Future[IkeSa]], None]:
    return lambda future: future.set_result(sa)


def _refuser(reason: str, notify: NotifyType | None, told: str = "") -> Callable[[Future[IkeSa]], None]:
    def fail() -> Failed:
        error = Failed(reason, notify)
        error.told = told
        return error

    return lambda future: future.set_error(fail)


def configured_ends(gateway: Gateway, connection: Connection) -> Ends | None:
    """Where the two gateways are by the configuration; None where it leaves the peer's address open."""
    match connection.remote:
        case RemoteAny() | ipaddress.IPv4Network() | ipaddress.IPv6Network():
            return None
        case RemoteName():
            return None if connection.remote.address is None else _ends(gateway, connection, connection.remote.address)
        case address:
            return _ends(gateway, connection, address)


def _nowhere(connection: Connection) -> str:
    if isinstance(connection.remote, RemoteName):
        return f"{connection.remote} has no address yet"
    return "the peer's address is not configured: only the peer can begin"


def _ends(gateway: Gateway, connection: Connection, address: Address) -> Ends:
    local = connection.local or _any_local(gateway, address)
    return Endpoint(local, IKE_PORT), Endpoint(address, IKE_PORT)


def _any_local(gateway: Gateway, remote: Address) -> Address:
    """Our one address of that family, else the unspecified one: the routing table decides, message 2 tells."""
    ours = [address for address in gateway.listen if address.version == remote.version]
    if len(ours) == 1:
        return ours[0]
    return ipaddress.IPv4Address(0) if remote.version == 4 else ipaddress.IPv6Address(0)
