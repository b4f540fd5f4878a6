"""Exit codes, which scripts rely on (docs/commands.md)."""

from enum import IntEnum


class Exit(IntEnum):
    """What became of it."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    CONFIGURATION_INVALID = 3
    NOT_REACHABLE = 4
    TIMED_OUT = 5
