"""What the monitor tells the userspace ESP process, and what that reports back."""

from dataclasses import dataclass
from typing import Annotated

from privsep.algorithms import ChildSuite
from privsep.schema.codec import U63, Range, SpiField, Table
from privsep.schema.install import Selectors
from privsep.schema.keymat import Key
from privsep.types import Endpoint, Mode

PolicyNumber = Annotated[int, Range(1, 0xFFFF)]
WindowSize = Annotated[int, Range(32, 4096)]
"""RFC 4303 section 3.4.3: 32 at least."""


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class AddInbound:
    """A pair of SAs of one child (RFC 4303), which receives only. Has no repr: it holds keys. Answer: Ok or Failed."""

    spi_in: SpiField
    spi_out: SpiField
    suite: ChildSuite
    mode: Mode
    policy: PolicyNumber
    """The number given with AddPolicy."""
    encryption_in: Key
    integrity_in: Key
    local: Endpoint
    remote: Endpoint
    encap: bool
    local_ts: Selectors
    remote_ts: Selectors
    replay_window: WindowSize
    lifetime_s: U63


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class AddOutbound:
    """That pair sends, too: of several of a policy the one that this was said of last. Has no repr: it holds keys.

    Answer: Ok or Failed.
    """

    spi_in: SpiField
    encryption_out: Key
    integrity_out: Key


@dataclass(slots=True, frozen=True, kw_only=True)
class RemovePair:
    """Answer: Ok, also when there is no such pair."""

    spi_in: SpiField


@dataclass(slots=True, frozen=True, kw_only=True)
class AddPolicy:
    """Packets between these selectors need an SA; without one they are dropped and reported. Answer: Ok or Failed."""

    policy: PolicyNumber
    local_ts: Selectors
    remote_ts: Selectors


@dataclass(slots=True, frozen=True, kw_only=True)
class RemovePolicy:
    """Its pairs go with it. Answer: Ok, also when there is no such policy."""

    policy: PolicyNumber


@dataclass(slots=True, frozen=True, kw_only=True)
class ReadCounters:
    """Answer: Counters, or Failed when there is no such pair."""

    spi_in: SpiField


@dataclass(slots=True, frozen=True, kw_only=True)
class Ok:
    """The request took effect."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Failed:
    """The request did not take effect (an SPI exists already, a key of wrong length, an unknown policy)."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Counters:
    """Traffic of one pair since it was added; octets are of the inner packets."""

    bytes_in: U63
    bytes_out: U63
    packets_in: U63
    packets_out: U63


@dataclass(slots=True, frozen=True, kw_only=True)
class Trapped:
    """Event: a packet matched a policy that has no SA. Sequence 0."""

    policy: PolicyNumber


@dataclass(slots=True, frozen=True, kw_only=True)
class PairWorn:
    """Event, once: sequence numbers run out soon (RFC 4303 section 3.3.3); time to replace the pair. Sequence 0."""

    spi_in: SpiField


@dataclass(slots=True, frozen=True, kw_only=True)
class PairExpired:
    """Event: lifetime or sequence numbers ended (RFC 4303 section 3.3.3); the pair is removed. Sequence 0."""

    spi_in: SpiField


Request = AddInbound | AddOutbound | RemovePair | AddPolicy | RemovePolicy | ReadCounters
Reply = Ok | Failed | Counters | Trapped | PairWorn | PairExpired

REQUESTS: Table[Request] = Table(
    {1: AddInbound, 2: RemovePair, 3: AddPolicy, 4: RemovePolicy, 5: ReadCounters, 6: AddOutbound}
)
REPLIES: Table[Reply] = Table({1: Ok, 2: Failed, 3: Counters, 4: Trapped, 5: PairWorn, 6: PairExpired})
