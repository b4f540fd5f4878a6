"""What the monitor allocated and installed: the memory on which its second opinion rests (RFC 4301 section 4.4.2).

Nothing here decides; `authorize.py` asks, `installer.py` records.
"""

import ipaddress
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from monitor.claimants import Claimants
from monitor.dataplane import Pair, Policy
from monitor.numbers import MAX_POLICY_NUMBER, Numbers
from privsep.config.lanes import Lane
from privsep.config.model import Child, Connection, Gateway, Remote, RemoteAny
from privsep.config.names import RemoteName
from privsep.iana import ProtocolId
from privsep.types import Address, Cpi, Endpoint, Identity, Network, Spi, TrafficSelector

MAX_ALLOCATED = 4096
"""SPIs that wait for their installation: exchanges in flight."""
MAX_ALLOCATED_PER_CONNECTION = 1024
MAX_INSTALLED = 65536
"""Pairs: bounds the monitor's memory and the kernel's."""
MAX_INSTALLED_PER_CONNECTION = 16384

NOBODYS: Mapping[int, Address] = {
    4: ipaddress.IPv4Address("192.0.0.8"),
    6: ipaddress.IPv6Address("100::"),
}
"""By IP version: where the policies of a name lead that has no address yet, so that nothing passes in clear meanwhile.
No host has one of these (RFC 7600, RFC 6666), and no SA is ever installed to one."""

Selectors = tuple[TrafficSelector, ...]
_Traffic = tuple[str, str, Selectors, Selectors]
"""Connection, child and negotiated selectors."""
_Key = tuple[int, int, int, int]


class Phase(Enum):
    """Where an entry stands; only a RECEIVING or INSTALLED one may be removed."""

    INSTALLING = "installing"
    RECEIVING = "receiving"
    """The inbound SA is in place: the peer may send as soon as it has agreed, which it has not confirmed yet."""
    INSTALLED = "installed"
    REMOVING = "removing"


@dataclass(slots=True, frozen=True, kw_only=True)
class Allocation:
    """An inbound SPI that belongs to a child and two addresses until it is installed or given back."""

    spi: Spi
    connection: str
    child: str
    protocol: ProtocolId
    local: Endpoint
    remote: Endpoint
    cpi: Cpi | None = None
    """Where the child has `ipcomp`."""


@dataclass(slots=True, frozen=True)
class Claim:
    """Traffic that an identity holds, as it was proved under a connection (`claimants.py`).

    Pairs of one child, before and after rekeying, make the same claim.
    """

    connection: str
    identity: Identity | None
    """None for a peer of fixed address that may prove any: nobody else's."""
    local_ts: Selectors
    remote_ts: Selectors
    lane: Lane
    """Claims whose lanes do not meet have no packet in common."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """A pair in the data plane. Its `pair` is without keys: the monitor forgets them once they are handed on."""

    connection: str
    child: str
    identity: Identity
    """Whom keyd proved."""
    claim: Claim
    pair: Pair
    since: float
    phase: Phase = Phase.INSTALLING
    keymat: bytes = b""
    """keyd's handle, until its outbound half is redeemed."""
    moved: float = float("-inf")
    """When its peer last changed its port."""


