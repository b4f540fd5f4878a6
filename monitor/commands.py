"""What an operator may ask through the control socket (CONTRACT.md, "Command line"): a literal table, fields checked.

Codes of results: 0 done, 1 failed, 2 not a request that we know, 5 timed out.
"""

import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from monitor.control import Client
from monitor.dataplane import Traffic
from monitor.epoch import WorkerBusy
from monitor.service import Service
from monitor.status import SCHEMA_VERSION, Document, Facts, WorkerState, document
from monitor.waiting import Clock, run, within
from privsep.errors import ChannelClosed
from privsep.log import Code, Level, Record, escape
from privsep.schema.install import Completed, IkeStatus, Outcome
from privsep.tasks import Future
from privsep.types import Spi

DONE, FAILED, USAGE, TIMED_OUT = 0, 1, 2, 5

STATUS_SECONDS = 3.0
"""For the worker, and as much again for the data plane's counters."""
ORDER_SECONDS = 60
MAX_ORDER_SECONDS = 600
"""Under the control socket's total deadline."""
MAX_NAME = 64
MAX_NAMED = 20
"""Connections or children that are told to whoever names none of them."""
MAX_FOLLOWERS = 8
"""Of events: half the places that the control socket has, as a follower may stay for ever."""


@dataclass(slots=True, frozen=True, kw_only=True)
class _Request:
    connection: str = ""
    child: str = ""
    timeout: int = ORDER_SECONDS
    plan: bool = False
    level: Level = Level.INFO


@dataclass(slots=True, frozen=True, kw_only=True)
class _Command:
    run: Callable[[_Request, Client], Coroutine[Any, None, None]]
    required: frozenset[str] = field(default=frozenset())
    optional: frozenset[str] = field(default=frozenset())


