"""Choosing: the connections of an address pair, the suite of a proposal, the child of a pair of selectors.

Where nothing fits, the texts here say what was offered and what is configured; the peer only gets the notify type.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from privsep.config.model import Child, Connection
from privsep.errors import PeerError
from privsep.iana import NotifyType, ProtocolId
from privsep.isakmp.association import SecurityAssociation
from privsep.isakmp.child_proposals import ChildSelection, describe_child, encapsulation_mode, select_child
from privsep.types import Auth, TrafficSelector
from worker.codec.proposals import IkeSelection, describe_ike, select_ike

AH_AND_NAT = "AH does not pass the NAT between the two (RFC 3715 section 2.1); esp would be right"
MAX_NAMED = 8
"""Proposals that are written out in a log line."""


@dataclass(slots=True, frozen=True)
class IkeChoice:
    """A suite that a connection of these addresses and the peer have in common."""

    connection: Connection
    selection: IkeSelection


def choose_ike(sa: SecurityAssociation, candidates: tuple[Connection, ...]) -> IkeChoice:
    """The most specific connection with a common suite, as keyd will choose too (RFC 2409 section 5)."""
    for connection in candidates:
        selection = select_ike(sa, connection.suites, Auth.PSK)
        if selection is not None:
            return IkeChoice(connection, selection)
    if not candidates:
        raise PeerError("no connection is configured for these addresses", NotifyType.NO_PROPOSAL_CHOSEN)
    configured = listed(str(suite) for connection in candidates for suite in connection.suites)
    raise PeerError(
        f"no proposal in common: peer offers {listed(describe_ike(sa))}; configured {configured}",
        NotifyType.NO_PROPOSAL_CHOSEN,
    )


@dataclass(slots=True, frozen=True)
class ChildChoice:
    """A child whose selectors hold the peer's, and a suite in common."""

    child: Child
    selection: ChildSelection


def choose_child(
    connection: Connection,
    sa: SecurityAssociation,
    selectors: tuple[TrafficSelector, TrafficSelector],
    *,
    pfs: bool,
    encap: bool,
    passes_ah: bool,
) -> ChildChoice:
    """RFC 2409 section 5.5: the child that local policy admits these client identities to. Nothing is narrowed.

    `selectors` are ours and the peer's. Children that name them exactly come before those that contain them.
    """
    local, remote = selectors
    fitting = [child for child in connection.children if child.covers(local, remote)]
    if not fitting:
        raise PeerError(
            f"no child protects {local} with {remote}; configured {listed(map(_selectors, connection.children))}",
            NotifyType.INVALID_ID_INFORMATION,
        )
    passing = [child for child in fitting if child.protocol is not ProtocolId.AH or passes_ah]
    if not passing:
        raise PeerError(AH_AND_NAT, NotifyType.NO_PROPOSAL_CHOSEN)
    passing.sort(key=lambda child: (local not in child.local_ts) + (remote not in child.remote_ts))
    for child in passing:
        suites = tuple(suite for suite in child.suites if (suite.group is not None) == pfs)
        selection = select_child(sa, suites, encapsulation_mode(child.mode, udp=encap), ipcomp=child.ipcomp)
        if selection is not None:
            return ChildChoice(child, selection)
    configured = listed(f"{suite.described} {child.mode.value}" for child in passing for suite in child.suites)
    raise PeerError(
        f"no proposal in common: peer offers {listed(describe_child(sa))}; configured {configured}",
        NotifyType.NO_PROPOSAL_CHOSEN,
    )


def _selectors(child: Child) -> str:
    return f"{child.name}: {listed(map(str, child.local_ts))} with {listed(map(str, child.remote_ts))}"


def listed(texts: Iterable[str]) -> str:
    """Texts in a row, each once, cut short where there are many."""
    unique = list(dict.fromkeys(texts))
    return ", ".join(unique[:MAX_NAMED]) + (", ..." if len(unique) > MAX_NAMED else "")
