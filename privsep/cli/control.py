"""The operator's end of RUN_DIR/control.sock: one request, lines of JSON until the result (`monitor/control.py`)."""

import argparse
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

from privsep.errors import OperatorError

DEFAULT_RUN_DIR = "/run/privsep-ike"
SOCKET_NAME = "control.sock"
MAX_SOCKET_PATH = 107
"""Octets: struct sockaddr_un has 108, the last of them zero (unix(7))."""
MAX_LINE = 64 << 20
"""Octets; the status of some fifty thousand tunnels."""
MARGIN = 5.0
"""Seconds that an answer may be later than the daemon's own deadline."""
_PEERCRED = struct.Struct("3i")

Message = dict[str, Any]


class NotReachable(OperatorError):
    """No daemon of ours answers there."""


class TimedOut(OperatorError):
    """It is there and did not answer in time."""


def add_run_dir(parser: argparse.ArgumentParser, help_: str = "the daemon's instance (default: %(default)s)") -> None:
    """The option by which `run` and all who ask its daemon name the instance."""
    parser.add_argument("--run-dir", metavar="DIR", type=_run_dir, default=DEFAULT_RUN_DIR, help=help_)


def _run_dir(text: str) -> str:
    length = len(os.fsencode(os.path.join(os.path.abspath(text), SOCKET_NAME)))
    if length > MAX_SOCKET_PATH:
        raise argparse.ArgumentTypeError(
            f"the socket in it would have a path of {length} octets, and the kernel knows {MAX_SOCKET_PATH}; "
            f"a directory with {length - MAX_SOCKET_PATH} less would be right"
        )
    return text


def ask(
    run_dir: str, request: Message, *, seconds: float | None, told: Callable[[Message], None] = lambda _: None
) -> Message:
    """The result of a request; `told` gets every line before it as it comes. `seconds` None waits for ever."""
    path = os.path.join(run_dir, SOCKET_NAME)
    for message in _answers(path, request, seconds):
        if message["kind"] == "result":
            return message
        told(message)
    raise NotReachable(f"{path}: the daemon ended before it had answered; see its log")


def _answers(path: str, request: Message, seconds: float | None) -> Iterator[Message]:
    """The daemon's lines. What goes wrong here is the daemon's or the path's fault, never that of who prints them."""
    deadline = None if seconds is None else time.monotonic() + seconds + MARGIN
    try:
        with _connect(path) as sock, sock.makefile("rb") as lines:
            sock.sendall(json.dumps(request).encode() + b"\n")
            while True:
                sock.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
                line = lines.readline(MAX_LINE)
                if not line.endswith(b"\n"):
                    return
                yield _parse(line, path)
    except TimeoutError:
        raise TimedOut(f"{path}: no answer within {seconds or MARGIN:g} s; the daemon is busy or stuck") from None
    except (ConnectionError, FileNotFoundError, NotADirectoryError) as error:
        hint = "start it with `privsep-ike run`, or name its --run-dir"
        raise NotReachable(f"{path}: no daemon answers ({error.strerror or 'it ended'}); {hint}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        hint = "the daemon's socket is root's: try sudo" if isinstance(error, PermissionError) else "check --run-dir"
        raise NotReachable(f"{path}: {reason}; {hint}") from None


def _connect(path: str) -> socket.socket:
    """Connected to a socket on which root listens, or we ourselves do; anybody else could lie to the operator."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(MARGIN)
        sock.connect(path)
        _, uid, _ = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    except OSError:
        sock.close()
        raise
    if uid not in (0, os.geteuid()):
        sock.close()
        raise NotReachable(f"{path}: uid {uid} listens there, not root; --run-dir must be a directory of root's")
    return sock


def _parse(line: bytes, path: str) -> Message:
    """One line of the daemon's."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or message.get("kind") not in ("progress", "event", "result"):
        raise NotReachable(f"{path}: not an answer of privsep-ike; another program or release listens there")
    if message["kind"] == "result" and type(message.get("code")) is not int:
        raise NotReachable(f"{path}: a result without a code; another release listens there")
    return message
