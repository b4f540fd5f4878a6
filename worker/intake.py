"""Strangers' datagrams wait while there is something else to do, and get a part of the worker's time.

Anybody can send first messages, faster than a process can read them. What carries a cookie that we know goes to the
engine at once (`Engine.knows`). The rest waits here, a queue for each origin, and is served in turn. Too much is
dropped as it comes, unread: so all who come have the same chance.
"""

from collections import deque
from dataclasses import dataclass

from privsep.types import Address, Endpoint
from worker.demux import origin

MAX_WAITING = 2048
"""A tenth of a second's work, and as many as may have come while the worker did not run on a busy machine."""
MAX_WAITING_OF_ONE = 1024
"""Half: who spoofs a peer's address is of one origin with that peer, and must not leave it without a place."""
MAX_WAITING_OCTETS = 2 << 20
SHARE = 0.5
"""Of the worker's time."""
MAX_CREDIT = 0.02
"""Seconds at once, saved while there were no strangers."""
SERVED_AT_ONCE = 16
"""Datagrams of strangers in one round; then keyd, timers and peers have their turn."""


@dataclass(slots=True, frozen=True)
class Stray:
    """A datagram of somebody unknown."""

    data: bytes
    local: Endpoint
    remote: Endpoint


class Intake:
    """What waits, and how much time it may take."""

    def __init__(self, now: float) -> None:
        self._queues: dict[Address | int, deque[Stray]] = {}
        """By origin, in the order of their turns."""
        self._waiting = 0
        self._octets = 0
        self._credit = MAX_CREDIT
        self._counted = now

    def __len__(self) -> int:
        return self._waiting

    def put(self, stray: Stray) -> bool:
        """Whether there is room for one more; if not, it is dropped."""
        whose = origin(stray.remote.address)
        queue = self._queues.get(whose)
        octets = self._octets + len(stray.data)
        if (
            self._waiting >= MAX_WAITING
            or octets > MAX_WAITING_OCTETS
            or (queue is not None and len(queue) >= MAX_WAITING_OF_ONE)
        ):
            return False
        if queue is None:
            queue = self._queues[whose] = deque()
        queue.append(stray)
        self._waiting += 1
        self._octets = octets
        return True

    def take(self) -> Stray:
        """The next one, of those that `ready` tells of."""
        whose, queue = next(iter(self._queues.items()))
        del self._queues[whose]
        stray = queue.popleft()
        if queue:
            # behind all others
            self._queues[whose] = queue
        self._waiting -= 1
        self._octets -= len(stray.data)
        return stray

    def ready(self, now: float) -> bool:
        """Whether one may be served now."""
        self._credit = min(MAX_CREDIT, self._credit + (now - self._counted) * SHARE)
        self._counted = now
        return self._waiting > 0 and self._credit > 0

    def spend(self, seconds: float) -> None:
        """So long one took."""
        self._credit -= seconds

    def ready_at(self) -> float | None:
        """When the next may be served."""
        if not self._waiting:
            return None
        return self._counted - min(0.0, self._credit) / SHARE
