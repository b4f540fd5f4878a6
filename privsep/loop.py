"""One epoll loop for every process of ours: readiness callbacks and timers, nothing else.

asyncio would do the same with a self-pipe, a signal handler and some forty more files for the auditor.
"""

import gc
import heapq
import itertools
import select
import time
from collections.abc import Callable

Callback = Callable[[], None]

TIDY_SECONDS = 10.0
"""Between two looks for young garbage. `sandbox.interpreter` has the collector wait for many allocations, which after a
burst may be long in coming. A look at what is young costs milliseconds, however much is alive."""
_YOUNG = 1

MAX_WAIT = 86400.0
"""Seconds; epoll takes its timeout as an int of milliseconds, which a long lifetime would overflow."""


class Timer:
    """A pending call; `cancel` forgets it."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callback) -> None:
        self.when = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Never call. Harmless when it was called."""
        self.callback = None


class Loop:
    """Level-triggered readiness. Callbacks must not block; an exception from one ends the process."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._stopping = False
        self._worked = False
        """Whether something has happened since the last look for garbage."""
        self._tidy_at = self.now()
        self._before_poll: Callable[[], bool] | None = None

    def before_poll(self, callback: Callable[[], bool]) -> None:
        """Call once a round before waiting; True from it means that there is more to do at once.

        For sources whose readiness is edge-triggered, as ZeroMQ's is, and for work that fills idle time.
        """
        self._before_poll = callback

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def on_readable(self, fd: int, callback: Callback | None) -> None:
        """Call when `fd` is readable or has an error; None ends it."""
        self._set(self._readers, fd, callback)

    def on_writable(self, fd: int, callback: Callback | None) -> None:
        """Call when `fd` is writable; None ends it."""
        self._set(self._writers, fd, callback)

    def _set(self, table: dict[int, Callback], fd: int, callback: Callback | None) -> None:
        known = fd in self._readers or fd in self._writers
        if callback is None:
            table.pop(fd, None)
        else:
            table[fd] = callback
        mask = (select.EPOLLIN if fd in self._readers else 0) | (select.EPOLLOUT if fd in self._writers else 0)
        if not mask:
            if known:
                self._epoll.unregister(fd)
        elif known:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)

    def at(self, when: float, callback: Callback) -> Timer:
        """Call at that time of the monotonic clock."""
        timer = Timer(when, callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def after(self, seconds: float, callback: Callback) -> Timer:
        """Call in so many seconds."""
        return self.at(self.now() + seconds, callback)

    def stop(self) -> None:
        """Make `run` return after the present callback."""
        self._stopping = True

    def run(self) -> None:
        """Dispatch until `stop`."""
        self._stopping = False
        while not self._stopping:
            self._run_timers()
            busy = self._before_poll() if self._before_poll is not None else False
            if self._stopping:
                return
            self._tidy()
            for fd, mask in self._epoll.poll(0.0 if busy else self._timeout()):
                self._worked = True
                if mask & select.EPOLLOUT and (writer := self._writers.get(fd)):
                    writer()
                if mask & ~select.EPOLLOUT and (reader := self._readers.get(fd)):
                    reader()
                elif mask & (select.EPOLLHUP | select.EPOLLERR) and fd in self._writers and fd not in self._readers:
                    self._writers[fd]()

    def _timeout(self) -> float:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        due = [self._timers[0][0]] if self._timers else []
        if self._worked:
            due.append(self._tidy_at)
        return min(MAX_WAIT, max(0.0, min(due) - self.now())) if due else -1.0

    def _tidy(self) -> None:
        if self._worked and (now := self.now()) >= self._tidy_at:
            gc.collect(_YOUNG)
            _give_back()
            self._worked, self._tidy_at = False, now + TIDY_SECONDS

    def _run_timers(self) -> None:
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()


def _give_back() -> None:
    """Let go of what the interpreter keeps free for its next use.

    A few such objects, spread over what a burst has left, keep all of that from the kernel. They go when everything is
    searched for garbage; frozen, it is not searched, and this costs next to nothing.
    """
    gc.freeze()
    gc.collect()
    gc.unfreeze()
