"""The connections of a configuration by name, by address and by identity: what one costs to find among ten thousand.

A network is looked up by each prefix length that the configuration has, 33 or 129 at most, so that a lookup costs the
same however many connections there are. Order is specificity: the exact address, the longest prefix, any; connections
of one specificity keep the order of the configuration.
"""

import ipaddress
from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from privsep.config.names import RemoteName
from privsep.types import Address, Identity

if TYPE_CHECKING:
    from privsep.config.model import Connection, Remote

EXACT = 129
"""Specificity of one address; that of a network is its prefix length, and 0 is that of any."""

_Place = tuple[int, int, int]
"""IP version, specificity, first address."""
_Placed = tuple[int, "Connection"]
"""A connection with its place in the configuration."""
_Known = dict[tuple[Address | None, Identity | None], list[_Placed]]
"""By our address and the peer's identity."""
_Unknown = dict[Address | None, list[_Placed]]


class Index:
    """Built once from a configuration. Afterwards only the address of a name changes."""

    def __init__(self, connections: Iterable["Connection"]) -> None:
        self.by_name: dict[str, Connection] = {}
        self._numbers: dict[str, int] = {}
        self._at: defaultdict[_Place, list[_Placed]] = defaultdict(list)
        self._known: dict[_Place, _Known] = {}
        self._unknown: dict[_Place, _Unknown] = {}
        """Without those that only the identity tells from one before."""
        lengths: set[tuple[int, int]] = set()
        for number, connection in enumerate(connections):
            self.by_name[connection.name] = connection
            self._numbers[connection.name] = number
            if isinstance(connection.remote, RemoteName):
                lengths |= {(4, EXACT), (6, EXACT)}
            for place in _places(connection.remote):
                self._at[place].append((number, connection))
        for place, placed in self._at.items():
            self._index(place, placed)
        lengths.update(place[:2] for place in self._at)
        self._lengths = {
            each: sorted((length for of, length in lengths if of == each), reverse=True) for each in (4, 6)
        }

    def _index(self, place: _Place, placed: list[_Placed]) -> None:
        known: _Known = defaultdict(list)
        unknown: _Unknown = defaultdict(list)
        alike: set[object] = set()
        for number, connection in placed:
            known[connection.local, connection.remote_id].append((number, connection))
            offer = connection.local, connection.auth, connection.suites
            if offer not in alike:
                alike.add(offer)
                unknown[connection.local].append((number, connection))
        self._known[place], self._unknown[place] = known, unknown

    def move(self, connection: "Connection", remote: RemoteName, address: Address) -> None:
        """The name that is the connection's `remote` has this address now."""
        placed = self._numbers[connection.name], connection
        for place in _places(remote):
            self._at[place].remove(placed)
            self._index(place, self._at[place])
        remote.address = address
        for place in _places(remote):
            insort(self._at[place], placed, key=_number)
            self._index(place, self._at[place])

    def candidates(self, local: Address, remote: Address) -> tuple["Connection", ...]:
        """Connections that two addresses may belong to while nobody knows the peer's identity.

        Of several that are alike in addresses, authentication and suites, only the first: it goes before the others.
        """
        found: list[Connection] = []
        for place in self._around(remote):
            unknown = self._unknown.get(place, {})
            at_place = [*unknown.get(local, ()), *unknown.get(None, ())]
            found += (connection for _, connection in sorted(at_place, key=_number))
        return tuple(found)

    def accepting(self, local: Address, remote: Address, identity: Identity) -> tuple["Connection", ...]:
        """Connections that two addresses may belong to, and that take a peer of this identity."""
        found: list[Connection] = []
        for place in self._around(remote):
            known = self._known.get(place, {})
            at_place = [
                each for ours in (local, None) for theirs in (identity, None) for each in known.get((ours, theirs), ())
            ]
            found += (connection for _, connection in sorted(at_place, key=_number))
        return tuple(found)

    def _around(self, remote: Address) -> Iterator[_Place]:
        """Where a connection may be that describes this address, the most specific place first."""
        first, bits = int(remote), remote.max_prefixlen
        for length in self._lengths[remote.version]:
            spare = max(bits - length, 0)
            yield remote.version, length, first >> spare << spare


def specificity(configured: "Remote", actual: Address) -> int:
    """How closely a `remote` describes an address: 129 names it, 1 to 128 a prefix of it, 0 any; -1 not at all."""
    match configured:
        case ipaddress.IPv4Network() | ipaddress.IPv6Network():
            return configured.prefixlen if actual in configured else -1
        case ipaddress.IPv4Address() | ipaddress.IPv6Address():
            return EXACT if configured == actual else -1
        case RemoteName():
            return EXACT if configured.address == actual else -1
        case _:
            return 0


def _places(remote: "Remote") -> tuple[_Place, ...]:
    """Where an address that this describes finds it; `any` is the network of all addresses, of either version."""
    match remote:
        case ipaddress.IPv4Network() | ipaddress.IPv6Network():
            return ((remote.version, remote.prefixlen, int(remote.network_address)),)
        case ipaddress.IPv4Address() | ipaddress.IPv6Address():
            return ((remote.version, EXACT, int(remote)),)
        case RemoteName():
            return () if remote.address is None else _places(remote.address)
        case _:
            return (4, 0, 0), (6, 0, 0)


def _number(placed: _Placed) -> int:
    return placed[0]
