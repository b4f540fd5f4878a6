"""A data plane that installs nothing and keeps books, and the gateway that it judges by.

Each pair is judged by the configuration and by what was seen being allocated, installed and removed; not a line is
shared with `monitor/authorize.py`.
"""

import ipaddress
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from monitor.dataplane import DataplaneError, Pair, Policy, Traffic
from privsep.algorithms import ChildSuite, IkeSuite
from privsep.config.model import Child, Connection, DataplaneChoice, Encap, Gateway, RemoteAny, Start, Users
from privsep.iana import IdType, ProtocolId
from privsep.loop import Timer
from privsep.schema import install as ops
from privsep.schema.keymat import Redeemed
from privsep.tasks import Future
from privsep.types import Address, Auth, Endpoint, Identity, Mode, Spi, TrafficSelector

QUOTAS = {
    "MAX_ALLOCATED": 20,
    "MAX_ALLOCATED_PER_CONNECTION": 12,
    "MAX_INSTALLED": 9,
    "MAX_INSTALLED_PER_CONNECTION": 4,
}
NUMBERS = {
    "MAX_POLICY_NUMBER": 24,
    "MAX_POLICIES_PER_CONNECTION": 9,
    "MAX_UNUSED_OF_IDENTITY": 3,
}
KEYS = ("encryption_in", "integrity_in", "encryption_out", "integrity_out")
HERE = ipaddress.ip_address("192.0.2.1")
HERE6 = ipaddress.ip_address("2001:db8::1")
PEER, OTHER_PEER = ipaddress.ip_address("192.0.2.2"), ipaddress.ip_address("192.0.2.3")
PEER6 = ipaddress.ip_address("2001:db8::2")
NEAR, ROAMING = ipaddress.ip_address("198.51.100.7"), ipaddress.ip_address("203.0.113.9")
ADDRESSES = (PEER, OTHER_PEER, PEER6, NEAR, ROAMING)
NAMES = ("paris", "rome", "mary", "john", "nobody")
GCM, PFS, CBC = map(ChildSuite.parse, ("aes256gcm16", "aes256gcm16-modp2048", "aes128-sha256"))
AH = ChildSuite.parse("sha256", ProtocolId.AH)
SUITES = (GCM, PFS, CBC, AH, ChildSuite.parse("aes128gcm16"), ChildSuite.parse("aes128-sha1"))


def selectors(*texts: str) -> tuple[TrafficSelector, ...]:
    return tuple(TrafficSelector(ipaddress.ip_network(text)) for text in texts)


def identity_named(name: str) -> Identity:
    return Identity(IdType.FQDN, name.encode())


def _child(name: str, local: tuple[str, ...], remote: tuple[str, ...], **changes: Any) -> Child:
    values = {"mode": Mode.TUNNEL, "suites": (PFS, CBC), "lifetime": 3600, "start": Start.WAIT}
    return Child(name=name, local_ts=selectors(*local), remote_ts=selectors(*remote), **(values | changes))


def _connection(name: str, remote: Any, remote_id: str | None, *children: Child, **changes: Any) -> Connection:
    values = {"local": HERE, "encap": Encap.AUTO}
    return Connection(
        name=name,
        remote=remote,
        local_id=identity_named("here"),
        remote_id=None if remote_id is None else identity_named(remote_id),
        auth=Auth.PSK,
        suites=(IkeSuite.parse("aes256-sha256-modp2048"),),
        lifetime=28800,
        children=children,
        **(values | changes),
    )


