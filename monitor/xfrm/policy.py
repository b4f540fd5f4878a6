"""From a policy to the kernel's: struct xfrm_userpolicy_info, one for each direction and pair of selectors.

RFC 4301 section 4.4.1: the SPD, ordered; here by priority, the more specific selectors first.
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from monitor.dataplane import Policy
from monitor.xfrm.messages import Message
from monitor.xfrm.structs import (
    ALL_ALGORITHMS,
    PROTOCOLS,
    UNLIMITED,
    Attribute,
    Direction,
    KernelAction,
    KernelMode,
    Values,
)
from privsep.config.model import Action, Order, Shunt
from privsep.types import Address, Mode, TrafficSelector

PRIORITY_BASE = 0x494B45
"""Less the specificity it is the priority, of which the kernel takes the lowest. By this range we know our own."""
MAX_SPECIFICITY = 4 * (128 + 128) + 3
_SPAN = MAX_SPECIFICITY + 1
SHUNT_BASES = {Order.FIRST: PRIORITY_BASE - _SPAN, Order.LAST: PRIORITY_BASE + _SPAN}
"""Of shunts: whatever their specificity and the children's, they go first, or last."""

DISCOVERY_PRIORITY = PRIORITY_BASE - 3 * _SPAN
"""Before every policy and shunt of ours."""
ICMPV6 = 58
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136

ACTIONS = {Action.PASS: KernelAction.ALLOW, Action.DROP: KernelAction.BLOCK}
MODES = {Mode.TUNNEL: KernelMode.TUNNEL, Mode.TRANSPORT: KernelMode.TRANSPORT}


@dataclass(slots=True, frozen=True, kw_only=True)
class Entry:
    """One policy of the kernel's: what finds it (struct xfrm_userpolicy_id), what it is."""

    key: Values
    values: Values
    attributes: tuple[Attribute, ...]


def entries(rule: Policy | Shunt) -> Iterator[Entry]:
    """Each local with each remote selector; out first, so that nothing leaks meanwhile.

    Only tunnels forward: what transport mode decapsulates is for this machine (RFC 4301 section 4.1).
    """
    if isinstance(rule, Policy):
        local, remote = rule.local.address, rule.remote.address
        out, in_ = (("XFRMA_TMPL", _template(rule, *ends)) for ends in ((local, remote), (remote, local)))
        forwards = rule.mode is Mode.TUNNEL
        yield from _entries(rule, PRIORITY_BASE, KernelAction.ALLOW, ((out,), (in_,)), forwards=forwards)
        if any(_covers(*pair, rule) for pair in product(rule.local_ts, rule.remote_ts)):
            yield from _discovery(local, remote)
    else:
        yield from _entries(rule, SHUNT_BASES[rule.order], ACTIONS[rule.action], ((), ()), forwards=True)


def _entries(
    rule: Policy | Shunt,
    base: int,
    action: KernelAction,
    templates: tuple[tuple[Attribute, ...], tuple[Attribute, ...]],
    *,
    forwards: bool,
) -> Iterator[Entry]:
    out, in_ = templates
    for ours in rule.local_ts:
        for theirs in rule.remote_ts:
            leaving, entering = selector(ours, theirs), selector(theirs, ours)
            if leaving is None or entering is None:
                continue
            common = {**UNLIMITED, "priority": base - _specificity(ours, theirs), "action": action}
            yield _entry(Direction.OUT, leaving, common, out)
            for direction in (Direction.IN, Direction.FWD) if forwards else (Direction.IN,):
                yield _entry(direction, entering, common, in_)


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
            yield _entry(direction, chosen, {**UNLIMITED, "priority": DISCOVERY_PRIORITY}, ())


def _entry(direction: Direction, chosen: Values, common: Values, attributes: tuple[Attribute, ...]) -> Entry:
    key = {**chosen, "dir": direction}
    return Entry(key=key, values={**common, **key}, attributes=attributes)


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
    """Whether a policy that the kernel has may be replaced: by its priority ours, and requiring what such ones do."""
    priority, template = present["priority"], present.get_attr("XFRMA_TMPL")
    if template is not None:
        return has_our_priority(priority) and not template["optional"]
    if priority == DISCOVERY_PRIORITY:
        return True
    return any(base - MAX_SPECIFICITY <= priority <= base for base in SHUNT_BASES.values())


def stands_for(present: Message, rule: Policy | Shunt) -> bool:
    """Whether a policy of ours is part of that rule: of a policy by its number, of a shunt by what it does."""
    template, discovers = present.get_attr("XFRMA_TMPL"), bool(present["priority"] == DISCOVERY_PRIORITY)
    if isinstance(rule, Policy):
        return discovers if template is None else bool(template["reqid"] == rule.number)
    return template is None and not discovers and bool(present["action"] == ACTIONS[rule.action])
