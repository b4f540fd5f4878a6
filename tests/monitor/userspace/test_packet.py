"""Inner packets: flows, and headers that transport mode takes off and puts on."""

import ipaddress
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.userspace.drops import Dropped
from monitor.userspace.packet import (
    Flow,
    Matcher,
    flow_key,
    internet_checksum,
    ip_packet,
    parse,
    upper_layer,
    whole,
    with_checksum,
)
from privsep.types import TrafficSelector

HERE, THERE = ipaddress.IPv4Address("10.1.0.1"), ipaddress.IPv4Address("10.2.0.1")
HERE6, THERE6 = ipaddress.IPv6Address("fd00:1::1"), ipaddress.IPv6Address("fd00:2::1")
PORTS = struct.pack("!HH", 1000, 443)


def addresses(version):
    return (HERE, THERE) if version == 4 else (HERE6, THERE6)


@pytest.mark.parametrize("version", [4, 6])
def test_a_flow_shows_addresses_protocol_and_ports(version):
    source, destination = addresses(version)
    flow = parse(ip_packet(source, destination, 6, PORTS + bytes(16)))
    assert flow == Flow(version, int(source), int(destination), 6, 1000, 443, False)


def test_icmp_has_no_ports():
    flow = parse(ip_packet(HERE, THERE, 1, PORTS))
    assert (flow.source_port, flow.destination_port) == (-1, -1)


def test_a_later_fragment_shows_no_ports_rfc4301_7():
    packet = bytearray(ip_packet(HERE, THERE, 6, bytes(64)))
    packet[6:8] = struct.pack("!H", 0x2000 | 8)
    flow = parse(bytes(packet))
    assert flow.fragmented
    assert (flow.source_port, flow.destination_port) == (-1, -1)
    assert flow_key(bytes(packet)) == b""
    any_port, one_port = (Matcher(TrafficSelector(ipaddress.ip_network("10.0.0.0/8"), 6, port)) for port in (0, 443))
    assert any_port.fits(4, flow.destination, flow.protocol, flow.destination_port)
    assert not one_port.fits(4, flow.destination, flow.protocol, flow.destination_port)


def test_the_first_fragment_shows_its_ports_but_is_not_cached():
    packet = bytearray(ip_packet(HERE, THERE, 17, PORTS + bytes(4)))
    packet[6:8] = struct.pack("!H", 0x2000)
    assert parse(bytes(packet)).destination_port == 443
    assert flow_key(bytes(packet)) == b""


def extended(*headers, last=6, payload=PORTS):
    """An IPv6 packet with extension headers of eight octets."""
    kinds = [*headers, last]
    body = b"".join(bytes((following, 0)) + bytes(6) for following in kinds[1:]) + payload
    return ip_packet(HERE6, THERE6, kinds[0], body)


def test_ports_stand_behind_ipv6_extension_headers_rfc8200_4():
    flow = parse(extended(0, 60, 43))
    assert (flow.protocol, flow.source_port, flow.destination_port) == (6, 1000, 443)


def test_a_later_ipv6_fragment_shows_no_ports_rfc8200_4_5():
    packet = bytearray(extended(44))
    packet[42:44] = struct.pack("!H", 8 << 3 | 1)
    flow = parse(bytes(packet))
    assert (flow.protocol, flow.source_port, flow.fragmented) == (6, -1, True)


def test_endless_extension_headers_are_dropped():
    with pytest.raises(Dropped):
        parse(extended(*[60] * 20))


def test_the_octets_behind_an_inner_packet_are_padding_rfc4303_2_7():
    for version in (4, 6):
        packet = ip_packet(*addresses(version), 17, b"payload")
        assert whole(packet + bytes(30)) == packet


@given(data=st.binary(max_size=120), first=st.sampled_from([0x45, 0x46, 0x4F, 0x60, 0x00, 0xFF]))
def test_any_octets_are_a_packet_or_dropped(data, first):
    with suppress(Dropped):
        packet = whole(bytes((first,)) + data)
        assert len(flow_key(packet)) <= 37
        assert upper_layer(packet, parse(packet))[1] in packet


