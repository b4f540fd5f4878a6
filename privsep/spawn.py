"""Starting a process of ours: fork and exec in one, so that no memory of the parent's is left in the child.

The child gets the descriptors that are listed, under the numbers that are listed, a log pipe as stdout and stderr, no
environment, no signal dispositions, its own session. Nothing secret is in its arguments: /proc shows them to everybody.
"""

import fcntl
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_STANDARD = (0, 1, 2)
_SPARE = 512
"""Duplicates of what is passed live above this number for a moment; children's numbers are below."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Child:
    """A process of ours. The descriptors are the caller's to close."""

    pid: int
    pidfd: int
    """Readable when the process has ended; then `reap`."""
    log: int
    """The read end of its stdout and stderr, not blocking."""

    def kill(self) -> None:
        """End it at once. Harmless when it has ended; never hits another process of the same number."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return

    def reap(self) -> int:
        """Wait for the end: the exit code, or the negative number of the signal that ended it."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def spawn(module: str, *, args: Sequence[str] = (), fds: Mapping[int, int]) -> Child:
    """Run ``python -I -B -m module args``; `fds` maps the child's descriptor numbers (3 and above) to ours."""
    if any(not len(_STANDARD) <= number < _SPARE for number in fds):
        raise ValueError("a child's descriptor number is out of range")
    log, log_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    spare: list[int] = []
    try:
        sources = {1: log_write, 2: log_write, **fds}
        for number, ours in sources.items():
            copy = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, _SPARE)
            spare.append(copy)
            sources[number] = copy
        pid = _spawn(module, args, sources)
    except OSError:
        os.close(log)
        raise
    finally:
        for fd in (log_write, *spare):
            os.close(fd)
    return Child(pid=pid, pidfd=os.pidfd_open(pid), log=log)


def _spawn(module: str, args: Sequence[str], sources: Mapping[int, int]) -> int:
    """The sources are above every target, so no dup2 covers what a later one needs."""
    # everything of ours is close-on-exec already; this also closes what a library forgot to mark
    unlisted = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd not in sources and fd not in sources.values()]
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-B", "-m", module, *args],
        {},
        file_actions=[
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in unlisted),
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            *((os.POSIX_SPAWN_DUP2, ours, number) for number, ours in sources.items()),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=signal.valid_signals(),
    )
