"""What the kernel tells packets apart by before it looks at selectors, and the rest that only its data plane knows.

All of it comes from the configuration; no message between our processes can name any of it.
"""

from dataclasses import dataclass

MAX_U32 = 0xFFFFFFFF


@dataclass(slots=True, frozen=True)
class Mark:
    """Firewall marks of packets: those that agree with `value` where `mask` has ones."""

    value: int
    mask: int = MAX_U32

    def __str__(self) -> str:
        return f"0x{self.value:x}/0x{self.mask:x}"

    def meets(self, other: "Mark") -> bool:
        """Whether one packet's mark can agree with both."""
        return not (self.value ^ other.value) & self.mask & other.mask


ANY_MARK = Mark(0, 0)


@dataclass(slots=True, frozen=True, kw_only=True)
class Lane:
    """Which packets a child's policies look at before any selector: those with a mark, those in an XFRM interface."""

    mark_in: Mark = ANY_MARK
    mark_out: Mark = ANY_MARK
    if_id_in: int = 0
    if_id_out: int = 0
    """0 is the lane of all packets that are in no XFRM interface."""

    @property
    def sides(self) -> tuple[tuple[int, Mark], tuple[int, Mark]]:
        """if_id and mark, inbound and outbound."""
        return (self.if_id_in, self.mark_in), (self.if_id_out, self.mark_out)

    @property
    def if_ids(self) -> frozenset[int]:
        """One, unless the two directions differ."""
        return frozenset((self.if_id_in, self.if_id_out))

    def meets(self, other: "Lane") -> bool:
        """Whether some packet, of either direction, could be for the policies of both: selectors must tell then."""
        return any(
            our_id == their_id and our_mark.meets(their_mark)
            for (our_id, our_mark), (their_id, their_mark) in zip(self.sides, other.sides, strict=True)
        )


OPEN = Lane()


@dataclass(slots=True, frozen=True, kw_only=True)
class KernelOptions:
    """None where the configuration says nothing."""

    lane: Lane = OPEN
    interface: str | None = None
    """An XFRM interface of ours with the lane's if_id."""
    priority: int | None = None
    reqid: int | None = None
    life_bytes: int | None = None
    life_packets: int | None = None

    def configured(self) -> tuple[str, ...]:
        """The keys that say something."""
        lane = self.lane
        both = lane.if_id_in == lane.if_id_out
        said = {
            "mark_in": lane.mark_in.mask,
            "mark_out": lane.mark_out.mask,
            "if_id": both and lane.if_id_in,
            "if_id_in": not both and lane.if_id_in,
            "if_id_out": not both and lane.if_id_out,
            "interface": self.interface,
            "priority": self.priority,
            "reqid": self.reqid,
            "life_bytes": self.life_bytes,
            "life_packets": self.life_packets,
        }
        return tuple(key for key, value in said.items() if value)


UNSAID = KernelOptions()
