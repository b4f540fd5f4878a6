"""The inherited sockets, in a network namespace of the test's own."""

import ipaddress
import os
import select
import socket
import struct

import pytest
from namespace import own_network

from monitor.routes import OUTER_MARK
from monitor.sockets import IKE_PORT, NATT_PORT, Plane, open_listeners
from privsep.errors import OperatorError

pytestmark = pytest.mark.root

WORKER = 64711
HERE, HERE6 = ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")


@pytest.fixture(autouse=True)
def network():
    with own_network():
        yield


@pytest.fixture
def listeners(request):
    made = []

    def make(listen, plane):
        made.append(open_listeners(listen, plane, WORKER))
        return made[-1]

    yield make
    for each in made:
        each.close()


def sender(address, source_port=0):
    sock = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((str(address), source_port))
    return sock


def receives(sock):
    """The datagrams that wait at a socket."""
    waiting = []
    while select.select([sock], [], [], 0.02)[0]:
        waiting.append(sock.recv(65535))
    return waiting


TO_WORKER = [
    pytest.param(bytes(4) + b"IKE message", id="non-ESP marker"),
    pytest.param(bytes(4), id="marker alone"),
    pytest.param(b"\xff", id="keepalive"),
    pytest.param(b"", id="empty"),
    pytest.param(b"\x01\x02\x03", id="three octets"),
    pytest.param(bytes(3), id="three zeros"),
]
TO_ESP = [
    pytest.param(b"\0\0\x01\0" + bytes(40), id="smallest SPI"),
    pytest.param(b"\xff\xff\xff\xff" + bytes(40), id="largest SPI"),
    pytest.param(b"\x01\x02\x03\x04", id="four octets"),
    pytest.param(b"\x80" + bytes(1400), id="large"),
]


@pytest.mark.parametrize("address", [HERE, HERE6], ids=str)
@pytest.mark.parametrize("listen", ["bound", "wildcard"])
@pytest.mark.parametrize("payload", TO_WORKER)
def test_ike_and_keepalives_go_to_the_worker_rfc3948_2_2_2_3(listeners, address, listen, payload):
    opened = listeners((address,) if listen == "bound" else (), Plane.USERSPACE)
    sender(address).sendto(payload, (str(address), NATT_PORT))
    assert [each for sock in opened.natt for each in receives(sock)] == [payload]
    assert [each for sock in opened.esp_udp for each in receives(sock)] == []


@pytest.mark.parametrize("address", [HERE, HERE6], ids=str)
@pytest.mark.parametrize("listen", ["bound", "wildcard"])
@pytest.mark.parametrize("payload", TO_ESP)
def test_esp_goes_to_the_esp_process_rfc3948_2_1(listeners, address, listen, payload):
    opened = listeners((address,) if listen == "bound" else (), Plane.USERSPACE)
    sender(address).sendto(payload, (str(address), NATT_PORT))
    assert [each for sock in opened.natt for each in receives(sock)] == []
    assert [each for sock in opened.esp_udp for each in receives(sock)] == [payload]


def test_the_steering_looks_at_the_payload_and_not_at_who_sends(listeners):
    """Without the program the kernel would spread senders over both sockets by a hash of their ports."""
    opened = listeners((HERE,), Plane.USERSPACE)
    for _ in range(20):
        from_port = sender(HERE)
        from_port.sendto(bytes(4) + b"IKE", ("127.0.0.1", NATT_PORT))
        from_port.sendto(b"ESP packet", ("127.0.0.1", NATT_PORT))
    assert receives(opened.natt[0]) == [bytes(4) + b"IKE"] * 20
    assert receives(opened.esp_udp[0]) == [b"ESP packet"] * 20


def test_both_sockets_send_from_port_4500(listeners):
    opened = listeners((HERE,), Plane.USERSPACE)
    peer = sender(HERE)
    for sock in opened.natt + opened.esp_udp:
        sock.sendto(b"x", peer.getsockname())
        assert peer.recvfrom(10)[1] == ("127.0.0.1", NATT_PORT)


