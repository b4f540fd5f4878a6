"""What the worker's descriptors can still send, in a network namespace where every address is ours and answers."""

import dataclasses
import errno
import ipaddress
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from namespace import own_network

from monitor import egress
from monitor.egress import readmit, restrict, table_name
from monitor.sockets import Plane, open_listeners
from privsep.config.model import RemoteAny, Users
from privsep.config.names import RemoteName
from privsep.errors import OperatorError

pytestmark = pytest.mark.root

WORKER, KEYD, ESP, OTHER = 64711, 64712, 64713, 64714
PORT = 6000
"""Where whoever is written to listens."""
PEER = {4: "192.0.2.2", 6: "2001:db8::2"}
STRANGER = {4: "192.0.2.3", 6: "2001:db8::3"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
BOTH = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(autouse=True)
def network():
    """Every address is local, so a datagram arrives wherever it is sent."""
    with own_network():
        for words in ("addr add 192.0.2.1/32 dev lo", "addr add 2001:db8::1/128 dev lo nodad",
                      "route add local 0.0.0.0/0 dev lo", "-6 route add local ::/0 dev lo"):  # fmt: skip
            subprocess.run(("ip", *words.split()), check=True)
        yield


@pytest.fixture
def keep():
    """Close at the end."""
    kept = []

    def closing(each):
        kept.append(each)
        return each

    yield closing
    for each in kept:
        each.close()


@pytest.fixture
def reaches(keep):
    """Whether a datagram from this socket arrives at that address; it is either delivered or refused."""
    receivers = {}
    for version, any_address in ((4, "0.0.0.0"), (6, "::")):
        receivers[version] = keep(socket.socket(FAMILY[version], socket.SOCK_DGRAM))
        if version == 6:
            receivers[version].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        receivers[version].bind((any_address, PORT))

    def ask(sock, address, payload=b"IKE"):
        receiver = receivers[ipaddress.ip_address(address).version]
        try:
            if sock.type == socket.SOCK_RAW:
                return sock.sendto(payload, (address, 0)) == len(payload)
            sock.sendto(payload, (address, PORT))
        except PermissionError:
            assert not select.select([receiver], [], [], 0.05)[0]
            return False
        assert select.select([receiver], [], [], 2)[0], "neither refused nor delivered"
        assert receiver.recv(65535) == payload
        return True

    return ask


@pytest.fixture
def make(kit):
    """A gateway with a connection to each of these remotes."""

    def gateway(*remotes, worker=WORKER):
        parsed = [
            each
            if isinstance(each, RemoteName)
            else RemoteAny()
            if each == "any"
            else (ipaddress.ip_network if "/" in each else ipaddress.ip_address)(each)
            for each in remotes
        ]
        return dataclasses.replace(
            kit.gateway(),
            users=Users(worker=(worker, worker), keyd=(KEYD, KEYD), userspace=(ESP, ESP)),
            connections=tuple(kit.connection(name=f"c{n}", local=None, remote=each) for n, each in enumerate(parsed)),
        )

    return gateway


@pytest.fixture
def listeners(keep):
    def opened(plane=Plane.USERSPACE, worker=WORKER):
        return keep(open_listeners((), plane, worker))

    return opened


@pytest.fixture
def nft():
    if shutil.which("nft") is None:
        pytest.skip("nft is missing: .ci/system peers installs it")

    def run(*words, check=True):
        done = subprocess.run(("nft", *words), capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stderr
        return done

    return run


def of_worker(opened, version):
    return [sock for sock in opened.ike + opened.natt if sock.family == FAMILY[version]]


def made_by(uid, kind=socket.SOCK_DGRAM):
    """A socket as a process of that user would make it."""
    os.seteuid(uid)
    try:
        return socket.socket(socket.AF_INET, kind)
    finally:
        os.seteuid(0)


@BOTH
@pytest.mark.parametrize("plane", Plane)
def test_the_worker_s_descriptors_reach_configured_peers_and_nobody_else(
    listeners, reaches, make, keep, plane, version
):
    """The control is egress = "open": no table, before and after."""
    sockets = of_worker(listeners(plane), version)
    assert [sock.getsockname()[1] for sock in sockets] == [500, 4500]
    for sock in sockets:
        assert reaches(sock, PEER[version])
        assert reaches(sock, STRANGER[version])
    rule = keep(restrict(make(PEER[4], PEER[6])))
    for sock in sockets:
        assert reaches(sock, PEER[version])
        assert reaches(sock, PEER[version], bytes(60000)), "fragments come later"
        assert not reaches(sock, STRANGER[version])
        assert not reaches(sock, STRANGER[version], bytes(60000))
    rule.close()
    for sock in sockets:
        assert reaches(sock, STRANGER[version])


@BOTH
def test_sockets_that_root_made_for_the_worker_would_not_be_seen(listeners, reaches, make, keep, version):
    """The control of sockets.py's change of user: nothing but who made a socket tells the rule whose it is."""
    sockets = of_worker(listeners(worker=0), version)
    keep(restrict(make(PEER[4], PEER[6])))
    assert all(reaches(sock, STRANGER[version]) for sock in sockets)


def test_handing_a_socket_to_another_user_does_not_hide_it(listeners, reaches, make, keep):
    sock = of_worker(listeners(), 4)[0]
    keep(restrict(make(PEER[4])))
    os.fchown(sock.fileno(), OTHER, OTHER)
    assert not reaches(sock, STRANGER[4])


@BOTH
def test_a_peer_of_one_ip_version_opens_nothing_in_the_other(listeners, reaches, make, keep, version):
    sock = of_worker(listeners(), version)[0]
    keep(restrict(make(PEER[10 - version])))
    assert not reaches(sock, PEER[version])


@BOTH
def test_where_a_remote_is_any_the_ports_are_what_is_left_of_the_rule(listeners, reaches, make, keep, version):
    sockets = of_worker(listeners(), version)
    keep(restrict(make(PEER[4], "any")))
    assert all(reaches(sock, STRANGER[version]) for sock in sockets)
    other = keep(made_by(WORKER))
    assert not reaches(other, PEER[4])
    assert not reaches(other, STRANGER[4])


@pytest.mark.parametrize("version", [4, 6])
def test_a_name_opens_where_it_leads_now_and_nowhere_else(listeners, reaches, make, keep, version):
    """Beside a network that contains one of its addresses, and as often as it moves."""
    here, there = ("127.0.0.2", "127.0.0.3") if version == 4 else ("::1", "::1")
    sock = next(each for each in listeners().ike if each.family == FAMILY[version])
    gateway = make("127.1.0.0/24", "192.0.2.1", RemoteName("gw.example.org", None))
    rule = keep(restrict(gateway))
    assert not reaches(sock, here)
    named = gateway.connections[2]
    for address, others in ((here, there), (there, here), ("127.1.0.1", here), (here, there)):
        gateway.locate(named, ipaddress.ip_address(address))
        readmit(rule, gateway)
        if ipaddress.ip_address(address).version == version:
            assert reaches(sock, address)
        if others != address:
            assert not reaches(sock, others)
    # what is configured by address stays
    if version == 4:
        assert reaches(sock, "127.1.0.1")


def test_thousands_of_addresses_are_filled_in_anew_in_one_transaction(listeners, reaches, make, keep):
    gateway = make(*(f"10.{n >> 8}.{n & 255}.1" for n in range(9999)), RemoteName("gw.example.org", 4))
    rule = keep(restrict(gateway))
    sock = next(each for each in listeners().ike if each.family == socket.AF_INET)
    assert not reaches(sock, "127.0.0.2")
    gateway.locate(gateway.connections[-1], ipaddress.ip_address("127.0.0.2"))
    readmit(rule, gateway)
    assert reaches(sock, "127.0.0.2")


def test_without_a_connection_nothing_leaves(listeners, reaches, make, keep):
    sock = of_worker(listeners(), 4)[0]
    keep(restrict(make()))
    assert not reaches(sock, PEER[4])


def test_another_socket_of_the_worker_s_user_reaches_nobody_not_even_a_peer(reaches, make, keep):
    first = keep(made_by(WORKER))
    assert reaches(first, PEER[4])
    keep(restrict(make(PEER[4])))
    assert not reaches(first, PEER[4])
    assert not reaches(keep(made_by(WORKER)), PEER[4])


def test_tcp_from_the_same_port_is_not_what_is_allowed(make, keep):
    listener = keep(socket.create_server((PEER[4], PORT)))

    def connects():
        with made_by(WORKER, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.settimeout(0.3)
            sock.bind(("0.0.0.0", 500))
            if sock.connect_ex((PEER[4], PORT)):
                return False
            listener.accept()[0].close()
            return True

    assert connects()
    keep(restrict(make(PEER[4])))
    assert not connects()


def test_nobody_else_is_confined(listeners, reaches, make, keep):
    """Not the ESP process, which sends from port 4500 too, nor another user, nor root."""
    opened = listeners()
    keep(restrict(make(PEER[4])))
    for sock in opened.esp_udp + opened.esp_raw:
        assert reaches(sock, STRANGER[4 if sock.family == socket.AF_INET else 6])
    assert reaches(keep(made_by(OTHER)), STRANGER[4])
    assert reaches(keep(made_by(0)), STRANGER[4])


LSRR = 131
"""RFC 791 section 3.1, loose source and record route."""


def test_a_peer_cannot_be_made_a_stepping_stone_by_a_source_route_rfc791_3_1(
    listeners, reaches, make, keep, monkeypatch
):
    """To the peer, who is to send it on to the stranger. The control is a rule that admits headers of this length."""
    for interface, setting, value in (
        ("all", "accept_source_route", "1"),
        ("lo", "accept_source_route", "1"),
        ("all", "accept_local", "1"),
    ):
        Path(f"/proc/sys/net/ipv4/conf/{interface}/{setting}").write_text(value)
    sock = of_worker(listeners(), 4)[1]
    route = bytes([LSRR, 7, 4]) + socket.inet_aton(PEER[4])
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route)
    assert reaches(sock, STRANGER[4])
    rule = keep(restrict(make(PEER[4])))
    assert not reaches(sock, STRANGER[4])
    rule.close()
    v4, v6 = egress._FAMILIES
    monkeypatch.setattr(egress, "_FAMILIES", (dataclasses.replace(v4, plain=(0, 0x47)), v6))
    keep(restrict(make(PEER[4])))
    assert reaches(sock, STRANGER[4])


def test_extension_headers_are_not_what_ike_sends_rfc8200_4(listeners, reaches, make, keep):
    sock = of_worker(listeners(), 6)[1]
    keep(restrict(make(PEER[6])))
    assert reaches(sock, PEER[6])
    # destination options that are padding
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
    assert not reaches(sock, PEER[6])


@pytest.mark.parametrize(
    ("remotes", "inside", "outside"),
    [
        pytest.param(["198.51.100.0/24"], ["198.51.100.0", "198.51.100.9", "198.51.100.255"],
                     ["198.51.99.255", "198.51.101.0"], id="network"),
        pytest.param(["198.51.100.0/24", "198.51.0.0/16", "198.51.100.7"],
                     ["198.51.0.0", "198.51.100.7", "198.51.255.255"],
                     ["198.50.255.255", "198.52.0.0"], id="nested"),
        pytest.param(["198.51.100.1", "198.51.100.2", "198.51.100.4", "198.51.100.2"],
                     ["198.51.100.1", "198.51.100.2", "198.51.100.4"],
                     ["198.51.100.0", "198.51.100.3", "198.51.100.5"], id="neighbours"),
        pytest.param(["0.0.0.0/1"], ["9.9.9.9", "126.0.0.1"], ["128.0.0.1", "192.0.2.2"], id="from the first"),
        pytest.param(["128.0.0.0/1"], ["128.0.0.1", "192.0.2.2"], ["9.9.9.9", "126.0.0.1"], id="to the last"),
        pytest.param(["2001:db8:1::/48", "2001:db8:3::5"],
                     ["2001:db8:1::", "2001:db8:1:ffff:ffff:ffff:ffff:ffff", "2001:db8:3::5"],
                     ["2001:db8:0:ffff::", "2001:db8:2::", "2001:db8:3::4", "2001:db8:3::6", "192.0.2.2"], id="IPv6"),
        pytest.param(["8000::/1"], ["c000::1", "9000::1"], ["2001:db8::1"], id="IPv6 to the last"),
    ],
)  # fmt: skip
def test_networks_are_configured_from_their_first_to_their_last_address(
    listeners, reaches, make, keep, remotes, inside, outside
):
    opened = listeners()
    keep(restrict(make(*remotes)))
    for address in inside + outside:
        (sock, _) = of_worker(opened, ipaddress.ip_address(address).version)
        assert reaches(sock, address) is (address in inside), address


def test_as_many_connections_as_may_be_configured_are_in_force(listeners, reaches, make, keep):
    first = int(ipaddress.ip_address("198.18.0.0"))
    addresses = [str(ipaddress.ip_address(first + 2 * n)) for n in range(10_000)]
    keep(restrict(make(*addresses)))
    sock = of_worker(listeners(), 4)[0]
    for n in (0, 499, 500, 5000, 9999):
        assert reaches(sock, addresses[n])
        assert not reaches(sock, str(ipaddress.ip_address(addresses[n]) + 1))


def test_two_instances_with_users_of_their_own_do_not_meet(reaches, make, keep):
    keep(restrict(make(PEER[4])))
    keep(restrict(make("any", worker=OTHER)))
    with pytest.raises(OperatorError, match=rf"another instance confines uid {WORKER}.*\"open\" would work"):
        restrict(make(PEER[4]))


@pytest.mark.parametrize(
    ("where", "name", "unknown"),
    [
        pytest.param(egress, "NETLINK_NETFILTER", 31, id="netfilter's netlink"),
        pytest.param(egress, "NFNL_SUBSYS_NFTABLES", 14, id="nftables"),
        pytest.param(egress.nft, "NFPROTO_INET", 99, id="the inet family"),
        pytest.param(egress, "_TABLE_F_OWNER", 0x4000, id="owners"),
    ],
)
def test_a_kernel_that_lacks_something_is_the_operator_s_to_change(make, keep, monkeypatch, where, name, unknown):
    """The kernel is asked for what it never heard of, as an older one would be; the control is the same without."""
    keep(restrict(make(PEER[4], worker=OTHER)))
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(where, name, unknown)
    with pytest.raises(OperatorError, match=r"CONFIG_NF_TABLES_INET and Linux 5\.12; \"open\" would work") as refused:
        restrict(make(PEER[4]))
    assert os.strerror(errno.EPERM) not in str(refused.value)
    assert os.listdir("/proc/self/fd") == before


def drops(nft, uid=WORKER):
    listing = json.loads(nft("-j", "list", "table", "inet", table_name(uid)).stdout)["nftables"]
    rules = [each["rule"]["expr"] for each in listing if "rule" in each]
    return [part["counter"]["packets"] for rule in rules for part in rule if "counter" in part]


def test_what_is_dropped_is_counted(listeners, reaches, make, keep, nft):
    sock = of_worker(listeners(), 4)[0]
    keep(restrict(make(PEER[4])))
    assert reaches(sock, PEER[4])
    assert drops(nft) == [0]
    for _ in range(3):
        assert not reaches(sock, STRANGER[4])
    assert drops(nft) == [3]


def test_nft_shows_the_rules_that_the_module_promises(make, keep, nft):
    keep(restrict(make(PEER[4], "198.51.100.0/24", PEER[6])))
    shown = " ".join(nft("list", "table", "inet", table_name(WORKER)).stdout.split())
    for part in (
        "flags owner",
        "elements = { 500, 4500 }",
        "elements = { 192.0.2.2, 198.51.100.0/24 }",
        "elements = { 2001:db8::2 }",
        "type filter hook output priority filter; policy accept;",
        f"meta skuid {WORKER} ip version 4 ip hdrlength 5 udp sport @ports ip daddr @remote4 accept "
        f"meta skuid {WORKER} ip6 nexthdr udp udp sport @ports ip6 daddr @remote6 accept "
        f"meta skuid {WORKER} counter packets 0 bytes 0 drop",
    ):
        assert part in shown


def test_nobody_but_its_owner_changes_the_table(listeners, reaches, make, keep, nft):
    """Root with nft, while another table of the same shape can be had."""
    sock = of_worker(listeners(), 4)[0]
    keep(restrict(make(PEER[4])))
    table = table_name(WORKER)
    nft("add", "table", "inet", "other")
    assert "not permitted" in nft("delete", "table", "inet", table, check=False).stderr
    assert "not permitted" in nft("insert", "rule", "inet", table, "output", "accept", check=False).stderr
    assert "not permitted" in nft("add", "element", "inet", table, "remote4", "{ 192.0.2.3 }", check=False).stderr
    nft("flush", "ruleset")
    assert nft("list", "tables").stdout == f"table inet {table}\n"
    assert not reaches(sock, STRANGER[4])


HOLDER = """
import sys, time
from monitor.egress import restrict
from privsep.config.loader import load
held = restrict(load(sys.argv[1], "gateway.toml"))
print("held", flush=True)
time.sleep(60)
"""
CONFIGURATION = f"""
[gateway]
egress = "restricted"
users = {{ worker = {WORKER}, keyd = {KEYD}, userspace = {ESP} }}
[connection.peer]
local = "192.0.2.1"
remote = "{PEER[4]}"
[connection.peer.child.net]
local_ts = ["10.1.0.0/16"]
remote_ts = ["10.2.0.0/16"]
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_the_rule_ends_with_the_process_that_made_it(listeners, reaches, number):
    sock = of_worker(listeners(), 4)[0]
    process = subprocess.Popen([sys.executable, "-c", HOLDER, CONFIGURATION], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        assert not reaches(sock, STRANGER[4])
    finally:
        process.send_signal(number)
        process.communicate()
    assert process.returncode == -number
    assert reaches(sock, STRANGER[4])
