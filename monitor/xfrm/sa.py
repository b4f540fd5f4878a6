"""From a pair to the kernel's two SAs: struct xfrm_usersa_info and its attributes. Four with IPComp.

Then IPComp makes the tunnel, and what protects is in transport mode around it.
"""

import socket
from dataclasses import dataclass, field

from monitor.dataplane import Cpis, Pair
from monitor.xfrm.algorithms import algorithms
from monitor.xfrm.policy import MODES, family, lane, selector
from monitor.xfrm.structs import (
    PROTOCOLS,
    STATE_AF_UNSPEC,
    STATE_ALIGN4,
    STATE_ESN,
    UDP_ENCAP_ESPINUDP,
    UNLIMITED,
    Attribute,
    KernelMode,
    Values,
    Way,
)
from privsep.config.lanes import ANY_MARK, Mark
from privsep.iana import ProtocolId
from privsep.types import MAX_CPI, Address, Endpoint, Mode, Spi, TrafficSelector

MIN_SPI = 0x100
"""RFC 4303 section 2.1: those below are reserved."""
MAX_SPI = 0xFFFFFFFF
DEFLATE = b"deflate"
MAPPING_SECONDS = 1
"""Between two reports that a peer's packets come from elsewhere; otherwise there would be one for each packet. Kernels
before 5.17 do not know the attribute and pass it over."""
_BITMAP_WORD = 32
_FIRST_ASKS, _SECOND_ASKS = 80, 92
"""Per cent of a limit in octets or packets."""
SMALL_WINDOW = 32
"""Packets; what struct xfrm_usersa_info itself has room for."""

Selectors = tuple[TrafficSelector, ...]
Sa = tuple[Values, list[Attribute]]


@dataclass(slots=True, frozen=True)
class SaId:
    """What an SA is known by (RFC 4301 section 4.1)."""

    destination: Address
    protocol: ProtocolId
    spi: Spi
    mark: Mark = field(default=ANY_MARK, compare=False)
    """No part of its name, but the kernel does not find an SA that has one without it."""


def key(sa: SaId) -> Values:
    """What finds an SA, with `marked`: struct xfrm_usersa_id."""
    return {
        "daddr": sa.destination.packed,
        "spi": sa.spi.to_bytes(4),
        "family": family(sa.destination),
        "proto": PROTOCOLS[sa.protocol],
    }


def marked(sa: SaId) -> tuple[Attribute, ...]:
    """The rest of what finds it."""
    return lane(0, sa.mark)


def way(direction: Way) -> Attribute:
    """Which of the two an SA is for. Kernels that know of it refuse packets the other way."""
    return "XFRMA_SA_DIR", {"value": direction}


def mode(pair: Pair, protocol: ProtocolId) -> KernelMode:
    """Of its SAs of that protocol: where there is IPComp, that makes the tunnel."""
    inner = pair.ipcomp is None or protocol is ProtocolId.IPCOMP
    return MODES[pair.policy.mode if inner else Mode.TRANSPORT]


def allocation(local: Address, remote: Address, protocol: ProtocolId) -> Values:
    """An inbound SPI or CPI: struct xfrm_userspi_info. What the larval SA lacks comes with the real one."""
    return {
        "info.id.daddr": local.packed,
        "info.id.proto": PROTOCOLS[protocol],
        "info.saddr": remote.packed,
        "info.family": family(local),
        "info.mode": KernelMode.TUNNEL,
        "min": MIN_SPI,
        "max": MAX_CPI if protocol is ProtocolId.IPCOMP else MAX_SPI,
    }


def inbound(pair: Pair, *, directed: bool = False) -> Sa:
    """From the peer to us. Only this one asks for its replacement in time, and only this one can be replayed to.

    What it lets in has the mark that the policies look for, so that nobody else needs to set it.
    """
    values, attributes = _sa(pair, pair.spi_in, (pair.remote, pair.remote_ts), (pair.local, pair.local_ts))
    values["lft.soft_add_expires_seconds"] = pair.lifetime * 9 // 10
    attributes += algorithms(pair.suite, pair.encryption_in, pair.integrity_in)
    if pair.suite.esn or pair.replay_window > SMALL_WINDOW:
        attributes.append(_window(pair.replay_window))
    else:
        values["replay_window"] = pair.replay_window
    if pair.encap:
        attributes.append(("XFRMA_MTIMER_THRESH", {"seconds": MAPPING_SECONDS}))
    return values, [*attributes, *_inward(pair, directed=directed)]


def outbound(pair: Pair, *, directed: bool = False) -> Sa:
    """From us to the peer. `directed`: the kernel is told so (since Linux 6.10)."""
    values, attributes = _sa(pair, pair.spi_out, (pair.local, pair.local_ts), (pair.remote, pair.remote_ts))
    attributes += algorithms(pair.suite, pair.encryption_out, pair.integrity_out)
    if pair.suite.esn:
        # what holds the upper half; the kernel refuses an empty window unless it knows that nothing is received here
        attributes.append(_window(0 if directed else SMALL_WINDOW))
    return values, [*attributes, *_outward(pair, directed=directed)]


def decompressing(pair: Pair, cpis: Cpis, *, directed: bool = False) -> Sa:
    """What the peer compressed, after it was opened."""
    values, attributes = _ipcomp(pair, Spi(cpis.inbound), (pair.remote, pair.remote_ts), (pair.local, pair.local_ts))
    return values, [*attributes, *_inward(pair, directed=directed)]


