"""The document of ``status --json``: what the worker tells, what the data plane counted, what is configured.

The worker's word decides nothing here: algorithms, selectors and SPIs of an installed pair come from the monitor's own
table where it has one; a child that the monitor did not install is shown as the worker tells it, without counters.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from monitor.dataplane import Traffic
from monitor.sadb import Entry, Phase
from privsep.algorithms import ChildSuite
from privsep.config.lanes import KernelOptions
from privsep.config.model import Child, Connection, Gateway, Remote, RemoteAny, Shunt
from privsep.schema.install import ChildStatus, IkeStatus
from privsep.types import Identity, Spi, TrafficSelector, hex_spi

SCHEMA_VERSION = 1

Document = dict[str, Any]


class WorkerState(Enum):
    """How the worker took the question."""

    RUNNING = "running"
    RESTARTING = "restarting"
    NOT_ANSWERING = "not answering"


@dataclass(slots=True, frozen=True, kw_only=True)
class Facts:
    """All that a document is made of."""

    gateway: Gateway
    dataplane: str
    dataplane_reason: str
    worker: WorkerState
    ike_sas: tuple[IkeStatus, ...]
    entries: tuple[Entry, ...]
    traffic: dict[Spi, Traffic]
    now: float


def document(facts: Facts, connection: str | None = None) -> Document:
    """The whole, or what concerns one connection."""
    entries = {
        entry.pair.spi_in: entry for entry in facts.entries if connection is None or entry.connection == connection
    }
    ike_sas = [sa for sa in facts.ike_sas if connection is None or sa.connection == connection]
    told = {Spi(child.spi_in) for sa in ike_sas for child in sa.children}
    return {
        "schema_version": SCHEMA_VERSION,
        "dataplane": facts.dataplane,
        "dataplane_reason": facts.dataplane_reason,
        "worker": facts.worker.value,
        "connections": _connections(facts.gateway, connection, ike_sas, entries.values()),
        "shunts": [_shunt(each) for each in facts.gateway.shunts if connection is None],
        "ike_sas": [_ike_sa(sa, facts, entries) for sa in ike_sas],
        # installed by an earlier worker; no IKE SA of the present one stands behind them
        "adopted": [
            {"connection": entry.connection, **_installed(entry, facts)}
            for spi, entry in entries.items()
            if spi not in told
        ],
    }


def _connections(
    gateway: Gateway, only: str | None, ike_sas: Iterable[IkeStatus], entries: Iterable[Entry]
) -> list[Document]:
    states: defaultdict[str, list[str]] = defaultdict(list)
    for sa in ike_sas:
        states[sa.connection].append(sa.state)
    installed: defaultdict[str, set[str]] = defaultdict(set)
    for entry in entries:
        installed[entry.connection].add(entry.child)
    return [
        _connection(each, states[each.name], installed[each.name])
        for each in gateway.connections
        if only is None or each.name == only
    ]


def _connection(connection: Connection, states: list[str], installed: set[str]) -> Document:
    return {
        "name": connection.name,
        "state": "established" if "established" in states else states[0] if states else "down",
        "local": "any" if connection.local is None else str(connection.local),
        "remote": _remote(connection.remote),
        "local_id": str(connection.local_id),
        "remote_id": _identity(connection.remote_id),
        "children": [_configured(child, installed) for child in connection.children],
    }


def _configured(child: Child, installed: set[str]) -> Document:
    return {
        "name": child.name,
        "state": "installed" if child.name in installed else "down",
        "mode": child.mode.value,
        "start": child.start.value,
        "local_ts": _selectors(child.local_ts),
        "remote_ts": _selectors(child.remote_ts),
        **_kernel(child.kernel),
    }


def _kernel(options: KernelOptions) -> Document:
    """As in the configuration; null where it says nothing."""
    lane = options.lane
    return {
        "interface": options.interface,
        "if_id_in": lane.if_id_in or None,
        "if_id_out": lane.if_id_out or None,
        "mark_in": str(lane.mark_in) if lane.mark_in.mask else None,
        "mark_out": str(lane.mark_out) if lane.mark_out.mask else None,
        "priority": options.priority,
        "life_bytes": options.life_bytes,
        "life_packets": options.life_packets,
    }


def _ike_sa(sa: IkeStatus, facts: Facts, entries: dict[Spi, Entry]) -> Document:
    connection = facts.gateway.connection(sa.connection)
    return {
        "connection": sa.connection,
        "version": "ikev1",
        "role": sa.role.value,
        "mode": sa.mode,
        "state": sa.state,
        "local": str(sa.local),
        "remote": str(sa.remote),
        "local_id": _identity(sa.local_id),
        "remote_id": _identity(sa.remote_id),
        "auth": connection.auth.value if connection is not None else None,
        "cookies": [f"0x{sa.cky_i.hex()}", f"0x{sa.cky_r.hex()}"],
        "proposal": str(sa.suite) if sa.suite is not None else None,
        "nat": sa.nat,
        "established_s": sa.established_s,
        "rekey_in_s": sa.rekey_in_s,
        "children": [_child(child, connection, facts, entries) for child in sa.children],
    }


def _child(child: ChildStatus, connection: Connection | None, facts: Facts, entries: dict[Spi, Entry]) -> Document:
    entry = entries.get(Spi(child.spi_in))
    configured = connection.child(child.name) if connection is not None else None
    told: Document = {
        "name": child.name,
        # what the monitor did not install is not installed, whatever the worker says
        "state": child.state if child.state != "installed" else "unknown",
        "protocol": child.suite.protocol.name.lower(),
        "mode": configured.mode.value if configured is not None else None,
        "spi_in": hex_spi(child.spi_in),
        "spi_out": hex_spi(child.spi_out),
        "proposal": str(child.suite),
        "encap": child.encap,
        "local_ts": _selectors(child.local_ts),
        "remote_ts": _selectors(child.remote_ts),
    }
    if entry is None:
        return told
    # the worker alone knows the PFS group; it counts if the rest of its suite is what was installed
    suite = child.suite if child.suite.without_group() == entry.pair.suite else entry.pair.suite
    state = child.state if entry.phase is Phase.INSTALLED else entry.phase.value
    return told | _installed(entry, facts, suite) | {"state": state}


def _installed(entry: Entry, facts: Facts, suite: ChildSuite | None = None) -> Document:
    pair = entry.pair
    traffic = facts.traffic.get(pair.spi_in)
    return {
        "name": entry.child,
        "state": entry.phase.value,
        "protocol": pair.suite.protocol.name.lower(),
        "mode": pair.policy.mode.value,
        "spi_in": hex_spi(pair.spi_in),
        "spi_out": hex_spi(pair.spi_out),
        "proposal": str(suite or pair.suite),
        "identity": str(entry.identity),
        "local": str(pair.local),
        "remote": str(pair.remote),
        "encap": pair.encap,
        "ipcomp": pair.ipcomp is not None,
        "replay_window": pair.replay_window,
        "reqid": pair.policy.reqid,
        "local_ts": _selectors(pair.local_ts),
        "remote_ts": _selectors(pair.remote_ts),
        "bytes_in": traffic.bytes_in if traffic is not None else None,
        "bytes_out": traffic.bytes_out if traffic is not None else None,
        "packets_in": traffic.packets_in if traffic is not None else None,
        "packets_out": traffic.packets_out if traffic is not None else None,
        "expires_in_s": max(0, int(entry.since + pair.lifetime - facts.now)),
    }


def _shunt(shunt: Shunt) -> Document:
    return {
        "name": shunt.name,
        "action": shunt.action.value,
        "order": shunt.order.value,
        "local_ts": _selectors(shunt.local_ts),
        "remote_ts": _selectors(shunt.remote_ts),
    }


def _identity(identity: Identity | None) -> str | None:
    return str(identity) if identity is not None else None


def _selectors(selectors: tuple[TrafficSelector, ...]) -> list[str]:
    return [str(selector) for selector in selectors]


def _remote(remote: Remote) -> str:
    return "any" if isinstance(remote, RemoteAny) else str(remote)
