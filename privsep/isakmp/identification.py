"""ID payloads: who the peer is (phase 1) and what traffic is meant (phase 2); RFC 2407 section 4.6.2."""

import ipaddress

from privsep.errors import PeerError
from privsep.iana import IdType, NotifyType
from privsep.isakmp.payloads import Identification
from privsep.types import Identity, TrafficSelector

IKE_PORTS = frozenset({(0, 0), (17, 0), (17, 500), (17, 4500)})
"""Protocol and port of an identity in phase 1. RFC 2407 section 4.6.2: zero or UDP port 500; anything else MUST be an
error. From peers come UDP without a port too, and the port that IKE moves to behind a NAT (RFC 3947 section 4), also
without NAT traversal. They say nothing about whom the identity names."""
_WIDTHS = {
    IdType.IPV4_ADDR: 4,
    IdType.IPV4_ADDR_SUBNET: 4,
    IdType.IPV4_ADDR_RANGE: 4,
    IdType.IPV6_ADDR: 16,
    IdType.IPV6_ADDR_SUBNET: 16,
    IdType.IPV6_ADDR_RANGE: 16,
}
_ADDRESSES = frozenset({IdType.IPV4_ADDR, IdType.IPV6_ADDR})
_RANGES = frozenset({IdType.IPV4_ADDR_RANGE, IdType.IPV6_ADDR_RANGE})
_NAMES = frozenset({IdType.FQDN, IdType.USER_FQDN, IdType.DER_ASN1_DN, IdType.DER_ASN1_GN, IdType.KEY_ID})


def _refused(reason: str) -> PeerError:
    return PeerError(reason, NotifyType.INVALID_ID_INFORMATION)


def _known(number: int) -> IdType:
    try:
        return IdType(number)
    except ValueError:
        raise _refused("identification type is unknown") from None


def parse_identity(payload: Identification) -> Identity:
    """IDii or IDir."""
    kind = _known(payload.id_type)
    if (payload.protocol, payload.port) not in IKE_PORTS:
        raise _refused("phase 1 identity with a protocol or port")
    if kind in _ADDRESSES:
        if len(payload.data) != _WIDTHS[kind]:
            raise _refused("address identity of wrong length")
    elif kind not in _NAMES:
        raise _refused("a subnet or range is no identity")
    elif not payload.data:
        raise _refused("identity is empty")
    return Identity(kind, payload.data)


def encode_identity(identity: Identity) -> Identification:
    """The payload of an identity of ours."""
    return Identification(id_type=identity.type, protocol=0, port=0, data=identity.data)


def parse_selector(payload: Identification) -> TrafficSelector:
    """IDci or IDcr: an address, a subnet, or a range that is a subnet (RFC 2407 sections 4.6.2.2 to 4.6.2.9).

    Zeros in a subnet's mask are wildcards, so address bits under them mean nothing and are cleared.
    """
    kind = _known(payload.id_type)
    width = _WIDTHS.get(kind)
    if width is None:
        raise _refused("identification type is no traffic selector")
    if payload.port and not payload.protocol:
        raise _refused("traffic selector with a port of no protocol")
    data, bits = payload.data, 8 * width
    if len(data) != (width if kind in _ADDRESSES else 2 * width):
        raise _refused("traffic selector of wrong length")
    low = int.from_bytes(data[:width], "big")
    ones = (1 << bits) - 1
    if kind in _ADDRESSES:
        wildcards = 0
    elif kind in _RANGES:
        wildcards = int.from_bytes(data[width:], "big") - low
        if wildcards < 0 or low & wildcards:
            raise _refused("address range is no subnet")
    else:
        wildcards = int.from_bytes(data[width:], "big") ^ ones
    if wildcards & (wildcards + 1):
        raise _refused("mask is not contiguous or range is no subnet")
    packed = (low & ~wildcards).to_bytes(width, "big")
    network = ipaddress.ip_network((packed, bits - wildcards.bit_length()))
    return TrafficSelector(network, payload.protocol, payload.port)


def encode_selector(selector: TrafficSelector) -> Identification:
    """The payload of a traffic selector: an address where it is one, else a subnet, as all peers understand."""
    network = selector.network
    if network.prefixlen == network.max_prefixlen:
        kind = IdType.IPV4_ADDR if network.version == 4 else IdType.IPV6_ADDR
        data = network.network_address.packed
    else:
        kind = IdType.IPV4_ADDR_SUBNET if network.version == 4 else IdType.IPV6_ADDR_SUBNET
        data = network.network_address.packed + network.netmask.packed
    return Identification(id_type=kind, protocol=selector.protocol, port=selector.port, data=data)
