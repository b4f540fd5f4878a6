"""Policies and SA pairs (RFC 4301 section 4.4), and what they make of a packet either way. No I/O, no clock."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from monitor.userspace.drops import Dropped, Reason
from monitor.userspace.esp import MAX_SEQUENCE, NO_NEXT_HEADER, Inbound, Outbound, transform
from monitor.userspace.packet import (
    IPIP,
    IPV4,
    IPV6,
    IPV6_IN_IP,
    Flow,
    Matcher,
    flow_key,
    ip_packet,
    parse,
    upper_layer,
    whole,
    with_checksum,
)
from privsep.schema.esp import AddPair, AddPolicy
from privsep.types import Address, Mode, Network, Spi, TrafficSelector

Outer = tuple[str, int]
"""Address and port as the socket module has them: parsing an address costs as much as decrypting a packet."""

MAX_POLICIES = 65535
MAX_PAIRS = 16384
"""With some 3 KB a pair, 50 MB."""
MAX_FLOWS = 4096
"""Cached decisions; when it is full the cache starts anew, so that a port scan costs memory for no one."""
MAX_ADMITTED = 256
"""The same for the inbound flows of one pair."""
WORN_SEQUENCE = MAX_SEQUENCE - MAX_SEQUENCE // 8
"""Time to replace the pair: 2**29 packets are left, many minutes at any rate this process reaches."""

_SHORTEST_PACKET = 8
_BITS = {IPV4: 32, IPV6: 128}
"""Of an address."""


class NoSa(Dropped):
    """The packet matches a policy that has no SA for it."""

    def __init__(self, policy: int) -> None:
        super().__init__(Reason.NO_SA)
        self.policy = policy


class _Selectors:
    """Both sides of a policy or a pair."""

    __slots__ = ("_local", "_remote")

    def __init__(self, local: tuple[TrafficSelector, ...], remote: tuple[TrafficSelector, ...]) -> None:
        self._local = tuple(map(Matcher, local))
        self._remote = tuple(map(Matcher, remote))

    def outbound(self, flow: Flow) -> tuple[object, ...] | None:
        """How specific the match is, comparable among policies; None without a match."""
        here = [m.specificity for m in self._local if m.fits(*_source(flow))]
        there = [m.specificity for m in self._remote if m.fits(*_destination(flow))]
        return (max(there), max(here)) if here and there else None

    def inbound(self, flow: Flow) -> bool:
        """Whether the packet comes from the remote side and goes to the local one."""
        return any(m.fits(*_source(flow)) for m in self._remote) and any(
            m.fits(*_destination(flow)) for m in self._local
        )


def _source(flow: Flow) -> tuple[int, int, int, int]:
    return flow.version, flow.source, flow.protocol, flow.source_port


def _destination(flow: Flow) -> tuple[int, int, int, int]:
    return flow.version, flow.destination, flow.protocol, flow.destination_port


class Pair:
    """The two SAs of a child and their counters."""

    def __init__(self, order: AddPair) -> None:
        """ValueError where keys do not fit the suite."""
        self.spi_in, self.spi_out, self.policy = Spi(order.spi_in), Spi(order.spi_out), order.policy
        self.local, self.remote, self.encap = order.local.address, order.remote.address, order.encap
        self.destination: Outer = (str(order.remote.address), order.remote.port if order.encap else 0)
        """Where ESP goes."""
        self.selectors = _Selectors(order.local_ts, order.remote_ts)
        self.packets_in = self.packets_out = self.bytes_in = self.bytes_out = 0
        self._mode = order.mode
        self._outbound = Outbound(Spi(order.spi_out), transform(order.suite, order.encryption_out, order.integrity_out))
        self._inbound = Inbound(transform(order.suite, order.encryption_in, order.integrity_in), order.replay_window)
        self._admitted: set[bytes] = set()

    @property
    def worn(self) -> bool:
        """Whether sequence numbers run out soon."""
        return self._outbound.sequence >= WORN_SEQUENCE

    def seal(self, packet: bytes) -> bytes:
        """The ESP packet of an inner packet (RFC 4303 section 3.3)."""
        if self._mode is Mode.TUNNEL:
            sealed = self._outbound.seal(IPIP if packet[0] >> 4 == IPV4 else IPV6_IN_IP, packet)
        else:
            sealed = self._outbound.seal(*upper_layer(packet, parse(packet)))
        self.packets_out += 1
        self.bytes_out += len(packet)
        return sealed

    def open(self, datagram: bytes, source: Outer | None) -> bytes:
        """The inner packet of an ESP packet; `source` is its outer address and port if it came in UDP.

        RFC 4301 section 5.2: after decryption the inner packet is held against the SA's selectors.
        """
        newest = self._inbound.highest
        next_header, payload = self._inbound.open(datagram)
        if source is not None and self._inbound.highest > newest:
            self._follow(source)
        if next_header == NO_NEXT_HEADER:
            raise Dropped(Reason.DUMMY)
        packet = whole(payload) if self._mode is Mode.TUNNEL else self._with_header(next_header, payload)
        if self._mode is Mode.TUNNEL and next_header != (IPIP if packet[0] >> 4 == IPV4 else IPV6_IN_IP):
            raise Dropped(Reason.MALFORMED)
        key = flow_key(packet)
        if key not in self._admitted:
            if not self.selectors.inbound(parse(packet)):
                raise Dropped(Reason.OUTSIDE_SELECTORS)
            if key:
                if len(self._admitted) >= MAX_ADMITTED:
                    self._admitted.clear()
                self._admitted.add(key)
        self.packets_in += 1
        self.bytes_in += len(packet)
        return packet

    def _follow(self, source: Outer) -> None:
        """A NAT that lost its mapping gives the peer a new port: only the newest authentic packet may tell.

        The address stays: the monitor authorized it, and whoever relays packets shall not redirect the traffic.
        """
        if source[0] == self.destination[0] and source[1]:
            self.destination = source

    def _with_header(self, protocol: int, payload: bytes) -> bytes:
        source, destination = self.remote, self.local
        if self.encap:
            payload = with_checksum(source, destination, protocol, payload)
        return ip_packet(source, destination, protocol, payload)


class _ByRemote:
    """Numbers of policies by their remote networks, so that a packet is held against few of thousands."""

    def __init__(self) -> None:
        self._numbers: defaultdict[tuple[int, int, int], set[int]] = defaultdict(set)
        """By IP version, prefix length, and the network without its host bits."""
        self._lengths: Counter[tuple[int, int]] = Counter()

    def add(self, number: int, networks: Iterable[Network]) -> None:
        """A policy."""
        for place in set(map(_place, networks)):
            self._numbers[place].add(number)
            self._lengths[place[:2]] += 1

    def remove(self, number: int, networks: Iterable[Network]) -> None:
        """Undo `add`."""
        for place in set(map(_place, networks)):
            self._numbers[place].remove(number)
            self._lengths[place[:2]] -= 1
            if not self._numbers[place]:
                del self._numbers[place]
            if not self._lengths[place[:2]]:
                del self._lengths[place[:2]]

    def around(self, flow: Flow) -> set[int]:
        """Policies with a remote network that this destination is in."""
        bits = _BITS[flow.version]
        return {
            number
            for version, length in self._lengths
            if version == flow.version
            for number in self._numbers.get((version, length, flow.destination >> (bits - length)), ())
        }


def _place(network: Network) -> tuple[int, int, int]:
    return (
        network.version,
        network.prefixlen,
        int(network.network_address) >> (network.max_prefixlen - network.prefixlen),
    )


def _networks(order: AddPolicy) -> Iterable[Network]:
    return (selector.network for selector in order.remote_ts)


class Database:
    """SPD and SAD of this process, with a cache from outbound flows to pairs."""

    def __init__(self) -> None:
        self._policies: dict[int, tuple[_Selectors, AddPolicy]] = {}
        self._by_remote = _ByRemote()
        self._by_spi: dict[int, Pair] = {}
        self._by_policy: dict[int, list[Pair]] = {}
        self._outbound: set[tuple[Address, int]] = set()
        self._flows: dict[bytes, Pair] = {}

    def add_policy(self, order: AddPolicy) -> None:
        """Add or replace; pairs of the same number stay. ValueError when there are too many."""
        if len(self._policies) >= MAX_POLICIES and order.policy not in self._policies:
            raise ValueError("too many policies")
        self._drop_policy(order.policy)
        self._policies[order.policy] = _Selectors(order.local_ts, order.remote_ts), order
        self._by_remote.add(order.policy, _networks(order))
        self._by_policy.setdefault(order.policy, [])
        self._flows.clear()

    def remove_policy(self, policy: int) -> list[Pair]:
        """Remove it; returns its pairs, removed too."""
        self._drop_policy(policy)
        pairs = self._by_policy.pop(policy, [])
        for pair in pairs:
            self._forget(pair)
        return pairs

    def _drop_policy(self, policy: int) -> None:
        known = self._policies.pop(policy, None)
        if known is not None:
            self._by_remote.remove(policy, _networks(known[1]))

    def add_pair(self, order: AddPair) -> Pair:
        """Add both SAs. ValueError where one exists already, the policy is unknown or a key does not fit."""
        if order.policy not in self._policies:
            raise ValueError("no such policy")
        if order.spi_in in self._by_spi or (order.remote.address, order.spi_out) in self._outbound:
            raise ValueError("an SA of this SPI exists")
        if order.local.address.version != order.remote.address.version:
            raise ValueError("the outer addresses are of two families")
        if len(self._by_spi) >= MAX_PAIRS:
            raise ValueError("too many pairs")
        pair = Pair(order)
        self._by_spi[pair.spi_in] = pair
        self._by_policy[pair.policy].append(pair)
        self._outbound.add((pair.remote, pair.spi_out))
        self._flows.clear()
        return pair

    def remove_pair(self, spi_in: int) -> Pair | None:
        """Remove both SAs; None when there are none."""
        pair = self._by_spi.get(spi_in)
        if pair is not None:
            self._by_policy[pair.policy].remove(pair)
            self._forget(pair)
        return pair

    def _forget(self, pair: Pair) -> None:
        del self._by_spi[pair.spi_in]
        self._outbound.discard((pair.remote, pair.spi_out))
        self._flows.clear()

    def pair(self, spi_in: int) -> Pair | None:
        """The pair of an inbound SPI."""
        return self._by_spi.get(spi_in)

    def outbound(self, packet: bytes) -> Pair:
        """The pair that protects an inner packet (RFC 4301 section 5.1); NoSa or Dropped if it may not go."""
        key = flow_key(whole(packet))
        pair = self._flows.get(key)
        if pair is None:
            pair = self._select(parse(packet))
            if key:
                if len(self._flows) >= MAX_FLOWS:
                    self._flows.clear()
                self._flows[key] = pair
        return pair

    def _select(self, flow: Flow) -> Pair:
        """The most specific policy decides; of its pairs that carry the flow, the newest sends."""
        matching = [
            (match, -number)
            for number in self._by_remote.around(flow)
            if (match := self._policies[number][0].outbound(flow)) is not None
        ]
        if not matching:
            raise Dropped(Reason.NO_POLICY)
        policy = -max(matching)[1]
        for pair in reversed(self._by_policy[policy]):
            if pair.selectors.outbound(flow) is not None:
                return pair
        raise NoSa(policy)

    def inbound(self, datagram: bytes, source: Outer | None) -> tuple[Pair, bytes]:
        """The pair and the inner packet of a datagram (RFC 4301 section 5.2): the SPI alone finds the SA (4.1).

        `source` is None for ESP without UDP. Each SA takes only the encapsulation that was negotiated for it.
        """
        if len(datagram) < _SHORTEST_PACKET:
            raise Dropped(Reason.MALFORMED)
        pair = self._by_spi.get(int.from_bytes(datagram[:4], "big"))
        if pair is None:
            raise Dropped(Reason.UNKNOWN_SPI)
        if pair.encap is not (source is not None):
            raise Dropped(Reason.WRONG_ENCAPSULATION)
        return pair, pair.open(datagram, source)
