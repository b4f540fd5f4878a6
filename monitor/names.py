"""Where the peers are that the configuration names: looked up at the start, every five minutes, and after failures.

A name that does not resolve costs its connection nothing but time: it is asked for again, after 5 s at first and 5 min
at last. Whatever asks for more look-ups, the worker too, gets no more than the pace here: a few processes at once, and
each name not before half a minute has passed. The last address that was found stays until another one is.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from monitor.waiting import Clock
from privsep.config.loader import parse_address
from privsep.config.model import Connection, Gateway
from privsep.config.names import RemoteName
from privsep.log import Level, Log
from privsep.loop import Timer
from privsep.schema.names import Answer, Found, NotFound
from privsep.types import Address

REFRESH_SECONDS = 300.0
REFRESH_SECONDS_A_NAME = 0.5
"""So that many thousand names keep a fraction of one processor busy; from 600 names on it is this that counts."""
FIRST_RETRY, MAX_RETRY = 5.0, 300.0
JITTER = 0.2
"""Part of a pause by which it is shorter or longer, so that names are not asked for in step."""
HASTE_SECONDS = 30.0
"""Between two look-ups of a name, the later of which is wanted because a negotiation found no answer."""
MAX_RUNNING = 4
"""Resolvers at once."""

LookUp = Callable[[str, int | None, Callable[[Answer], None]], None]


@dataclass(slots=True, kw_only=True)
class _Name:
    """One name, for all connections that have it."""

    name: str
    version: int | None
    connections: list[Connection] = field(default_factory=list)
    failures: int = 0
    """In a row."""
    why: str = "it is being looked up"
    asked: float = float("-inf")
    pending: bool = False
    """In the queue, or with a resolver."""
    timer: Timer | None = None


class Names:
    """All names of the configuration."""

    def __init__(
        self,
        gateway: Gateway,
        clock: Clock,
        log: Log,
        look_up: LookUp,
        chance: Callable[[], float],
        located: Callable[[Connection, Address], None],
    ) -> None:
        """`located` hears of each connection whose name has another address than before; `chance` is within [0, 1)."""
        self._gateway = gateway
        self._clock = clock
        self._log = log
        self._look_up = look_up
        self._chance = chance
        self._located = located
        self._names: dict[RemoteName, _Name] = {}
        self._by_connection: dict[str, _Name] = {}
        self._due: deque[_Name] = deque()
        self._running = 0
        self._stopped = False
        for connection in gateway.connections:
            remote = connection.remote
            if isinstance(remote, RemoteName):
                name = self._names.setdefault(remote, _Name(name=remote.name, version=remote.version))
                name.connections.append(connection)
                self._by_connection[connection.name] = name
        self._refresh = max(REFRESH_SECONDS, REFRESH_SECONDS_A_NAME * len(self._names))

    def start(self) -> None:
        """Look all of them up."""
        for name in self._names.values():
            self._ask(name)

    def stop(self) -> None:
        """Nothing new is looked up."""
        self._stopped = True
        self._due.clear()
        for name in self._names.values():
            name.pending = True
            if name.timer is not None:
                name.timer.cancel()

    def hasten(self, connection: str) -> None:
        """A negotiation found nobody at the address: the peer may have another by now."""
        name = self._by_connection.get(connection)
        if name is not None and self._clock.now() - name.asked >= HASTE_SECONDS:
            self._ask(name)

    def missing(self, connection: str) -> str:
        """Why the connection has no address; empty if it has one, or needs none."""
        name = self._by_connection.get(connection)
        if name is None or _address(name.connections[0]) is not None:
            return ""
        return f"{name.name} does not resolve: {name.why}"

    def _ask(self, name: _Name) -> None:
        if not name.pending:
            name.pending = True
            if name.timer is not None:
                name.timer.cancel()
            self._due.append(name)
            self._go_on()

    def _go_on(self) -> None:
        while self._due and self._running < MAX_RUNNING:
            name = self._due.popleft()
            name.asked = self._clock.now()
            self._running += 1
            try:
                self._look_up(name.name, name.version, lambda answer, name=name: self._answered(name, answer))  # type: ignore[misc]
            except OSError as error:
                self._answered(name, NotFound(why=f"no resolver can be started ({error.strerror})"))

    def _answered(self, name: _Name, answer: Answer) -> None:
        self._running -= 1
        if self._stopped:
            return
        name.pending = False
        match answer:
            case Found():
                self._found(name, answer.addresses)
            case NotFound():
                self._not_found(name, answer.why)
            case _:
                assert_never(answer)
        self._go_on()

    def _found(self, name: _Name, addresses: tuple[Address, ...]) -> None:
        usable = [each for each in addresses if self._is_usable(name, each)]
        if not usable:
            self._not_found(name, f"{addresses[0]} is not the address of another host")
            return
        name.failures = 0
        self._again(name, self._refresh)
        for connection in name.connections:
            before = _address(connection)
            # of several, which come in another order each time, the one that serves stays
            if before not in usable:
                self._log(Level.NOTICE, "name-resolved", connection=connection.name, name=name.name, to=usable[0])
                self._located(connection, usable[0])

    def _is_usable(self, name: _Name, address: Address) -> bool:
        try:
            parse_address(str(address))
        except ValueError:
            return False
        ours = {*self._gateway.listen, *(each.local for each in name.connections)}
        return name.version in (None, address.version) and not address.is_loopback and address not in ours

    def _not_found(self, name: _Name, why: str) -> None:
        pause = min(MAX_RETRY, FIRST_RETRY * 2.0 ** min(name.failures, 10))
        if name.failures == 0 or name.why != why:
            level = Level.WARNING if _address(name.connections[0]) is None else Level.INFO
            many = [each.name for each in name.connections]
            self._log(level, "name-unresolved", name=name.name, reason=why, connections=",".join(many[:8]))
        name.why = why
        name.failures += 1
        self._again(name, pause)

    def _again(self, name: _Name, pause: float) -> None:
        name.timer = self._clock.after(pause * (1 - JITTER + 2 * JITTER * self._chance()), lambda: self._ask(name))


def _address(connection: Connection) -> Address | None:
    return connection.remote.address if isinstance(connection.remote, RemoteName) else None
