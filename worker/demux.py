"""Which SA a message belongs to (RFC 2408 section 2.5.3: the cookies), in bounded tables.

An SA of ours begins with message 3, which brings our cookie back and so proves an address; what comes before is in
`half_open`. Until its peer has authenticated, an SA is kept within a budget where the oldest yields to the newest.
"""

import ipaddress

from privsep.types import Address, Cookie
from worker.codec.header import ZERO_COOKIE
from worker.isakmp_sa import IkeSa

MAX_UNAUTHENTICATED = 1536
MAX_UNAUTHENTICATED_PER_ORIGIN = 256
"""Of one origin; many gateways may stand behind one NAT."""
MAX_UNAUTHENTICATED_OCTETS = 12 << 20
UNAUTHENTICATED_OCTETS = 7680
"""Of an SA with its exchange, task and timer, besides SAi_b (measured: tests/exchanges/test_floods.py)."""
_ORIGIN_BITS = 64
"""Of an IPv6 address: whoever has one address has as many as the prefix has (RFC 4291 section 2.5.4)."""


def origin(address: Address) -> Address | int:
    """What stands for one stranger: an IPv4 address, an IPv6 prefix."""
    return address if isinstance(address, ipaddress.IPv4Address) else int(address) >> _ORIGIN_BITS


class Budget:
    """SAs of strangers, the oldest first: their number, in all and for each origin, and their octets."""

    def __init__(self, total: int, per_origin: int, octets: int) -> None:
        self._total = total
        self._per_origin = per_origin
        self._octets = octets
        self._taken = 0
        self._all: dict[int, tuple[IkeSa, Address | int, int]] = {}
        self._by_origin: dict[Address | int, dict[int, IkeSa]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, sa: IkeSa, octets: int) -> list[IkeSa]:
        """Take one more in; the SAs that have to go for it."""
        whose = origin(sa.remote.address)
        evicted = []
        ours = self._by_origin.get(whose, ())
        if len(ours) >= self._per_origin:
            evicted.append(next(iter(self._by_origin[whose].values())))
            self.remove(evicted[-1])
        while self._all and (len(self._all) >= self._total or self._taken + octets > self._octets):
            evicted.append(next(iter(self._all.values()))[0])
            self.remove(evicted[-1])
        self._by_origin.setdefault(whose, {})[sa.serial] = sa
        self._all[sa.serial] = (sa, whose, octets)
        self._taken += octets
        return evicted

    def remove(self, sa: IkeSa) -> None:
        """It is no stranger any more, or gone. Harmless when it was not in."""
        found = self._all.pop(sa.serial, None)
        if found is None:
            return
        # as it was when it came in: the SA may have another address since
        _, whose, octets = found
        self._taken -= octets
        ours = self._by_origin[whose]
        del ours[sa.serial]
        if not ours:
            del self._by_origin[whose]


class SaTable:
    """All ISAKMP SAs by their cookies."""

    def __init__(self) -> None:
        self.unauthenticated = Budget(MAX_UNAUTHENTICATED, MAX_UNAUTHENTICATED_PER_ORIGIN, MAX_UNAUTHENTICATED_OCTETS)
        self._by_cookies: dict[bytes, IkeSa] = {}
        self._by_serial: dict[int, IkeSa] = {}

    def __len__(self) -> int:
        return len(self._by_serial)

    def add(self, sa: IkeSa) -> None:
        """A new SA. An initiator's has no responder cookie yet."""
        self._by_cookies[sa.cky_i + sa.cky_r] = sa
        self._by_serial[sa.serial] = sa

    def complete(self, sa: IkeSa, cky_r: Cookie) -> None:
        """The responder's cookie became known."""
        self._by_cookies.pop(sa.cky_i + sa.cky_r, None)
        sa.cky_r = cky_r
        self._by_cookies[sa.cky_i + cky_r] = sa

    def remove(self, sa: IkeSa) -> None:
        """Harmless when it is gone."""
        if self._by_serial.pop(sa.serial, None) is None:
            return
        del self._by_cookies[sa.cky_i + sa.cky_r]
        self.unauthenticated.remove(sa)

    def find(self, cookies: bytes) -> IkeSa | None:
        """By both cookies, 16 octets; or the one that waits, as initiator, for the responder's."""
        return self._by_cookies.get(cookies) or self._by_cookies.get(cookies[:8] + ZERO_COOKIE)

    def all(self) -> tuple[IkeSa, ...]:
        """Every SA, by age."""
        return tuple(self._by_serial.values())
