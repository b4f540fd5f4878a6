"""One look-up of one name: a process of nobody's is started, answers once and is gone (`monitor/resolver`)."""

import os
from collections.abc import Callable

from monitor.logpipe import LogPipe, Write
from privsep.config.model import Layer, Users
from privsep.loop import Loop
from privsep.schema.codec import MAX_FRAME, SchemaError
from privsep.schema.names import ANSWERS, Answer, NotFound
from privsep.spawn import spawn

RESOLVER = "names"
"""What its lines in the log begin with."""
ANSWER_FD = 3
LOOKUP_SECONDS = 30.0
"""As long as the C library tries three name servers twice (resolv.conf(5))."""


class Resolvers:
    """Starts resolvers. What they say is believed as far as an address goes."""

    def __init__(self, users: Users, absent: frozenset[Layer], loop: Loop, write: Write) -> None:
        """`write` gets what they log."""
        self._user = users.resolver
        self._absent = sorted(layer.value for layer in absent)
        self._loop = loop
        self._write = write

    def ask(self, name: str, version: int | None, told: Callable[[Answer], None]) -> None:
        """Look up; `told` gets the one answer, whatever happens. OSError if no process can be started."""
        uid, gid = self._user
        words = ["--answer", str(ANSWER_FD), "--name", name, "--version", str(version or 0)]
        words += ["--uid", str(uid), "--gid", str(gid), *(("--absent", *self._absent) if self._absent else ())]
        answer, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            child = spawn("monitor.resolver", args=words, fds={ANSWER_FD: write_end})
        except OSError:
            os.close(answer)
            raise
        finally:
            os.close(write_end)
        log = LogPipe(child.log, self._loop, RESOLVER, self._write)
        timer = self._loop.after(LOOKUP_SECONDS, child.kill)

        def ended() -> None:
            timer.cancel()
            self._loop.on_readable(child.pidfd, None)
            child.reap()
            os.close(child.pidfd)
            log.close()
            told(_read(answer))

        self._loop.on_readable(child.pidfd, ended)


def _read(answer: int) -> Answer:
    """What it wrote before it ended, which fits into the pipe."""
    try:
        message, _ = ANSWERS.decode(os.read(answer, MAX_FRAME))
    except (BlockingIOError, SchemaError):
        return NotFound(why="the resolver ended without an answer")
    finally:
        os.close(answer)
    return message
