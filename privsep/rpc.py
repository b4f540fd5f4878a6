"""The hot channel between worker and keyd: one ZeroMQ PAIR over a unix socket, pipelined, never blocking.

keyd binds, the worker connects once, and both lock down after the handshake. Neither reconnects: a lost channel
ends the epoch (docs/architecture.md). Frames and messages are bounded, foreign uids are turned away by libzmq itself
(IPC_FILTER_UID), and the directory of the socket is closed to everybody else.

ZeroMQ's descriptor is edge-triggered, and our own sends may take its edge away: after either, and only then, the socket
must be read until it says that it is empty. `Loop.before_poll` does that.
"""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import zmq

from privsep.errors import GONE, ChannelClosed
from privsep.loop import Loop
from privsep.schema.codec import MAX_FRAME, SchemaError, Table

In = TypeVar("In")
Out = TypeVar("Out")

HIGH_WATER = 8192
"""Frames queued in one direction; the worker's budgets stay far below."""
HANDSHAKE_MS = 5000
REAPER_POLL = 0.0005
ENDPOINT = "keyd.sock"
"""Name of keyd's socket in its directory."""
BATCH = 64
"""Frames taken in one round, so that other sources get their turn."""
_REAPED = "inproc://reaped"


def _socket(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    sock = context.socket(zmq.PAIR)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
    sock.setsockopt(zmq.SNDHWM, HIGH_WATER)
    sock.setsockopt(zmq.RCVHWM, HIGH_WATER)
    sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    return sock


def _descriptor(sock: zmq.Socket[bytes]) -> int:
    return int(sock.getsockopt(zmq.FD))


def _has_message(sock: zmq.Socket[bytes]) -> bool:
    return int(sock.getsockopt(zmq.EVENTS)) & zmq.POLLIN != 0


def run_in_batches() -> None:
    """Do not preempt whoever wakes us: on a busy core both ends then find several frames, not one, when they run.

    SCHED_BATCH (sched(7)) costs nothing on an idle core; threads that are made later inherit it.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class Wire:
    """A PAIR socket with its monitor socket, before it is put on a loop."""

    def __init__(self) -> None:
        # one I/O thread; it and the reaper exist before lockdown and are covered by seccomp's TSYNC
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.sock = _socket(self.context)
        self._path = ""
        self.state = self.sock.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)

    def bind(self, path: str, uid: int) -> None:
        """Listen for the one process of that uid."""
        self.sock.setsockopt(zmq.IPC_FILTER_UID, uid)
        self.sock.bind(f"ipc://{path}")
        self._path = path

    def hide(self) -> None:
        """Take the endpoint's name away, so that nobody else can connect. (zmq_unbind would end the connection too.)"""
        os.unlink(self._path)

    def connect(self, path: str) -> None:
        """Connect, once."""
        self.sock.setsockopt(zmq.RECONNECT_IVL, -1)
        self.sock.connect(f"ipc://{path}")

    def await_handshake(self, seconds: float) -> bool:
        """Wait for the other side, and for both threads of ZeroMQ to run; before lockdown only."""
        if not self._await_reaper(seconds) or not self.state.poll(int(seconds * 1000)):
            return False
        return self._event() == zmq.EVENT_HANDSHAKE_SUCCEEDED

    def _await_reaper(self, seconds: float) -> bool:
        """Whether the thread runs that frees the names of closed sockets. The other one shakes hands.

        On a busy machine a thread's first instructions may come after our lockdown, and the filter would end the
        process for what the C library does there (rseq, set_robust_list).
        """
        deadline = time.monotonic() + seconds
        with self.context.socket(zmq.PAIR) as closed:
            closed.bind(_REAPED)
        with self.context.socket(zmq.PAIR) as probe:
            while time.monotonic() < deadline:
                try:
                    probe.bind(_REAPED)
                except zmq.ZMQError:
                    time.sleep(REAPER_POLL)
                else:
                    return True
        return False

    def _event(self) -> int:
        frame = self.state.recv_multipart(zmq.NOBLOCK)[0]
        return int.from_bytes(frame[:2], "little")


class Peer(Generic[In, Out]):
    """A `Wire` on a loop, with typed messages. `on_close(reason)` is called once when it is lost or violated."""

    def __init__(
        self,
        wire: Wire,
        loop: Loop,
        incoming: Table[In],
        outgoing: Table[Out],
        handler: Callable[[In, int], None],
        on_close: Callable[[str], None],
    ) -> None:
        self._sock = wire.sock
        self._state = wire.state
        self._incoming = incoming
        self._outgoing = outgoing
        self._handler = handler
        self._on_close = on_close
        self._closed = False
        # ZeroMQ signals only a reader that has seen its queue empty
        self._unread = True
        loop.on_readable(_descriptor(self._sock), self._arrived)
        loop.on_readable(_descriptor(self._state), self._lost)
        loop.before_poll(self.pump)
        self._lost()

    @property
    def unread(self) -> bool:
        """Whether something may be there of which the descriptor does not tell: `pump` before waiting."""
        return self._unread

    def _arrived(self) -> None:
        self._unread = not self._closed

    def send(self, message: Out, sequence: int) -> None:
        """Queue a frame; the other end not reading ends the channel."""
        if self._closed:
            raise ChannelClosed
        try:
            self._sock.send(self._outgoing.encode(message, sequence), zmq.NOBLOCK)
        except zmq.Again:
            self.close("the other end does not read")
        else:
            self._unread = True

    def pump(self) -> bool:
        """Handle what has arrived, a bounded number of frames; True when more may be waiting (`unread`)."""
        for _ in range(BATCH):
            # to ask costs a quarter of what zmq.Again does
            self._unread = self._unread and _has_message(self._sock)
            if not self._unread:
                return False
            try:
                frame = self._sock.recv(zmq.NOBLOCK)
            except zmq.Again:
                return False
            try:
                message, sequence = self._incoming.decode(frame)
            except SchemaError as error:
                self.close(f"violation: {error}")
                return False
            self._handler(message, sequence)
        return True

    def _lost(self) -> None:
        # the monitor socket speaks only of a lost connection once the handshake is over
        if _has_message(self._state):
            self.close(GONE)

    def close(self, reason: str) -> None:
        """Report the end, once."""
        if not self._closed:
            self._closed = True
            self._unread = False
            self._on_close(reason)
