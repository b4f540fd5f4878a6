"""What only the whole configuration shows: values that are each right and together cannot work."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator

from privsep.config import kernel, userspace
from privsep.config.lanes import MAX_U32
from privsep.config.model import Child, Connection, DataplaneChoice, Encap, Gateway
from privsep.config.problems import MAX_PROBLEMS
from privsep.config.reader import Reader, Section
from privsep.iana import ProtocolId
from privsep.types import Mode, TrafficSelector, nested

MAX_POLICIES = 65535
"""Children of all connections; each has a number of 16 bits (`monitor.dataplane.Policy`)."""

_Remote = tuple[TrafficSelector, Connection, Child]


def check_selectors(
    section: Section, mode: Mode, local_ts: tuple[TrafficSelector, ...], remote_ts: tuple[TrafficSelector, ...]
) -> None:
    """Both sides select the same packets: one IP version, one protocol; and they are two sides."""
    versions = {selector.network.version for selector in local_ts + remote_ts}
    if len(versions) > 1:
        section.problem("remote_ts", "selectors of IPv4 and of IPv6; one child for each would be right")
    protocols = {selector.protocol for selector in local_ts + remote_ts} - {0}
    if len(protocols) > 1:
        section.problem("remote_ts", "selectors of different protocols; one child for each would be right")
    for selector in remote_ts:
        if mode is Mode.TUNNEL and selector.network.prefixlen and selector in local_ts:
            section.problem("remote_ts", f"{selector} is also in local_ts; the peer's network would be right")


def check(gateway: Gateway, reader: Reader) -> None:
    """Connections against each other."""
    children = sum(len(connection.children) for connection in gateway.connections)
    if children > MAX_POLICIES:
        reader.problem(("connection",), f"{children} children; {MAX_POLICIES} are possible")
        return
    for connection in gateway.connections:
        _check_children(connection, reader)
        _check_ah(connection, reader)
    if gateway.dataplane is DataplaneChoice.USERSPACE:
        userspace.check(gateway, reader)
    _check_duplicates(gateway, reader)
    kernel.check(gateway, reader)
    _check_overlaps(gateway, reader)


def _check_duplicates(gateway: Gateway, reader: Reader) -> None:
    """Two connections that no responder could tell apart: addresses and the peer's identity are all it sees."""
    seen: dict[object, str] = {}
    for connection in gateway.connections:
        key = (connection.local, connection.remote, connection.remote_id)
        other = seen.setdefault(key, connection.name)
        if other != connection.name:
            reader.problem(
                ("connection", connection.name, "remote"),
                f"same addresses and remote_id as [connection.{other}]; "
                f"one connection with a child for each network would be right",
            )


def _check_children(connection: Connection, reader: Reader) -> None:
    """Children may nest, the narrower then goes first; the same pair of selectors twice has no first."""
    seen: dict[tuple[TrafficSelector, TrafficSelector], str] = {}
    for child in connection.children:
        for pair in itertools.product(child.local_ts, child.remote_ts):
            other = seen.setdefault(pair, child.name)
            if other != child.name:
                reader.problem(
                    ("connection", connection.name, "child", child.name, "remote_ts"),
                    f"{pair[0]} to {pair[1]} is also child {other}'s; one child for it would be right",
                )


def _check_ah(connection: Connection, reader: Reader) -> None:
    """RFC 3715 section 2.1: UDP encapsulation is for ESP only."""
    for child in connection.children:
        if child.protocol is ProtocolId.AH and connection.encap is Encap.FORCE:
            reader.problem(
                ("connection", connection.name, "child", child.name, "ah"),
                'AH is not encapsulated in UDP; esp, or encap = "off", would be right',
            )


def _check_overlaps(gateway: Gateway, reader: Reader) -> None:
    """A packet must belong to one connection, by its lane or by selectors."""
    reported: set[tuple[str, str]] = set()
    for remotes in _by_lane(list(_remotes(gateway))):
        _check_nested(remotes, reader, reported)


def _by_lane(remotes: list[_Remote]) -> Iterator[Iterable[_Remote]]:
    """Those whose lanes meet are together somewhere, inbound or outbound; of those that do not, few are.

    Marks tell apart as far as all of one if_id look at the same bits.
    """
    for side in (0, 1):
        masks: dict[int, int] = defaultdict(lambda: MAX_U32)
        for _, _, child in remotes:
            if_id, mark = child.kernel.lane.sides[side]
            masks[if_id] &= mark.mask
        lanes: dict[tuple[int, int], list[_Remote]] = defaultdict(list)
        for remote in remotes:
            if_id, mark = remote[2].kernel.lane.sides[side]
            lanes[if_id, mark.value & masks[if_id]].append(remote)
        yield from lanes.values()


def _check_nested(remotes: Iterable[_Remote], reader: Reader, reported: set[tuple[str, str]]) -> None:
    """Networks nest or are disjoint, so those that contain one another meet on a stack in order of address."""
    stack: list[_Remote] = []
    for selector, connection, child in sorted(remotes, key=lambda entry: _order(entry[0])):
        if len(reported) > MAX_PROBLEMS:
            # thousands with the same selectors would be millions of pairs, of which nobody is told
            return
        while stack and not nested(stack[-1][0].network, selector.network):
            stack.pop()
        for enclosing, other, others_child in stack:
            pair = (other.name, connection.name)
            if other is connection or pair in reported or not enclosing.overlaps(selector):
                continue
            if not others_child.kernel.lane.meets(child.kernel.lane):
                continue
            if any(a.overlaps(b) for a in others_child.local_ts for b in child.local_ts):
                reported.add(pair)
                reader.problem(
                    ("connection", connection.name, "child", child.name, "remote_ts"),
                    f"{selector} overlaps {enclosing} of [connection.{other.name}.child.{others_child.name}]; "
                    f"selectors of one connection only, or an if_id for each, would be right",
                )
        stack.append((selector, connection, child))


def _remotes(gateway: Gateway) -> Iterator[_Remote]:
    for connection, child in gateway.children():
        for selector in child.remote_ts:
            yield selector, connection, child


def _order(selector: TrafficSelector) -> tuple[int, int, int]:
    network = selector.network
    return network.version, int(network.network_address), network.prefixlen
