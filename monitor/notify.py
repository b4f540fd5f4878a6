"""Telling the service manager (sd_notify(3)): one datagram a message, no library."""

import os
import socket
from typing import Self


class Notifier:
    """`NOTIFY_SOCKET`, connected before lockdown; without it every message is nothing."""

    def __init__(self, sock: socket.socket | None) -> None:
        self._sock = sock

    @classmethod
    def from_environment(cls) -> Self:
        """Connect, and take the variable away, so that no child can speak for us."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls(None)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            sock.close()
            return cls(None)
        return cls(sock)

    def ready(self) -> None:
        """Start-up is complete."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """A line for ``systemctl status``; must be one line."""
        self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if self._sock is None:
            return
        try:
            self._sock.send(message.encode())
        except OSError:
            # a manager that does not listen is none of our business
            return
