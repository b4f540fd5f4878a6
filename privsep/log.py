"""One line an event on stderr: ``level code key=value ...``, as logfmt. Codes are stable; values are quoted and capped.

Every process writes the same way. The children's stderr is a pipe to the monitor (`monitor.logpipe`), which escapes and
caps once more (a captured child may write anything), puts the process's name in front and reads the line back (`parse`)
for the operator's `events`. What is shown is the monitor's to decide: a child holds back only what nobody would see.
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol, cast, get_args

MAX_VALUE = 600
"""Characters; eight proposals and as many others still fit."""
MAX_LINE = 2048
MAX_FIELDS = 24
"""Of a line that is read back."""


class Level(Enum):
    """As syslog's."""

    DEBUG = "debug"
    INFO = "info"
    NOTICE = "notice"
    WARNING = "warning"
    ERROR = "error"


FOLLOWED = Level.INFO
"""`events` tells what is of this level or a higher one, whatever the log shows."""
PRIORITIES = {Level.DEBUG: 7, Level.INFO: 6, Level.NOTICE: 5, Level.WARNING: 4, Level.ERROR: 3}
"""Syslog's numbers (RFC 5424 section 6.2.1), as sd-daemon(3) wants them in front of a line."""

Code = Literal[
    "acquire",
    "adopted",
    "authentication-failed",
    "cannot-send",
    "cannot-start",
    "channel-lost",
    "child-closed",
    "child-failed",
    "child-installed",
    "child-rekeyed",
    "cleanup-failed",
    "datagram-dropped",
    "dataplane",
    "dataplane-lost",
    "denied",
    "dpd-failed",
    "drain-timed-out",
    "earlier-pairs",
    "egress-restricted",
    "epoch-began",
    "epoch-ends",
    "esp-packets-dropped",
    "esp-process-ends",
    "expired",
    "expires",
    "ike-closed",
    "ike-established",
    "ike-failed",
    "ike-rekeyed",
    "informational-failed",
    "install-failed",
    "installed",
    "internal-error",
    "journal-ignored",
    "journal-unwritten",
    "journal-written-again",
    "key-guessed",
    "keyd-absent",
    "left-out",
    "level-set",
    "main-mode-failed",
    "message-ignored",
    "move-failed",
    "move-ignored",
    "moved",
    "name-resolved",
    "name-unresolved",
    "not-adopted",
    "not-migrated",
    "not-spoken",
    "notification-unsent",
    "notified",
    "notified-in-clear",
    "operator-refused",
    "order-failed",
    "overloaded",
    "peer-dead",
    "peer-followed",
    "peer-moved",
    "place-failed",
    "process-ended",
    "quick-mode-failed",
    "reload-unsupported",
    "remove-failed",
    "removed",
    "renewal-failed",
    "restart",
    "secrets",
    "send-failed",
    "stop-failed",
    "stop-unanswered",
    "unhandled",
    "worker-absent",
]
"""What events are called, all of them: scripts match these, budgets are kept by them."""
CODES: frozenset[str] = frozenset(get_args(Code))

_ORDER = {level: number for number, level in enumerate(Level)}
_BY_NAME = {level.value: level for level in Level}
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+", re.ASCII)
"""Printable ASCII without blank, quote, equals sign and backslash: stands without quotes."""
_FIELD = re.compile(r' ([a-z][a-z0-9_]{0,31})=(?:"((?:[^"\\]|\\.)*)"|([^ "=\\]+))', re.ASCII)


class Log(Protocol):
    """`event`, or one that also tells the operator's `events`, or a test's."""

    def __call__(self, level: Level, code: Code, **fields: object) -> None:
        """Record one event."""


# levels


@dataclass(slots=True)
class _Thresholds:
    everybody: Level
    own: dict[str, Level]
    """Of connections that have one."""
    most: Level

    def of(self, connection: object) -> Level:
        return self.own.get(connection, self.everybody) if isinstance(connection, str) else self.everybody


_thresholds = _Thresholds(Level.INFO, {}, Level.ERROR)