class Claims:
    """Claims by if_id and remote network. Networks are nested or disjoint, so sorted ones answer with two bisections.

    A network's key is (if_id, version, first address, prefix length): what it holds sorts directly after it.
    """

    def __init__(self) -> None:
        self._keys: list[_Key] = []
        self._held: dict[_Key, Counter[Claim]] = {}

    def add(self, claim: Claim) -> None:
        """One more SA pair makes this claim."""
        for key in _keys(claim):
            if key not in self._held:
                self._held[key] = Counter()
                insort(self._keys, key)
            self._held[key][claim] += 1

    def remove(self, claim: Claim) -> None:
        """One less."""
        for key in _keys(claim):
            held = self._held[key]
            held[claim] -= 1
            if not held[claim]:
                del held[claim]
            if not held:
                del self._held[key]
                del self._keys[bisect_left(self._keys, key)]

    def touching(self, network: Network, lane: Lane) -> Iterator[Claim]:
        """Claims of lanes that meet this one, with a remote network that contains this one or lies in it."""
        for if_id in lane.if_ids:
            for claim in self._within(if_id, network):
                if claim.lane.meets(lane):
                    yield claim

    def _within(self, if_id: int, network: Network) -> Iterator[Claim]:
        _, version, first, prefix = _key(if_id, network)
        longest = network.max_prefixlen
        for length in range(prefix + 1):
            spare = longest - length
            yield from self._held.get((if_id, version, first >> spare << spare, length), ())
        low = bisect_right(self._keys, (if_id, version, first, prefix))
        high = bisect_left(self._keys, (if_id, version, int(network.broadcast_address) + 1, -1))
        for key in self._keys[low:high]:
            yield from self._held[key]


def _keys(claim: Claim) -> Iterator[_Key]:
    for if_id in claim.lane.if_ids:
        for selector in claim.remote_ts:
            yield _key(if_id, selector.network)


def _key(if_id: int, network: Network) -> _Key:
    return if_id, network.version, int(network.network_address), network.prefixlen