def compressing(pair: Pair, cpis: Cpis, *, directed: bool = False) -> Sa:
    """What we compress, before it is protected."""
    values, attributes = _ipcomp(pair, Spi(cpis.outbound), (pair.local, pair.local_ts), (pair.remote, pair.remote_ts))
    return values, [*attributes, *_outward(pair, directed=directed)]


def _inward(pair: Pair, *, directed: bool) -> list[Attribute]:
    """Where and which way it goes."""
    if_id, mark = pair.policy.kernel.lane.sides[0]
    attributes = [*lane(if_id, ANY_MARK)]
    if mark.mask:
        attributes += [("XFRMA_SET_MARK", {"value": mark.value}), ("XFRMA_SET_MARK_MASK", {"value": mark.mask})]
    return [*attributes, way(Way.IN)] if directed else attributes


def _outward(pair: Pair, *, directed: bool) -> list[Attribute]:
    """The same of what leaves."""
    attributes = [*lane(*pair.policy.kernel.lane.sides[1])]
    return [*attributes, way(Way.OUT)] if directed else attributes


def _ipcomp(pair: Pair, cpi: Spi, source: tuple[Endpoint, Selectors], destination: tuple[Endpoint, Selectors]) -> Sa:
    """No keys, no UDP, no sequence numbers; the end is that of the SA around it, which alone counts."""
    from_ts, outer = source[1], family(destination[0].address)
    values, attributes = _sa(pair, cpi, source, destination)
    values |= {
        **UNLIMITED,
        "id.proto": PROTOCOLS[ProtocolId.IPCOMP],
        "mode": MODES[pair.policy.mode],
        "flags": STATE_AF_UNSPEC if _admits_both(pair, from_ts, outer) else 0,
    }
    around = [each for each in attributes if each[0] != "XFRMA_ENCAP"]
    return values, [*around, ("XFRMA_ALG_COMP", {"name": DEFLATE})]


def _window(packets: int) -> Attribute:
    return "XFRMA_REPLAY_ESN_VAL", {"bmp_len": -(-packets // _BITMAP_WORD), "replay_window": packets}


def _sa(pair: Pair, spi: Spi, source: tuple[Endpoint, Selectors], destination: tuple[Endpoint, Selectors]) -> Sa:
    (sender, from_ts), (receiver, to_ts) = source, destination
    outer = family(receiver.address)
    values: Values = {
        **UNLIMITED,
        **_limits(pair),
        **_narrowed(pair, from_ts, to_ts, outer),
        "flags": _flags(pair, from_ts, outer),
        "id.daddr": receiver.address.packed,
        "id.spi": spi.to_bytes(4),
        "id.proto": PROTOCOLS[pair.suite.protocol],
        "saddr": sender.address.packed,
        "lft.hard_add_expires_seconds": pair.lifetime,
        "reqid": pair.policy.reqid,
        "family": outer,
        "mode": mode(pair, pair.suite.protocol),
    }
    encap = {"type": UDP_ENCAP_ESPINUDP, "sport": sender.port.to_bytes(2), "dport": receiver.port.to_bytes(2)}
    return values, [("XFRMA_ENCAP", encap)] if pair.encap else []


def _limits(pair: Pair) -> Values:
    """Octets and packets after which a successor is asked for, and after which the SA ends.

    Both ends count the same packets; the one with the lower inbound SPI asks well before the other.
    """
    share = _FIRST_ASKS if pair.spi_in < pair.spi_out else _SECOND_ASKS
    limits: Values = {}
    for unit, hard in (("byte", pair.policy.kernel.life_bytes), ("packet", pair.policy.kernel.life_packets)):
        if hard is not None:
            limits |= {f"lft.soft_{unit}_limit": hard * share // 100, f"lft.hard_{unit}_limit": hard}
    return limits


def _narrowed(pair: Pair, from_ts: Selectors, to_ts: Selectors, outer: int) -> Values:
    """The negotiated selectors, which may be narrower than the policy's, where they fit into an SA's only one.

    Several leave it open, and the policies decide (RFC 4301 section 5.2).
    """
    if not _is_open(pair, from_ts, outer):
        return selector(from_ts[0], to_ts[0]) or {}
    return {} if _mixed(from_ts, outer) else {"sel.family": outer}


def _flags(pair: Pair, from_ts: Selectors, outer: int) -> int:
    flags = STATE_ESN if pair.suite.esn else 0
    if pair.suite.protocol is ProtocolId.AH and outer == socket.AF_INET:
        flags |= STATE_ALIGN4
    if _admits_both(pair, from_ts, outer):
        flags |= STATE_AF_UNSPEC
    return flags


def _admits_both(pair: Pair, from_ts: Selectors, outer: int) -> bool:
    """Whether an open selector must admit both families: AF_UNSPEC."""
    return _is_open(pair, from_ts, outer) and _mixed(from_ts, outer)


def _is_open(pair: Pair, from_ts: Selectors, outer: int) -> bool:
    """Several selectors; or one of the other family where IPComp makes the tunnel, as transport mode refuses that."""
    only = len(pair.local_ts) == len(pair.remote_ts) == 1
    return not only or (pair.ipcomp is not None and _mixed(from_ts, outer))


def _mixed(selectors: Selectors, outer: int) -> bool:
    return any(family(ts.network.network_address) != outer for ts in selectors)
