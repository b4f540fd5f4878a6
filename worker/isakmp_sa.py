"""An ISAKMP SA as plain data (RFC 2408 section 2.1), and the peer that several of them may lead to.

Nothing here holds a key: `handle` names the SA in keyd.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from privsep.algorithms import IkeSuite
from privsep.config.model import Connection
from privsep.iana import ProtocolId
from privsep.types import Cookie, Endpoint, Identity, Role, Spi
from worker.codec.header import ZERO_COOKIE
from worker.nat import Nat
from worker.timers import Timer

if TYPE_CHECKING:
    from worker.child import ChildSa
    from worker.exchange import Exchange
    from worker.ikev1.dpd import Probe


NOBODY = "-"
"""In the log, for the connection of an IKE SA with somebody who has not proved who it is."""


class IkeState(Enum):
    """Life of an IKE SA. Phase 2 is admitted in ESTABLISHED only."""

    NEGOTIATING = "negotiating"
    ESTABLISHED = "established"
    CLOSED = "closed"


@dataclass(slots=True, eq=False)
class Peer:
    """What we have with one authenticated identity under one connection. Child SAs outlive the IKE SA they came by."""

    connection: Connection
    identity: Identity
    ike_sas: "list[IkeSa]" = field(default_factory=list)
    """Established ones, in the order of their establishment."""
    children: "dict[Spi, ChildSa]" = field(default_factory=dict)
    """By inbound SPI, in the order of their installation."""
    by_spi_out: "dict[tuple[ProtocolId, Spi], ChildSa]" = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class IkeSa:
    """One ISAKMP SA. `connection` is ours to choose as initiator, keyd's to tell as responder."""

    serial: int
    role: Role
    cky_i: Cookie
    cky_r: Cookie = ZERO_COOKIE
    local: Endpoint
    remote: Endpoint
    created: float
    state: IkeState = IkeState.NEGOTIATING
    connection: Connection | None = None
    suite: IkeSuite | None = None
    handle: bytes = b""
    peer: Peer | None = None
    nat: Nat = Nat.NONE
    encap: bool = False
    """UDP encapsulation for its children, and IKE on port 4500 (RFC 3947 section 4)."""
    established: float = 0.0
    expires: float = 0.0
    exchanges: "dict[int, Exchange]" = field(default_factory=dict)
    """By message id; 0 is phase 1's."""
    opening: int = 0
    """The peer's first messages of exchanges that keyd has not verified yet."""
    answering: int = 0
    """Quick Modes that the peer began and that are not over."""
    message_ids: int = 0
    """As many as exchanges of phase 2 have used."""
    renewal: Timer | None = None
    keepalive: Timer | None = None
    knows_dpd: bool = False
    """Whether the peer announced dead peer detection (RFC 3706 section 5.1)."""
    asked: int = 0
    """Sequence number of our last R-U-THERE; 0 before the first."""
    probe: "Probe | None" = None
    """Our question that waits for its acknowledgement."""
    moved: float = float("-inf")
    """When the peer last changed its address."""

    @property
    def passes_ah(self) -> bool:
        """RFC 3715 section 2.1: AH covers the addresses that a NAT changes, and UDP encapsulation is for ESP only."""
        return self.nat is Nat.NONE and not self.encap

    @property
    def label(self) -> dict[str, object]:
        """Fields for the log."""
        return {
            "connection": self.connection.name if self.connection is not None else NOBODY,
            "remote": self.remote,
            "cookies": f"{self.cky_i.hex()}:{self.cky_r.hex()}",
        }

    @property
    def peer_name(self) -> str:
        """Whom we talk to, or believe so, for people."""
        if self.peer is not None:
            return str(self.peer.identity)
        if self.connection is not None and self.connection.remote_id is not None:
            return str(self.connection.remote_id)
        return str(self.remote.address)
