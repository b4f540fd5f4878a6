"""Identities and traffic selectors in ID payloads (RFC 2407 section 4.6.2)."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep.errors import PeerError
from privsep.iana import IdType, NotifyType
from privsep.isakmp.identification import (
    encode_identity,
    encode_selector,
    parse_identity,
    parse_selector,
)
from privsep.isakmp.payloads import Identification
from privsep.types import Identity, TrafficSelector

NETWORK = st.builds(
    lambda address, prefix: ipaddress.ip_network((address, min(prefix, address.max_prefixlen)), strict=False),
    st.ip_addresses(),
    st.integers(0, 128),
)
SELECTOR = st.builds(TrafficSelector, NETWORK, st.integers(1, 255), st.integers(0, 65535)) | st.builds(
    TrafficSelector, NETWORK
)


def payload(kind, octets, protocol=0, port=0):
    return Identification(id_type=kind, protocol=protocol, port=port, data=bytes.fromhex(octets))


def refused(parse, value):
    with pytest.raises(PeerError) as caught:
        parse(value)
    assert caught.value.notify is NotifyType.INVALID_ID_INFORMATION


@given(SELECTOR)
def test_parsing_an_encoded_selector_gives_the_same(selector):
    assert parse_selector(encode_selector(selector)) == selector


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535), st.binary(max_size=40))
def test_any_identification_is_a_selector_or_refused_and_nothing_else(id_type, protocol, port, data):
    value = Identification(id_type=id_type, protocol=protocol, port=port, data=data)
    try:
        selector = parse_selector(value)
    except PeerError:
        refused(parse_selector, value)
        return
    assert (selector.protocol, selector.port) == (protocol, port)


@given(st.sampled_from([4, 6]), st.binary(min_size=32, max_size=32))
def test_a_range_is_accepted_exactly_when_it_is_one_network(version, data):
    width = 4 if version == 4 else 16
    low, high = ipaddress.ip_address(data[:width]), ipaddress.ip_address(data[-width:])
    kind = IdType.IPV4_ADDR_RANGE if version == 4 else IdType.IPV6_ADDR_RANGE
    value = Identification(id_type=kind, protocol=0, port=0, data=low.packed + high.packed)
    networks = list(ipaddress.summarize_address_range(low, high)) if low <= high else []
    if len(networks) == 1:
        assert parse_selector(value).network == networks[0]
    else:
        refused(parse_selector, value)


@given(NETWORK)
def test_the_range_of_a_network_is_that_network(network):
    kind = IdType.IPV4_ADDR_RANGE if network.version == 4 else IdType.IPV6_ADDR_RANGE
    data = network.network_address.packed + network.broadcast_address.packed
    assert parse_selector(Identification(id_type=kind, protocol=0, port=0, data=data)).network == network


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (payload(IdType.IPV4_ADDR, "0a010203"), "10.1.2.3/32"),
        (payload(IdType.IPV4_ADDR_SUBNET, "0a010000 ffff0000"), "10.1.0.0/16"),
        (payload(IdType.IPV4_ADDR_SUBNET, "00000000 00000000"), "0.0.0.0/0"),
        (payload(IdType.IPV4_ADDR_SUBNET, "0a010203 ffffffff"), "10.1.2.3/32"),
        (payload(IdType.IPV4_ADDR_SUBNET, "0a010203 ffffff00"), "10.1.2.0/24"),  # wildcard bits mean nothing
        (payload(IdType.IPV4_ADDR_RANGE, "0a010000 0a0100ff"), "10.1.0.0/24"),
        (payload(IdType.IPV4_ADDR_RANGE, "0a010203 0a010203"), "10.1.2.3/32"),
        (payload(IdType.IPV4_ADDR_RANGE, "00000000 ffffffff"), "0.0.0.0/0"),
        (payload(IdType.IPV6_ADDR, "20010db8" + "00" * 11 + "01"), "2001:db8::1/128"),
        (payload(IdType.IPV6_ADDR_SUBNET, "20010db8" + "00" * 12 + "ffffffff" + "00" * 12), "2001:db8::/32"),
        (payload(IdType.IPV4_ADDR, "0a010203", 6, 443), "10.1.2.3/32[6/443]"),
    ],
)
def test_addresses_subnets_and_ranges_are_selectors_rfc2407_4_6_2(value, text):
    assert str(parse_selector(value)) == text


@pytest.mark.parametrize(
    "value",
    [
        payload(IdType.IPV4_ADDR_SUBNET, "0a010000 ff00ff00"),  # not contiguous
        payload(IdType.IPV4_ADDR_SUBNET, "0a010000 000000ff"),
        payload(IdType.IPV4_ADDR_SUBNET, "0a010000 7fffffff"),
        payload(IdType.IPV4_ADDR_SUBNET, "0a010000 ffff00"),
        payload(IdType.IPV4_ADDR_SUBNET, "0a010000"),
        payload(IdType.IPV4_ADDR, "0a0100"),
        payload(IdType.IPV4_ADDR, "0a01000000"),
        payload(IdType.IPV4_ADDR, ""),
        payload(IdType.IPV4_ADDR_RANGE, "0a010001 0a0100ff"),
        payload(IdType.IPV4_ADDR_RANGE, "0a0100ff 0a010000"),  # backwards
        payload(IdType.IPV6_ADDR, "0a010000"),
        payload(IdType.IPV6_ADDR_SUBNET, "0a010000 ffff0000"),  # CVE-2023-38710: type and length clash
        payload(IdType.FQDN, "676f6f64"),
        payload(IdType.USER_FQDN, "61406263"),
        payload(IdType.KEY_ID, "00000000"),
        payload(IdType.DER_ASN1_DN, "3000"),
        payload(0, "0a010000"),
        payload(12, "0a010000"),
        payload(255, "0a010000"),
        payload(IdType.IPV4_ADDR, "0a010000", 0, 443),  # a port of no protocol
    ],
)
def test_what_is_no_network_is_refused_with_invalid_id_information_rfc2409_5_5(value):
    refused(parse_selector, value)


def test_a_host_goes_as_address_and_everything_else_as_subnet():
    host = encode_selector(TrafficSelector(ipaddress.ip_network("10.1.2.3/32"), 17, 500))
    assert host == payload(IdType.IPV4_ADDR, "0a010203", 17, 500)
    net = encode_selector(TrafficSelector(ipaddress.ip_network("2001:db8::/64")))
    assert net == payload(IdType.IPV6_ADDR_SUBNET, "20010db8" + "00" * 12 + "ff" * 8 + "00" * 8)


@pytest.mark.parametrize(
    "identity",
    [
        Identity(IdType.FQDN, b"gw1.example.org"),
        Identity(IdType.USER_FQDN, b"alice@example.org"),
        Identity(IdType.KEY_ID, b"\x00\xff"),
        Identity(IdType.DER_ASN1_DN, b"\x30\x00"),
        Identity.of_address(ipaddress.ip_address("192.0.2.1")),
        Identity.of_address(ipaddress.ip_address("2001:db8::1")),
    ],
)
def test_parsing_an_encoded_identity_gives_the_same(identity):
    assert parse_identity(encode_identity(identity)) == identity


@pytest.mark.parametrize(("protocol", "port"), [(0, 0), (17, 500), (17, 0), (17, 4500)])
def test_a_phase_1_identity_has_no_port_or_one_of_ikes_rfc2407_4_6_2_rfc3947_4(protocol, port):
    assert parse_identity(payload(IdType.IPV4_ADDR, "c0000201", protocol, port))


@pytest.mark.parametrize(
    "value",
    [
        payload(IdType.IPV4_ADDR, "c0000201", 6, 500),
        payload(IdType.IPV4_ADDR, "c0000201", 0, 500),
        payload(IdType.IPV4_ADDR, "c0000201", 6, 0),
        payload(IdType.IPV4_ADDR, "c000020101"),
        payload(IdType.IPV4_ADDR, "c0000201", 17, 501),
        payload(IdType.IPV4_ADDR, "c00002"),
        payload(IdType.IPV6_ADDR, "c0000201"),
        payload(IdType.IPV4_ADDR_SUBNET, "c0000200 ffffff00"),
        payload(IdType.IPV4_ADDR_RANGE, "c0000200 c00002ff"),
        payload(IdType.FQDN, ""),
        payload(IdType.DER_ASN1_DN, ""),  # CVE-2013-6075
        payload(IdType.KEY_ID, ""),
        payload(12, "00"),
        payload(0, ""),
    ],
)
def test_other_phase_1_identities_are_refused_rfc2407_4_6_2(value):
    refused(parse_identity, value)
