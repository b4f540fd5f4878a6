"""Vendor IDs (RFC 2408 section 3.16): who knows which extension. Most are the MD5 of the text beside them."""

from enum import Enum


class Vendor(Enum):
    """A vendor ID that we can name: its octets, and what they are the MD5 of (empty: not a digest)."""

    RFC_3947 = ("4a131c81070358455c5728f20e95452f", "RFC 3947")
    NAT_T_DRAFT_03 = ("7d9419a65310ca6f2c179d9215529d56", "draft-ietf-ipsec-nat-t-ike-03")
    NAT_T_DRAFT_02 = ("cd60464335df21f87cfdb2fc68b6a448", "draft-ietf-ipsec-nat-t-ike-02")
    NAT_T_DRAFT_02_NEWLINE = ("90cb80913ebb696e086381b5ec427b1f", "draft-ietf-ipsec-nat-t-ike-02\n")
    NAT_T_DRAFT_00 = ("4485152d18b6bbcd0be8a8469579ddcc", "draft-ietf-ipsec-nat-t-ike-00")
    DPD = ("afcad71368a1f1c96b8696fc77570100", "")
    """RFC 3706 section 5.1; the last two octets are the version, 1.0."""
    FRAGMENTATION = ("4048b7d56ebce88525e7de7f00d6c2d3", "FRAGMENTATION")
    """Peers append four octets of capability bits."""
    XAUTH = ("09002689dfd6b712", "")
    """draft-ietf-ipsra-isakmp-xauth-06, cut to eight octets."""
    CISCO_UNITY = ("12f5f28c457168a9702d9fe274cc0100", "")
    STRONGSWAN = ("882fe56d6fd20dbc2251613b2ebe5beb", "strongSwan")

    def __init__(self, digits: str, text: str) -> None:
        self.data = bytes.fromhex(digits)
        self.text = text


OURS = (Vendor.RFC_3947, Vendor.DPD)
"""What we announce: RFC 3947 section 3.1 demands it for NAT-T, RFC 3706 section 5.1 for dead peer detection."""

_BY_DATA = {vendor.data: vendor for vendor in Vendor}
_FRAGMENTATION_OCTETS = len(Vendor.FRAGMENTATION.data) + 4


def recognise(data: bytes) -> Vendor | None:
    """The vendor ID that these octets are; None for the many that mean nothing to us."""
    if len(data) == _FRAGMENTATION_OCTETS and data.startswith(Vendor.FRAGMENTATION.data):
        return Vendor.FRAGMENTATION
    return _BY_DATA.get(data)
