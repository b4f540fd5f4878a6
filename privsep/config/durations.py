"""Durations of the configuration: ``"90s" "30m" "8h" "1d"``."""

import re
from collections.abc import Callable

from privsep.config.problems import quote

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]{1,9})([smhd])", re.ASCII)


def between(low: str, high: str) -> Callable[[str], int]:
    """A parser of durations between two, both included; its result is in seconds."""
    bounds = (seconds(low), seconds(high))

    def parse(text: str) -> int:
        value = seconds(text)
        if not bounds[0] <= value <= bounds[1]:
            raise ValueError(f"{quote(text)} is out of range; {low} to {high} would be right")
        return value

    return parse


def seconds(text: str) -> int:
    """The duration; ValueError says what would be right."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f'{quote(text)} is no duration; a number with s, m, h or d, as in "90s", would be right')
    return int(match[1]) * _UNITS[match[2]]