def configure(everybody: Level, own: Mapping[str, Level], *, most: Level = Level.ERROR) -> None:
    """The levels of this process: for all events, and for those of some connections; `most` is held back at most."""
    global _thresholds
    _thresholds = _Thresholds(everybody, dict(own), most)


def set_level(level: Level, connection: str = "") -> None:
    """Another level from now on, for one connection or for all that have none of their own."""
    if connection:
        _thresholds.own[connection] = level
    else:
        _thresholds.everybody = level


def shown(level: Level, connection: object = None) -> bool:
    """Whether this process writes events of that level about that connection, if it is a connection."""
    return _reaches(level, connection, _thresholds.most)


def noticed(level: Level, connection: object = None) -> bool:
    """Whether anybody may see such an event, in the log or by `events`: only then is it worth a budget."""
    return _reaches(level, connection, FOLLOWED)


def _reaches(level: Level, connection: object, most: Level) -> bool:
    return _ORDER[level] >= min(_ORDER[_thresholds.of(connection)], _ORDER[most])


# writing


def escape(text: str, limit: int = MAX_VALUE) -> str:
    r"""Printable ASCII, capped; everything else as \\xNN, so that a line stays one line and a terminal stays sane."""
    if len(text) <= limit and text.isascii() and text.isprintable() and "\\" not in text:
        return text
    safe = "".join(c if " " <= c <= "~" and c != "\\" else c.encode("unicode_escape").decode() for c in text[:limit])
    return safe if len(text) <= limit and len(safe) <= limit else safe[: limit - 3] + "..."


def render(level: Level, code: Code, fields: Mapping[str, object]) -> str:
    """The line. What is not plain is quoted and escaped as JSON has it, as logfmt's readers expect."""
    line = f"{level.value} {code}"
    for name, value in fields.items():
        text = str(value)
        if len(text) > MAX_VALUE:
            text = text[: MAX_VALUE - 3] + "..."
        field = f" {name}={quoted(text)}"
        if len(line) + len(field) > MAX_LINE:
            # whole fields go, so that what is left can be read
            continue
        line += field
    return line


def quoted(text: str) -> str:
    """The value as it stands in a line: as it is if it is plain, else in quotes."""
    # json leaves DEL as it is
    return text if _PLAIN.fullmatch(text) else json.dumps(text).replace("\x7f", "\\u007f")


def event(level: Level, code: Code, **fields: object) -> None:
    """Write one event. `fields` never hold keys, plaintext or raw text of a peer that is not an Identity."""
    if shown(level, fields.get("connection")):
        write(level, render(level, code, fields))


def write(level: Level, line: str) -> None:
    """One line on stderr, behind its priority where that is the journal."""
    try:
        sys.stderr.write(f"<{PRIORITIES[level]}>{line}\n" if _to_journal() else line + "\n")
        sys.stderr.flush()
    except OSError:
        # a reader that is gone or slow, or a full disk, must not stop the daemon
        return


def _to_journal() -> bool:
    """JOURNAL_STREAM names the journal's end of stderr (systemd.exec(5)); somebody may have redirected stderr since."""
    named = os.environ.get("JOURNAL_STREAM")
    if named is None:
        return False
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


# reading


@dataclass(slots=True, frozen=True)
class Record:
    """A line that was read back: what a process says of itself, and as true as that process is."""

    level: Level
    code: Code
    fields: dict[str, str]


def parse(line: str) -> Record | None:
    """What `render` made a line of; None for any other line. Takes time in proportion to its length."""
    name, _, rest = line.partition(" ")
    code, blank, fields = rest.partition(" ")
    level = _BY_NAME.get(name)
    if level is None or code not in CODES or len(line) > MAX_LINE:
        return None
    found: dict[str, str] = {}
    text, position = blank + fields, 0
    while position < len(text):
        match = _FIELD.match(text, position)
        if match is None or len(found) == MAX_FIELDS or match[1] in found:
            return None
        value = match[3] if match[3] is not None else _unquoted(match[2])
        if value is None:
            return None
        found[match[1]] = value
        position = match.end()
    return Record(level, cast("Code", code), found)


def _unquoted(text: str) -> str | None:
    try:
        value = json.loads(f'"{text}"')
    except ValueError:
        return None
    return value if type(value) is str else None