@pytest.mark.parametrize("version", [4, 6])
def test_flows_that_selectors_tell_apart_have_different_keys(version):
    source, destination = addresses(version)
    variants = [
        ip_packet(a, b, protocol, struct.pack("!HH", *ports) + bytes(4))
        for a, b in ((source, destination), (destination, source))
        for protocol in (6, 17)
        for ports in ((1, 2), (2, 1), (1, 1))
    ]
    assert len({flow_key(packet) for packet in variants}) == len(variants)
    assert flow_key(variants[0]) == flow_key(variants[0][:-4] + b"else")


@pytest.mark.parametrize("version", [4, 6])
def test_transport_mode_takes_the_header_off_and_puts_one_on_rfc4303_3_1_1(version):
    packet = ip_packet(*addresses(version), 17, PORTS + bytes(4))
    protocol, payload = upper_layer(packet, parse(packet))
    assert (protocol, payload) == (17, PORTS + bytes(4))
    assert ip_packet(*addresses(version), protocol, payload) == packet


def test_transport_mode_refuses_fragments_rfc4303_3_1_1():
    packet = bytearray(ip_packet(HERE, THERE, 17, PORTS + bytes(4)))
    packet[6:8] = struct.pack("!H", 0x2000)
    with pytest.raises(Dropped, match="not-transportable"):
        upper_layer(bytes(packet), parse(bytes(packet)))


def reference_checksum(data):
    """RFC 1071 section 4.1, word by word."""
    total = sum(int.from_bytes(data[i : i + 2].ljust(2, b"\0"), "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@given(st.binary(min_size=1, max_size=99).filter(any))
def test_the_checksum_is_rfc1071s(data):
    # 0 and 0xFFFF are the same number in one's complement
    assert internet_checksum(data) % 65535 == reference_checksum(data) % 65535


def test_an_ipv4_header_that_we_make_checks_out_rfc791_3_1():
    assert reference_checksum(ip_packet(HERE, THERE, 6, b"abc")[:20]) == 0


@pytest.mark.parametrize(("protocol", "offset"), [(6, 16), (17, 6)])
@pytest.mark.parametrize("version", [4, 6])
def test_the_checksum_that_nat_broke_is_made_anew_rfc3948_3_1_2(version, protocol, offset):
    source, destination = addresses(version)
    payload = bytearray(range(1, 30))
    fixed = with_checksum(source, destination, protocol, bytes(payload))
    pseudo = source.packed + destination.packed + struct.pack("!II", len(fixed), protocol)
    assert reference_checksum(pseudo + fixed) == 0
    assert fixed[:offset] + fixed[offset + 2 :] == payload[:offset] + payload[offset + 2 :]


def test_udp_without_checksum_stays_without_rfc3948_3_1_2():
    payload = PORTS + struct.pack("!HH", 12, 0) + b"data"
    assert with_checksum(HERE, THERE, 17, payload) == payload


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        (TrafficSelector(ipaddress.ip_network("10.2.0.0/16")), True),
        (TrafficSelector(ipaddress.ip_network("10.3.0.0/16")), False),
        (TrafficSelector(ipaddress.ip_network("0.0.0.0/0"), 6), True),
        (TrafficSelector(ipaddress.ip_network("0.0.0.0/0"), 17), False),
        (TrafficSelector(ipaddress.ip_network("10.2.0.1/32"), 6, 443), True),
        (TrafficSelector(ipaddress.ip_network("10.2.0.1/32"), 6, 80), False),
        (TrafficSelector(ipaddress.ip_network("::/0")), False),
    ],
    ids=str,
)
def test_a_selector_fits_by_address_protocol_and_port_rfc4301_4_4_1_1(selector, fits):
    assert Matcher(selector).fits(4, int(THERE), 6, 443) is fits
