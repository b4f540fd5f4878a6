"""Timers on somebody else's clock: the engine says what time it is, nothing here looks."""

import heapq
from collections.abc import Callable
from itertools import count

SLACK = 256
"""Cancelled timers that may lie about, besides as many as there are live ones."""

Callback = Callable[[], None]


class Timer:
    """A pending call."""

    __slots__ = ("_timers", "callback", "when")

    def __init__(self, timers: "Timers", when: float, callback: Callback) -> None:
        self._timers = timers
        self.when = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Never call, and let go of the callback. Harmless when it was called."""
        if self.callback is not None:
            self.callback = None
            self._timers.cancelled()


class Timers:
    """A heap of timers; memory is proportional to the live ones."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._dead = 0

    def at(self, when: float, callback: Callback) -> Timer:
        """Call once that time has come."""
        timer = Timer(self, when, callback)
        heapq.heappush(self._heap, (when, next(self._order), timer))
        return timer

    def cancelled(self) -> None:
        """One more entry is dead; clean up when most of them are."""
        self._dead += 1
        if self._dead > SLACK + len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def next_deadline(self) -> float | None:
        """When the next call is due."""
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
            self._dead -= 1
        return self._heap[0][0] if self._heap else None

    def run(self, now: float) -> None:
        """Call what is due, each once; what the calls add is for the next run."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        for timer in due:
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._dead -= 1
            else:
                callback()
