"""A typed end of an inherited SOCK_SEQPACKET pair: frames out, frames in, never blocking.

The kernel keeps message boundaries and the pair has no name, so neither framing nor peer checks are needed here.
"""

import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from privsep.errors import GONE, ChannelClosed
from privsep.loop import Loop
from privsep.schema.codec import MAX_FRAME, SchemaError, Table

In = TypeVar("In")
Out = TypeVar("Out")

MAX_QUEUED = 4096
"""Frames that wait for a slow reader before the channel counts as dead."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, close-on-exec; the one to inherit is passed by number at exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


class Channel(Generic[In, Out]):
    """`handler(message, sequence)` gets each message; `on_close(reason)` is called once when the other end is gone or
    sent what the table does not hold."""

    def __init__(
        self,
        sock: socket.socket,
        loop: Loop,
        incoming: Table[In],
        outgoing: Table[Out],
        handler: Callable[[In, int], None],
        on_close: Callable[[str], None],
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._incoming = incoming
        self._outgoing = outgoing
        self._handler = handler
        self._on_close = on_close
        self._queue: deque[bytes] = deque()
        self._closed = False
        sock.setblocking(False)
        loop.on_readable(sock.fileno(), self._readable)

    def send(self, message: Out, sequence: int = 0) -> None:
        """Send or queue. ChannelClosed after the end."""
        if self._closed:
            raise ChannelClosed
        frame = self._outgoing.encode(message, sequence)
        if self._queue or not self._try(frame):
            if len(self._queue) >= MAX_QUEUED:
                self.close("the other end does not read")
                return
            self._queue.append(frame)
            self._loop.on_writable(self._sock.fileno(), self._writable)

    def _try(self, frame: bytes) -> bool:
        try:
            self._sock.send(frame)
        except BlockingIOError:
            return False
        except OSError:
            self.close(GONE)
        return True

    def _writable(self) -> None:
        while self._queue and self._try(self._queue[0]):
            if self._closed:
                return
            self._queue.popleft()
        if not self._queue:
            self._loop.on_writable(self._sock.fileno(), None)

    def _readable(self) -> None:
        # a bounded batch, so that one talkative end cannot keep the loop
        for _ in range(64):
            if self._closed:
                return
            try:
                frame = self._sock.recv(MAX_FRAME + 1)
            except BlockingIOError:
                return
            except OSError:
                frame = b""
            if not frame:
                self.close(GONE)
                return
            try:
                message, sequence = self._incoming.decode(frame)
            except SchemaError as error:
                self.close(f"violation: {error}")
                return
            self._handler(message, sequence)

    def close(self, reason: str) -> None:
        """Close and tell `on_close`, once."""
        if self._closed:
            return
        self._closed = True
        fd = self._sock.fileno()
        self._loop.on_readable(fd, None)
        self._loop.on_writable(fd, None)
        self._sock.close()
        self._queue.clear()
        self._on_close(reason)


AnyChannel = Channel[Any, Any]
