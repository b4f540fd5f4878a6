"""From a policy to the kernel's: struct xfrm_userpolicy_info, one for each direction and pair of selectors.

RFC 4301 section 4.4.1: the SPD, ordered; here by priority, the more specific selectors first.
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass

from monitor.dataplane import Policy
from monitor.xfrm.messages import Message
from monitor.xfrm.structs import ALL_ALGORITHMS, PROTOCOLS, UNLIMITED, Attribute, Direction, KernelMode, Values
from privsep.config.lanes import Mark
from privsep.types import Address, Mode, TrafficSelector

PRIORITY_BASE = 0x494B45
"""Less the specificity it is the priority, of which the kernel takes the lowest. By this range we know our own."""
MAX_SPECIFICITY = 4 * (128 + 128) + 3

MODES = {Mode.TUNNEL: KernelMode.TUNNEL, Mode.TRANSPORT: KernelMode.TRANSPORT}


@dataclass(slots=True, frozen=True, kw_only=True)
class Entry:
    """One policy of the kernel's: what finds it (struct xfrm_userpolicy_id), what it is."""

    key: Values
    lane: tuple[Attribute, ...]
    """The rest of the key: two lanes may have the same selectors."""
    values: Values
    template: Values

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """Of what it is."""
        return (("XFRMA_TMPL", self.template), *self.lane)


def entries(policy: Policy) -> Iterator[Entry]:
    """Each local with each remote selector; out first, so that nothing leaks meanwhile.

    Only tunnels forward: what transport mode decapsulates is for this machine (RFC 4301 section 4.1).
    """
    inbound = (Direction.IN, Direction.FWD) if policy.mode is Mode.TUNNEL else (Direction.IN,)
    local, remote = policy.local.address, policy.remote.address
    entry_lane, leave_lane = (lane(*side) for side in policy.kernel.lane.sides)
    for ours in policy.local_ts:
        for theirs in policy.remote_ts:
            leaving, entering = selector(ours, theirs), selector(theirs, ours)
            if leaving is None or entering is None:
                continue
            priority = policy.kernel.priority or PRIORITY_BASE - _specificity(ours, theirs)
            yield _entry(Direction.OUT, leaving, leave_lane, priority, _template(policy, local, remote))
            for direction in inbound:
                yield _entry(direction, entering, entry_lane, priority, _template(policy, remote, local))


def _entry(direction: Direction, chosen: Values, lane: tuple[Attribute, ...], priority: int, template: Values) -> Entry:
    return Entry(
        key={**chosen, "dir": direction},
        lane=lane,
        values={**chosen, **UNLIMITED, "priority": priority, "dir": direction},
        template=template,
    )


def lane(if_id: int, mark: Mark) -> tuple[Attribute, ...]:
    """Of a policy or an SA, one direction's; nothing for what the configuration leaves open."""
    found: list[Attribute] = []
    if mark.mask:
        found.append(("XFRMA_MARK", {"value": mark.value, "mask": mark.mask}))
    if if_id:
        found.append(("XFRMA_IF_ID", {"value": if_id}))
    return tuple(found)


def _template(policy: Policy, source: Address, destination: Address) -> Values:
    """ESP or AH of this child, and required. Transport mode has the packet's own addresses."""
    tunnel = policy.mode is Mode.TUNNEL
    return {
        "id.daddr": destination.packed if tunnel else b"",
        "id.proto": PROTOCOLS[policy.protocol],
        "family": family(destination),
        "saddr": source.packed if tunnel else b"",
        "reqid": policy.reqid,
        "mode": MODES[policy.mode],
        "aalgos": ALL_ALGORITHMS,
        "ealgos": ALL_ALGORITHMS,
        "calgos": ALL_ALGORITHMS,
    }


def selector(source: TrafficSelector, destination: TrafficSelector) -> Values | None:
    """Packets from one to the other; None if there are none, because families or protocols differ."""
    if source.network.version != destination.network.version:
        return None
    if source.protocol and destination.protocol and source.protocol != destination.protocol:
        return None
    return {
        "sel.daddr": destination.network.network_address.packed,
        "sel.saddr": source.network.network_address.packed,
        "sel.dport": destination.port.to_bytes(2),
        "sel.dport_mask": _mask(destination.port),
        "sel.sport": source.port.to_bytes(2),
        "sel.sport_mask": _mask(source.port),
        "sel.family": family(source.network.network_address),
        "sel.prefixlen_d": destination.network.prefixlen,
        "sel.prefixlen_s": source.network.prefixlen,
        "sel.proto": source.protocol or destination.protocol,
    }


def family(address: Address) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _mask(port: int) -> bytes:
    return b"\xff\xff" if port else b"\0\0"


def _specificity(ours: TrafficSelector, theirs: TrafficSelector) -> int:
    """Longer prefixes, then a protocol, then ports."""
    return (
        4 * (ours.network.prefixlen + theirs.network.prefixlen)
        + 2 * bool(ours.protocol or theirs.protocol)
        + bool(ours.port or theirs.port)
    )


def has_our_priority(priority: int) -> bool:
    """Whether a policy of that priority is one of ours, perhaps of an earlier instance."""
    return PRIORITY_BASE - MAX_SPECIFICITY <= priority <= PRIORITY_BASE


def is_same(present: Message, entry: Entry) -> bool:
    """Whether it differs from the entry in outer addresses at most; a configured priority may be outside our range."""
    template = present.get_attr("XFRMA_TMPL")
    return (
        present["priority"] == entry.values["priority"]
        and template is not None
        and not template["optional"]
        and template["reqid"] == entry.template["reqid"]
    )


def is_ours(present: Message) -> bool:
    """Whether a policy that the kernel has may be replaced: by its priority it is ours, and it requires an SA too."""
    template = present.get_attr("XFRMA_TMPL")
    return has_our_priority(present["priority"]) and template is not None and not template["optional"]
