"""The configuration as values. The loader makes them from TOML; nothing here can hold a secret.

Every process reads the same bytes of gateway.toml and builds this whole model; each then uses its slice (the monitor
selectors and addresses, the worker proposals and timers, keyd identities and authentication).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from privsep.algorithms import ChildSuite, IkeSuite
from privsep.config.index import Index, specificity
from privsep.config.lanes import UNSAID, KernelOptions
from privsep.config.names import RemoteName
from privsep.iana import ProtocolId
from privsep.log import Level
from privsep.types import Address, Auth, Identity, Mode, Network, TrafficSelector

DEFAULT_REPLAY_WINDOW = 64
"""Packets; RFC 4303 section 3.4.3 asks for 32 at least and prefers 64."""
RESOLVER_UID = 1_900_000_004
"""A number that no user, container or service has."""


class DataplaneChoice(Enum):
    """`gateway.dataplane`: who carries ESP."""

    AUTO = "auto"
    KERNEL = "kernel"
    USERSPACE = "userspace"


class Egress(Enum):
    """`gateway.egress`: whether the kernel holds the worker's packets to the two ports and the configured remotes."""

    OPEN = "open"
    RESTRICTED = "restricted"


class OnStop(Enum):
    """`gateway.on_stop`: whether policies outlive a clean stop, so that nothing goes in clear before the next start."""

    BLOCK = "block"
    REMOVE = "remove"


class Encap(Enum):
    """`connection.encap`: UDP encapsulation when NAT is seen, always, or never (RFC 3948)."""

    AUTO = "auto"
    FORCE = "force"
    OFF = "off"


class Start(Enum):
    """`child.start`: negotiate at once, on the first packet, or when the peer or the operator asks."""

    UP = "up"
    TRAP = "trap"
    WAIT = "wait"


class Action(Enum):
    """`shunt.action`: let the traffic through in clear, or refuse it."""

    PASS = "pass"  # noqa: S105 - no password
    DROP = "drop"


class Order(Enum):
    """`shunt.order`: before all children or after them."""

    FIRST = "first"
    LAST = "last"


class Layer(Enum):
    """Sandbox steps that `gateway.absent` may name as missing on this machine; every other step is mandatory."""

    LANDLOCK = "landlock"
    MLOCK = "mlock"
    NETNS = "netns"


@dataclass(slots=True, frozen=True)
class RemoteAny:
    """`remote = "any"`."""


Remote = Address | Network | RemoteAny | RemoteName


@dataclass(slots=True, frozen=True, kw_only=True)
class Users:
    """The unprivileged users, resolved: numeric uids; the gid of each is the same number's or user's primary gid."""

    worker: tuple[int, int]
    keyd: tuple[int, int]
    userspace: tuple[int, int]
    resolver: tuple[int, int] = (RESOLVER_UID, RESOLVER_UID)


@dataclass(slots=True, frozen=True, kw_only=True)
class Child:
    """`[connection.NAME.child.NAME]`. `lifetime` in seconds, `replay_window` in packets."""

    name: str
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]
    mode: Mode
    suites: tuple[ChildSuite, ...]
    lifetime: int
    start: Start
    replay_window: int = DEFAULT_REPLAY_WINDOW
    ipcomp: bool = False
    """Compress before encrypting, where the peer does too (RFC 3173)."""
    kernel: KernelOptions = UNSAID

    @property
    def protocol(self) -> ProtocolId:
        """ESP or AH: that of all its suites."""
        return self.suites[0].protocol

    def covers(self, local: TrafficSelector, remote: TrafficSelector) -> bool:
        """Whether each selector lies inside a configured one of its side."""
        return any(each.contains(local) for each in self.local_ts) and any(
            each.contains(remote) for each in self.remote_ts
        )


@dataclass(slots=True, frozen=True, kw_only=True)
class Connection:
    """`[connection.NAME]`. `lifetime` in seconds; `local` is None where any of our addresses will do."""

    name: str
    local: Address | None
    remote: Remote
    local_id: Identity
    remote_id: Identity | None
    """None accepts any identity that the secret proves."""
    auth: Auth
    suites: tuple[IkeSuite, ...]
    lifetime: int
    encap: Encap
    children: tuple[Child, ...]
    log: Level | None = None
    """Of what is logged about it, where that is not as about all."""

    def specificity(self, remote: Address) -> int:
        """How closely `remote` describes that address: 129 names it, 1 to 128 a prefix of it, 0 any; -1 not at all."""
        return specificity(self.remote, remote)

    def describes(self, local: Address, remote: Address) -> bool:
        """Whether its addresses may be these two."""
        return self.local in (None, local) and self.specificity(remote) >= 0

    def child(self, name: str) -> Child | None:
        """The child of that name, or None."""
        return next((child for child in self.children if child.name == name), None)


@dataclass(slots=True, frozen=True, kw_only=True)
class Shunt:
    """`[shunt.NAME]`: traffic without protection, by decision (RFC 4301 section 4.4.1: BYPASS and DISCARD)."""

    name: str
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]
    action: Action
    order: Order


@dataclass(slots=True, frozen=True, kw_only=True)
class Gateway:
    """The whole of gateway.toml."""

    listen: tuple[Address, ...]
    """Empty: all addresses, IPv4 and IPv6."""
    dataplane: DataplaneChoice
    users: Users
    absent: frozenset[Layer]
    connections: tuple[Connection, ...]
    egress: Egress = Egress.OPEN
    on_stop: OnStop = OnStop.BLOCK
    shunts: tuple[Shunt, ...] = ()
    log: Level = Level.INFO
    index: Index = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", Index(self.connections))

    def locate(self, connection: Connection, address: Address) -> None:
        """The name that is the connection's `remote` has this address now."""
        if isinstance(connection.remote, RemoteName):
            self.index.move(connection, connection.remote, address)

    def children(self) -> Iterator[tuple[Connection, Child]]:
        """Those of all connections, in the order of the configuration."""
        for connection in self.connections:
            for child in connection.children:
                yield connection, child

    @property
    def levels(self) -> tuple[Level, dict[str, Level]]:
        """Of the log: for all, and for the connections that have one of their own."""
        return self.log, {each.name: each.log for each in self.connections if each.log is not None}

    def connection(self, name: str) -> Connection | None:
        """The connection of that name, or None."""
        return self.index.by_name.get(name)

    def candidates(self, local: Address, remote: Address) -> tuple[Connection, ...]:
        """Connections that two addresses may belong to, the most specific first (exact remote, longest prefix, any).

        Of several that only the peer's identity could tell apart, the first.
        """
        return self.index.candidates(local, remote)

    def accepting(self, local: Address, remote: Address, identity: Identity) -> tuple[Connection, ...]:
        """Connections that two addresses may belong to and that take this identity, the most specific address first."""
        return self.index.accepting(local, remote, identity)
