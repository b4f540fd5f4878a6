"""Spare key pairs, made while nothing else is to do: then an exchange waits for one exponentiation, not for two."""

from collections import deque
from collections.abc import Iterable

from keyd.groups import KeyPair, generate
from privsep.algorithms import Group

DEPTH = 16
"""Spare pairs of each group: a burst of that many peers; more would only be older secrets in memory."""


class Pool:
    """Key pairs of the groups that the configuration names. Each is handed out once."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self._spare: dict[Group, deque[KeyPair]] = {group: deque() for group in groups}

    def take(self, group: Group) -> KeyPair:
        """A key pair nobody else gets: a spare one, or one made now."""
        spare = self._spare.get(group)
        return spare.popleft() if spare else generate(group)

    def fill(self) -> bool:
        """Make one spare pair for the group that has the fewest; False when every group has enough."""
        if not self._spare:
            return False
        group, spare = min(self._spare.items(), key=lambda item: len(item[1]))
        if len(spare) >= DEPTH:
            return False
        spare.append(generate(group))
        return True
