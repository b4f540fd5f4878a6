"""What the kernel lets through to the worker's sockets, in a network namespace of the test's own."""

import ipaddress
import select
import socket
import subprocess
from types import SimpleNamespace

import pytest
from namespace import own_network

from monitor.admission import MAX_ADMITTED, admit, admitted
from monitor.sockets import IKE_PORT, NATT_PORT, Plane, open_listeners
from privsep.config.model import RemoteAny
from privsep.config.names import RemoteName

pytestmark = pytest.mark.root

PEERS = {4: ["192.0.2.1", "192.0.2.200", "203.0.113.9"], 6: ["2001:db8::1", "2001:db8::2", "2001:db8:1::1"]}
STRANGERS = {4: ["192.0.2.2", "198.51.100.1"], 6: ["2001:db8::3", "2001:db8:2::1", "fd00::1"]}
HERE = {4: "127.0.0.1", 6: "::1"}


@pytest.fixture(autouse=True)
def network():
    with own_network():
        for version in (4, 6):
            for address in PEERS[version] + STRANGERS[version]:
                nodad = ["nodad"] if version == 6 else []
                subprocess.run(["ip", "address", "add", address, "dev", "lo", *nodad], check=True)
        yield


@pytest.fixture(params=Plane)
def listeners(request):
    made = open_listeners((), request.param, 64711)
    yield made
    made.close()


def addresses(*texts):
    return frozenset(ipaddress.ip_address(text) for text in texts)


def senders(sock, version):
    """The sources from which a datagram arrives, of all that the namespace has."""
    port = sock.getsockname()[1]
    for source in PEERS[version] + STRANGERS[version]:
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            # behind a non-ESP marker, so that it is the worker's on port 4500
            sender.sendto(bytes(4) + b"IKE", (HERE[version], port))
    found = []
    while select.select([sock], [], [], 0.02)[0]:
        found.append(sock.recvfrom(100)[1][0])
    return found


def worker_sockets(listeners):
    for sock in listeners.ike + listeners.natt:
        yield sock, 4 if sock.family == socket.AF_INET else 6


def test_only_peers_reach_the_worker_on_either_port_and_by_either_protocol(listeners):
    socks = list(worker_sockets(listeners))
    assert {(sock.getsockname()[1], version) for sock, version in socks} == {
        (IKE_PORT, 4), (IKE_PORT, 6), (NATT_PORT, 4), (NATT_PORT, 6)
    }  # fmt: skip
    for sock, version in socks:
        assert senders(sock, version) == PEERS[version] + STRANGERS[version], "the control: without a filter"
    admit([sock for sock, _ in socks], addresses(*PEERS[4], *PEERS[6]))
    for sock, version in socks:
        assert senders(sock, version) == PEERS[version]


def test_peers_may_change_and_the_filter_may_go(listeners):
    socks = list(worker_sockets(listeners))
    everybody = [sock for sock, _ in socks]
    admit(everybody, addresses(PEERS[4][0]))
    admit(everybody, addresses(PEERS[4][1], PEERS[6][1]))
    for sock, version in socks:
        assert senders(sock, version) == [PEERS[version][1]]
    admit(everybody, addresses())
    for sock, version in socks:
        assert senders(sock, version) == [], "no peer is configured"
    admit(everybody, None)
    admit(everybody, None)
    for sock, version in socks:
        assert senders(sock, version) == PEERS[version] + STRANGERS[version]


@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_takes_as_many_addresses_as_we_ask_for(version):
    first = 0x0A000000 if version == 4 else 0x20010DB8FFFF << 80
    many = [ipaddress.ip_address(first + 7 * number) for number in range(MAX_ADMITTED - 3)]
    made = open_listeners((), Plane.KERNEL, 64711)
    try:
        admit(made.ike, frozenset(many) | addresses(*PEERS[version]))
        (sock,) = [sock for sock, family in worker_sockets(made) if family == version and sock in made.ike]
        assert senders(sock, version) == PEERS[version]
    finally:
        made.close()


def gateway(*remotes):
    return SimpleNamespace(connections=[SimpleNamespace(remote=remote) for remote in remotes])


def test_where_a_peer_may_be_anywhere_or_there_are_many_all_are_admitted():
    one, other = (ipaddress.ip_address(each) for each in ("192.0.2.1", "2001:db8::1"))
    assert admitted(gateway(one, other, one)) == {one, other}
    assert admitted(gateway(one, RemoteAny())) is None
    assert admitted(gateway(one, ipaddress.ip_network("198.51.100.0/24"))) is None
    # a name is where it leads, and nowhere before that is known
    assert admitted(gateway(one, RemoteName("gw.example.org", 6))) == {one}
    assert admitted(gateway(one, RemoteName("gw.example.org", 6, other))) == {one, other}
    many = [ipaddress.ip_address(0x0A000000 + number) for number in range(MAX_ADMITTED + 1)]
    assert admitted(gateway(*many[1:])) == set(many[1:])
    assert admitted(gateway(*many)) is None
