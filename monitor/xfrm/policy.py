"""From a policy to the kernel's: struct xfrm_userpolicy_info, one for each direction and pair of selectors.

RFC 4301 section 4.4.1: the SPD, ordered; here by priority, the more specific selectors first.
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from monitor.dataplane import Policy
from monitor.xfrm.messages import Message
from monitor.xfrm.structs import ALL_ALGORITHMS, PROTOCOLS, UNLIMITED, Attribute, Direction, KernelMode, Values
from privsep.types import Address, Mode, TrafficSelector

PRIORITY_BASE = 0x494B45
"""Less the specificity it is the priority, of which the kernel takes the lowest. By this range we know our own."""
MAX_SPECIFICITY = 4 * (128 + 128) + 3

ICMPV6 = 58
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
DISCOVERY_PRIORITY = PRIORITY_BASE - 2 * MAX_SPECIFICITY - 1
"""Before every policy of ours that requires protection."""

MODES = {Mode.TUNNEL: KernelMode.TUNNEL, Mode.TRANSPORT: KernelMode.TRANSPORT}


@dataclass(slots=True, frozen=True, kw_only=True)
class Entry:
    """One policy of the kernel's: what finds it (struct xfrm_userpolicy_id), what it is."""

    key: Values
    values: Values
    attributes: tuple[Attribute, ...]


def entries(policy: Policy) -> Iterator[Entry]:
    """Each local with each remote selector; out first, so that nothing leaks meanwhile.

    Only tunnels forward: what transport mode decapsulates is for this machine (RFC 4301 section 4.1).
    """
    inbound = (Direction.IN, Direction.FWD) if policy.mode is Mode.TUNNEL else (Direction.IN,)
    local, remote = policy.local.address, policy.remote.address
    for ours in policy.local_ts:
        for theirs in policy.remote_ts:
            leaving, entering = selector(ours, theirs), selector(theirs, ours)
            if leaving is None or entering is None:
                continue
            priority = PRIORITY_BASE - _specificity(ours, theirs)
            yield _entry(Direction.OUT, leaving, priority, _template(policy, local, remote))
            for direction in inbound:
                yield _entry(direction, entering, priority, _template(policy, remote, local))
    if any(_covers(*pair, policy) for pair in product(policy.local_ts, policy.remote_ts)):
        yield from _discovery(local, remote)


def _covers(ours: TrafficSelector, theirs: TrafficSelector, policy: Policy) -> bool:
    """Whether ICMPv6 between the outer addresses themselves is to be protected."""
    local, remote = policy.local.address, policy.remote.address
    return (
        local.version == 6
        and local in ours.network
        and remote in theirs.network
        and (ours.protocol or theirs.protocol) in (0, ICMPV6)
    )


def _discovery(local: Address, remote: Address) -> Iterator[Entry]:
    """RFC 4861: two neighbours find each other in clear, or no message of IKE's would ever get through.

    An answer is sent to the one address that asked, so that a policy for it would apply.
    """
    for kind in NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT:
        for direction, source, destination in (
            (Direction.OUT, local, remote),
            (Direction.IN, remote, local),
        ):
            chosen: Values = {
                "sel.daddr": destination.packed,
                "sel.saddr": source.packed,
                "sel.dport": bytes(2),
                "sel.dport_mask": _mask(0),
                # the kernel has the type of an ICMP message there
                "sel.sport": kind.to_bytes(2),
                "sel.sport_mask": _mask(kind),
                "sel.family": socket.AF_INET6,
                "sel.prefixlen_d": destination.max_prefixlen,
                "sel.prefixlen_s": source.max_prefixlen,
                "sel.proto": ICMPV6,
            }
            yield Entry(
                key={**chosen, "dir": direction},
                values={**chosen, **UNLIMITED, "priority": DISCOVERY_PRIORITY, "dir": direction},
                attributes=(),
            )


def _entry(direction: Direction, chosen: Values, priority: int, template: Values) -> Entry:
    return Entry(
        key={**chosen, "dir": direction},
        values={**chosen, **UNLIMITED, "priority": priority, "dir": direction},
        attributes=(("XFRMA_TMPL", template),),
    )


def _template(policy: Policy, source: Address, destination: Address) -> Values:
    """ESP or AH of this child, and required. Transport mode has the packet's own addresses."""
    tunnel = policy.mode is Mode.TUNNEL
    return {
        "id.daddr": destination.packed if tunnel else b"",
        "id.proto": PROTOCOLS[policy.protocol],
        "family": family(destination),
        "saddr": source.packed if tunnel else b"",
        "reqid": policy.number,
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


def is_ours(present: Message) -> bool:
    """Whether a policy that the kernel has may be replaced: by its priority ours, and it requires what ours do."""
    template = present.get_attr("XFRMA_TMPL")
    if present["priority"] == DISCOVERY_PRIORITY:
        return template is None
    return has_our_priority(present["priority"]) and template is not None and not template["optional"]
