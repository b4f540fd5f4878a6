"""The kernel drops what strangers send, where all peers are at fixed addresses: the worker never sees it.

A classic BPF program on each of the worker's UDP sockets (SO_ATTACH_FILTER, socket(7)) looks at the source of a
datagram. The filter stands in front of the socket's queue, so a flood costs peers no place there either. Of port 4500
it sees what is left for the worker: ESP in UDP went to the kernel before, or to the ESP process by its own program
(`sockets.py`). The worker cannot take it away, as its seccomp filter admits no setsockopt.
"""

import ctypes
import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable

from privsep.config.model import Gateway
from privsep.config.names import RemoteName
from privsep.types import Address

MAX_ADMITTED = 128
"""Addresses of a family; with more there is no filter. Each takes nine instructions at most of the kernel's 4096,
and of the memory that a socket's options may take (net.core.optmem_max)."""

# <asm-generic/socket.h>, <linux/bpf_common.h>, <linux/filter.h>: what the socket module has no names for
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_LOAD_WORD = 0x20
_STORE = 0x02
_LOAD_STORED = 0x60
_JUMP_IF_EQUAL = 0x15
_RETURN = 0x06
_NETWORK_HEADER = 0x100000000 - 0x100000
"""SKF_NET_OFF: offsets from here on count from the IP header, those from 0 from the UDP header."""
_SOURCE = {4: _NETWORK_HEADER + 12, 6: _NETWORK_HEADER + 8}
"""Of the source address in the IP header (RFC 791 section 3.1, RFC 8200 section 3)."""
_WHOLE = 0xFFFFFFFF
_DROP = 0

Instruction = tuple[int, int, int, int]
"""Operation, instructions to skip if true and if false, operand."""


def admitted(gateway: Gateway) -> frozenset[Address] | None:
    """Where all peers are, by now; None where some may be anywhere, or where there are too many."""
    found: set[Address] = set()
    for connection in gateway.connections:
        match connection.remote:
            case ipaddress.IPv4Address() | ipaddress.IPv6Address():
                found.add(connection.remote)
            case RemoteName():
                found |= set() if connection.remote.address is None else {connection.remote.address}
            case _:
                return None
    return frozenset(found) if max(_count(found, 4), _count(found, 6)) <= MAX_ADMITTED else None


def _count(addresses: Iterable[Address], version: int) -> int:
    return sum(each.version == version for each in addresses)


def admit(sockets: Iterable[socket.socket], addresses: frozenset[Address] | None) -> None:
    """From now on only datagrams from these addresses arrive; None: from all. May be called again."""
    for sock in sockets:
        if addresses is None:
            _detach(sock)
            continue
        version = 4 if sock.family == socket.AF_INET else 6
        _attach(sock, program(version, [each for each in addresses if each.version == version]))


def program(version: int, addresses: Iterable[Address]) -> list[Instruction]:
    """Takes a datagram whole if its source is one of the addresses, which are of that IP version."""
    words = range(1 if version == 4 else 4)
    instructions: list[Instruction] = []
    for number in words:
        instructions.append((_LOAD_WORD, 0, 0, _SOURCE[version] + 4 * number))
        instructions.append((_STORE, 0, 0, number))
    for address in sorted(addresses, key=int):
        for number, word in zip(words, struct.unpack(f">{len(words)}I", address.packed), strict=True):
            # where a word differs, on to the next address: past the other words, two each, and the return
            rest = 2 * (len(words) - number - 1) + 1
            instructions.append((_LOAD_STORED, 0, 0, number))
            instructions.append((_JUMP_IF_EQUAL, 0, rest, word))
        instructions.append((_RETURN, 0, 0, _WHOLE))
    instructions.append((_RETURN, 0, 0, _DROP))
    return instructions


def _attach(sock: socket.socket, instructions: list[Instruction]) -> None:
    octets = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(octets, len(octets))
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(instructions), ctypes.addressof(buffer))
    )


def _detach(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
