"""Which SA a message belongs to (RFC 2408 section 2.5.3: the cookies), in bounded tables.

A first message costs a stranger nothing, so what it makes is kept within a budget where the oldest yields to the
newest: a flood cannot grow the table, and a real peer needs its entry for one round trip only. Message 3 brings our
cookie back and so proves an address; such SAs have a budget of their own, which spoofed messages cannot touch.
"""

from privsep.types import Address, Cookie, Endpoint
from worker.codec.header import ZERO_COOKIE
from worker.isakmp_sa import IkeSa

MAX_SPOOFABLE = 2048
MAX_SPOOFABLE_PER_ADDRESS = 256
"""Of one remote address; many gateways may stand behind one NAT."""
MAX_UNAUTHENTICATED = 2048
MAX_UNAUTHENTICATED_PER_ADDRESS = 256


class Budget:
    """SAs of strangers, the oldest first, in all and for each remote address."""

    def __init__(self, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self._all: dict[int, tuple[IkeSa, Address]] = {}
        self._by_address: dict[Address, dict[int, IkeSa]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, sa: IkeSa) -> IkeSa | None:
        """Take one more in; the SA that has to go for it. Harmless when it is in already."""
        if sa.serial in self._all:
            return None
        address = sa.remote.address
        ours = self._by_address.setdefault(address, {})
        evicted = None
        if len(ours) >= self._per_address:
            evicted = next(iter(ours.values()))
        elif len(self._all) >= self._total:
            evicted = next(iter(self._all.values()))[0]
        ours[sa.serial] = sa
        self._all[sa.serial] = (sa, address)
        if evicted is not None:
            self.remove(evicted)
        return evicted

    def remove(self, sa: IkeSa) -> None:
        """It is no stranger any more, or gone. Harmless when it was not in."""
        found = self._all.pop(sa.serial, None)
        if found is None:
            return
        # as it was when it came in: the SA may have another address since
        _, address = found
        ours = self._by_address[address]
        del ours[sa.serial]
        if not ours:
            del self._by_address[address]


class SaTable:
    """All ISAKMP SAs by their cookies."""

    def __init__(self) -> None:
        self.spoofable = Budget(MAX_SPOOFABLE, MAX_SPOOFABLE_PER_ADDRESS)
        self.unauthenticated = Budget(MAX_UNAUTHENTICATED, MAX_UNAUTHENTICATED_PER_ADDRESS)
        self._by_cookies: dict[bytes, IkeSa] = {}
        self._by_first: dict[tuple[bytes, Endpoint], IkeSa] = {}
        self._by_serial: dict[int, IkeSa] = {}

    def __len__(self) -> int:
        return len(self._by_serial)

    def add(self, sa: IkeSa) -> None:
        """A new SA. An initiator's has no responder cookie yet."""
        self._by_cookies[sa.cky_i + sa.cky_r] = sa
        self._by_serial[sa.serial] = sa

    def remember_first(self, sa: IkeSa) -> None:
        """A responder's SA that answers duplicates of its first message."""
        self._by_first[sa.cky_i, sa.remote] = sa

    def forget_first(self, sa: IkeSa) -> None:
        """The peer has our cookie; its first message does not come again."""
        if self._by_first.get((sa.cky_i, sa.remote)) is sa:
            del self._by_first[sa.cky_i, sa.remote]

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
        self.forget_first(sa)
        self.spoofable.remove(sa)
        self.unauthenticated.remove(sa)

    def find(self, cookies: bytes) -> IkeSa | None:
        """By both cookies, 16 octets; or the one that waits, as initiator, for the responder's."""
        return self._by_cookies.get(cookies) or self._by_cookies.get(cookies[:8] + ZERO_COOKIE)

    def find_first(self, cky_i: Cookie, remote: Endpoint) -> IkeSa | None:
        """The responder's SA that an earlier copy of a first message has made."""
        return self._by_first.get((cky_i, remote))

    def all(self) -> tuple[IkeSa, ...]:
        """Every SA, by age."""
        return tuple(self._by_serial.values())