GATEWAY = Gateway(
    listen=(HERE, HERE6),
    dataplane=DataplaneChoice.AUTO,
    users=Users(worker=(1, 1), keyd=(2, 2), userspace=(3, 3)),
    absent=frozenset(),
    connections=(
        _connection(
            "paris",
            PEER,
            "paris",
            _child("lan", ("10.1.0.0/16",), ("10.2.0.0/16",)),
            _child("dmz", ("10.1.0.0/16",), ("10.3.0.0/16",), suites=(GCM,), lifetime=1800, ipcomp=True),
            _child("both", ("10.1.0.0/16", "fd01::/32"), ("10.2.0.0/16", "fd02::/32")),
            _child("host", ("192.0.2.0/24",), ("192.0.2.0/24",), mode=Mode.TRANSPORT),
            _child("signed", ("10.1.0.0/16",), ("10.6.0.0/16",), suites=(AH,)),
        ),
        _connection("rome", OTHER_PEER, "rome", _child("lan", ("10.1.0.0/16",), ("10.2.0.0/16",)), encap=Encap.FORCE),
        _connection("six", PEER6, None, _child("lan", ("fd01::/32",), ("fd06::/32",)), local=None, encap=Encap.OFF),
        _connection("mary", RemoteAny(), "mary", _child("lan", ("10.1.0.0/16",), ("10.4.0.0/16",)), local=None),
        _connection(
            "near",
            ipaddress.ip_network("198.51.100.0/24"),
            None,
            _child("lan", ("10.1.0.0/16",), ("10.2.0.0/16", "10.4.0.0/16", "10.5.0.0/16")),
        ),
        _connection(
            "road",
            RemoteAny(),
            None,
            _child("lan", ("10.1.0.0/16",), ("10.2.0.0/16", "10.4.0.0/16", "10.5.0.0/16")),
            _child("web", ("10.1.0.0/16",), ("10.5.0.0/16",), suites=(GCM,), ipcomp=True),
            local=None,
        ),
    ),
)


ASKED_TS = (
    *selectors("10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16", "10.2.3.0/24", "10.3.0.1/32", "10.4.0.0/16"),
    *selectors("10.4.1.0/24", "10.5.0.0/24", "fd01::/32", "fd02::/48", "fd06::/32", "0.0.0.0/0", "10.0.0.0/8"),
    *selectors("10.6.0.0/16", "192.0.2.1/32", "192.0.2.2/32", "192.0.2.0/24"),
    TrafficSelector(ipaddress.ip_network("10.2.3.0/24"), 6, 22),
)


