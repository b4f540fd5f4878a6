"""What the kernel reports unasked: a packet that needs an SA (ACQUIRE), a lifetime that ended (EXPIRE), a peer whose
packets come from another port (MAPPING: after the packet's ICV was verified and its sequence number found new)."""

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable

from monitor.dataplane import Events
from monitor.xfrm.client import KernelDataplane
from monitor.xfrm.messages import Acquire, Expire, Mapping, Message, Type
from monitor.xfrm.netlink import open_socket
from monitor.xfrm.sa import SaId
from monitor.xfrm.structs import PROTOCOLS
from privsep.types import Address, Endpoint, Spi

MAX_EVENT = 16384
EVENTS_AT_ONCE = 256
"""Read before other descriptors have their turn; the rest waits in the socket."""
RECEIVE_OCTETS = 4 << 20
"""Some thousand events wait there: what half a second of nothing but expiries makes."""

_ACQUIRE_GROUP = 1 << 0
_EXPIRE_GROUP = 1 << 1
_MAPPING_GROUP = 1 << 7
"""XFRMNLGRP_ACQUIRE, XFRMNLGRP_EXPIRE and XFRMNLGRP_MAPPING as bits of a socket's groups."""
_SO_RCVBUFFORCE = 33
_HEADER = struct.Struct("=IHHII")
_PROTOCOLS = {number: protocol for protocol, number in PROTOCOLS.items()}


class XfrmEvents:
    """Call `read_events` when `fileno()` is readable. Belongs to the network namespace that made it."""

    def __init__(self, dataplane: KernelDataplane, events: Events) -> None:
        self._socket = open_socket(_ACQUIRE_GROUP | _EXPIRE_GROUP | _MAPPING_GROUP)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_OCTETS)
        self._dataplane = dataplane
        self._events = events
        self._handlers: dict[int, tuple[int, Callable[[bytes], None]]] = {
            Type.ACQUIRE: (Acquire.layout.size, self._acquire),
            Type.EXPIRE: (Expire.layout.size, self._expire),
            Type.MAPPING: (Mapping.layout.size, self._mapping),
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
        name = _name(message, "state.id", message["state.family"])
        if name is None:
            return
        hard = bool(message["hard"])
        ours = self._dataplane.ended(name) if hard else self._dataplane.owner(name)
        if ours is not None:
            self._events.expired(ours, hard)

    def _mapping(self, data: bytes) -> None:
        message = Mapping(data)
        message.decode()
        family = message["id.family"]
        name = _name(message, "id", family)
        ours = self._dataplane.owner(name) if name is not None else None
        if ours is not None:
            source = Endpoint(_address(message["new_saddr"], family), int.from_bytes(message["new_sport"]))
            self._events.moved(ours, source)

    def _overrun(self) -> None:
        """The kernel dropped events. Packets ask again; SAs that ended do not, so they are looked for."""
        for spi in self._dataplane.vanished():
            self._events.expired(spi, True)


def _name(message: Message, prefix: str, family: int) -> SaId | None:
    """What the SA is known by, if it is of a protocol of ours."""
    protocol = _PROTOCOLS.get(message[f"{prefix}.proto"])
    if protocol is None:
        return None
    address = _address(message[f"{prefix}.daddr"], family)
    return SaId(address, protocol, Spi(int.from_bytes(message[f"{prefix}.spi"])))


def _address(octets: bytes, family: int) -> Address:
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(octets[:4])
    return ipaddress.IPv6Address(octets)
