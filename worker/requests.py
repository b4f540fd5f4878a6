"""Requests in flight to keyd or to the monitor: numbered, answered in any order, a bounded number at once."""

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Generic, TypeVar

from privsep.tasks import Future

WINDOW = 1024
"""Unanswered requests of one channel; the monitor ends a worker with 4096, ZeroMQ queues 8192."""

Q = TypeVar("Q")
R = TypeVar("R")


class Requests(Generic[Q, R]):
    """`emit(sequence, request)` sends. Every request is answered sooner or later, or the process ends."""

    def __init__(self, emit: Callable[[int, Q], None]) -> None:
        self._emit = emit
        self._pending: dict[int, Future[R]] = {}
        self._line: deque[tuple[int, Q]] = deque()
        self._waiting: dict[int, Future[R]] = {}
        self._numbers = count(1)

    def ask(self, request: Q) -> Future[R]:
        """The answer to come. Beyond the window, requests wait in line and keep their order."""
        future: Future[R] = Future()
        sequence = next(self._numbers)
        if len(self._pending) < WINDOW:
            self._pending[sequence] = future
            self._emit(sequence, request)
        else:
            self._waiting[sequence] = future
            self._line.append((sequence, request))
        return future

    def answered(self, sequence: int, reply: R) -> None:
        """An answer arrived. One to nothing is ignored."""
        future = self._pending.pop(sequence, None)
        if future is None:
            return
        if self._line:
            following, request = self._line.popleft()
            self._pending[following] = self._waiting.pop(following)
            self._emit(following, request)
        future.set_result(reply)