class Policies:
    """Policy numbers and policies. Numbers follow the order of the configuration; peers of variable address come after.

    A child whose peer's address is configured has one policy from the start. Other children get one for each pair of
    negotiated selectors, when they are first installed, and keep it after that: no deletion ends in clear text. Where
    numbers run short, one that no pair is under yields (`numbers.py`).

    What an earlier instance left keeps its numbers, because its SAs are tied to them.
    """

    def __init__(self, gateway: Gateway, earlier: Mapping[int, tuple[str, str]] | None = None) -> None:
        """`earlier`: numbers that an earlier instance gave to (connection, child). None of them goes to another."""
        self._gateway = gateway
        self.reserved = Claims()
        """Traffic of peers whose address is configured. It stays theirs while they are down."""
        self._static: dict[tuple[str, str], Policy] = {}
        self._dynamic: dict[_Traffic, Policy] = {}
        self._numbered: dict[int, _Traffic] = {}
        """Of these the traffic by number."""
        earlier = earlier or {}
        if max(earlier, default=0) + sum(len(each.children) for each in gateway.connections) > MAX_POLICY_NUMBER:
            earlier = {}
        self._earlier = earlier
        kept = {owner: number for number, owner in sorted(earlier.items(), reverse=True)}
        self._numbers = Numbers(max(earlier, default=0))
        for connection in gateway.connections:
            remote = fixed(connection.remote)
            if remote is None:
                continue
            local = _local(gateway, connection, remote)
            for child in connection.children:
                owner = connection.name, child.name
                self._static[owner] = Policy(
                    number=self._numbers.configure(owner, kept.get(owner)),
                    protocol=child.protocol,
                    mode=child.mode,
                    local=Endpoint(local, 0),
                    remote=Endpoint(remote, 0),
                    local_ts=child.local_ts,
                    remote_ts=child.remote_ts,
                    kernel=child.kernel,
                )
                self.reserved.add(
                    Claim(connection.name, connection.remote_id, child.local_ts, child.remote_ts, child.kernel.lane)
                )

    def locate(self, connection: Connection) -> Iterator[tuple[tuple[str, str], Policy]]:
        """The name of a connection has another address now: its policies, changed, each with (connection, child)."""
        remote = fixed(connection.remote)
        if remote is None:
            return
        local = _local(self._gateway, connection, remote)
        for child in connection.children:
            owner = connection.name, child.name
            policy = replace(self._static[owner], local=Endpoint(local, 0), remote=Endpoint(remote, 0))
            self._static[owner] = policy
            yield owner, policy

    def static(self) -> tuple[Policy, ...]:
        """Those that are installed at start."""
        return tuple(self._static.values())

    def all(self) -> Iterator[tuple[tuple[str, str], Policy]]:
        """These and those of peers at changing addresses, each with (connection, child)."""
        yield from self._static.items()
        for (connection, child, *_), policy in self._dynamic.items():
            yield (connection, child), policy

    def restore(self, connection: str, child: str, policy: Policy) -> bool:
        """A policy that an earlier instance made for a peer at a changing address; whether its number is still free."""
        free = policy.number in self._earlier and self.owner(policy.number) is None
        if free:
            self.record(connection, child, policy)
            self._numbers.rest(policy.number, None)
        return free

    def owner(self, number: int) -> tuple[str, str] | None:
        """(connection, child) of a policy number."""
        return self._numbers.owner(number)

    def propose(
        self,
        connection: Connection,
        child: Child,
        identity: Identity,
        addresses: tuple[Address, Address],
        local_ts: Selectors,
        remote_ts: Selectors,
        *,
        ipcomp: bool = False,
    ) -> Policy | None:
        """The policy under which a pair of this child and identity belongs; None if all numbers are in use.

        Changes nothing. The number may be that of a policy that no pair is under, in whose place it then goes.
        """
        static = self._static.get((connection.name, child.name))
        if static is not None:
            return replace(static, ipcomp=ipcomp)
        known = self._dynamic.get((connection.name, child.name, local_ts, remote_ts))
        number = known.number if known is not None else self._numbers.next(connection.name, identity)
        if number is None:
            return None
        local, remote = addresses
        return Policy(
            number=number,
            protocol=child.protocol,
            mode=child.mode,
            local=Endpoint(local, 0),
            remote=Endpoint(remote, 0),
            local_ts=local_ts,
            remote_ts=remote_ts,
            kernel=child.kernel,
            ipcomp=ipcomp,
        )

    def record(self, connection: str, child: str, policy: Policy) -> None:
        """A pair is being installed under a proposed policy: its number is taken from now on."""
        if (connection, child) in self._static:
            return
        traffic = connection, child, policy.local_ts, policy.remote_ts
        yielding = self._numbered.get(policy.number, traffic)
        if yielding != traffic:
            del self._dynamic[yielding]
        self._dynamic[traffic] = policy
        self._numbered[policy.number] = traffic
        self._numbers.take(policy.number, (connection, child))

    def rest(self, number: int, identity: Identity) -> None:
        """The last pair of that policy, of this identity, has gone. One of the configuration never yields."""
        if number in self._numbered:
            self._numbers.rest(number, identity)

    def give_back(self, kept: Collection[int]) -> None:
        """Numbers of an earlier instance that are not needed any more: all but `kept`."""
        self._numbers.give_back(set(kept))


def fixed(remote: Remote) -> Address | None:
    """The peer's one address, None where the configuration leaves it open; of a name the last, at first nobody's."""
    match remote:
        case RemoteName():
            return remote.address or NOBODYS[remote.version or 4]
        case RemoteAny() | ipaddress.IPv4Network() | ipaddress.IPv6Network():
            return None
        case _:
            return remote


def _local(gateway: Gateway, connection: Connection, remote: Address) -> Address:
    return connection.local or _only_local(gateway, remote)


def _only_local(gateway: Gateway, remote: Address) -> Address:
    """The one address of ours of that family, else the unspecified one: the routing table decides."""
    ours = [address for address in gateway.listen if address.version == remote.version]
    if len(ours) == 1:
        return ours[0]
    return ipaddress.IPv4Address(0) if remote.version == 4 else ipaddress.IPv6Address(0)


