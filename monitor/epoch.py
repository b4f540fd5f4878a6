"""What one worker and its monitor owe each other: requests that are open, in both directions, and running orders.

Everything here ends with the worker. An answer to nothing, an answer of the wrong kind, a second answer, a page that
leads back, a sequence number in use: no honest worker does that, so each is a Violation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from monitor.sadb import MAX_INSTALLED_PER_CONNECTION
from monitor.waiting import Clock
from privsep.errors import ChannelClosed, PrivsepError, Violation
from privsep.schema.install import (
    Completed,
    Describe,
    Described,
    Down,
    IkeStatus,
    MonitorRequest,
    Progress,
    Up,
    WorkerReply,
)
from privsep.tasks import Future

MAX_OPEN = 4096
"""Requests of the worker that the monitor has not answered yet."""
MAX_PENDING = 64
"""Requests of ours that a worker may leave unanswered before it counts as stuck."""
MAX_PROGRESS = 1000
"""Steps of one order that are shown."""
MAX_PAGES = 4096
"""Pages of one description."""
MAX_DESCRIBED = 2 * MAX_INSTALLED_PER_CONNECTION
"""IKE SAs and pairs of one description, together: a connection at its quota with one of each for every peer. The rest
is not shown, but what is installed always is. One takes 1.5 KB on its way to the operator."""

R = TypeVar("R", Completed, Described)


class WorkerBusy(PrivsepError):
    """The worker has not answered many requests: it is stuck."""


@dataclass(slots=True)
class _Order:
    progress: Callable[[str], None]
    left: int = MAX_PROGRESS


class Epoch:
    """The life of one worker, as its monitor keeps the books."""

    def __init__(self, send: Callable[[MonitorRequest, int], None]) -> None:
        self._send = send
        self._open: set[int] = set()
        self._pending: dict[int, tuple[MonitorRequest, type[Any], Future[Any]]] = {}
        self._orders: dict[int, _Order] = {}
        self._sequence = 0

    def opened(self, sequence: int) -> None:
        """The worker asks something that wants an answer."""
        if sequence == 0 or sequence in self._open:
            raise Violation("a request's sequence number is zero or in use")
        if len(self._open) >= MAX_OPEN:
            raise Violation("too many requests at once")
        self._open.add(sequence)

    def closed(self, sequence: int) -> None:
        """The worker gets its answer."""
        self._open.discard(sequence)

    def ask(self, message: MonitorRequest, kind: type[R]) -> Future[R]:
        """The worker's answer. One that comes after our patience ended is still taken, and counted until then."""
        future: Future[R] = Future()
        if len(self._pending) >= MAX_PENDING:
            future.set_error(WorkerBusy)
            return future
        self._sequence += 1
        self._pending[self._sequence] = (message, kind, future)
        self._send(message, self._sequence)
        return future

    def answered(self, message: WorkerReply, sequence: int) -> None:
        """The worker answers."""
        if sequence not in self._pending:
            raise Violation("an answer to nothing")
        asked, kind, future = self._pending[sequence]
        if type(message) is not kind:
            raise Violation("an answer of another kind than asked for")
        if _leads_back(asked, message):
            raise Violation("a description that does not go on")
        del self._pending[sequence]
        future.set_result(message)

    async def order(self, message: Up | Down, progress: Callable[[str], None]) -> Completed:
        """Hand an operator's order on; its steps go to `progress`."""
        self._orders[message.order] = _Order(progress)
        try:
            return await self.ask(message, Completed)
        finally:
            del self._orders[message.order]

    def progressed(self, message: Progress, sequence: int) -> None:
        """A step of an order."""
        order = self._orders.get(message.order)
        if order is None or sequence != 0:
            raise Violation("progress of an order that is not open, or as a request")
        if order.left:
            order.left -= 1
            order.progress(message.text)

    async def describe(self, clock: Clock, deadline: float) -> tuple[IkeStatus, ...]:
        """The worker's IKE SAs, by pages. From the deadline on nobody waits for more."""
        found: list[IkeStatus] = []
        cursor = described = 0
        for _ in range(MAX_PAGES):
            page = await self.ask(Describe(cursor=cursor), Described)
            for sa in page.ike_sas:
                described += 1 + len(sa.children)
                if described > MAX_DESCRIBED:
                    return tuple(found)
                found.append(sa)
            cursor = page.cursor
            if cursor == 0 or clock.now() >= deadline:
                break
        return tuple(found)

    def end(self) -> None:
        """The worker is gone: whoever waits for it gets ChannelClosed."""
        pending, self._pending = self._pending, {}
        for _, _, future in pending.values():
            future.set_error(ChannelClosed)


def _leads_back(asked: MonitorRequest, answer: WorkerReply) -> bool:
    """Whether it is a page after which comes one that was there before."""
    match asked, answer:
        case Describe(), Described():
            return 0 < answer.cursor <= asked.cursor
    return False
