"""A name has another address: whoever counts on it is told, in an order in which nobody acts before another knows.

First what the kernel lets through to and from the worker, then policies, then keyd, then the worker, which acts.
"""

import socket
from collections.abc import Callable, Iterable

from monitor.admission import admit, admitted
from monitor.dataplane import DataplaneError
from monitor.egress import readmit
from monitor.service import Service
from monitor.waiting import run
from privsep.config.model import Connection, Gateway
from privsep.config.names import RemoteName
from privsep.errors import ChannelClosed, Violation
from privsep.log import Level, Log
from privsep.schema.keymat import Known, Question, Reply
from privsep.schema.names import MAX_LOCATED, Located, Resolved
from privsep.tasks import Future
from privsep.types import Address


class Whereabouts:
    """One for the life of the daemon; `ask_keyd` and `to_worker` reach the present epoch's processes."""

    def __init__(
        self,
        gateway: Gateway,
        service: Service,
        sockets: tuple[socket.socket, ...],
        egress: socket.socket | None,
        ask_keyd: Callable[[Question], Future[Reply]],
        to_worker: Callable[[Resolved, int], None],
        log: Log,
    ) -> None:
        """`sockets` are the worker's; `egress` is what `monitor.egress.restrict` returned, if it is restricted."""
        self._gateway = gateway
        self._service = service
        self._sockets = sockets
        self._egress = egress
        self._ask_keyd = ask_keyd
        self._to_worker = to_worker
        self._log = log

    def located(self, connection: Connection, address: Address) -> None:
        """The connection's name has this address now."""
        self._gateway.locate(connection, address)
        try:
            admit(self._sockets, admitted(self._gateway))
            if self._egress is not None:
                readmit(self._egress, self._gateway)
        except OSError as error:
            self._log(Level.ERROR, "place-failed", connection=connection.name, error=error.strerror)
        run(self._located(connection))

    async def _located(self, connection: Connection) -> None:
        try:
            await self._service.installer.locate(connection)
        except DataplaneError as error:
            # its traffic is refused as before
            self._log(Level.ERROR, "place-failed", connection=connection.name, error=error)
        await self._share((connection,))

    def epoch_began(self) -> None:
        """New processes, which have read names and know no address."""
        run(self._share(self._gateway.connections))

    async def _share(self, connections: Iterable[Connection]) -> None:
        """An answer comes only from the present keyd, whose worker is the present one too, if it runs already."""
        located = [
            Located(connection=each.name, address=each.remote.address)
            for each in connections
            if isinstance(each.remote, RemoteName) and each.remote.address is not None
        ]
        for start in range(0, len(located), MAX_LOCATED):
            resolved = Resolved(located=tuple(located[start : start + MAX_LOCATED]))
            try:
                answer = await self._ask_keyd(resolved)
                if not isinstance(answer, Known):
                    raise Violation("keyd takes note of addresses with something else")
                self._to_worker(resolved, 0)
            except ChannelClosed:
                # whoever is started next is told all
                return
