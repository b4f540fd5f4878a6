"""Traffic selectors of the configuration: ``10.1.0.0/16``, ``10.1.0.7[tcp/443]``, ``2001:db8::/32[udp]``."""

import ipaddress
import re

from privsep.config.problems import quote
from privsep.types import Network, TrafficSelector

PROTOCOLS = {
    "any": 0,
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "gre": 47,
    "icmpv6": 58,
    "ospf": 89,
    "sctp": 132,
}
"""IANA "Assigned Internet Protocol Numbers"; /etc/protocols may differ between machines, this table does not."""
_WITH_PORTS = {6, 17, 33, 132, 136}
_SELECTOR = re.compile(r"([^\[\]]+)(?:\[([A-Za-z0-9]+)(?:/([A-Za-z0-9]+))?\])?", re.ASCII)


def parse_selector(text: str) -> TrafficSelector:
    """The selector; ValueError says what would be right."""
    match = _SELECTOR.fullmatch(text)
    if match is None:
        raise ValueError(f'{quote(text)} is no selector; "10.1.0.0/16" or "10.1.0.0/16[tcp/443]" would be right')
    network = parse_network(match[1])
    protocol = _protocol(match[2] or "any")
    port = _port(match[3] or "any")
    if port and protocol not in _WITH_PORTS:
        raise ValueError(f"{quote(text)} has a port but a protocol without ports; tcp, udp or sctp would be right")
    return TrafficSelector(network, protocol, port)


def parse_network(text: str) -> Network:
    """A network or a single address; ValueError says what would be right."""
    if "%" in text:
        raise ValueError(f"{quote(text)} has a zone; the same without '%' and what follows would be right")
    prefix = text.partition("/")[2]
    try:
        interface = ipaddress.ip_interface(text if prefix.isdecimal() or "/" not in text else "")
    except ValueError:
        raise ValueError(f'{quote(text)} is no network; "10.1.0.0/16" or "2001:db8::/32" would be right') from None
    if interface.ip != interface.network.network_address:
        raise ValueError(f'{quote(text)} has bits set after its prefix; "{interface.network}" would be right')
    return interface.network


def _protocol(text: str) -> int:
    if text.isdecimal() and len(text) <= 3 and 0 < int(text) <= 255:
        return int(text)
    if text.lower() not in PROTOCOLS:
        raise ValueError(f"{quote(text)} is no protocol; a number or one of {', '.join(PROTOCOLS)} would be right")
    return PROTOCOLS[text.lower()]


def _port(text: str) -> int:
    if text.lower() == "any":
        return 0
    if text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65535:
        return int(text)
    raise ValueError(f'{quote(text)} is no port; a number from 1 to 65535 or "any" would be right')
