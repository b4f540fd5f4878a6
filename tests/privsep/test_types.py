"""Values that everything shares."""

import ipaddress

import pytest

from privsep.types import TrafficSelector

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
