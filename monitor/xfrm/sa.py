"""From a pair to the kernel's two SAs: struct xfrm_usersa_info and its attributes."""

from monitor.dataplane import REPLAY_WINDOW, Pair
from monitor.xfrm.algorithms import algorithms
from monitor.xfrm.policy import MODES, family, selector
from monitor.xfrm.structs import ESP, STATE_AF_UNSPEC, UDP_ENCAP_ESPINUDP, UNLIMITED, Attribute, KernelMode, Values
from privsep.types import Address, Endpoint, Spi, TrafficSelector

MIN_SPI = 0x100
"""RFC 4303 section 2.1: those below are reserved."""
MAX_SPI = 0xFFFFFFFF
_BITMAP_WORD = 32

Selectors = tuple[TrafficSelector, ...]
Sa = tuple[Values, list[Attribute]]


def key(destination: Address, spi: Spi) -> Values:
    """What finds an SA: struct xfrm_usersa_id."""
    return {"daddr": destination.packed, "spi": spi.to_bytes(4), "family": family(destination), "proto": ESP}


def allocation(local: Address, remote: Address) -> Values:
    """An inbound SPI: struct xfrm_userspi_info. What the larval SA lacks comes with the real one."""
    return {
        "info.id.daddr": local.packed,
        "info.id.proto": ESP,
        "info.saddr": remote.packed,
        "info.family": family(local),
        "info.mode": KernelMode.TUNNEL,
        "min": MIN_SPI,
        "max": MAX_SPI,
    }


def inbound(pair: Pair) -> Sa:
    """From the peer to us. Only this one asks for its replacement in time, and only this one can be replayed to."""
    values, attributes = _sa(pair, pair.spi_in, (pair.remote, pair.remote_ts), (pair.local, pair.local_ts))
    values["lft.soft_add_expires_seconds"] = pair.lifetime * 9 // 10
    attributes += algorithms(pair.suite, pair.encryption_in, pair.integrity_in)
    window = {"bmp_len": REPLAY_WINDOW // _BITMAP_WORD, "replay_window": REPLAY_WINDOW}
    attributes.append(("XFRMA_REPLAY_ESN_VAL", window))
    return values, attributes


def outbound(pair: Pair) -> Sa:
    """From us to the peer."""
    values, attributes = _sa(pair, pair.spi_out, (pair.local, pair.local_ts), (pair.remote, pair.remote_ts))
    attributes += algorithms(pair.suite, pair.encryption_out, pair.integrity_out)
    return values, attributes


def _sa(pair: Pair, spi: Spi, source: tuple[Endpoint, Selectors], destination: tuple[Endpoint, Selectors]) -> Sa:
    (sender, from_ts), (receiver, to_ts) = source, destination
    outer = family(receiver.address)
    values: Values = {
        **UNLIMITED,
        **_narrowed(from_ts, to_ts, outer),
        "id.daddr": receiver.address.packed,
        "id.spi": spi.to_bytes(4),
        "id.proto": ESP,
        "saddr": sender.address.packed,
        "lft.hard_add_expires_seconds": pair.lifetime,
        "reqid": pair.policy.number,
        "family": outer,
        "mode": MODES[pair.policy.mode],
    }
    encap = {"type": UDP_ENCAP_ESPINUDP, "sport": sender.port.to_bytes(2), "dport": receiver.port.to_bytes(2)}
    return values, [("XFRMA_ENCAP", encap)] if pair.encap else []


def _narrowed(from_ts: Selectors, to_ts: Selectors, outer: int) -> Values:
    """The negotiated selectors, which may be narrower than the policy's, where they fit into an SA's only one.

    Several leave it open, and the policies decide (RFC 4301 section 5.2); AF_UNSPEC then admits both families.
    """
    if len(from_ts) == len(to_ts) == 1:
        return selector(from_ts[0], to_ts[0]) or {}
    mixed = any(family(ts.network.network_address) != outer for ts in from_ts)
    return {"flags": STATE_AF_UNSPEC} if mixed else {"sel.family": outer}
