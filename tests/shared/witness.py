"""Who sees every packet of some wires, and what a stranger could read of it, by the addresses of the packet."""

import ipaddress
import socket
import struct
from collections import Counter
from collections.abc import Iterable

from lab import Site

ETH_P_ALL = 3
IPV4, IPV6 = 0x0800, 0x86DD
UDP, ESP, AH, ICMPV6 = 17, 50, 51, 58
NEIGHBOUR_DISCOVERY = range(133, 138)
BUFFER = 64 << 20
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_STATISTICS = 263, 6


def look(frame: bytes) -> tuple[str, set[str]]:
    """What an Ethernet frame is: ike, protected, keepalive, clear or other; and its two addresses."""
    kind, packet = int.from_bytes(frame[12:14]), frame[14:]
    if kind == IPV4 and len(packet) >= 20:
        protocol, start, ends = packet[9], (packet[0] & 15) * 4, (packet[12:16], packet[16:20])
    elif kind == IPV6 and len(packet) >= 40:
        protocol, start, ends = packet[6], 40, (packet[8:24], packet[24:40])
    else:
        return "other", set()
    return _kind(protocol, packet[start:]), {str(ipaddress.ip_address(end)) for end in ends}


def _kind(protocol: int, payload: bytes) -> str:
    if protocol in (ESP, AH):
        return "protected"
    if protocol == ICMPV6 and payload and payload[0] in NEIGHBOUR_DISCOVERY:
        return "other"
    if protocol == UDP and len(payload) > 8:
        ports = struct.unpack_from("!HH", payload)
        if 500 in ports:
            return "ike"
        if 4500 in ports:
            # RFC 3948 sections 2.2 and 2.3
            return "keepalive" if payload[8:] == b"\xff" else "protected" if any(payload[8:12]) else "ike"
    return "clear"


class Witness:
    """Listens in the namespaces to what leaves by interfaces whose names begin with "wire".

    Only to what leaves: a tap sees a packet that came in encrypted a second time, when the kernel has decapsulated it.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        self._taps = [site.enter(_tap) for site in sites]
        self._seen: list[tuple[str, set[str]]] = []

    def of(self, addresses: set[str]) -> Counter[str]:
        """What has passed so far from or to one of these addresses."""
        self._read()
        return Counter(kind for kind, ends in self._seen if ends & addresses)

    def _read(self) -> None:
        for tap in self._taps:
            while True:
                try:
                    frame, (interface, _, direction, *_) = tap.recvfrom(256)
                except BlockingIOError:
                    break
                if direction == socket.PACKET_OUTGOING and interface.startswith("wire"):
                    self._seen.append(look(frame))
            _, dropped = struct.unpack("=II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
            assert dropped == 0, "the witness was too slow"

    def close(self) -> None:
        for tap in self._taps:
            tap.close()


def _tap() -> socket.socket:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ALL))
    tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    return tap
