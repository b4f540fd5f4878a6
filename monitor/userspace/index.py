"""Which selectors a packet fits, the most specific first, however many there are.

Selectors of one shape (prefix length, with a protocol or a port or without) are keys of one table: the address, cut
to that length, is looked up there once. So a packet costs as many look-ups as there are shapes, not selectors.
"""

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from privsep.types import TrafficSelector

_Shape = tuple[int, bool, bool]
"""Prefix length, whether it has a protocol, whether it has a port. The greater is the more specific."""
_Key = tuple[int, _Shape, int, int, int]
"""Version, shape, network, protocol, port; 0 is any."""
Side = tuple[int, int, int, int]
"""Version, address, protocol, port of one side of a packet."""
V = TypeVar("V")

_ADDRESS_BITS = {4: 32, 6: 128}


class Index(Generic[V]):
    """Values by selector, each made when it is first asked for."""

    def __init__(self, make: Callable[[], V]) -> None:
        self._make = make
        self._values: dict[_Key, V] = {}
        self._shapes: Counter[tuple[int, _Shape]] = Counter()
        """How many keys have it, by version."""
        self._ordered: dict[int, list[_Shape]] = {4: [], 6: []}
        """The most specific last."""

    def __bool__(self) -> bool:
        return bool(self._values)

    def at(self, selector: TrafficSelector) -> V:
        """The value of that very selector."""
        key = _key(selector)
        if key not in self._values:
            version, shape = key[:2]
            self._values[key] = self._make()
            self._shapes[version, shape] += 1
            if self._shapes[version, shape] == 1:
                insort(self._ordered[version], shape)
        return self._values[key]

    def remove(self, selector: TrafficSelector) -> None:
        """Forget its value."""
        key = _key(selector)
        version, shape = key[:2]
        del self._values[key]
        self._shapes[version, shape] -= 1
        if not self._shapes[version, shape]:
            self._ordered[version].remove(shape)

    def fitting(self, side: Side) -> Iterator[V]:
        """Values of the selectors that this side fits, the most specific first."""
        version, address, protocol, port = side
        bits = _ADDRESS_BITS[version]
        for shape in reversed(self._ordered[version]):
            length, with_protocol, with_port = shape
            spare = bits - length
            value = self._values.get(
                (version, shape, address >> spare << spare, protocol * with_protocol, port * with_port)
            )
            if value is not None:
                yield value


def _key(selector: TrafficSelector) -> _Key:
    network = selector.network
    shape = network.prefixlen, bool(selector.protocol), bool(selector.port)
    return network.version, shape, int(network.network_address), selector.protocol, selector.port
