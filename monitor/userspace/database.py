"""Policies and SA pairs (RFC 4301 section 4.4), and what they make of a packet either way. No I/O, no clock."""

from bisect import insort
from collections.abc import Iterator
from itertools import product

from monitor.userspace.drops import Dropped, Reason
from monitor.userspace.esp import MAX_SEQUENCE, NO_NEXT_HEADER, Inbound, Outbound, transform
from monitor.userspace.index import Index
from monitor.userspace.packet import (
    IPIP,
    IPV4,
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
from privsep.schema.esp import AddInbound, AddOutbound, AddPolicy
from privsep.types import Address, Mode, Spi, TrafficSelector

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


class NoSa(Dropped):
    """The packet matches a policy that has no SA for it."""

    def __init__(self, policy: int) -> None:
        super().__init__(Reason.NO_SA)
        self.policy = policy


class _Selectors:
    """Both sides of a pair."""

    __slots__ = ("_local", "_remote")

    def __init__(self, local: tuple[TrafficSelector, ...], remote: tuple[TrafficSelector, ...]) -> None:
        self._local = tuple(map(Matcher, local))
        self._remote = tuple(map(Matcher, remote))

    def outbound(self, flow: Flow) -> bool:
        """Whether the packet comes from the local side and goes to the remote one."""
        return any(m.fits(*_source(flow)) for m in self._local) and any(
            m.fits(*_destination(flow)) for m in self._remote
        )

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

    def __init__(self, order: AddInbound) -> None:
        """ValueError where keys do not fit the suite."""
        self.spi_in, self.spi_out, self.policy = Spi(order.spi_in), Spi(order.spi_out), order.policy
        self.local, self.remote, self.encap = order.local.address, order.remote.address, order.encap
        self.destination: Outer = (str(order.remote.address), order.remote.port if order.encap else 0)
        """Where ESP goes."""
        self.selectors = _Selectors(order.local_ts, order.remote_ts)
        self.packets_in = self.packets_out = self.bytes_in = self.bytes_out = 0
        self._mode, self._suite = order.mode, order.suite
        self._outbound: Outbound | None = None
        """From `may_send` on."""
        self._inbound = Inbound(transform(order.suite, order.encryption_in, order.integrity_in), order.replay_window)
        self._admitted: set[bytes] = set()

    def may_send(self, encryption: bytes, integrity: bytes) -> None:
        """The outbound SA's keys. ValueError where they do not fit the suite, or the pair has some."""
        if self._outbound is not None:
            raise ValueError("the outbound SA exists")
        self._outbound = Outbound(self.spi_out, transform(self._suite, encryption, integrity))

    @property
    def sends(self) -> bool:
        """Whether it has its outbound SA."""
        return self._outbound is not None

    @property
    def worn(self) -> bool:
        """Whether sequence numbers run out soon."""
        return self._outbound is not None and self._outbound.sequence >= WORN_SEQUENCE

    def seal(self, packet: bytes) -> bytes:
        """The ESP packet of an inner packet (RFC 4303 section 3.3), of a pair that may send."""
        if self._outbound is None:
            raise Dropped(Reason.NO_SA)
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


class Policies:
    """The SPD. A packet costs the same with one policy as with all."""

    def __init__(self) -> None:
        self._orders: dict[int, AddPolicy] = {}
        self._remote: Index[Index[list[int]]] = Index(lambda: Index(list))
        """Numbers by remote selector, then by local one."""

    def __contains__(self, number: int) -> bool:
        return number in self._orders

    def __iter__(self) -> Iterator[int]:
        return iter(self._orders)

    def __len__(self) -> int:
        return len(self._orders)

    def add(self, order: AddPolicy) -> None:
        """Add or replace. ValueError when there are too many."""
        if len(self._orders) >= MAX_POLICIES and order.policy not in self._orders:
            raise ValueError("too many policies")
        self.remove(order.policy)
        self._orders[order.policy] = order
        for remote, local in _combined(order):
            insort(self._remote.at(remote).at(local), order.policy)

    def remove(self, number: int) -> None:
        """Harmless when there is none."""
        order = self._orders.pop(number, None)
        if order is None:
            return
        for remote, local in _combined(order):
            behind = self._remote.at(remote)
            numbers = behind.at(local)
            numbers.remove(number)
            if not numbers:
                behind.remove(local)
            if not behind:
                self._remote.remove(remote)

    def deciding(self, flow: Flow) -> int | None:
        """The most specific one, by where the packet goes and then by where it comes from; of equal ones the first."""
        for behind in self._remote.fitting(_destination(flow)):
            for numbers in behind.fitting(_source(flow)):
                return numbers[0]
        return None


def _combined(order: AddPolicy) -> set[tuple[TrafficSelector, TrafficSelector]]:
    return set(product(order.remote_ts, order.local_ts))


class Database:
    """SPD and SAD of this process, with a cache from outbound flows to pairs."""

    def __init__(self) -> None:
        self._policies = Policies()
        self._by_spi: dict[int, Pair] = {}
        self._by_policy: dict[int, list[Pair]] = {}
        self._outbound: set[tuple[Address, int]] = set()
        self._flows: dict[bytes, Pair] = {}

    def add_policy(self, order: AddPolicy) -> None:
        """Add or replace; pairs of the same number stay. ValueError when there are too many."""
        self._policies.add(order)
        self._by_policy.setdefault(order.policy, [])
        self._flows.clear()

    def remove_policy(self, policy: int) -> list[Pair]:
        """Remove it; returns its pairs, removed too."""
        self._policies.remove(policy)
        pairs = self._by_policy.pop(policy, [])
        for pair in pairs:
            self._forget(pair)
        return pairs

    def add_inbound(self, order: AddInbound) -> Pair:
        """A pair that receives. ValueError where one exists already, the policy is unknown or a key does not fit."""
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
        return pair

    def add_outbound(self, order: AddOutbound) -> None:
        """It sends, from now on. ValueError where there is no such pair, it sends already, or a key does not fit."""
        pair = self._by_spi.get(order.spi_in)
        if pair is None:
            raise ValueError("no such pair")
        pair.may_send(order.encryption_out, order.integrity_out)
        # the one that begins last is the newest
        pairs = self._by_policy[pair.policy]
        pairs.remove(pair)
        pairs.append(pair)
        self._flows.clear()

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
        policy = self._policies.deciding(flow)
        if policy is None:
            raise Dropped(Reason.NO_POLICY)
        for pair in reversed(self._by_policy[policy]):
            if pair.sends and pair.selectors.outbound(flow):
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