class Commands:
    """`serve` is for `Control`; `log` feeds the clients that follow events."""

    def __init__(
        self,
        service: Service,
        clock: Clock,
        dataplane_reason: str,
        processes: Callable[[], dict[str, int]],
        set_level: Callable[[Level, str], bool],
        unresolved: Callable[[str], str] = lambda connection: "",
    ) -> None:
        """`dataplane_reason` tells why this data plane; `processes` gives name and pid of each running process.

        `set_level` takes the log's level for a connection, or "" for all; `unresolved` tells why the name of a
        connection's peer has no address, empty where nothing is missing.
        """
        self._service = service
        self._gateway = service.gateway
        self._clock = clock
        self._dataplane_reason = dataplane_reason
        self._processes = processes
        self._set_level = set_level
        self._unresolved = unresolved
        self._followers: dict[Client, int] = {}
        """With how many events each had no room for, since it was last told so."""
        order = frozenset({"child", "timeout"})
        connection = frozenset({"connection"})
        self._commands = {
            "status": _Command(run=self._status, optional=connection),
            "up": _Command(run=self._up, required=connection, optional=order),
            "down": _Command(run=self._down, required=connection, optional=order),
            "audit": _Command(run=self._audit),
            "events": _Command(run=self._events),
            "reload": _Command(run=self._reload, optional=frozenset({"plan"})),
            "log": _Command(run=self._log, required=frozenset({"level"}), optional=connection),
        }

    def serve(self, request: dict[str, Any], client: Client) -> None:
        """Answer one request, now or later."""
        name = request.pop("command", None)
        command = self._commands.get(name) if type(name) is str else None
        if command is None:
            client.finish(USAGE, f"no such command; one of {', '.join(self._commands)}")
            return
        if not command.required <= set(request) or not set(request) <= command.required | command.optional:
            wanted = [*sorted(command.required), *(f"[{each}]" for each in sorted(command.optional))]
            client.finish(USAGE, f"{name} takes {' '.join(wanted) or 'nothing'}")
            return
        parsed = _parse(request)
        if isinstance(parsed, str):
            client.finish(USAGE, parsed)
            return
        problem = self._unknown(parsed)
        if problem:
            client.finish(FAILED, problem)
            return
        run(command.run(parsed, client))

    def log(self, level: Level, code: Code, **fields: object) -> None:
        """Tell the followers of events; has the shape of `privsep.log.event`."""
        self._tell("monitor", level, code, fields)

    def follow(self, process: str, record: Record) -> None:
        """Tell them what a child has said; they see whose word it is."""
        self._tell(process, record.level, record.code, record.fields)

    def _tell(self, process: str, level: Level, code: Code, fields: Mapping[str, object]) -> None:
        if level is Level.DEBUG or not self._followers:
            return
        event = _event(process, level, code, fields)
        for client in tuple(self._followers):
            self._catch_up(client)
            if self._followers[client] or not client.event(event):
                self._followers[client] += 1

    def _catch_up(self, client: Client) -> None:
        """Tell a follower who has room again how much it missed."""
        missed = self._followers[client]
        if missed and client.event(
            _event("monitor", Level.WARNING, "left-out", {"lines": missed, "why": "the reader was slow"})
        ):
            self._followers[client] = 0

    def _unknown(self, request: _Request) -> str:
        """Why there is no such connection or child, empty if there is."""
        if not request.connection:
            return ""
        connection = self._gateway.connection(request.connection)
        if connection is None:
            names = _named(each.name for each in self._gateway.connections)
            return f"no connection {escape(request.connection)!r} is configured; there is {names}"
        if request.child and connection.child(request.child) is None:
            names = _named(each.name for each in connection.children)
            return f"{connection.name} has no child {escape(request.child)!r}; there is {names}"
        return ""

    async def _status(self, request: _Request, client: Client) -> None:
        worker, ike_sas = await self._described()
        entries = self._service.sadb.entries()
        counted: Future[dict[Spi, Traffic]] = within(
            self._clock,
            STATUS_SECONDS,
            self._service.traffic(
                entry.pair.spi_in for entry in entries if request.connection in ("", entry.connection)
            ),
        )
        try:
            traffic = await counted
        except TimeoutError:
            traffic = {}
        status: Document = document(
            Facts(
                gateway=self._gateway,
                dataplane=self._service.dataplane.name,
                dataplane_reason=self._dataplane_reason,
                worker=worker,
                ike_sas=ike_sas,
                entries=entries,
                traffic=traffic,
                now=self._clock.now(),
            ),
            request.connection or None,
        )
        if worker is WorkerState.NOT_ANSWERING:
            client.finish(TIMED_OUT, "the worker does not answer; what is installed is shown", status=status)
        else:
            client.finish(DONE, "", status=status)

    async def _described(self) -> tuple[WorkerState, tuple[IkeStatus, ...]]:
        try:
            ike_sas = await self._service.describe(STATUS_SECONDS)
        except ChannelClosed:
            return WorkerState.RESTARTING, ()
        except (TimeoutError, WorkerBusy):
            return WorkerState.NOT_ANSWERING, ()
        return WorkerState.RUNNING, ike_sas

    async def _up(self, request: _Request, client: Client) -> None:
        missing = self._unresolved(request.connection)
        if missing:
            client.finish(FAILED, f"{missing}; it is asked for again")
            return
        await self._order(request, client, self._service.up(request.connection, request.child, client.progress))

    async def _down(self, request: _Request, client: Client) -> None:
        await self._order(request, client, self._service.down(request.connection, request.child, client.progress))

    async def _order(self, request: _Request, client: Client, order: Future[Completed]) -> None:
        try:
            completed = await within(self._clock, request.timeout, order)
        except TimeoutError:
            client.finish(TIMED_OUT, f"not done within {request.timeout} s; it may still come to pass")
        except ChannelClosed:
            client.finish(FAILED, "the worker is not running; it is being restarted")
        except WorkerBusy:
            client.finish(FAILED, "the worker does not answer")
        else:
            client.finish(DONE if completed.outcome is Outcome.DONE else FAILED, completed.text)

    async def _audit(self, request: _Request, client: Client) -> None:
        users = self._gateway.users
        client.finish(
            DONE,
            "",
            processes=[{"name": name, "pid": pid} for name, pid in self._processes().items()],
            users={"worker": users.worker, "keyd": users.keyd, "userspace": users.userspace},
            absent=sorted(layer.value for layer in self._gateway.absent),
        )

    async def _events(self, request: _Request, client: Client) -> None:
        if len(self._followers) >= MAX_FOLLOWERS:
            client.finish(FAILED, f"{MAX_FOLLOWERS} others follow already")
            return
        self._followers[client] = 0
        client.endless(lambda: self._catch_up(client))
        client.on_gone = lambda: self._gone(client)

    def _gone(self, client: Client) -> None:
        del self._followers[client]

    async def _log(self, request: _Request, client: Client) -> None:
        if self._set_level(request.level, request.connection):
            client.finish(DONE, "")
        else:
            client.finish(FAILED, "too many connections have a level that was ordered; set one for all")

    async def _reload(self, request: _Request, client: Client) -> None:
        client.finish(FAILED, "not supported by this release; restart the daemon to apply a changed configuration")


def _named(names: Iterable[str]) -> str:
    """The first of them, and how many more there are."""
    all_names = list(names)
    more = len(all_names) - MAX_NAMED
    return ", ".join(all_names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "") or "none"


def _event(process: str, level: Level, code: Code, fields: Mapping[str, object]) -> Document:
    return {
        "schema_version": SCHEMA_VERSION,
        "time": round(time.time(), 3),
        "process": process,
        "level": level.value,
        "event": code,
        "fields": {name: escape(str(value)) for name, value in fields.items()},
    }


def _parse(request: dict[str, Any]) -> _Request | str:
    """The fields with their types, or what is wrong."""
    for name in ("connection", "child"):
        value = request.get(name, "")
        if type(value) is not str or len(value) > MAX_NAME:
            return f"{name} is a name of at most {MAX_NAME} characters"
    timeout = request.get("timeout", ORDER_SECONDS)
    if type(timeout) is not int or not 1 <= timeout <= MAX_ORDER_SECONDS:
        return f"timeout is 1 to {MAX_ORDER_SECONDS} whole seconds"
    if type(request.get("plan", False)) is not bool:
        return "plan is true or false"
    if "level" in request:
        levels = {each.value: each for each in Level}
        level = request["level"]
        if type(level) is not str or level not in levels:
            return f"level is one of {', '.join(levels)}"
        request["level"] = levels[level]
    return _Request(**request)
