"""What the monitor needs of whoever carries ESP and AH: the kernel's XFRM or the userspace ESP process.

Both stand behind the same few verbs, so that `service.py` decides and never cares who executes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from privsep.algorithms import ChildSuite
from privsep.config.lanes import UNSAID, KernelOptions
from privsep.config.model import Shunt
from privsep.errors import PrivsepError
from privsep.iana import ProtocolId
from privsep.tasks import Future
from privsep.types import Cpi, Endpoint, Mode, Role, Spi, TrafficSelector


class DataplaneError(PrivsepError):
    """The kernel or the ESP process refused. The text has no keys."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Policy:
    """Traffic of one child that must be protected. `number` ties SAs to it; 1 to 65535."""

    number: int
    protocol: ProtocolId
    """ESP or AH."""
    mode: Mode
    local: Endpoint
    remote: Endpoint
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]
    kernel: KernelOptions = UNSAID
    ipcomp: bool = False
    """Compress what leaves, before it is protected; `protocol` is required all the same (RFC 3173)."""

    @property
    def reqid(self) -> int:
        """What ties SAs to it in the kernel."""
        return self.kernel.reqid or self.number


@dataclass(slots=True, frozen=True, kw_only=True)
class Cpis:
    """What IPComp has for SPIs; 16 bits."""

    inbound: Cpi
    outbound: Cpi


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class Pair:
    """The two SAs of a child. Has no repr: it holds keys. An encryption key ends with its salt or nonce."""

    policy: Policy
    """Its `number` and `mode`; `local_ts`/`remote_ts` below are what was negotiated."""
    spi_in: Spi
    spi_out: Spi
    suite: ChildSuite
    encryption_in: bytes
    integrity_in: bytes
    encryption_out: bytes
    integrity_out: bytes
    local: Endpoint
    remote: Endpoint
    encap: bool
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]
    lifetime: int
    """Seconds until the data plane itself ends it, whatever the worker does."""
    replay_window: int
    """Packets (RFC 4303 section 3.4.3)."""
    ipcomp: Cpis | None = None
    """Where compression was agreed on."""
    role: Role = Role.RESPONDER
    """In the Quick Mode that made it: an initiator's peer has its own pair only after message 3."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Traffic:
    """Counters of a pair since it was installed."""

    bytes_in: int
    bytes_out: int
    packets_in: int
    packets_out: int


@dataclass(slots=True, frozen=True, kw_only=True)
class Events:
    """What a data plane reports."""

    acquired: Callable[[int], None]
    """A packet matched the policy of that number and found no SA."""
    expired: Callable[[Spi, bool], None]
    """(inbound SPI, hard): a lifetime ended; after a hard one the pair is gone."""
    moved: Callable[[Spi, Endpoint], None]
    """(inbound SPI, source): a UDP-encapsulated packet that verified came from elsewhere (RFC 3948 section 3)."""


class Dataplane(Protocol):
    """Futures resolve with None or raise DataplaneError."""

    name: str
    """"kernel" or "userspace"."""

    def allocate_spi(self, local: Endpoint, remote: Endpoint, protocol: ProtocolId) -> Spi:
        """Reserve an inbound SPI, or CPI for IPCOMP; DataplaneError if there is none."""

    def release_spi(self, spi: Spi, local: Endpoint, remote: Endpoint, protocol: ProtocolId) -> None:
        """Give an allocated SPI that was not installed back."""

    def add_policy(self, policy: Policy) -> Future[None]:
        """From now on the policy's traffic goes protected or not at all.

        With a number and selectors that are in place it replaces that policy without a gap: the peer has moved.
        """

    def remove_policy(self, policy: Policy) -> Future[None]:
        """Only at the end of the daemon, or when the child leaves the configuration."""

    def add_shunt(self, shunt: Shunt) -> Future[None]:
        """From now on its traffic passes in clear, or is refused."""

    def remove_shunt(self, shunt: Shunt) -> Future[None]:
        """Only at the end of the daemon."""

    def install_inbound(self, pair: Pair) -> Future[None]:
        """What receives, with the keys for that; those that send are empty."""

    def install_outbound(self, pair: Pair) -> Future[None]:
        """What sends, after the other; only those keys are used. Never replaces an existing outbound SA.

        An initiator's may take effect later, as long as an earlier pair sends; should it fail, the pair expires.
        """

    def remove(self, pair: Pair) -> Future[None]:
        """Both SAs; harmless when they are gone. The policy stays."""

    def follow(self, pair: Pair) -> Future[None]:
        """The installed pair's peer has the port that stands here now; keys and counters stay, no keys are given."""

    def migrate(self, policy: Policy, pairs: tuple[Pair, ...], remote: Endpoint) -> Future[tuple[Spi, ...]]:
        """The peer is at another address: all pairs that the policy, which is in place, has at its addresses go there.

        With keys, sequence numbers and counters. Answers with the inbound SPIs of those that went, perhaps none; the
        others stay. One that went by half ends. DataplaneError, and none went.
        """

    def traffic(self, pair: Pair) -> Future[Traffic]:
        """Counters; DataplaneError when the pair is gone."""


class Adopting(Protocol):
    """A data plane whose SAs and policies outlive the daemon, which is the kernel."""

    def adopt(self, pair: Pair) -> Future[None]:
        """Take charge of an earlier instance's pair. DataplaneError unless both SAs are there as described."""

    def discard(self, pair: Pair) -> Future[bool]:
        """Remove those of its SAs that are there as described, and no others; whether there were any."""

    def expect(self, policy: Policy) -> Future[None]:
        """An earlier instance placed it: `add_policy` may replace what is there of it."""

    def clear(self, rule: Policy | Shunt) -> Future[None]:
        """Remove what an earlier instance left of this policy or shunt, but for what stands in its place since."""
