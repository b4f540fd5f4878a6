"""A child SA pair as plain data (RFC 2409 section 5.5), and when an SA is due for renewal."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from privsep.algorithms import ChildSuite
from privsep.config.model import Child, Connection
from privsep.types import Endpoint, Role, Spi, TrafficSelector, hex_spi
from worker.isakmp_sa import Peer
from worker.timers import Timer

MARGINS = {Role.INITIATOR: (0.10, 0.20), Role.RESPONDER: (0.04, 0.08)}
"""Share of the lifetime that is left when renewal begins. The initiator comes first, so that the two ends seldom do it
at once; chance spreads the SAs of many peers."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Flow:
    """What one Quick Mode is to protect. A child with several selectors has a flow for each pair of them, as IDci and
    IDcr hold one each."""

    connection: Connection
    child: Child
    local_ts: TrafficSelector
    remote_ts: TrafficSelector
    peer: Peer | None = None
    """Whom to negotiate with; None: whoever is at the configured address."""


class ChildState(Enum):
    """Life of a pair."""

    INSTALLED = "installed"
    RENEWING = "rekeying"
    REPLACED = "replaced"
    """A newer pair is in use; this one still takes what is on its way."""
    CLOSED = "closed"


@dataclass(slots=True, kw_only=True, eq=False)
class ChildSa:
    """One pair that the monitor installed."""

    peer: Peer
    child: Child
    role: Role
    suite: ChildSuite
    spi_in: Spi
    spi_out: Spi
    local: Endpoint
    remote: Endpoint
    encap: bool
    local_ts: TrafficSelector
    remote_ts: TrafficSelector
    installed: float
    expires: float
    began: float = float("-inf")
    """When its Quick Mode did, here. Pairs that stood then are what it replaces."""
    state: ChildState = ChildState.INSTALLED
    renewal: Timer | None = None

    @property
    def flow(self) -> Flow:
        """What a successor must protect."""
        return Flow(
            connection=self.peer.connection,
            child=self.child,
            local_ts=self.local_ts,
            remote_ts=self.remote_ts,
            peer=self.peer,
        )

    @property
    def label(self) -> dict[str, object]:
        """Fields for the log."""
        return {
            "connection": self.peer.connection.name,
            "child": self.child.name,
            "spi_in": hex_spi(self.spi_in),
            "spi_out": hex_spi(self.spi_out),
        }

    def serves(self, flow: Flow) -> bool:
        """Whether it protects what the flow asks for."""
        return self.child is flow.child and self.local_ts == flow.local_ts and self.remote_ts == flow.remote_ts

    def meets(self, flow: Flow) -> bool:
        """Whether some packet belongs to both, so that the two cannot be different peers'."""
        return self.local_ts.overlaps(flow.local_ts) and self.remote_ts.overlaps(flow.remote_ts)


def flows(connection: Connection, child: Child) -> tuple[Flow, ...]:
    """All that a configured child protects, one Quick Mode each."""
    return tuple(
        Flow(connection=connection, child=child, local_ts=local, remote_ts=remote)
        for local in child.local_ts
        for remote in child.remote_ts
    )


def renewal_delay(lifetime: float, role: Role, random: Callable[[int], bytes]) -> float:
    """Seconds from now until an SA of that lifetime should be renewed."""
    low, high = MARGINS[role]
    return lifetime * (1 - low - (high - low) * fraction(random))


def fraction(random: Callable[[int], bytes]) -> float:
    """A number from 0 to 1."""
    return int.from_bytes(random(2), "big") / 0xFFFF
