"""The connections of a configuration by name, by address and by identity: what one costs to find among ten thousand.

A network is looked up by each prefix length that the configuration has, 33 or 129 at most, so that a lookup costs the
same however many connections there are. Order is specificity: the exact address, the longest prefix, any; connections
of one specificity keep the order of the configuration.
"""

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from privsep.types import Address, Identity

if TYPE_CHECKING:
    from privsep.config.model import Connection, Remote

EXACT = 129
"""Specificity of one address; that of a network is its prefix length, and 0 is that of any."""

_Place = tuple[int, int, int]
"""IP version, specificity, first address."""
_Placed = tuple[int, "Connection"]
"""A connection with its place in the configuration."""


class Index:
    """Built once from a configuration, and never changed."""

    def __init__(self, connections: Iterable["Connection"]) -> None:
        self.by_name: dict[str, Connection] = {}
        self._known: defaultdict[tuple[_Place, Address | None, Identity | None], list[_Placed]] = defaultdict(list)
        self._unknown: defaultdict[tuple[_Place, Address | None], list[_Placed]] = defaultdict(list)
        """Without those that only the identity tells from one before."""
        alike: set[object] = set()
        for number, connection in enumerate(connections):
            self.by_name[connection.name] = connection
            for place in _places(connection.remote):
                self._known[place, connection.local, connection.remote_id].append((number, connection))
                offer = place, connection.local, connection.auth, connection.suites
                if offer not in alike:
                    alike.add(offer)
                    self._unknown[place, connection.local].append((number, connection))
        lengths = {place[:2] for place, _ in self._unknown}
        self._lengths = {
            each: sorted((length for of, length in lengths if of == each), reverse=True) for each in (4, 6)
        }

    def candidates(self, local: Address, remote: Address) -> tuple["Connection", ...]:
        """Connections that two addresses may belong to while nobody knows the peer's identity.

        Of several that are alike in addresses, authentication and suites, only the first: it goes before the others.
        """
        found: list[Connection] = []
        for place in self._around(remote):
            at_place = self._unknown.get((place, local), []) + self._unknown.get((place, None), [])
            found += (connection for _, connection in sorted(at_place, key=_number))
        return tuple(found)

    def accepting(self, local: Address, remote: Address, identity: Identity) -> tuple["Connection", ...]:
        """Connections that two addresses may belong to, and that take a peer of this identity."""
        found: list[Connection] = []
        for place in self._around(remote):
            at_place = [
                each
                for ours in (local, None)
                for theirs in (identity, None)
                for each in self._known.get((place, ours, theirs), ())
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
        case _:
            return 0


def _places(remote: "Remote") -> tuple[_Place, ...]:
    """Where an address that this describes finds it; `any` is the network of all addresses, of either version."""
    match remote:
        case ipaddress.IPv4Network() | ipaddress.IPv6Network():
            return ((remote.version, remote.prefixlen, int(remote.network_address)),)
        case ipaddress.IPv4Address() | ipaddress.IPv6Address():
            return ((remote.version, EXACT, int(remote)),)
        case _:
            return (4, 0, 0), (6, 0, 0)


def _number(placed: _Placed) -> int:
    return placed[0]
