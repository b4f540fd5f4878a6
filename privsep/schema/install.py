"""What worker and monitor say to each other: SPIs and installations one way, orders and kernel events the other.

Both directions carry requests; a sequence number answers only requests of its own direction. Sequence 0 marks what
wants no answer.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from privsep.algorithms import ChildSuite, IkeSuite
from privsep.schema.codec import (
    U32,
    U63,
    CpiField,
    Handle,
    Length,
    Name,
    OptionalName,
    SpiField,
    Table,
    Text,
)
from privsep.schema.levels import SetLevel
from privsep.schema.names import Resolved
from privsep.types import Endpoint, Identity, Role, TrafficSelector

Selectors = Annotated[tuple[TrafficSelector, ...], Length(1, 16)]


class Denial(Enum):
    """Why the monitor did not do it: its second opinion. Each is logged by the monitor with the connection."""

    NO_SUCH_CHILD = "no such connection or child is configured"
    ADDRESSES = "the outer addresses are not the connection's"
    PORTS = "the ports are not those of IKE or of UDP encapsulation"
    ENCAPSULATION = "UDP encapsulation is not as the connection has it"
    KEYMAT = "keyd has no such keymat to redeem"
    IDENTITY = "the proven identity is not the connection's"
    ALGORITHMS = "the suite is not among the child's proposals"
    MODE = "the mode is not the child's"
    AH_ENCAP = "AH cannot be encapsulated in UDP"
    IPCOMP = "IPComp is not configured for the child"
    SPI = "the inbound SPI was not allocated for this child"
    SELECTORS = "the selectors are not inside the child's"
    OVERLAP = "the selectors overlap those of another identity, or of one proved with another secret"
    EXISTS = "an outbound SA of this SPI exists"
    DATAPLANE = "the kernel or the ESP process refused"
    UNKNOWN_SA = "no such SA is installed for this connection"
    QUOTA = "too many SPIs are allocated"


# worker -> monitor


@dataclass(slots=True, frozen=True, kw_only=True)
class AllocateSpi:
    """An inbound SPI for a child (RFC 2408 section 2.4: the destination chooses). Answer: Allocated or Denied.

    For whom and for what traffic is looked at, so that what would be denied later is denied before a message leaves.
    """

    connection: Name
    child: Name
    identity: Identity
    """As the worker knows it from keyd; what keyd says itself counts."""
    local: Endpoint
    remote: Endpoint
    local_ts: TrafficSelector
    remote_ts: TrafficSelector


@dataclass(slots=True, frozen=True, kw_only=True)
class InstallInbound:
    """Redeem the keymat's inbound half and install that SA, if the second opinion agrees. Answer: Installed or Denied.

    The two ends are all that keyd does not know; what was negotiated is keyd's to tell (`Redeemed`).
    """

    keymat: Handle
    local: Endpoint
    remote: Endpoint


@dataclass(slots=True, frozen=True, kw_only=True)
class InstallOutbound:
    """Redeem the other half, for the pair of that inbound SPI, and install it. Answer: Installed or Denied.

    After the latter the pair is as it was, unless the data plane refused: then it is gone.
    """

    spi_in: SpiField


@dataclass(slots=True, frozen=True, kw_only=True)
class Remove:
    """Remove the SA pair whose inbound SPI this is, or give an allocated SPI back. Answer: Removed or Denied."""

    spi_in: SpiField


@dataclass(slots=True, frozen=True, kw_only=True)
class Progress:
    """One step of an operator's order, for the operator's eyes. No answer."""

    order: U32
    text: Text


@dataclass(slots=True, frozen=True, kw_only=True)
class Unanswered:
    """Nobody answers at the address of the connection's name: look it up again, if that was not done just now.

    No answer; what is found comes as `Resolved`.
    """

    connection: Name


@dataclass(slots=True, frozen=True, kw_only=True)
class Allocated:
    """The SPI now belongs to that child until it is installed or given back."""

    spi: SpiField
    cpi: CpiField | None = None
    """With it where the child has `ipcomp`: what the peer is to send compressed packets under."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Installed:
    """The SA is in place."""

    spi_in: SpiField


