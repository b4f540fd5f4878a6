"""Levels of the log that were ordered while the daemon runs: in force here, and in all children, later ones too."""

from collections.abc import Callable

from privsep import log
from privsep.log import Level
from privsep.schema.levels import SetLevel

MAX_CONNECTIONS = 256
"""With a level that was ordered: what a new child is told at once, well within what its channel queues."""


class Levels:
    """`tell` reaches the present children, and nobody between two epochs."""

    def __init__(self, tell: Callable[[SetLevel], None]) -> None:
        self._tell = tell
        self._ordered: dict[str, Level] = {}
        """By the connection's name; by "" for all."""

    def set(self, level: Level, connection: str = "") -> bool:
        """Whether it is in force from now on; not, where too many connections have one."""
        if connection not in self._ordered and len(self._ordered) > MAX_CONNECTIONS:
            return False
        self._ordered[connection] = level
        log.set_level(level, connection)
        self._tell(SetLevel(level=level, connection=connection))
        return True

    def tell_all(self) -> None:
        """New children know the configuration: tell them what differs."""
        for connection, level in self._ordered.items():
            self._tell(SetLevel(level=level, connection=connection))
