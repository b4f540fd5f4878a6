"""`egress = "restricted"` on whole daemons: IKE and ESP as ever, and what the live worker's own descriptors reach."""

import os
import select
import socket
from ctypes import CDLL, get_errno

import pytest
from lab import RIGHT
from proc import open_descriptors

pytestmark = pytest.mark.root

IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
STRANGER = "192.0.2.3"
PORT = 6000
PIDFD_GETFD = 438
LIBC = CDLL(None, use_errno=True)


def start(daemon, egress, uid=62001, encap="auto"):
    daemon.configure(IKE, ESP, uid=uid, encap=encap)
    text = daemon.config.read_text()
    assert text.startswith("[gateway]\n")
    daemon.config.write_text(text.replace("[gateway]\n", f'[gateway]\negress = "{egress}"\n', 1))
    daemon.launch()


def stolen(pid):
    """The UDP sockets of a process: not copies, the open files that it has itself."""
    process, found = os.pidfd_open(pid), []
    for descriptor, target in open_descriptors(pid).items():
        if not target.startswith("socket:"):
            continue
        number = LIBC.syscall(PIDFD_GETFD, process, descriptor, 0)
        assert number >= 0, os.strerror(get_errno())
        sock = socket.socket(fileno=number)
        if (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_DGRAM):
            found.append(sock)
        else:
            sock.close()
    os.close(process)
    return sorted(found, key=lambda sock: sock.getsockname()[1])


@pytest.fixture
def reaches(network):
    """Whether a datagram from this socket arrives at one of the addresses of the right site."""
    network.ip(network.right, "address", "add", f"{STRANGER}/24", "dev", "wire0")
    receiver = network.right.enter(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    receiver.bind(("0.0.0.0", PORT))

    def ask(sock, address):
        try:
            sock.sendto(b"IKE", (address, PORT))
        except PermissionError:
            assert not select.select([receiver], [], [], 0.2)[0]
            return False
        assert select.select([receiver], [], [], 2)[0], "neither refused nor delivered"
        return receiver.recv(100) == b"IKE"

    yield ask
    receiver.close()


@pytest.mark.parametrize("encap", ["off", "force"])
def test_two_gateways_with_restricted_egress_have_a_tunnel_and_their_workers_reach_nobody_else(
    network, ours, theirs, reaches, encap
):
    """With `force`, ESP leaves from the port 4500 that the worker has too."""
    start(ours, "restricted", encap=encap)
    start(theirs, "restricted", uid=62011, encap=encap)
    ours.up(theirs)
    assert network.left.ping(network.right.inner) == 3
    for sock in stolen(ours.processes()["worker"]):
        with sock:
            assert reaches(sock, RIGHT)
            assert not reaches(sock, STRANGER)
    (sock,) = stolen(ours.processes()["userspace"])
    with sock:
        assert reaches(sock, STRANGER), "only the worker is confined"
    ours.cli("down", "peer/net")
    ours.up(theirs)
    assert network.left.ping(network.right.inner) == 3


def test_with_open_egress_the_same_descriptors_reach_everybody(ours, reaches):
    start(ours, "open")
    sockets = stolen(ours.processes()["worker"])
    assert [sock.getsockname()[1] for sock in sockets] == [500, 4500]
    for sock in sockets:
        with sock:
            assert reaches(sock, STRANGER)


def test_a_restarted_worker_is_confined_like_the_first(network, ours, reaches):
    start(ours, "restricted")
    first = ours.processes()["worker"]
    network.kill(first)
    assert network.wait_for(lambda: ours.is_ready() and ours.processes()["worker"] != first)
    for sock in stolen(ours.processes()["worker"]):
        with sock:
            assert reaches(sock, RIGHT)
            assert not reaches(sock, STRANGER)


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_the_rule_goes_with_the_monitor_and_the_next_one_makes_it_anew(network, ours, reaches, end):
    start(ours, "restricted")
    sockets = stolen(ours.processes()["worker"])
    assert not reaches(sockets[0], STRANGER)
    if end == "killed":
        network.kill(ours.processes()["monitor"])
        ours.process.wait(10)
    else:
        assert ours.stop() == 0
    assert reaches(sockets[0], STRANGER)
    for sock in sockets:
        sock.close()
    start(ours, "restricted")
    (sock, _) = stolen(ours.processes()["worker"])
    with sock:
        assert not reaches(sock, STRANGER)


def test_what_the_audit_knows_of_holds_with_restricted_egress(ours):
    start(ours, "restricted")
    done = ours.cli("audit", check=False)
    assert done.returncode == 0, done.stdout
    assert "egress-restricted" in ours.text()
