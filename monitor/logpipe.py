"""The children's stderr: lines in, lines out with the process's name in front.

A captured child may write anything. Whatever it writes ends up as printable ASCII behind its own name, in lines of
bounded length and at a bounded rate, so it can neither speak for another process nor drown the log nor keep us busy.
A line that is an event as ours are is given on as one, too; it is that child's word, and nobody else's.
"""

import os
from collections.abc import Callable
from functools import partial

from privsep.log import Level, Record, parse, render
from privsep.loop import Loop, Timer
from privsep.rate import Counted, Rate

MAX_LINE = 2048
"""Octets of one line; the rest of a longer one is dropped."""
LINES_PER_SECOND = 200
"""Of each level."""
READS_PER_SECOND = 50
"""Of READ_SIZE; after that the child has to wait, or to lose what it says."""
READ_SIZE = 4096


Write = Callable[[str, Record | None], None]
"""Gets a complete line without the newline, and the event that it is, if it is one."""


class LogPipe:
    """Reads `fd`, which becomes ours, until its end."""

    def __init__(self, fd: int, loop: Loop, name: str, write: Write) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = loop
        self._name = name
        self._write = write
        self._line = bytearray()
        self._cut = 0
        self._lines = {
            level: Counted(LINES_PER_SECOND, loop.now, loop.after, partial(self._dropped, level))
            for level in (*Level, None)
        }
        """By level, so that many notices hide no warning; of what is no event, None."""
        self._reads = Rate(READS_PER_SECOND)
        self._pause: Timer | None = None
        loop.on_readable(fd, self._readable)

    def close(self) -> None:
        """Read what is left, as far as the rate admits, and end."""
        while self._fd >= 0 and self._reads.admit(self._loop.now()) and self._read():
            pass
        if self._fd >= 0:
            self._end()

    def _readable(self) -> None:
        if self._reads.admit(self._loop.now()):
            self._read()
        else:
            self._loop.on_readable(self._fd, None)
            self._pause = self._loop.after(1.0, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.on_readable(self._fd, self._readable)

    def _read(self) -> bool:
        """Whether there may be more."""
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return False
        if not data:
            self._end()
            return False
        *complete, rest = data.split(b"\n")
        for piece in complete:
            self._append(piece)
            self._flush()
        self._append(rest)
        return True

    def _append(self, piece: bytes) -> None:
        room = MAX_LINE - len(self._line)
        self._line += piece[:room]
        self._cut += max(0, len(piece) - room)

    def _flush(self) -> None:
        """One line is complete."""
        line, cut = bytes(self._line), self._cut
        self._line.clear()
        self._cut = 0
        if not line:
            return
        text = _printable(line) + (f"... ({cut} octets more)" if cut else "")
        record = None if cut else parse(text)
        if self._lines[record.level if record is not None else None].admit():
            self._emit(text, record)

    def _dropped(self, level: Level | None, lines: int) -> None:
        if level is None:
            self._emit(f"({lines} lines dropped)")
        else:
            fields = {"lines": str(lines), "why": "more than are taken in a second"}
            self._emit(render(level, "left-out", fields), Record(level, "left-out", fields))

    def _emit(self, text: str, record: Record | None = None) -> None:
        self._write(f"{self._name}: {text}", record)

    def _end(self) -> None:
        if self._line:
            self._flush()
        for budget in self._lines.values():
            budget.told()
        if self._pause is not None:
            self._pause.cancel()
        self._loop.on_readable(self._fd, None)
        os.close(self._fd)
        self._fd = -1


def _printable(line: bytes) -> str:
    if line.isascii() and (text := line.decode("ascii")).isprintable():
        return text
    return "".join(chr(octet) if 0x20 <= octet < 0x7F else f"\\x{octet:02x}" for octet in line)
