"""The worker's UDP sockets: inherited, bound by the monitor, told apart by what they are bound to.

A socket bound to the wildcard address learns by IP_PKTINFO which of our addresses a datagram was sent to, and answers
from that one: NAT detection hashes it (RFC 3947 section 3.2) and peers expect it.
"""

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable

from privsep.loop import Loop
from privsep.types import Address, Endpoint

MAX_DATAGRAM = 65535
BATCH = 32
"""Datagrams taken from one socket in one round, so that timers and channels get their turn."""
MAX_CACHED = 4096
"""Local endpoints that are kept as objects."""

_IP_PKTINFO = 8
_IN_PKTINFO = struct.Struct("=I4s4s")
"""Interface, local address (for sending: source), header destination."""
_IN6_PKTINFO = struct.Struct("=16sI")
_ANCILLARY = socket.CMSG_SPACE(32)

Received = Callable[[bytes, Endpoint, Endpoint], None]
"""(datagram, local, remote)"""


class Sockets:
    """All UDP sockets of this worker on a loop."""

    def __init__(self, descriptors: tuple[int, ...], loop: Loop, received: Received) -> None:
        self._received = received
        self._by_local: dict[tuple[bytes, int], socket.socket] = {}
        self._wildcards: dict[tuple[int, int], socket.socket] = {}
        self._locals: dict[tuple[bytes, int], Endpoint] = {}
        for descriptor in descriptors:
            self._add(socket.socket(fileno=descriptor), loop)

    def _add(self, sock: socket.socket, loop: Loop) -> None:
        name = sock.getsockname()
        address, port = ipaddress.ip_address(name[0]), name[1]
        sock.setblocking(False)
        if address.is_unspecified:
            self._wildcards[address.version, port] = sock
            loop.on_readable(sock.fileno(), lambda: self._readable(sock, None, port))
        else:
            self._by_local[address.packed, port] = sock
            loop.on_readable(sock.fileno(), lambda: self._readable(sock, address, port))

    def _readable(self, sock: socket.socket, local: Address | None, port: int) -> None:
        for _ in range(BATCH):
            try:
                data, ancillary, _, source = sock.recvmsg(MAX_DATAGRAM, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError:
                # an ICMP error that an earlier datagram of ours met; the retransmission will tell
                continue
            packed = local.packed if local is not None else _destination(ancillary)
            if packed is not None:
                self._received(data, self._local(packed, port), _remote(source))

    def _local(self, address: bytes, port: int) -> Endpoint:
        key = (address, port)
        found = self._locals.get(key)
        if found is None:
            if len(self._locals) >= MAX_CACHED:
                self._locals.clear()
            found = self._locals[key] = Endpoint(ipaddress.ip_address(address), port)
        return found

    def send(self, data: bytes, local: Endpoint, remote: Endpoint) -> int:
        """0 once it is on its way, else the errno that says why it is lost; the engine sends again by itself."""
        target = (str(remote.address), remote.port)
        try:
            sock = self._by_local.get((local.address.packed, local.port))
            if sock is not None:
                sock.sendto(data, target)
                return 0
            sock = self._wildcards.get((local.address.version, local.port))
            if sock is None:
                return errno.EADDRNOTAVAIL
            sock.sendmsg([data], [_source(local.address)], 0, target)
        except OSError as error:
            return error.errno or errno.EIO
        return 0


def _remote(source: tuple[str, int]) -> Endpoint:
    """Made anew for each datagram: strangers have any number of addresses, and none is worth keeping."""
    # a link-local address carries its interface behind a percent sign
    return Endpoint(ipaddress.ip_address(source[0].partition("%")[0]), source[1])


def _destination(ancillary: list[tuple[int, int, bytes]]) -> bytes | None:
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= _IN_PKTINFO.size:
            return bytes(_IN_PKTINFO.unpack_from(data)[2])
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= _IN6_PKTINFO.size:
            return bytes(_IN6_PKTINFO.unpack_from(data)[0])
    return None


def _source(address: Address) -> tuple[int, int, bytes]:
    if address.version == 4:
        return socket.IPPROTO_IP, _IP_PKTINFO, _IN_PKTINFO.pack(0, address.packed, bytes(4))
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.pack(address.packed, 0)
