"""The operator's socket: RUN_DIR/control.sock, mode 0600, one request a connection, JSON lines.

The client sends one line ``{"command": ..., ...}`` and keeps its side open; it gets any number of lines of kind
``progress`` or ``event``, then one of kind ``result`` with a ``code`` (CONTRACT.md, exit codes) and a ``text``, then
the end. Nothing here waits: a client that is slow, silent or talks too much costs one of a few places for some seconds.
One that follows events may be as slow as it likes: what it has no room for is dropped, and counted by who tells it.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from monitor.directories import refused
from privsep.errors import OperatorError
from privsep.log import Level, Log
from privsep.loop import Loop

SOCKET_NAME = "control.sock"
LOCK_NAME = "lock"
MAX_CLIENTS = 16
MAX_REQUEST = 4096
MAX_BACKLOG = 256 * 1024
"""Octets of progress and events that wait for a slow reader; the result, which comes once, may be longer."""
REQUEST_SECONDS = 5.0
"""From connecting to the end of the request line."""
STALL_SECONDS = 10.0
"""Without the client taking one octet of what waits for it."""
TOTAL_SECONDS = 900.0
"""For everything but `events`."""
_PEERCRED = struct.Struct("3i")


def listen(run_dir: Path) -> socket.socket:
    """The listening socket; OperatorError when another instance serves there. Done before lockdown."""
    path = run_dir / SOCKET_NAME
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with _starting_alone(run_dir):
            if _serves(str(path)):
                raise OperatorError(f"{path}: another instance runs; end it, or name another --run-dir")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            umask = os.umask(0o177)
            try:
                sock.bind(str(path))
            finally:
                os.umask(umask)
            sock.listen(MAX_CLIENTS)
    except OSError as error:
        sock.close()
        raise refused(path, error) from error
    except OperatorError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _starting_alone(run_dir: Path) -> Iterator[None]:
    """Of two that start at once, the later must not take the earlier's socket for one that was left behind.

    Nobody but root can hold the lock. Its file stays, since whoever removes it may remove another's.
    """
    path = run_dir / LOCK_NAME
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperatorError(f"{path}: another instance is starting; name another --run-dir") from None
        yield
    finally:
        os.close(lock)


def _serves(path: str) -> bool:
    """Whether a process listens, be it so busy that nobody gets through. Never waits."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(path) in (0, errno.EAGAIN)


def forget(sock: socket.socket) -> None:
    """Take the listening socket's name away, and close it."""
    # where the name is gone already, or the directory, nothing is left to do
    with contextlib.suppress(OSError):
        os.unlink(sock.getsockname())
    sock.close()


class _State(Enum):
    REQUESTING = "requesting"
    SERVED = "served"
    ENDING = "ending"
    CLOSED = "closed"


class Client:
    """One operator's request. What is said to one that is gone is dropped."""

    def __init__(self, sock: socket.socket, loop: Loop, serve: "Serve", on_close: Callable[["Client"], None]) -> None:
        self._sock = sock
        self._loop = loop
        self._serve = serve
        self._on_close = on_close
        self._state = _State.REQUESTING
        self._request = bytearray()
        self._output = bytearray()
        self._deadline = loop.after(REQUEST_SECONDS, self.close)
        self._stall = loop.after(0, _nothing)
        self._on_room: Callable[[], None] | None = None
        self.on_gone: Callable[[], None] = _nothing
        """Called when the connection ends, however it does."""
        loop.on_readable(sock.fileno(), self._readable)

    def progress(self, text: str) -> None:
        """One step of what was asked for."""
        self._say({"kind": "progress", "text": text})

    def event(self, event: dict[str, Any]) -> bool:
        """One event of a stream; whether there was room for it."""
        if self._state is _State.SERVED and len(self._output) <= MAX_BACKLOG:
            self._queue({"kind": "event", **event})
            return True
        return False

    def endless(self, on_room: Callable[[], None]) -> None:
        """The client follows events: no deadline, not even for reading. `on_room` is called when it has read all."""
        self._deadline.cancel()
        self._stall.cancel()
        self._on_room = on_room

    def finish(self, code: int, text: str, **more: Any) -> None:
        """The result, and the end of the connection once it is read."""
        if self._state in (_State.REQUESTING, _State.SERVED):
            self._state = _State.ENDING
            self._queue({"kind": "result", "code": code, "text": text, **more})

    def close(self) -> None:
        """End the connection at once."""
        if self._state is _State.CLOSED:
            return
        self._state = _State.CLOSED
        self._deadline.cancel()
        self._stall.cancel()
        self._loop.on_readable(self._sock.fileno(), None)
        self._loop.on_writable(self._sock.fileno(), None)
        self._sock.close()
        self._on_close(self)
        self.on_gone()

    def _readable(self) -> None:
        try:
            data = self._sock.recv(MAX_REQUEST + 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
        if self._state is not _State.REQUESTING:
            # whatever follows the request line is read and dropped
            return
        self._request += data
        line, newline, rest = self._request.partition(b"\n")
        if len(line) > MAX_REQUEST or rest:
            self.finish(2, f"a request is one line of at most {MAX_REQUEST} octets")
        elif newline:
            self._begin(bytes(line))

    def _begin(self, line: bytes) -> None:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            self.finish(2, "a request is one JSON object")
            return
        if type(request) is not dict:
            self.finish(2, "a request is one JSON object")
            return
        self._state = _State.SERVED
        self._deadline.cancel()
        self._deadline = self._loop.after(TOTAL_SECONDS, self.close)
        self._serve(request, self)

    def _say(self, message: dict[str, Any]) -> None:
        if self._state is _State.SERVED:
            if len(self._output) > MAX_BACKLOG:
                self.close()
            else:
                self._queue(message)

    def _queue(self, message: dict[str, Any]) -> None:
        if not self._output:
            self._loop.on_writable(self._sock.fileno(), self._writable)
            self._await_reader()
        self._output += json.dumps(message).encode() + b"\n"

    def _await_reader(self) -> None:
        self._stall.cancel()
        if self._on_room is None:
            self._stall = self._loop.after(STALL_SECONDS, self.close)

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._output)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self._output[:sent]
        if self._output:
            self._await_reader()
        elif self._state is _State.ENDING:
            self.close()
        else:
            self._stall.cancel()
            self._loop.on_writable(self._sock.fileno(), None)
            if self._on_room is not None:
                self._on_room()


Serve = Callable[[dict[str, Any], Client], None]


class Control:
    """Accepts operators. `serve(request, client)` gets each request; only `uid` is admitted."""

    def __init__(self, sock: socket.socket, loop: Loop, serve: Serve, log: Log, uid: int = 0) -> None:
        self._sock = sock
        self._loop = loop
        self._serve = serve
        self._log = log
        self._uid = uid
        self._clients: set[Client] = set()
        loop.on_readable(sock.fileno(), self._acceptable)

    def _acceptable(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:
            # it hung up again, or we have no descriptor left: the next one will tell
            return
        _, uid, _ = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
        if uid != self._uid or len(self._clients) >= MAX_CLIENTS:
            self._log(Level.WARNING, "operator-refused", uid=uid, clients=len(self._clients))
            sock.close()
            return
        sock.setblocking(False)
        self._clients.add(Client(sock, self._loop, self._serve, self._clients.discard))

    def close(self) -> None:
        """End it and all its clients, and take its name away."""
        self._loop.on_readable(self._sock.fileno(), None)
        forget(self._sock)
        for client in tuple(self._clients):
            client.close()


def _nothing() -> None:
    pass