class Clock:
    """Moved by hand; timers are those of an epoch's beginning, called when it is their time."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.timers: list[Timer] = []

    def now(self) -> float:
        return self.time

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.time + seconds, callback))
        return self.timers[-1]

    def advance(self, seconds: float) -> None:
        self.time += seconds
        due = [timer for timer in self.timers if timer.when <= self.time]
        self.timers = [timer for timer in self.timers if timer.when > self.time]
        for timer in due:
            if timer.callback is not None:
                timer.callback()


@dataclass(frozen=True)
class Minted:
    """Keymat, and the installation for which it was redeemed."""

    redeemed: Redeemed
    asked: ops.InstallInbound


class Books:
    """A data plane that installs nothing and doubts everything. Results come at once, later, or are errors."""

    name = "books"

    def __init__(self, fuzzer: Any) -> None:
        self.fuzzer = fuzzer
        self.allocated: dict[int, ops.AllocateSpi] = {}
        self.cpis: dict[int, ops.AllocateSpi] = {}
        """Those that wait with an SPI."""
        self.installed: dict[int, tuple[Pair, Minted]] = {}
        self.settled: set[int] = set()
        """Inbound SPIs of pairs whose installation was reported."""
        self.sending: set[int] = set()
        """Inbound SPIs of pairs that send, too."""
        self.policies: dict[int, tuple[tuple[str, str], Policy]] = {}
        self.waiting: list[Callable[[], None]] = []
        fixed = [each for each in GATEWAY.connections if isinstance(each.remote, Address)]
        self.fixed_names = {each.name for each in fixed}
        self.fixed = [(each, child) for each in fixed for child in each.children]

    def _later(self, result: Any = None, then: Callable[[bool], None] = lambda worked: None) -> Future[Any]:
        future: Future[Any] = Future()
        random = self.fuzzer.random
        fails = random.random() < 0.06

        def resolve() -> None:
            then(not fails)
            if fails:
                future.set_error(lambda: DataplaneError("refused"))
            else:
                future.set_result(result)

        if random.random() < 0.3:
            self.waiting.append(resolve)
        else:
            resolve()
        return future

    def allocate_spi(self, local: Endpoint, remote: Endpoint, protocol: ProtocolId) -> Spi:
        if self.fuzzer.random.random() < 0.03:
            raise DataplaneError("none left")
        asked = self.fuzzer.asked
        self.fuzzer.check(
            isinstance(asked, ops.AllocateSpi) and (asked.local, asked.remote) == (local, remote),
            "an SPI that nobody asked for",
        )
        child = named(asked.connection, asked.child)[1]
        if protocol is ProtocolId.IPCOMP:
            self.fuzzer.check(child.ipcomp, "a CPI for a child without compression")
            used = {each.ipcomp.inbound for each, _ in self.installed.values() if each.ipcomp is not None}
            cpi = self.fuzzer.random.choice([each for each in range(0x400, 0x440) if each not in {*self.cpis, *used}])
            self.cpis[cpi] = asked
            return Spi(cpi)
        self.fuzzer.check(protocol is child.suites[0].protocol, "an SPI of another protocol than the child's")
        free = [spi for spi in range(0x1000, 0x1040) if spi not in self.allocated and spi not in self.installed]
        spi = self.fuzzer.random.choice(free)
        self.allocated[spi] = asked
        return Spi(spi)

    def release_spi(self, spi: Spi, local: Endpoint, remote: Endpoint, protocol: ProtocolId) -> None:
        if protocol is ProtocolId.IPCOMP:
            pairs = [self.installed[each][0] for each in self.settled]
            used = {each.ipcomp.inbound for each in pairs if each.ipcomp is not None}
            self.fuzzer.check(spi not in used, "the CPI of an installed pair is released")
            self.cpis.pop(spi, None)
            return
        self.fuzzer.check(spi not in self.settled, "the SPI of an installed pair is released")
        self.allocated.pop(spi, None)

    def add_policy(self, policy: Policy) -> Future[None]:
        fuzzer = self.fuzzer
        known = self.policies.get(policy.number)
        if policy.number <= len(self.fixed):
            connection, child = self.fixed[policy.number - 1]
            owner = (connection.name, child.name)
            right = (policy.local_ts, policy.remote_ts) == (child.local_ts, child.remote_ts)
            fuzzer.check(right, "a configured policy with other selectors")
            fuzzer.check(policy.remote.address == connection.remote, "a configured policy for another peer")
        else:
            minted = fuzzer.redeeming
            fuzzer.check(minted is not None, "a policy without an installation")
            owner = (minted.redeemed.connection, minted.redeemed.child)
            child = named(*owner)[1]
            fuzzer.check(_all_inside(policy.local_ts, child.local_ts), "a policy with foreign selectors")
            fuzzer.check(_all_inside(policy.remote_ts, child.remote_ts), "a policy with foreign selectors")
        if known is not None and (known[0], known[1].remote_ts) != (owner, policy.remote_ts):
            used = {pair.policy.number for pair, _ in self.installed.values()}
            fuzzer.check(policy.number not in used, "a policy yields while a pair is under it")
            fuzzer.reached["yielded"] += 1
        fuzzer.check(policy.mode is child.mode, "a policy of another mode")
        fuzzer.check(child.ipcomp or not policy.ipcomp, "a policy that compresses where none is configured")
        fuzzer.check(0 < policy.number <= NUMBERS["MAX_POLICY_NUMBER"], "more policies than their quota")
        self.policies[policy.number] = (owner, policy)
        dynamic = Counter(whose for (whose, _), _ in self.policies.values() if whose not in self.fixed_names)
        fuzzer.check(
            max(dynamic.values(), default=0) <= NUMBERS["MAX_POLICIES_PER_CONNECTION"],
            "more policies of a connection than their quota",
        )
        return self._later()

    def remove_policy(self, policy: Policy) -> Future[None]:
        self.fuzzer.fail("a policy is removed")

    def install_outbound(self, pair: Pair) -> Future[None]:
        fuzzer = self.fuzzer
        known, whose = self.installed.get(pair.spi_in, (None, None))
        fuzzer.check(pair.spi_in in self.settled and known is not None, "a pair sends that does not receive")
        fuzzer.check(pair.spi_in not in self.sending, "a pair gets keys to send with twice")
        minted = fuzzer.sending.get(pair.encryption_out + pair.integrity_out)
        fuzzer.check(minted is not None and minted is whose, "a pair sends with keys of another, or of nobody")
        cipher, integrity = pair.suite.cipher, pair.suite.integrity
        lengths = (cipher.key_octets if cipher else 0, integrity.key_octets if integrity else 0)
        right = (len(pair.encryption_out), len(pair.integrity_out)) == lengths
        fuzzer.check(right, "installed although the keys have another length than the suite's")
        without = dict.fromkeys(KEYS, b"")
        fuzzer.check(replace(pair, **without) == replace(known, **without), "another pair sends than receives")
        fuzzer.reached["sending"] += 1
        self.sending.add(pair.spi_in)

        def then(worked: bool) -> None:
            if not worked:
                self.sending.discard(pair.spi_in)

        return self._later(None, then)

    def install_inbound(self, pair: Pair) -> Future[None]:
        minted = self.fuzzer.minted.get(pair.encryption_in + pair.integrity_in)
        if minted is None:
            self.fuzzer.fail("a pair with keys that nobody redeemed")
        for wrong, what in self._judge(pair, minted):
            self.fuzzer.check(not wrong, f"installed although {what}")
        del self.allocated[pair.spi_in]
        if pair.ipcomp is not None:
            del self.cpis[pair.ipcomp.inbound]
            self.fuzzer.reached["compressed"] += 1
        self.installed[pair.spi_in] = (pair, minted)
        self.fuzzer.reached["installed"] += 1

        def then(worked: bool) -> None:
            if worked:
                self.settled.add(pair.spi_in)
            else:
                del self.installed[pair.spi_in]

        return self._later(None, then)

    def remove(self, pair: Pair) -> Future[None]:
        def then(worked: bool) -> None:
            known = self.installed.get(pair.spi_in)
            if worked and known is not None and known[0].spi_out == pair.spi_out:
                self.gone(pair.spi_in)

        return self._later(None, then)

    def follow(self, pair: Pair) -> Future[None]:
        known, _ = self.installed.get(pair.spi_in, (None, None))
        self.fuzzer.check(known is not None and known.encap, "a pair that cannot move follows its peer")
        self.fuzzer.check(
            known.remote.address == pair.remote.address and pair.remote.port != 0, "a pair follows to another address"
        )
        keys = {name: getattr(known, name) for name in KEYS}
        self.fuzzer.check(replace(pair, remote=known.remote, **keys) == known, "more changes than the port")
        self.fuzzer.reached["moved"] += 1

        def then(worked: bool) -> None:
            present, minted = self.installed.get(pair.spi_in, (None, None))
            # another pair may have the SPI by then
            if worked and present is known:
                self.installed[pair.spi_in] = (replace(known, remote=pair.remote), minted)

        return self._later(None, then)

    def migrate(self, policy: Policy, pairs: tuple[Pair, ...], remote: Endpoint) -> Future[tuple[Spi, ...]]:
        fuzzer = self.fuzzer
        minted = fuzzer.redeeming
        fuzzer.check(minted is not None and minted.asked.remote == remote, "pairs go where no new one is")
        fuzzer.check(bool(pairs), "nothing goes somewhere")
        for pair in pairs:
            known, whose = self.installed.get(pair.spi_in, (None, None))
            keys = {name: getattr(known, name) for name in KEYS}
            fuzzer.check(replace(pair, **keys) == known, "a pair that is not there goes")
            fuzzer.check(whose.redeemed.identity == minted.redeemed.identity, "a pair follows another peer")
            fuzzer.check(pair.policy.number == policy.number, "a pair follows another policy")
            fuzzer.check(
                pair.remote.address == policy.remote.address != remote.address, "a pair goes that is elsewhere"
            )
        fuzzer.reached["migrated"] += 1
        # at once, as the kernel does
        future: Future[tuple[Spi, ...]] = Future()
        if fuzzer.random.random() < 0.1:
            future.set_error(lambda: DataplaneError("refused"))
            return future
        went = tuple(pair.spi_in for pair in pairs if fuzzer.random.random() < 0.9)
        for spi in went:
            known, whose = self.installed[spi]
            self.installed[spi] = (replace(known, remote=remote), whose)
        future.set_result(went)
        return future

    def gone(self, spi: int) -> None:
        self.installed.pop(spi, None)
        self.settled.discard(spi)
        self.sending.discard(spi)

    def traffic(self, pair: Pair) -> Future[Traffic]:
        return self._later(Traffic(bytes_in=0, bytes_out=0, packets_in=0, packets_out=0))

    def _judge(self, pair: Pair, minted: Minted) -> list[tuple[bool, str]]:
        """Every reason why this pair must not be there, and whether it holds."""
        redeemed, asked = minted.redeemed, minted.asked
        connection, child = named(redeemed.connection, redeemed.child)
        here, there = pair.local.address, pair.remote.address
        allocated = self.allocated.get(pair.spi_in)
        cipher, integrity = redeemed.suite.cipher, redeemed.suite.integrity
        lengths = (cipher.key_octets if cipher else 0, integrity.key_octets if integrity else 0)
        keys = (pair.encryption_in, pair.integrity_in)
        handed = (redeemed.encryption_in, redeemed.integrity_in)
        owner, policy = self.policies.get(pair.policy.number, (None, None))
        others = [
            (each, whose) for each, whose in self.installed.values() if whose.redeemed.identity != redeemed.identity
        ]
        taken = [(each.local_ts, each.remote_ts) for each, _ in others]
        if not isinstance(connection.remote, Address):
            taken += [
                (its_child.local_ts, its_child.remote_ts)
                for each, its_child in self.fixed
                if each.remote_id != redeemed.identity
            ]
        per_connection = Counter(whose.redeemed.connection for _, whose in self.installed.values())
        return [
            (connection.remote_id not in (None, redeemed.identity), "the identity is another's"),
            (_closer(connection, here, there, redeemed.identity), "another connection describes the peer closer"),
            (redeemed.suite not in child.suites, "the suite is not configured"),
            (
                str(pair.suite) not in (str(redeemed.suite), str(redeemed.suite).removesuffix("-modp2048")),
                "suites differ",
            ),
            (keys != handed, "the keys are not those of keyd"),
            (tuple(map(len, keys)) != lengths, "the keys have another length than the suite's"),
            ((pair.spi_in, pair.spi_out) != (redeemed.spi_in, redeemed.spi_out), "the SPIs are not keyd's"),
            (bool(pair.encryption_out + pair.integrity_out), "it may send before its peer has confirmed"),
            (pair.spi_in == pair.spi_out, "both directions share an SPI"),
            (allocated is None, "the SPI was not allocated"),
            (
                allocated is not None
                and (allocated.connection, allocated.child) != (redeemed.connection, redeemed.child),
                "the SPI was allocated for another child",
            ),
            (
                allocated is not None and (allocated.local.address, allocated.remote.address) != (here, there),
                "the SPI was allocated for other addresses",
            ),
            (here not in GATEWAY.listen or connection.local not in (None, here), "the local address is foreign"),
            (closeness(connection, there) < 0, "the peer's address is foreign"),
            (there.is_unspecified or there.is_multicast or here.version != there.version, "there is no such peer"),
            (pair.encap and connection.encap is Encap.OFF, "encapsulation is off"),
            (pair.encap and redeemed.suite.protocol is ProtocolId.AH, "AH is encapsulated"),
            (not pair.encap and connection.encap is Encap.FORCE, "encapsulation is forced"),
            (pair.encap and (pair.local.port != 4500 or pair.remote.port == 0), "the ports cannot carry ESP"),
            (pair.local.port not in (500, 4500) or pair.remote.port == 0, "the ports are not IKE's"),
            (not _all_inside(pair.local_ts, child.local_ts), "local selectors are outside"),
            (not _all_inside(pair.remote_ts, child.remote_ts), "remote selectors are outside"),
            (_versions(pair.local_ts) != _versions(pair.remote_ts), "the selectors' families differ"),
            (
                child.mode is Mode.TRANSPORT
                and (
                    any(_span(each) != (here.version, int(here), int(here)) for each in pair.local_ts)
                    or any(_span(each) != (there.version, int(there), int(there)) for each in pair.remote_ts)
                ),
                "transport mode is for the two ends",
            ),
            (
                any(_meet(local, pair.local_ts) and _meet(remote, pair.remote_ts) for local, remote in taken),
                "the traffic is another's",
            ),
            (
                any(
                    (each.remote.address, each.suite.protocol, each.spi_out)
                    == (there, pair.suite.protocol, pair.spi_out)
                    for each, _ in self.installed.values()
                ),
                "the outbound SA exists",
            ),
            (pair.ipcomp is not None and not child.ipcomp, "compression is not configured"),
            (pair.policy.ipcomp is not (pair.ipcomp is not None), "its policy and it differ in compression"),
            (
                pair.ipcomp is not None and self.cpis.get(pair.ipcomp.inbound) is not allocated,
                "the CPI was not allocated with the SPI",
            ),
            (
                (None if pair.ipcomp is None else pair.ipcomp.outbound) != redeemed.cpi_out,
                "the peer's CPI is not what was agreed on",
            ),
            (redeemed.mode is not child.mode, "the peer has agreed to another mode"),
            (
                pair.ipcomp is not None
                and any(
                    each.ipcomp is not None
                    and (each.remote.address, each.ipcomp.outbound) == (there, pair.ipcomp.outbound)
                    for each, _ in self.installed.values()
                ),
                "the CPI is another's",
            ),
            (pair.lifetime != child.lifetime, "the lifetime is not the configured one"),
            (owner != (redeemed.connection, redeemed.child), "the policy is another child's"),
            # the outer addresses of a roaming peer's policy, and compression, are those of its latest installation
            (
                policy is None
                or replace(policy, local=pair.policy.local, remote=pair.policy.remote, ipcomp=pair.policy.ipcomp)
                != pair.policy,
                "its policy is not in place",
            ),
            (pair.policy.mode is not child.mode, "the mode is not the child's"),
            (
                (pair.local, pair.remote, pair.encap) != (asked.local, asked.remote, redeemed.encap),
                "something else was asked for",
            ),
            (
                (_span(pair.local_ts[0]), _span(pair.remote_ts[0]))
                != (
                    _span(redeemed.local_ts or TrafficSelector(ipaddress.ip_network(here))),
                    _span(redeemed.remote_ts or TrafficSelector(ipaddress.ip_network(there))),
                )
                or len(pair.local_ts + pair.remote_ts) != 2,
                "the selectors are not what was agreed on",
            ),
            (len(self.installed) >= QUOTAS["MAX_INSTALLED"], "the quota of pairs is used up"),
            (
                per_connection[connection.name] >= QUOTAS["MAX_INSTALLED_PER_CONNECTION"],
                "the connection's quota of pairs is used up",
            ),
        ]


# the configuration, read once more


def named(connection_name: str, child_name: str) -> tuple[Connection, Child]:
    connection = next(each for each in GATEWAY.connections if each.name == connection_name)
    return connection, next(each for each in connection.children if each.name == child_name)


def closeness(connection: Connection, address: Address) -> int:
    remote = connection.remote
    if isinstance(remote, RemoteAny):
        return 0
    network = ipaddress.ip_network(remote)
    if address.version != network.version or int(network[0]) > int(address) or int(address) > int(network[-1]):
        return -1
    return 200 if isinstance(remote, Address) else network.prefixlen


def _closer(ours: Connection, here: Address, there: Address, identity: Identity) -> bool:
    def rank(each: Connection) -> tuple[bool, int]:
        return each.remote_id is not None, closeness(each, there)

    return any(
        rank(each) > rank(ours)
        for each in GATEWAY.connections
        if each.local in (None, here) and closeness(each, there) >= 0 and each.remote_id in (None, identity)
    )


def _span(selector: TrafficSelector) -> tuple[int, int, int]:
    return selector.network.version, int(selector.network[0]), int(selector.network[-1])


def _all_inside(inner: tuple[TrafficSelector, ...], outer: tuple[TrafficSelector, ...]) -> bool:
    def inside(one: TrafficSelector, other: TrafficSelector) -> bool:
        (version, low, high), (its_version, its_low, its_high) = _span(one), _span(other)
        fits = version == its_version and its_low <= low and high <= its_high
        return fits and other.protocol in (0, one.protocol) and other.port in (0, one.port)

    return all(any(inside(one, other) for other in outer) for one in inner)


def _versions(selectors: tuple[TrafficSelector, ...]) -> set[int]:
    return {each.network.version for each in selectors}


def _meet(some: tuple[TrafficSelector, ...], others: tuple[TrafficSelector, ...]) -> bool:
    def meets(one: TrafficSelector, other: TrafficSelector) -> bool:
        (version, low, high), (its_version, its_low, its_high) = _span(one), _span(other)
        addresses = version == its_version and low <= its_high and its_low <= high
        protocol = one.protocol == other.protocol or not one.protocol or not other.protocol
        return addresses and protocol and (one.port == other.port or not one.port or not other.port)

    return any(meets(one, other) for one in some for other in others)
