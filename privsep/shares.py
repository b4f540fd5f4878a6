"""A bounded number of things that many owners have: who has most gives way, so that one cannot leave others without.

For what a stranger, a peer or a captured worker makes more of at will. No operation looks at all things or owners.
"""

import sys
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Shares(Generic[T]):
    """At most `total` things in all and `each` of one owner, where these are given."""

    def __init__(self, total: int | None = None, each: int | None = None) -> None:
        self._total = sys.maxsize if total is None else total
        self._each = sys.maxsize if each is None else each
        self._owners: dict[T, Hashable] = {}
        self._shares: dict[Hashable, dict[T, None]] = {}
        """By owner; what was unused for longest comes first."""
        self._sizes: dict[int, dict[Hashable, None]] = {}
        """Owners by the number of things that they have."""

    def __len__(self) -> int:
        return len(self._owners)

    def has_room(self, owner: Hashable) -> bool:
        """Whether nothing has to go for one more of that owner."""
        return len(self._owners) < self._total and len(self._shares.get(owner, ())) < self._each

    def enter(self, thing: T, owner: Hashable) -> T | None:
        """Take one in; what has to go for it, which is out already. That is the owner's own where it has all it may
        have, else one of whoever has most; the one that was unused for longest.
        """
        gone = None
        if not self.has_room(owner):
            whose = (
                owner if len(self._shares.get(owner, ())) >= self._each else next(iter(self._sizes[max(self._sizes)]))
            )
            gone = next(iter(self._shares[whose]))
            self.leave(gone)
        share = self._shares.setdefault(owner, {})
        share[thing] = None
        self._owners[thing] = owner
        self._resize(owner, len(share) - 1, len(share))
        return gone

    def leave(self, thing: T) -> None:
        """Harmless when it is out."""
        owner = self._owners.pop(thing, None)
        if owner is None:
            return
        share = self._shares[owner]
        del share[thing]
        self._resize(owner, len(share) + 1, len(share))
        if not share:
            del self._shares[owner]

    def use(self, thing: T) -> None:
        """It was used just now. Harmless when it is out."""
        owner = self._owners.get(thing)
        if owner is not None:
            share = self._shares[owner]
            del share[thing]
            share[thing] = None

    def _resize(self, owner: Hashable, before: int, after: int) -> None:
        if before:
            del self._sizes[before][owner]
            if not self._sizes[before]:
                del self._sizes[before]
        if after:
            self._sizes.setdefault(after, {})[owner] = None
