"""Values that every process knows: roles, identifiers, identities, endpoints, traffic selectors."""

import ipaddress
from dataclasses import dataclass
from enum import Enum
from typing import NewType, Self

from privsep.iana import IdType

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Cookie = NewType("Cookie", bytes)
"""8 octets, RFC 2408 section 2.5.3."""
MessageId = NewType("MessageId", int)
"""32 bits, RFC 2408 section 3.1; 0 in phase 1."""
Spi = NewType("Spi", int)
"""32 bits, RFC 4303 section 2.1; 0 to 255 are reserved."""
Cpi = NewType("Cpi", int)
"""16 bits, RFC 3173 section 3.3: what is IPComp's SPI."""
MIN_CPI, MAX_CPI = 256, 61439
"""RFC 3173 section 3.3: those between are negotiated, those above are private."""


def hex_spi(spi: int) -> str:
    """An SPI as it is shown everywhere, and as `ip xfrm` shows it."""
    return f"0x{spi:08x}"


IkeHandle = NewType("IkeHandle", bytes)
QuickHandle = NewType("QuickHandle", bytes)
KeymatHandle = NewType("KeymatHandle", bytes)
"""Handles are 16 random octets that keyd mints. To everybody else they mean nothing (DESIGN section 2)."""

HANDLE_OCTETS = 16


class Role(Enum):
    """Which side of an exchange we are; for an IKE SA, of the exchange that made it."""

    INITIATOR = "initiator"
    RESPONDER = "responder"


class Mode(Enum):
    """RFC 4301 section 3.2."""

    TUNNEL = "tunnel"
    TRANSPORT = "transport"


class Auth(Enum):
    """The configuration's `auth` (CONTRACT.md)."""

    PSK = "psk"


@dataclass(slots=True, frozen=True)
class Endpoint:
    """One end of a UDP flow."""

    address: Address
    port: int

    def __str__(self) -> str:
        return f"{self.address}[{self.port}]"


@dataclass(slots=True, frozen=True, eq=False)
class Identity:
    """An ID payload's meaning without protocol and port (RFC 2407 section 4.6.2).

    `data` is as it was written or received, since HASH_I and HASH_R cover it. Names are equal whatever the case of
    their letters (RFC 4945 section 3.1.2). Of an e-mail address only the domain is compared so: before the @, two cases
    may be two people (RFC 5321 section 2.4), though RFC 4945 section 3.1.3 takes them for one in a certificate.
    """

    type: IdType
    data: bytes

    def _compared(self) -> tuple[IdType, bytes, bytes]:
        match self.type:
            case IdType.FQDN:
                return self.type, b"", self.data.lower()
            case IdType.USER_FQDN:
                user, at, domain = self.data.rpartition(b"@")
                return self.type, user + at, domain.lower()
            case _:
                return self.type, b"", self.data

    def __eq__(self, other: object) -> bool:
        return self._compared() == other._compared() if isinstance(other, Identity) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._compared())

    def __str__(self) -> str:
        """Text for people and logs; whatever is not plain printable ASCII is escaped."""
        if self.type in (IdType.IPV4_ADDR, IdType.IPV6_ADDR):
            return str(ipaddress.ip_address(self.data))
        if self.type is IdType.KEY_ID:
            return f"keyid:{self.data.hex()}"
        return "".join(chr(c) if 0x21 <= c < 0x7F and c != 0x5C else f"\\x{c:02x}" for c in self.data)

    @classmethod
    def of_address(cls, address: Address) -> Self:
        """The identity that an address is."""
        return cls(IdType.IPV4_ADDR if address.version == 4 else IdType.IPV6_ADDR, address.packed)


@dataclass(slots=True, frozen=True)
class TrafficSelector:
    """A network with an upper-layer protocol and a port; 0 means any (RFC 2407 section 4.6.2)."""

    network: Network
    protocol: int = 0
    port: int = 0

    @classmethod
    def of_host(cls, address: Address) -> Self:
        """All that one address says and hears: what stands for an absent client identity (RFC 2409 section 5.5)."""
        return cls(ipaddress.ip_network(address))

    def __str__(self) -> str:
        if not self.protocol:
            return str(self.network)
        return f"{self.network}[{self.protocol}/{self.port or 'any'}]"

    def contains(self, other: "TrafficSelector") -> bool:
        """Whether every packet that `other` selects is selected by this one too."""
        return (
            self.network.version == other.network.version
            and other.network.prefixlen >= self.network.prefixlen
            and other.network.network_address in self.network
            and self.protocol in (0, other.protocol)
            and self.port in (0, other.port)
        )

    def overlaps(self, other: "TrafficSelector") -> bool:
        """Whether some packet is selected by both."""
        return (
            nested(self.network, other.network)
            and (0 in (self.protocol, other.protocol) or self.protocol == other.protocol)
            and (0 in (self.port, other.port) or self.port == other.port)
        )


def nested(one: Network, other: Network) -> bool:
    """Whether two networks have an address in common: one of them then contains the other. Never of two IP versions."""
    return other.network_address in one or one.network_address in other


ANY_IPV4 = ipaddress.IPv4Network("0.0.0.0/0")
ANY_IPV6 = ipaddress.IPv6Network("::/0")
