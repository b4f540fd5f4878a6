"""Inner IP packets: what selectors look at (RFC 4301 section 4.4.1.1), and the headers that transport mode takes off.

A packet that comes out of the tunnel was written by an authenticated peer, who may still be hostile: every length is
checked, every walk bounded.
"""

import struct
from dataclasses import dataclass

from monitor.userspace.drops import Dropped, Reason
from privsep.types import Address, TrafficSelector

IPV4, IPV6 = 4, 6
IPIP, IPV6_IN_IP = 4, 41
"""Next header of an inner packet in tunnel mode (RFC 4303 section 2.6)."""
TCP, UDP = 6, 17

_IPV4_HEADER = 20
_IPV6_HEADER = 40
_PLAIN_IPV4 = 0x45
"""Version 4, five words: no options."""
_FRAGMENT_BITS = 0x3FFF
"""More Fragments and the offset (RFC 791 section 3.1)."""
_FRAGMENT_OFFSET = 0x1FFF
_WITH_PORTS = frozenset((TCP, UDP, 33, 132, 136))
"""TCP, UDP, DCCP, SCTP, UDP-Lite: two ports come first."""
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_MAX_EXTENSIONS = 8
"""IPv6 extension headers that are walked; RFC 8200 section 4.1 knows seven and recommends each at most once."""
_HOP_LIMIT = 64


@dataclass(slots=True, frozen=True)
class Flow:
    """Versions, addresses, protocol and ports of a packet. Ports are -1 where the packet does not show them: in a later
    fragment or another protocol. Such a packet fits only selectors for any port (RFC 4301 section 7)."""

    version: int
    source: int
    destination: int
    protocol: int
    source_port: int
    destination_port: int
    fragmented: bool


class Matcher:
    """One traffic selector, compiled to integers."""

    __slots__ = ("_mask", "_network", "_port", "_protocol", "_version")

    def __init__(self, selector: TrafficSelector) -> None:
        self._version = selector.network.version
        self._network = int(selector.network.network_address)
        self._mask = int(selector.network.netmask)
        self._protocol = selector.protocol
        self._port = selector.port

    def fits(self, version: int, address: int, protocol: int, port: int) -> bool:
        """Whether one side of a packet is selected; 0 is the selector's word for any."""
        return (
            version == self._version
            and address & self._mask == self._network
            and self._protocol in (0, protocol)
            and self._port in (0, port)
        )


def flow_key(packet: bytes) -> bytes:
    """The octets that tell flows apart, for a cache; empty for all but plain TCP and UDP, which need a closer look."""
    if packet[:1] == b"\x45":
        if packet[9] in (TCP, UDP) and not (packet[6] & 0x3F or packet[7]):
            return packet[9:10] + packet[12:24]
    elif packet[:1] >= b"\x60" and packet[6] in (TCP, UDP):
        return packet[6:7] + packet[8:44]
    return b""


def whole(packet: bytes) -> bytes:
    """One IP packet without what follows it: RFC 4303 section 2.7 allows padding behind an inner packet."""
    version = packet[0] >> 4 if packet else 0
    if version == IPV4 and len(packet) >= _IPV4_HEADER:
        total = int.from_bytes(packet[2:4], "big")
        smallest = _IPV4_HEADER
    elif version == IPV6 and len(packet) >= _IPV6_HEADER:
        total = _IPV6_HEADER + int.from_bytes(packet[4:6], "big")
        smallest = _IPV6_HEADER
    else:
        raise Dropped(Reason.MALFORMED)
    if not smallest <= total <= len(packet):
        raise Dropped(Reason.MALFORMED)
    return packet[:total]


def parse(packet: bytes) -> Flow:
    """The flow of a packet that `whole` returned; Dropped where its headers contradict its length."""
    return _parse_ipv4(packet) if packet[0] >> 4 == IPV4 else _parse_ipv6(packet)


