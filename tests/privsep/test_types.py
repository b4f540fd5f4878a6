"""Values that everything shares."""

import ipaddress

import pytest

from privsep.iana import IdType
from privsep.types import Identity, TrafficSelector

CASES = [
    ("10.1.0.0/16", 0, 0, "10.1.2.0/24", 0, 0, True),
    ("10.1.2.0/24", 0, 0, "10.1.0.0/16", 0, 0, True),
    ("10.1.0.0/16", 0, 0, "10.2.0.0/16", 0, 0, False),
    ("0.0.0.0/0", 0, 0, "::/0", 0, 0, False),
    ("10.1.0.0/16", 6, 0, "10.1.0.0/16", 0, 0, True),
    ("10.1.0.0/16", 6, 0, "10.1.0.0/16", 17, 0, False),
    ("10.1.0.0/16", 6, 443, "10.1.0.0/16", 6, 0, True),
    ("10.1.0.0/16", 6, 443, "10.1.0.0/16", 6, 80, False),
]


@pytest.mark.parametrize(("one", "protocol", "port", "other", "others_protocol", "others_port", "expected"), CASES)
def test_selectors_overlap_where_some_packet_is_selected_by_both(
    one, protocol, port, other, others_protocol, others_port, expected
):
    first = TrafficSelector(ipaddress.ip_network(one), protocol, port)
    second = TrafficSelector(ipaddress.ip_network(other), others_protocol, others_port)
    assert first.overlaps(second) is second.overlaps(first) is expected


@pytest.mark.parametrize(
    ("kind", "one", "other", "same"),
    [
        (IdType.FQDN, b"gw1.example.org", b"GW1.Example.ORG", True),
        (IdType.FQDN, b"gw1.example.org", b"gw1.example.org.", False),
        (IdType.FQDN, "gw\u00c9".encode(), "gw\u00e9".encode(), False),
        (IdType.USER_FQDN, b"alice@example.org", b"alice@EXAMPLE.org", True),
        (IdType.USER_FQDN, b"alice@example.org", b"Alice@example.org", False),
        (IdType.USER_FQDN, b"a@b@example.org", b"a@B@example.org", False),
        (IdType.USER_FQDN, b"@example.org", b"example.org", False),
        (IdType.KEY_ID, b"key", b"KEY", False),
        (IdType.IPV4_ADDR, b"aaaa", b"AAAA", False),
        (IdType.DER_ASN1_DN, b"cn", b"CN", False),
    ],
)
def test_identities_are_equal_by_what_they_name_and_equal_ones_have_one_hash_rfc4945_3_1(kind, one, other, same):
    first, second = Identity(kind, one), Identity(kind, other)
    assert (first == second) is same
    assert len({first, second}) == (1 if same else 2)
    assert (first.data, second.data) == (one, other), "HASH covers the octets as they are"
    assert first != Identity(IdType.DER_ASN1_GN, one)
    assert first != one
