"""Policy numbers: whose each is, which belong to policies that no pair is under, and which of these yields.

A policy outlives its pairs, so that what it protects is refused and does not go in clear. But numbers are finite, and
peers at changing addresses come and go. When a connection has had its share, the policy that is longest without a pair
gives its number to the next one. Before that, a peer that chooses ever other selectors uses up what is its own.
"""

from collections import Counter, OrderedDict, defaultdict
from typing import TypeVar

from privsep.types import Identity

MAX_POLICY_NUMBER = 65535
MAX_POLICIES_PER_CONNECTION = 16384
"""Of peers at changing addresses, as many as they may have pairs."""
MAX_UNUSED_OF_IDENTITY = 16
"""Of a connection's policies those without a pair that one identity was the last to use."""

Owner = tuple[str, str]
"""Connection and child."""
_Queue = OrderedDict[int, None]
"""Numbers, those that have waited longest first; taking from either end and from within costs the same."""
K = TypeVar("K")


class Numbers:
    """1 to 65535. Decides nothing about a number that is in use."""

    def __init__(self, taken: int) -> None:
        """Up to `taken` they were an earlier instance's, and are nobody's yet."""
        self._owners: list[Owner | None] = [None] * taken
        self._free: list[int] = []
        self._of_connection: Counter[str] = Counter()
        """How many, those of the configuration apart."""
        self._unused: OrderedDict[int, tuple[str, Identity | None]] = OrderedDict()
        self._unused_of_connection: defaultdict[str, _Queue] = defaultdict(OrderedDict)
        self._unused_of_identity: defaultdict[tuple[str, Identity], _Queue] = defaultdict(OrderedDict)

    def owner(self, number: int) -> Owner | None:
        """Whose it is."""
        return self._owners[number - 1] if 1 <= number <= len(self._owners) else None

    def configure(self, owner: Owner, number: int | None) -> int:
        """For good, that number or the next one, which it returns."""
        if number is None:
            self._owners.append(owner)
            return len(self._owners)
        self._owners[number - 1] = owner
        return number

    def next(self, connection: str, identity: Identity) -> int | None:
        """What a new policy would have; None where all are in use. Changes nothing."""
        own = self._unused_of_identity.get((connection, identity), OrderedDict())
        if len(own) >= MAX_UNUSED_OF_IDENTITY:
            return _first(own)
        if self._of_connection[connection] >= MAX_POLICIES_PER_CONNECTION:
            return _first(self._unused_of_connection[connection])
        if self._free:
            return self._free[-1]
        if len(self._owners) < MAX_POLICY_NUMBER:
            return len(self._owners) + 1
        return _first(self._unused)

    def take(self, number: int, owner: Owner) -> None:
        """A policy of the owner's has it, and a pair is under it."""
        if number == len(self._owners) + 1:
            self._owners.append(None)
        elif self._free and number == self._free[-1]:
            self._free.pop()
        earlier = self._owners[number - 1]
        if earlier is not None:
            self._of_connection[earlier[0]] -= 1
        self._owners[number - 1] = owner
        self._of_connection[owner[0]] += 1
        waiting = self._unused.pop(number, None)
        if waiting is not None:
            connection, identity = waiting
            _drop(self._unused_of_connection, connection, number)
            if identity is not None:
                _drop(self._unused_of_identity, (connection, identity), number)

    def rest(self, number: int, identity: Identity | None) -> None:
        """No pair is under its policy any more, the last one's identity was this; None if nobody knows."""
        owner = self.owner(number)
        if owner is None or number in self._unused:
            return
        self._unused[number] = owner[0], identity
        self._unused_of_connection[owner[0]][number] = None
        if identity is not None:
            self._unused_of_identity[owner[0], identity][number] = None

    def give_back(self, kept: set[int]) -> None:
        """Those of an earlier instance that nobody has taken over, except where something still stands under them."""
        numbers = (number for number, owner in enumerate(self._owners, 1) if owner is None)
        self._free = [number for number in numbers if number not in kept]


def _first(queue: OrderedDict[int, K]) -> int | None:
    return next(iter(queue), None)


def _drop(queues: defaultdict[K, _Queue], key: K, number: int) -> None:
    del queues[key][number]
    if not queues[key]:
        del queues[key]
