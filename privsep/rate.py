"""Bounded rates for what a stranger or a captured child may cause: log lines, notifications, reads."""

from collections.abc import Callable
from functools import partial

from privsep.log import FOLLOWED, Code, Level, Log, noticed

TELL_SECONDS = 5.0
"""From the first line that was left out to the one that counts them; so long a flood may hide how large it is."""
LINES_PER_SECOND = 20
"""Of one code and level."""


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


Now = Callable[[], float]
After = Callable[[float, Callable[[], None]], object]
"""A clock's `now` and `after`."""


class Counted:
    """A rate whose refusals are told by a timer, so also when what caused them has ended."""

    def __init__(self, limit: int, now: Now, after: After, tell: Callable[[int], None]) -> None:
        self._rate = Rate(limit)
        self._now = now
        self._after = after
        self._tell = tell

    def admit(self) -> bool:
        """Whether there is room for one more now; if not, it is counted."""
        if self._rate.admit(self._now()):
            return True
        if self._rate.refused == 1:
            self._after(TELL_SECONDS, self.told)
        return False

    def told(self) -> None:
        """Tell what has been counted; nothing where there is nothing."""
        refused = self._rate.take_refused()
        if refused:
            self._tell(refused)


class Sparing:
    """A log for what somebody else may cause: each code has a budget of its own at each level.

    So no flood of one kind hides what is of another kind, or what is about a configured peer. What nobody would see
    costs nothing. What is left out is counted by a line of its own.
    """

    def __init__(self, log: Log, now: Now, after: After) -> None:
        self._log = log
        self._now = now
        self._after = after
        self._budgets: dict[tuple[Level, Code], Counted] = {}
        """As many as there are levels and codes at most."""

    def __call__(self, level: Level, code: Code, **fields: object) -> None:
        """Record one event, or count it."""
        if not noticed(level, fields.get("connection")):
            return
        budget = self._budgets.get((level, code))
        if budget is None:
            tell = partial(self._left_out, level, code)
            budget = self._budgets[level, code] = Counted(LINES_PER_SECOND, self._now, self._after, tell)
        if budget.admit():
            self._log(level, code, **fields)

    def _left_out(self, level: Level, code: Code, lines: int) -> None:
        # told where the lines themselves may be shown for one connection only
        self._log(FOLLOWED if level is Level.DEBUG else level, "left-out", event=code, lines=lines)
