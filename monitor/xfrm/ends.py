"""How the kernel knows the SAs of a pair (RFC 4301 section 4.1): two, or four with IPComp."""

from dataclasses import dataclass

from monitor.dataplane import Pair
from monitor.xfrm.sa import SaId, Selectors
from privsep.iana import ProtocolId
from privsep.types import Address, Spi

Flow = tuple[int, Address, Address, Selectors, Selectors, bool]
"""Number of the policy, between whom, what was negotiated, whether compressed: a successor that can take over has the
same."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Ends:
    """What is kept of an installed pair: its names, and what a successor has in common with it."""

    inbound: SaId
    outbound: SaId
    flow: Flow
    decompressing: SaId | None = None
    compressing: SaId | None = None

    @classmethod
    def of(cls, pair: Pair) -> "Ends":
        """Those of a pair."""
        protocol, cpis, mark = pair.suite.protocol, pair.ipcomp, pair.policy.kernel.lane.mark_out
        local, remote = pair.local.address, pair.remote.address
        return cls(
            inbound=SaId(local, protocol, pair.spi_in),
            outbound=SaId(remote, protocol, pair.spi_out, mark),
            flow=(pair.policy.number, local, remote, pair.local_ts, pair.remote_ts, cpis is not None),
            decompressing=SaId(local, ProtocolId.IPCOMP, Spi(cpis.inbound)) if cpis is not None else None,
            compressing=SaId(remote, ProtocolId.IPCOMP, Spi(cpis.outbound), mark) if cpis is not None else None,
        )

    def is_of(self, other: "Ends") -> bool:
        """Whether the two are of one pair: an inbound SPI is allocated for one alone."""
        return self.inbound == other.inbound

    @property
    def both(self) -> tuple[SaId, SaId]:
        """Inbound, outbound."""
        return self.inbound, self.outbound

    @property
    def inward(self) -> tuple[SaId, ...]:
        """Inbound, with IPComp's."""
        return (self.inbound,) if self.decompressing is None else (self.inbound, self.decompressing)

    @property
    def outward(self) -> tuple[SaId, ...]:
        """Outbound, with IPComp's."""
        return (self.outbound,) if self.compressing is None else (self.outbound, self.compressing)

    @property
    def every(self) -> tuple[SaId, ...]:
        """All of them."""
        return self.inward + self.outward