@dataclass(slots=True, frozen=True, kw_only=True)
class Removed:
    """The pair is gone."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Denied:
    """Nothing was changed."""

    why: Denial


# monitor -> worker


@dataclass(slots=True, frozen=True, kw_only=True)
class Up:
    """Negotiate a child ("" all of the connection). Progress follows; answer: Completed when it is up or failed."""

    order: U32
    connection: Name
    child: OptionalName


@dataclass(slots=True, frozen=True, kw_only=True)
class Down:
    """Delete a child ("" the connection with its IKE SA), telling the peer. Answer: Completed."""

    order: U32
    connection: Name
    child: OptionalName


@dataclass(slots=True, frozen=True, kw_only=True)
class Describe:
    """A page of IKE SAs, those after `cursor`. Answer: Described."""

    cursor: U32


@dataclass(slots=True, frozen=True, kw_only=True)
class Stop:
    """Say DELETE to all peers, then answer Completed; the process is ended after that."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Acquire:
    """A packet matched a trap: negotiate the child. No answer."""

    connection: Name
    child: Name


@dataclass(slots=True, frozen=True, kw_only=True)
class Expired:
    """The data plane ended (hard) or wants replaced (not hard) the pair of this inbound SPI. No answer."""

    spi_in: SpiField
    hard: bool


@dataclass(slots=True, frozen=True, kw_only=True)
class Adopted:
    """At start: this pair is installed from before; replace it before it ends. No answer."""

    connection: Name
    child: Name
    identity: Identity
    """Of the peer, which keyd proved when it was made."""
    spi_in: SpiField
    spi_out: SpiField
    local: Endpoint
    remote: Endpoint
    left_s: U32
    """Seconds that are left of its lifetime."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Moved:
    """The peer of this pair has another port, or address; the data plane follows already. No answer."""

    spi_in: SpiField
    remote: Endpoint


class Outcome(Enum):
    """How an order ended."""

    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True, frozen=True, kw_only=True)
class Completed:
    """An order ended; `text` says why if it failed."""

    outcome: Outcome
    text: Text


@dataclass(slots=True, frozen=True, kw_only=True)
class ChildStatus:
    """One installed child SA pair, as the worker knows it; counters are the data plane's and the monitor's to add."""

    name: Name
    state: Name
    suite: ChildSuite
    spi_in: SpiField
    spi_out: SpiField
    local_ts: Selectors
    remote_ts: Selectors
    encap: bool
    age_s: U63


@dataclass(slots=True, frozen=True, kw_only=True)
class IkeStatus:
    """One IKE SA."""

    connection: OptionalName
    role: Role
    mode: Name
    state: Name
    local: Endpoint
    remote: Endpoint
    local_id: Identity | None
    remote_id: Identity | None
    cky_i: Annotated[bytes, Length(8, 8)]
    cky_r: Annotated[bytes, Length(8, 8)]
    suite: IkeSuite | None
    nat: Name
    """none, local, remote or both: who is behind NAT (RFC 3947 section 3.2)."""
    established_s: U63
    rekey_in_s: U63
    children: Annotated[tuple[ChildStatus, ...], Length(0, 64)]


@dataclass(slots=True, frozen=True, kw_only=True)
class Described:
    """A page; `cursor` continues it, 0 ends."""

    cursor: U32
    ike_sas: Annotated[tuple[IkeStatus, ...], Length(0, 16)]


WorkerRequest = AllocateSpi | InstallInbound | InstallOutbound | Remove | Progress | Unanswered
MonitorReply = Allocated | Installed | Removed | Denied
MonitorRequest = Up | Down | Describe | Stop | Acquire | Expired | Adopted | Moved | SetLevel | Resolved
WorkerReply = Completed | Described

FROM_WORKER: Table[WorkerRequest | WorkerReply] = Table(
    {
        1: AllocateSpi,
        2: InstallInbound,
        3: Remove,
        4: Progress,
        5: InstallOutbound,
        6: Unanswered,
        16: Completed,
        17: Described,
    }
)
FROM_MONITOR: Table[MonitorRequest | MonitorReply] = Table(
    {
        1: Up,
        2: Down,
        3: Describe,
        4: Stop,
        5: Acquire,
        6: Expired,
        7: Adopted,
        12: Moved,
        13: SetLevel,
        14: Resolved,
        16: Allocated,
        17: Installed,
        18: Removed,
        19: Denied,
    }
)
