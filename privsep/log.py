"""One line an event on stderr: ``level code key=value ...``. Codes are stable; values are escaped and capped.

Every process writes the same way. The children's stderr is a pipe to the monitor, which escapes and caps once more
(a captured child may write anything) and puts the process's name in front.
"""

import sys
from enum import Enum

MAX_VALUE = 256
MAX_LINE = 2048


class Level(Enum):
    """As syslog's."""

    DEBUG = "debug"
    INFO = "info"
    NOTICE = "notice"
    WARNING = "warning"
    ERROR = "error"


_ORDER = {level: number for number, level in enumerate(Level)}
_threshold = _ORDER[Level.INFO]


def set_threshold(level: Level) -> None:
    """Drop events below that level from now on."""
    global _threshold
    _threshold = _ORDER[level]


def escape(text: str, limit: int = MAX_VALUE) -> str:
    r"""Printable ASCII, capped; everything else as \\xNN, so that a line stays one line and a terminal stays sane."""
    if len(text) <= limit and text.isascii() and text.isprintable() and "\\" not in text:
        return text
    safe = "".join(c if " " <= c <= "~" and c != "\\" else c.encode("unicode_escape").decode() for c in text[:limit])
    return safe if len(text) <= limit and len(safe) <= limit else safe[: limit - 3] + "..."


def event(level: Level, code: str, **fields: object) -> None:
    """Write one event. `fields` never hold keys, plaintext or raw text of a peer that is not an Identity."""
    if _ORDER[level] < _threshold:
        return
    parts = [level.value, code]
    for name, value in fields.items():
        text = escape(str(value))
        parts.append(f'{name}="{text}"' if " " in text or not text else f"{name}={text}")
    try:
        sys.stderr.write(" ".join(parts)[:MAX_LINE] + "\n")
        sys.stderr.flush()
    except OSError:
        # a reader that is gone or slow, or a full disk, must not stop the daemon
        return
