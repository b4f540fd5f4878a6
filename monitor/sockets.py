"""The sockets that the monitor opens as root and its children inherit: UDP 500 and 4500, and raw ESP.

With ESP in userspace, port 4500 exists twice. The two sockets form a SO_REUSEPORT group, and a classic BPF program in
the kernel deals each datagram to one of them (RFC 3948 section 2): IKE and keepalives to the worker, ESP to the ESP
process. Neither process sees the other's packets, and both send from port 4500.

A socket's file keeps the credentials of who made it, and firewalls match them (`meta skuid`, `egress.py`). So we make
the worker's sockets as the worker's user, whether `egress` is restricted or not. The socket itself becomes root's
again, because a SO_REUSEPORT group has one user.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum

from monitor.routes import OUTER_MARK
from monitor.xfrm.bypass import bypass, udp_encap
from privsep.errors import OperatorError
from privsep.types import Address

IKE_PORT = 500
NATT_PORT = 4500
"""RFC 3948 section 2: UDP-encapsulated ESP and, behind a non-ESP marker, IKE."""
ESP_PROTOCOL = 50

IKE_BUFFER = 1 << 20
"""Octets that wait for the worker: some thousand IKE messages, so that all peers may return at once."""
ESP_BUFFER = 4 << 20
"""Octets that wait for the ESP process: some 30 ms at 1 Gbit/s."""

# <asm-generic/socket.h>, <linux/in.h>, <linux/in6.h>: what the socket module has no names for
_SO_RCVBUFFORCE = 33
_SO_ATTACH_REUSEPORT_CBPF = 51
_IP_PKTINFO = 8
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_DONT = 0

_ROOT = 0

_WORKER, _ESP = 0, 1
"""Indexes in the SO_REUSEPORT group: the order in which the sockets were bound."""


class Plane(Enum):
    """Who carries ESP."""

    KERNEL = "kernel"
    USERSPACE = "userspace"


@dataclass(slots=True, frozen=True, kw_only=True)
class Listeners:
    """Open sockets by who inherits them. The monitor keeps them too, for the next child."""

    ike: tuple[socket.socket, ...]
    """Port 500, for the worker."""
    natt: tuple[socket.socket, ...]
    """Port 4500, for the worker."""
    esp_udp: tuple[socket.socket, ...]
    """Port 4500, for the ESP process; empty with the kernel's ESP."""
    esp_raw: tuple[socket.socket, ...]
    """IP protocol 50, for the ESP process; empty with the kernel's ESP."""

    def close(self) -> None:
        """Close all."""
        for sock in self.ike + self.natt + self.esp_udp + self.esp_raw:
            sock.close()


def open_listeners(listen: tuple[Address, ...], plane: Plane, worker: int) -> Listeners:
    """All sockets for these addresses, or for every address of both families. OperatorError says why not.

    `worker` is the uid that the worker's are made with.
    """
    opened: list[socket.socket] = []
    try:
        return _open(_locals(listen), plane, worker, opened)
    except BaseException:
        for sock in opened:
            sock.close()
        raise


Local = tuple[socket.AddressFamily, str]


def _locals(listen: tuple[Address, ...]) -> list[Local]:
    if listen:
        return [(socket.AF_INET if a.version == 4 else socket.AF_INET6, str(a)) for a in listen]
    wildcards: list[Local] = [(socket.AF_INET, "0.0.0.0")]  # noqa: S104 - the configuration asks for all addresses
    if _has_ipv6():
        wildcards.append((socket.AF_INET6, "::"))
    return wildcards


