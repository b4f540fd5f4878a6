"""`[shunt.NAME]`: traffic that no connection protects, by decision; what may stand beside the children and what not."""

import itertools

from privsep.config.model import Action, Child, Gateway, Order, Shunt
from privsep.config.problems import quote
from privsep.config.reader import Reader, Section
from privsep.config.selectors import parse_selector
from privsep.types import Network, TrafficSelector, nested

MAX_SHUNTS = 256
MAX_SELECTORS = 16
"""Of a side, as a child's."""

Pair = tuple[TrafficSelector, TrafficSelector]


def read(name: str, section: Section) -> Shunt | None:
    """The shunt, or None and its problems."""
    sides = []
    for key in ("local_ts", "remote_ts"):
        if not section.has(key):
            section.problem(key, f'{quote(key)} is missing; add {key} = ["10.3.0.0/16"], or "0.0.0.0/0" for all')
        sides.append(section.many(key, parse_selector, limit=MAX_SELECTORS))
    if not section.has("action"):
        section.problem("action", f'{quote("action")} is missing; add action = "pass" or "drop"')
    action = section.choice("action", Action, Action.DROP)
    order = section.choice("order", Order, Order.FIRST)
    section.close()
    local_ts, remote_ts = sides
    if local_ts is None or remote_ts is None:
        return None
    if len({selector.network.version for selector in local_ts + remote_ts}) > 1:
        section.problem("remote_ts", "selectors of IPv4 and of IPv6; one shunt for each would be right")
        return None
    if len({selector.protocol for selector in local_ts + remote_ts} - {0}) > 1:
        section.problem("remote_ts", "selectors of different protocols; one shunt for each would be right")
        return None
    return Shunt(name=name, local_ts=local_ts, remote_ts=remote_ts, action=action, order=order)


def check(gateway: Gateway, reader: Reader) -> None:
    """Overlaps with children are what shunts are for; but each must leave the other something, and they an order."""
    children = [
        (f"[connection.{connection.name}.child.{child.name}]", pairs_of(child))
        for connection, child in gateway.children()
    ]
    taken: dict[Pair, str] = {pair: name for name, pairs in children for pair in pairs}
    for shunt in gateway.shunts:
        path = ("shunt", shunt.name, "remote_ts")
        pairs = pairs_of(shunt)
        for pair in pairs:
            other = taken.setdefault(pair, f"[shunt.{shunt.name}]")
            if other != f"[shunt.{shunt.name}]":
                reader.problem(path, f"{pair[0]} to {pair[1]} is also {other}'s; other selectors would be right")
        for name, protected in children if shunt.order is Order.FIRST else ():
            if all(any(_contains(pair, each) for pair in pairs) for each in protected):
                reader.problem(
                    path, f'nothing is left for {name}; narrower selectors, or order = "last", would be right'
                )
    for earlier, later in itertools.combinations(gateway.shunts, 2):
        if earlier.action is not later.action and earlier.order is later.order and _undecided(earlier, later):
            reader.problem(
                ("shunt", later.name, "remote_ts"),
                f"overlaps [shunt.{earlier.name}], neither being more specific; longer prefixes for one would be right",
            )


def beyond_routes(gateway: Gateway, shunt: Shunt) -> str | None:
    """Why the userspace data plane has no route for it, if so: routes look at the destination alone."""
    if any(selector.protocol for selector in shunt.local_ts + shunt.remote_ts):
        return "its routes know no protocols and ports"
    everything = any(not selector.network.prefixlen for selector in shunt.local_ts)
    for network in (selector.network for selector in shunt.remote_ts):
        inside = False
        for _, child in gateway.children():
            for protected in (selector.network for selector in child.remote_ts):
                if not nested(protected, network):
                    continue
                narrower = network.prefixlen > protected.prefixlen
                if narrower is not (shunt.order is Order.FIRST):
                    return f"its longer prefix goes first, be it {network} or {protected}"
                if narrower and not all(_within(local.network, shunt) for local in child.local_ts):
                    return f"its routes to {network} know no sources, and some of {protected} are protected"
                inside |= narrower
        if shunt.action is Action.DROP and not inside and not everything:
            return f"its routes to {network} know no sources; local_ts of everything could be had"
    return None


def _within(network: Network, shunt: Shunt) -> bool:
    return any(
        selector.network.version == network.version
        and network.prefixlen >= selector.network.prefixlen
        and network.network_address in selector.network
        for selector in shunt.local_ts
    )


def pairs_of(rule: Child | Shunt) -> tuple[Pair, ...]:
    """Each local with each remote selector."""
    return tuple(itertools.product(rule.local_ts, rule.remote_ts))


def _contains(outer: Pair, inner: Pair) -> bool:
    return outer[0].contains(inner[0]) and outer[1].contains(inner[1])


def _undecided(one: Shunt, other: Shunt) -> bool:
    """Some packet is selected by both, with prefixes that are as long together."""
    return any(
        first[0].overlaps(second[0]) and first[1].overlaps(second[1]) and _length(first) == _length(second)
        for first in pairs_of(one)
        for second in pairs_of(other)
    )


def _length(pair: Pair) -> tuple[int, bool, bool]:
    return (
        pair[0].network.prefixlen + pair[1].network.prefixlen,
        bool(pair[0].protocol or pair[1].protocol),
        bool(pair[0].port or pair[1].port),
    )
