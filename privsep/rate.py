"""Bounded rates for what a stranger or a captured child may cause: log lines, notifications, reads."""


class Rate:
    """At most `limit` in each second; tells how many were refused in between."""

    __slots__ = ("_admitted", "_limit", "_second", "refused")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._second = -1
        self._admitted = 0
        self.refused = 0

    def admit(self, now: float) -> bool:
        """Whether there is room for one more now."""
        second = int(now)
        if second != self._second:
            self._second, self._admitted = second, 0
        if self._admitted >= self._limit:
            self.refused += 1
            return False
        self._admitted += 1
        return True

    def take_refused(self) -> int:
        """How many were refused since the last call."""
        refused, self.refused = self.refused, 0
        return refused
