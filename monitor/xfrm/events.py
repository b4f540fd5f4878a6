"""What the kernel reports unasked: a packet that needs an SA (ACQUIRE), a lifetime that ended (EXPIRE)."""

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable

from monitor.dataplane import Events
from monitor.xfrm.client import KernelDataplane
from monitor.xfrm.messages import Acquire, Expire, Type
from monitor.xfrm.netlink import open_socket
from monitor.xfrm.sa import SaId
from monitor.xfrm.structs import PROTOCOLS
from privsep.types import Address, Spi

MAX_EVENT = 16384
EVENTS_AT_ONCE = 256
"""Read before other descriptors have their turn; the rest waits in the socket."""
RECEIVE_OCTETS = 4 << 20
"""Some thousand events wait there: what half a second of nothing but expiries makes."""

_ACQUIRE_GROUP = 1 << 0
_EXPIRE_GROUP = 1 << 1
"""XFRMNLGRP_ACQUIRE and XFRMNLGRP_EXPIRE as bits of a socket's groups."""
_SO_RCVBUFFORCE = 33
_HEADER = struct.Struct("=IHHII")
_PROTOCOLS = {number: protocol for protocol, number in PROTOCOLS.items()}


class XfrmEvents:
    """Call `read_events` when `fileno()` is readable. Belongs to the network namespace that made it."""

    def __init__(self, dataplane: KernelDataplane, events: Events) -> None:
        self._socket = open_socket(_ACQUIRE_GROUP | _EXPIRE_GROUP)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_OCTETS)
        self._dataplane = dataplane
        self._events = events
        self._handlers: dict[int, tuple[int, Callable[[bytes], None]]] = {
            Type.ACQUIRE: (Acquire.layout.size, self._acquire),
            Type.EXPIRE: (Expire.layout.size, self._expire),
        }

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def read_events(self) -> None:
        """Report what is waiting, at most EVENTS_AT_ONCE."""
        for _ in range(EVENTS_AT_ONCE):
            try:
                data, (sender, _groups) = self._socket.recvfrom(MAX_EVENT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._overrun()
                continue
            if sender == 0:
                self._dispatch(data)

    def _dispatch(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            return
        length, kind, *_ = _HEADER.unpack_from(data)
        size, handler = self._handlers.get(kind, (0, None))
        if handler is not None and _HEADER.size + size <= length <= len(data):
            handler(data[:length])

    def _acquire(self, data: bytes) -> None:
        """Of our policies only, whatever their lane: reqid and priority tell."""
        message = Acquire(data)
        message.decode()
        template = message.get_attr("XFRMA_TMPL")
        if template is not None:
            number = self._dataplane.requiring(template["reqid"], message["policy.priority"])
            if number is not None:
                self._events.acquired(number)

    def _expire(self, data: bytes) -> None:
        message = Expire(data)
        message.decode()
        protocol = _PROTOCOLS.get(message["state.id.proto"])
        if protocol is None:
            return
        address = _address(message["state.id.daddr"], message["state.family"])
        name = SaId(address, protocol, Spi(int.from_bytes(message["state.id.spi"])))
        hard = bool(message["hard"])
        ours = self._dataplane.ended(name) if hard else self._dataplane.owner(name)
        if ours is not None:
            self._events.expired(ours, hard)

    def _overrun(self) -> None:
        """The kernel dropped events. Packets ask again; SAs that ended do not, so they are looked for."""
        for spi in self._dataplane.vanished():
            self._events.expired(spi, True)


def _address(octets: bytes, family: int) -> Address:
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(octets[:4])
    return ipaddress.IPv6Address(octets)
