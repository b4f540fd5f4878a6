"""Diffie-Hellman for strangers, which keyd computes: bounded by what it costs, in all and for each origin.

Established peers' requests queue behind it, and one exponentiation of the largest group costs as much as a hundred of
the smallest curve's.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from privsep.algorithms import Group
from privsep.errors import PeerError
from privsep.types import Address
from worker.demux import origin

MAX_AGREEING = 400
"""In the units of `Group.cost`: some 40 ms of keyd's time."""
MAX_AGREEING_OF_ONE = 100
"""Of one origin, so that none takes all."""


class Agreeing:
    """What keyd has before it."""

    def __init__(self) -> None:
        self._cost = 0
        self._of: Counter[Address | int] = Counter()

    def check(self, group: Group, remote: Address) -> None:
        """PeerError when keyd has enough to do; one computation is always admitted, whatever it costs."""
        if self._cost and (
            self._cost + group.cost > MAX_AGREEING
            or (self._of[origin(remote)] and self._of[origin(remote)] + group.cost > MAX_AGREEING_OF_ONE)
        ):
            raise PeerError("too many peers wait for keyd; this one will send again")

    @contextmanager
    def computing(self, group: Group, remote: Address) -> Iterator[None]:
        """While keyd computes one more. PeerError as from `check`."""
        self.check(group, remote)
        whose = origin(remote)
        self._cost += group.cost
        self._of[whose] += group.cost
        try:
            yield
        finally:
            self._cost -= group.cost
            self._of[whose] -= group.cost
            if not self._of[whose]:
                del self._of[whose]
