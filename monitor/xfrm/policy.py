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
from privsep.config.lanes import Mark
from privsep.config.model import Action, Order, Shunt
from privsep.iana import ProtocolId
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
    lane: tuple[Attribute, ...]
    """The rest of the key: two lanes may have the same selectors."""
    values: Values
    template: Values | None
    """None where traffic is not protected, by decision."""

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """Of what it is."""
        return self.lane if self.template is None else (("XFRMA_TMPL", self.template), *self.lane)


def entries(rule: Policy | Shunt) -> Iterator[Entry]:
    """Each local with each remote selector; out first, so that nothing leaks meanwhile.

    Only tunnels forward: what transport mode decapsulates is for this machine (RFC 4301 section 4.1).
    """
    if isinstance(rule, Policy):
        local, remote = rule.local.address, rule.remote.address
        in_lane, out_lane = (lane(*side) for side in rule.kernel.lane.sides)
        sides = (
            _Side(lane=out_lane, template=_templates(rule, local, remote, arriving=False)),
            _Side(lane=in_lane, template=_templates(rule, remote, local, arriving=True)),
        )
        forwards = rule.mode is Mode.TUNNEL
        yield from _entries(rule, PRIORITY_BASE, KernelAction.ALLOW, sides, forwards=forwards)
        if any(_covers(*pair, rule) for pair in product(rule.local_ts, rule.remote_ts)):
            yield from _discovery(local, remote)
    else:
        yield from _entries(rule, SHUNT_BASES[rule.order], ACTIONS[rule.action], (_Side(), _Side()), forwards=True)


@dataclass(slots=True, frozen=True, kw_only=True)
class _Side:
    """What the policies of one direction have besides their selectors."""

    lane: tuple[Attribute, ...] = ()
    template: Values | None = None


def _entries(
    rule: Policy | Shunt, base: int, action: KernelAction, sides: tuple[_Side, _Side], *, forwards: bool
) -> Iterator[Entry]:
    out, in_ = sides
    configured = rule.kernel.priority if isinstance(rule, Policy) else None
    seen: set[tuple[object, ...]] = set()
    for ours in rule.local_ts:
        for theirs in rule.remote_ts:
            leaving, entering = selector(ours, theirs), selector(theirs, ours)
            # two pairs may come to the same, as where only one side names a protocol
            if leaving is None or entering is None or (same := tuple(leaving.values())) in seen:
                continue
            seen.add(same)
            priority = configured or base - _specificity(ours, theirs)
            common = {**UNLIMITED, "priority": priority, "action": action}
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
            yield _entry(direction, chosen, {**UNLIMITED, "priority": DISCOVERY_PRIORITY}, _Side())


def _entry(direction: Direction, chosen: Values, common: Values, side: _Side) -> Entry:
    key = {**chosen, "dir": direction}
    return Entry(key=key, lane=side.lane, values={**common, **key}, template=side.template)


def lane(if_id: int, mark: Mark) -> tuple[Attribute, ...]:
    """Of a policy or an SA, one direction's; nothing for what the configuration leaves open."""
    found: list[Attribute] = []
    if mark.mask:
        found.append(("XFRMA_MARK", {"value": mark.value, "mask": mark.mask}))
    if if_id:
        found.append(("XFRMA_IF_ID", {"value": if_id}))
    return tuple(found)


def _templates(policy: Policy, source: Address, destination: Address, *, arriving: bool) -> Values:
    """ESP or AH of this child, and required. IPComp comes before and makes the tunnel.

    What does not shrink arrives uncompressed (RFC 3173 section 2.2), so inbound IPComp is optional; ESP or AH never is.
    """
    if not policy.ipcomp:
        return _template(policy, policy.protocol, policy.mode, source, destination)
    compressing = _template(policy, ProtocolId.IPCOMP, policy.mode, source, destination)
    protecting = _template(policy, policy.protocol, Mode.TRANSPORT, source, destination)
    return {**compressing, "optional": int(arriving), "next": protecting}


def _template(policy: Policy, protocol: ProtocolId, mode: Mode, source: Address, destination: Address) -> Values:
    """Transport mode has the packet's own addresses."""
    tunnel = mode is Mode.TUNNEL
    return {
        "id.daddr": destination.packed if tunnel else b"",
        "id.proto": PROTOCOLS[protocol],
        "family": family(destination),
        "saddr": source.packed if tunnel else b"",
        "reqid": policy.reqid,
        "mode": MODES[mode],
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
    template = _protecting(present.get_attr("XFRMA_TMPL"))
    expected = _protecting(entry.template)
    return (
        present["priority"] == entry.values["priority"]
        and template is not None
        and expected is not None
        and not template["optional"]
        and template["reqid"] == expected["reqid"]
    )


def is_ours(present: Message) -> bool:
    """Whether a policy that the kernel has may be replaced: by its priority ours, and requiring what such ones do."""
    priority, first = present["priority"], present.get_attr("XFRMA_TMPL")
    if first is not None:
        template = _protecting(first)
        return has_our_priority(priority) and template is not None and not template["optional"]
    if priority == DISCOVERY_PRIORITY:
        return True
    return any(base - MAX_SPECIFICITY <= priority <= base for base in SHUNT_BASES.values())


def _protecting(template: Values | None) -> Values | None:
    """ESP's or AH's; None where there is compression at most, which protects nothing."""
    while template is not None and template["id.proto"] == PROTOCOLS[ProtocolId.IPCOMP]:
        template = dict.get(template, "next")
    return template


def stands_for(present: Message, rule: Policy | Shunt) -> bool:
    """Whether a policy of ours is part of that rule: of a policy by its number, of a shunt by what it does."""
    template, discovers = present.get_attr("XFRMA_TMPL"), bool(present["priority"] == DISCOVERY_PRIORITY)
    if isinstance(rule, Policy):
        return discovers if template is None else bool(template["reqid"] == rule.reqid)
    return template is None and not discovers and bool(present["action"] == ACTIONS[rule.action])
