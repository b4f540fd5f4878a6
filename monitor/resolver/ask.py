"""One question to the C library's resolver (getaddrinfo(3))."""

import ipaddress
import socket

from privsep.schema.names import MAX_ADDRESSES, Answer, Found, NotFound
from privsep.types import Address

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6, 0: socket.AF_UNSPEC}
VERSIONS = tuple(_FAMILIES)
"""Of IP; 0 stands for either."""


def look_up(name: str, version: int) -> Answer:
    """What the machine's name services say; `version` of IP, 0 for either."""
    try:
        found = socket.getaddrinfo(name, None, _FAMILIES[version], socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        return NotFound(why=(error.strerror if isinstance(error, OSError) else None) or "no host name")
    # a link-local address, which has a zone, is of no use without it
    addresses: dict[Address, None] = {}
    for *_, place in found:
        text = str(place[0])
        if "%" not in text:
            addresses[ipaddress.ip_address(text)] = None
    return Found(addresses=tuple(addresses)[:MAX_ADDRESSES]) if addresses else NotFound(why="it has no address")