class Sadb:
    """SPIs allocated, pairs installed, by inbound SPI, outbound key and connection."""

    def __init__(self) -> None:
        self.claims = Claims()
        self.claimants = Claimants()
        self._allocated: dict[Spi, Allocation] = {}
        self._entries: dict[Spi, Entry] = {}
        self._by_policy: defaultdict[int, dict[Spi, Entry]] = defaultdict(dict)
        self._outbound: set[tuple[Address, ProtocolId, Spi]] = set()
        self._allocated_by_connection: Counter[str] = Counter()
        self._installed_by_connection: Counter[str] = Counter()

    def may_allocate(self, connection: str) -> bool:
        """Whether the quotas leave room for one more SPI."""
        return (
            len(self._allocated) < MAX_ALLOCATED
            and self._allocated_by_connection[connection] < MAX_ALLOCATED_PER_CONNECTION
        )

    def may_install(self, connection: str) -> bool:
        """Whether the quotas leave room for one more pair."""
        return (
            len(self._entries) < MAX_INSTALLED
            and self._installed_by_connection[connection] < MAX_INSTALLED_PER_CONNECTION
        )

    def allocation(self, spi: Spi) -> Allocation | None:
        """The allocation of an SPI that is not installed."""
        return self._allocated.get(spi)

    def entry(self, spi: Spi) -> Entry | None:
        """The pair of an inbound SPI."""
        return self._entries.get(spi)

    def under(self, number: int) -> tuple[Entry, ...]:
        """The pairs of a policy, oldest first."""
        return tuple(self._by_policy[number].values())

    def has_outbound(self, remote: Address, protocol: ProtocolId, spi: Spi) -> bool:
        """Whether a pair sends there with that protocol and SPI or CPI, an SA's key (RFC 4301 section 4.1)."""
        return (remote, protocol, spi) in self._outbound

    def allocations(self) -> tuple[Allocation, ...]:
        """All SPIs that wait."""
        return tuple(self._allocated.values())

    def entries(self) -> tuple[Entry, ...]:
        """All pairs."""
        return tuple(self._entries.values())

    def allocate(self, allocation: Allocation) -> None:
        """Record an SPI that the data plane reserved."""
        self._allocated[allocation.spi] = allocation
        self._allocated_by_connection[allocation.connection] += 1

    def release(self, spi: Spi) -> Allocation | None:
        """Forget an allocation."""
        allocation = self._allocated.pop(spi, None)
        if allocation is not None:
            self._allocated_by_connection[allocation.connection] -= 1
        return allocation

    def reserve(self, entry: Entry) -> None:
        """The SPI is no longer to be had: its pair is being installed."""
        self.release(entry.pair.spi_in)
        self._entries[entry.pair.spi_in] = entry
        self._by_policy[entry.pair.policy.number][entry.pair.spi_in] = entry
        self._outbound.update(_outbound(entry.pair))
        self._installed_by_connection[entry.connection] += 1
        self.claims.add(entry.claim)

    def has_room_for(self, pair: Pair) -> bool:
        """Whether no pair sends by what this one would."""
        return self._outbound.isdisjoint(_outbound(pair))

    def change(self, entry: Entry, pair: Pair) -> None:
        """The same pair between other ends."""
        self._outbound.difference_update(_outbound(entry.pair))
        entry.pair = pair
        self._outbound.update(_outbound(pair))

    def forget(self, entry: Entry) -> None:
        """The pair is gone. Harmless when it was forgotten before."""
        if self._entries.get(entry.pair.spi_in) is not entry:
            return
        del self._entries[entry.pair.spi_in]
        del self._by_policy[entry.pair.policy.number][entry.pair.spi_in]
        self._outbound.difference_update(_outbound(entry.pair))
        self._installed_by_connection[entry.connection] -= 1
        self.claims.remove(entry.claim)


def _outbound(pair: Pair) -> Iterator[tuple[Address, ProtocolId, Spi]]:
    yield pair.remote.address, pair.suite.protocol, pair.spi_out
    if pair.ipcomp is not None:
        yield pair.remote.address, ProtocolId.IPCOMP, Spi(pair.ipcomp.outbound)