def _parse_ipv4(packet: bytes) -> Flow:
    header = (packet[0] & 0x0F) * 4
    if not _IPV4_HEADER <= header <= len(packet):
        raise Dropped(Reason.MALFORMED)
    fragment = int.from_bytes(packet[6:8], "big")
    ports = _ports(packet, header, packet[9], fragment & _FRAGMENT_OFFSET)
    source, destination = int.from_bytes(packet[12:16], "big"), int.from_bytes(packet[16:20], "big")
    return Flow(IPV4, source, destination, packet[9], *ports, bool(fragment & _FRAGMENT_BITS))


def _parse_ipv6(packet: bytes) -> Flow:
    """RFC 8200 section 4: the upper-layer protocol stands behind the extension headers."""
    protocol, offset = packet[6], _IPV6_HEADER
    fragment, fragmented = 0, False
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION) or fragment:
            break
        if offset + 8 > len(packet):
            raise Dropped(Reason.MALFORMED)
        if protocol == _FRAGMENT:
            fragmented = True
            fragment = int.from_bytes(packet[offset + 2 : offset + 4], "big") >> 3
            octets = 8
        else:
            octets = (packet[offset + 1] + 1) * 8
        protocol = packet[offset]
        offset += octets
    else:
        raise Dropped(Reason.MALFORMED)
    ports = _ports(packet, offset, protocol, fragment)
    source, destination = int.from_bytes(packet[8:24], "big"), int.from_bytes(packet[24:40], "big")
    return Flow(IPV6, source, destination, protocol, *ports, fragmented)


def _ports(packet: bytes, offset: int, protocol: int, fragment: int) -> tuple[int, int]:
    if protocol not in _WITH_PORTS or fragment:
        return -1, -1
    if offset + 4 > len(packet):
        raise Dropped(Reason.MALFORMED)
    return int.from_bytes(packet[offset : offset + 2], "big"), int.from_bytes(packet[offset + 2 : offset + 4], "big")


def upper_layer(packet: bytes, flow: Flow) -> tuple[int, bytes]:
    """(protocol, payload) for transport mode, which protects whole datagrams only (RFC 4303 section 3.1.1)."""
    if flow.fragmented:
        raise Dropped(Reason.NOT_TRANSPORTABLE)
    if flow.version == IPV4:
        return packet[9], packet[(packet[0] & 0x0F) * 4 :]
    if packet[6] in (_HOP_BY_HOP, _ROUTING):
        # they belong before ESP, where a raw socket cannot put them
        raise Dropped(Reason.NOT_TRANSPORTABLE)
    return packet[6], packet[_IPV6_HEADER:]


def ip_packet(source: Address, destination: Address, protocol: int, payload: bytes) -> bytes:
    """A payload that came in transport mode, under an IP header again. The outer header's TTL and TOS are not kept."""
    if source.version == IPV6:
        fixed = struct.pack("!IHBB", 6 << 28, len(payload), protocol, _HOP_LIMIT)
        return fixed + source.packed + destination.packed + payload
    total = _IPV4_HEADER + len(payload)
    addresses = source.packed + destination.packed
    fixed = struct.pack("!BBHHHBB", _PLAIN_IPV4, 0, total, 0, 0, _HOP_LIMIT, protocol)
    return fixed + internet_checksum(fixed + addresses).to_bytes(2, "big") + addresses + payload


def with_checksum(source: Address, destination: Address, protocol: int, payload: bytes) -> bytes:
    """RFC 3948 section 3.1.2: NAT rewrote the addresses that the sender's checksum covers, so it is made anew.

    ESP's ICV vouches for the payload.
    """
    offset = {TCP: 16, UDP: 6}.get(protocol)
    if offset is None or len(payload) < offset + 2 or (protocol == UDP and payload[6:8] == bytes(2)):
        return payload
    pseudo = source.packed + destination.packed + struct.pack("!II", len(payload), protocol)
    zeroed = payload[:offset] + bytes(2) + payload[offset + 2 :]
    checksum = internet_checksum(pseudo + zeroed)
    return payload[:offset] + checksum.to_bytes(2, "big") + payload[offset + 2 :]


def internet_checksum(data: bytes) -> int:
    """RFC 1071. 2**16 is 1 modulo 65535, so the remainder of the whole number is the sum of its 16-bit words."""
    padded = data + bytes(len(data) % 2)
    return 65535 - int.from_bytes(padded, "big") % 65535