def _has_ipv6() -> bool:
    """Whether this machine does IPv6 at all: with ipv6.disable=1 not even a socket can be made."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return False
        raise
    return True


def _open(places: list[Local], plane: Plane, worker: int, opened: list[socket.socket]) -> Listeners:
    # port 500 first: it is shared with nobody, so a second daemon fails here
    ike = [_udp(place, IKE_PORT, plane, worker, opened) for place in places]
    natt, esp_udp, esp_raw = [], [], []
    for place in places:
        natt.append(_udp(place, NATT_PORT, plane, worker, opened))
        if plane is Plane.KERNEL:
            udp_encap(natt[-1])
        else:
            esp_udp.append(_udp(place, NATT_PORT, plane, _ROOT, opened))
            _steer(esp_udp[-1])
            esp_raw.append(_raw(place, opened))
    for sock in esp_udp + esp_raw:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, ESP_BUFFER)
    return Listeners(ike=tuple(ike), natt=tuple(natt), esp_udp=tuple(esp_udp), esp_raw=tuple(esp_raw))


def _udp(place: Local, port: int, plane: Plane, owner: int, opened: list[socket.socket]) -> socket.socket:
    family, address = place
    with _acting_as(owner):
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    opened.append(sock)
    # changes the socket's user, but not the credentials of its file
    os.fchown(sock.fileno(), _ROOT, -1)
    if plane is Plane.USERSPACE and port == NATT_PORT:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, IKE_BUFFER)
    _prepare(sock, plane)
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    _bind(sock, address, port, f"UDP port {port}")
    return sock


@contextmanager
def _acting_as(uid: int) -> Iterator[None]:
    """Without root's capabilities for so long; the saved uid brings them back."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(_ROOT)


def _raw(place: Local, opened: list[socket.socket]) -> socket.socket:
    family, address = place
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, ESP_PROTOCOL)
    opened.append(sock)
    _prepare(sock, Plane.USERSPACE)
    _bind(sock, address, 0, "ESP")
    return sock


def _prepare(sock: socket.socket, plane: Plane) -> None:
    """Outer packets: past our own routes (else they would go round in the tunnel) and past IPsec policies, and without
    DF, since neither IKEv1 nor ESP can make its packets smaller when a router asks for it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, OUTER_MARK)
    if plane is Plane.KERNEL:
        bypass(sock)
    else:
        # a kernel without XFRM has no policies to get past, and ESP in userspace is made for it
        with suppress(OperatorError):
            bypass(sock)
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)


def _bind(sock: socket.socket, address: str, port: int, what: str) -> None:
    try:
        sock.bind((address, port))
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                why = (
                    "is in use; another IKE daemon runs? `ss -lunp` names it, `gateway.listen` chooses other addresses"
                )
            case errno.EADDRNOTAVAIL:
                why = (
                    "cannot be had: no interface has this address; `gateway.listen` must name addresses of this machine"
                )
            case _:
                why = f"cannot be had: {error.strerror}"
        raise OperatorError(f"{what} on {address} {why}") from None


# Classic BPF, <linux/bpf_common.h>. In a SO_REUSEPORT group it sees the UDP payload and returns a socket's index.
_LOAD_LENGTH = 0x80
_LOAD_WORD = 0x20
_JUMP_IF_GREATER_OR_EQUAL = 0x35
_JUMP_IF_EQUAL = 0x15
_RETURN = 0x06
_STEERING = (
    (_LOAD_LENGTH, 0, 0, 0),
    # a keepalive, one octet 0xFF (RFC 3948 section 2.3), and whatever else is no ESP
    (_JUMP_IF_GREATER_OR_EQUAL, 1, 0, 4),
    (_RETURN, 0, 0, _WORKER),
    (_LOAD_WORD, 0, 0, 0),
    # the non-ESP marker: four octets of zero, which is no SPI (RFC 3948 section 2.2)
    (_JUMP_IF_EQUAL, 0, 1, 0),
    (_RETURN, 0, 0, _WORKER),
    (_RETURN, 0, 0, _ESP),
)


def _steer(sock: socket.socket) -> None:
    """Give the group that `sock` belongs to its program."""
    instructions = b"".join(struct.pack("=HBBI", *instruction) for instruction in _STEERING)
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("@HP", len(_STEERING), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)