def test_the_esp_socket_keeps_its_share_when_the_worker_does_not_read(listeners):
    opened = listeners((HERE,), Plane.USERSPACE)
    flood = sender(HERE)
    for _ in range(3000):
        flood.sendto(bytes(1200), ("127.0.0.1", NATT_PORT))
    flood.sendto(b"ESP packet", ("127.0.0.1", NATT_PORT))
    assert receives(opened.esp_udp[0]) == [b"ESP packet"]


def test_without_addresses_there_is_a_wildcard_socket_for_each_family(listeners):
    opened = listeners((), Plane.USERSPACE)
    for group, port in ((opened.ike, IKE_PORT), (opened.natt, NATT_PORT), (opened.esp_udp, NATT_PORT)):
        assert [sock.getsockname()[:2] for sock in group] == [("0.0.0.0", port), ("::", port)]
    assert [sock.type for sock in opened.esp_raw] == [socket.SOCK_RAW] * 2


def test_the_reader_learns_which_of_our_addresses_was_meant(listeners):
    opened = listeners((), Plane.USERSPACE)
    sender(HERE).sendto(b"IKE", ("127.0.0.5", IKE_PORT))
    _, ancillary, _, _ = opened.ike[0].recvmsg(100, 100)
    assert [(level, socket.inet_ntoa(data[8:12])) for level, _, data in ancillary] == [(socket.IPPROTO_IP, "127.0.0.5")]
    sender(HERE6).sendto(b"IKE", ("::1", IKE_PORT))
    _, ancillary, _, _ = opened.ike[1].recvmsg(100, 100)
    assert ancillary[0][:2] == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
    assert ancillary[0][2][:16] == HERE6.packed


def test_outer_packets_carry_the_mark_that_keeps_them_out_of_the_tunnel(listeners):
    opened = listeners((), Plane.USERSPACE)
    for sock in opened.ike + opened.natt + opened.esp_udp + opened.esp_raw:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == OUTER_MARK


def test_raw_esp_reaches_the_raw_socket_rfc4303_2(listeners):
    opened = listeners((), Plane.USERSPACE)
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, 50)
    sock.sendto(struct.pack("!II", 0x1001, 1) + bytes(40), ("127.0.0.1", 0))
    assert [packet[20:28] for packet in receives(opened.esp_raw[0])] == [struct.pack("!II", 0x1001, 1)]


def test_the_kernels_esp_needs_one_socket_a_port(listeners):
    opened = listeners((HERE,), Plane.KERNEL)
    assert (len(opened.ike), len(opened.natt), opened.esp_udp, opened.esp_raw) == (1, 1, (), ())
    assert opened.natt[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


@pytest.mark.parametrize("plane", Plane)
@pytest.mark.parametrize("port", [IKE_PORT, NATT_PORT])
def test_a_taken_port_is_the_operators_to_free_and_nothing_stays_open(plane, port):
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.bind(("127.0.0.1", port))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OperatorError, match=rf"UDP port {port} on 127\.0\.0\.1 is in use; another IKE daemon"):
        open_listeners((HERE,), plane, WORKER)
    assert os.listdir("/proc/self/fd") == before
    other.close()


@pytest.mark.parametrize("plane", Plane)
def test_a_second_daemon_of_ours_is_told_too(listeners, plane):
    listeners((HERE,), plane)
    with pytest.raises(OperatorError, match=r"UDP port 500 on 127\.0\.0\.1 is in use"):
        open_listeners((HERE,), plane, WORKER)


def test_an_address_that_is_not_ours_is_named():
    with pytest.raises(OperatorError, match=r"192\.0\.2\.99 cannot be had: no interface has this address"):
        open_listeners((ipaddress.ip_address("192.0.2.99"),), Plane.USERSPACE, WORKER)
