"""Two namespaces, two data planes, the kernel's ESP between them, and a ping. Skipped where the kernel has no ESP."""

import re
import socket
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from monitor.xfrm.bypass import bypass, udp_encap
from monitor.xfrm.client import KernelDataplane
from monitor.xfrm.netlink import XfrmNetlink
from monitor.xfrm.probe import lacking
from privsep.algorithms import ChildSuite
from privsep.iana import ProtocolId
from privsep.types import Mode

pytestmark = pytest.mark.root

SUITES = (
    "aes128gcm8",
    "aes192gcm12",
    "aes256gcm16",
    "aes256gcm16-esn",
    "aes128ccm8",
    "aes192ccm12",
    "aes256ccm16",
    "aes128ctr-sha256",
    "aes256ctr-sha1-esn",
    "chacha20poly1305",
    "aes128-sha256",
    "aes256-sha512",
    "aes192-sha384-esn",
    "aes256-sha1",
    "aes128-aesxcbc",
    "aes128-aescmac",
    "camellia128-sha256",
    "camellia256-sha512",
    "3des-md5",
)
READABLE = ("aes128gmac", "aes256gmac-esn", "null-sha256", "null-md5-esn")
"""Suites of ESP that authenticate and do not encrypt."""
AH = ("md5", "sha1", "sha256", "sha384", "sha512-esn", "aesxcbc", "aescmac")
PATTERN = bytes.fromhex("c1ea4e57")
ETH_P_ALL = 3
PINGS = 3


@dataclass
class Side:
    """One gateway."""

    name: str
    netlink: XfrmNetlink
    plane: KernelDataplane
    pair: Any = None


@pytest.fixture
def sides(kit):
    """Left 192.0.2.1 with 10.1.0.1 and fd00:1::1 behind, right 192.0.2.2 with 10.2.0.1 and fd00:2::1."""
    with ExitStack() as stack:
        names = [stack.enter_context(kit.network()) for _ in range(2)]
        run("link", "add", "under", "netns", names[0], "type", "veth", "peer", "name", "under", "netns", names[1])
        made = []
        for here, name in enumerate(names, 1):
            there = 3 - here
            ip = ["-n", name]
            run(*ip, "addr", "add", f"192.0.2.{here}/24", "dev", "under")
            run(*ip, "addr", "add", f"2001:db8::{here}/64", "dev", "under", "nodad")
            run(*ip, "addr", "add", f"10.{here}.0.1/32", "dev", "lo")
            run(*ip, "addr", "add", f"fd00:{here}::1/128", "dev", "lo", "nodad")
            run(*ip, "link", "set", "under", "up")
            run(*ip, "route", "add", f"10.{there}.0.0/16", "via", f"192.0.2.{there}", "src", f"10.{here}.0.1")
            run(*ip, "route", "add", f"fd00:{there}::/64", "dev", "under", "src", f"fd00:{here}::1")
            with kit.entered(name):
                netlink = XfrmNetlink()
            stack.callback(netlink.close)
            made.append(Side(name=name, netlink=netlink, plane=KernelDataplane(netlink)))
        yield made


def run(*arguments):
    subprocess.run(["ip", *arguments], check=True)


def connect(kit, sides, suite, policy, **changes):
    """Policies and a pair on both sides, with the same keys crosswise."""
    missing = lacking(sides[0].netlink, [suite], [4])
    if missing is not None:
        pytest.skip(missing)
    policies = (
        policy,
        kit.policy(
            protocol=policy.protocol,
            mode=policy.mode,
            local=policy.remote,
            remote=policy.local,
            local_ts=policy.remote_ts,
            remote_ts=policy.local_ts,
        ),
    )
    spis = [
        side.plane.allocate_spi(chosen.local, chosen.remote, suite.protocol)
        for side, chosen in zip(sides, policies, strict=True)
    ]
    to_left, to_right = keys(suite, 1), keys(suite, 101)
    for side, chosen, spi_in, spi_out, inbound, outbound in (
        (sides[0], policies[0], spis[0], spis[1], to_left, to_right),
        (sides[1], policies[1], spis[1], spis[0], to_right, to_left),
    ):
        port = 4500 if changes.get("encap") else 500
        side.pair = kit.pair(
            chosen,
            suite=suite,
            spi_in=spi_in,
            spi_out=spi_out,
            encryption_in=inbound[0],
            integrity_in=inbound[1],
            encryption_out=outbound[0],
            integrity_out=outbound[1],
            local=kit.endpoint(str(chosen.local.address), port),
            remote=kit.endpoint(str(chosen.remote.address), port),
            **changes,
        )
        kit.result(side.plane.add_policy(chosen))
        kit.result(kit.install(side.plane, side.pair))


def keys(suite, first):
    return (
        bytes(range(first, first + suite.encryption_octets)),
        bytes(range(first, first + suite.integrity_octets)),
    )


def ping(kit, sides, source, target):
    """How many pings came back, and how many of the frames that left either side were in clear, and were at all.

    Only what leaves: what arrives is shown to listeners once more after decapsulation.
    """
    with ExitStack() as stack:
        wires = []
        for side in sides:
            with kit.entered(side.name):
                wires.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
            stack.enter_context(wires[-1])
            wires[-1].bind(("under", 0))
            wires[-1].setblocking(False)
        command = ["ping", "-n", "-c", str(PINGS), "-i", "0.2", "-W", "3", "-p", PATTERN.hex(), "-I", source, target]
        done = subprocess.run(
            ["ip", "netns", "exec", sides[0].name, *command], capture_output=True, text=True, check=False
        )
        left = [frame for wire in wires for frame in leaving(wire)]
    received = int(re.search(r"(\d+) received", done.stdout)[1])
    return received, sum(PATTERN in frame for frame in left), len(left)


def leaving(wire):
    with suppress(BlockingIOError):
        while True:
            frame, (_, _, kind, *_) = wire.recvfrom(4096)
            if kind == socket.PACKET_OUTGOING:
                yield frame


def test_the_control_without_policies_goes_in_clear(kit, sides):
    assert ping(kit, sides, "10.1.0.1", "10.2.0.1")[:2] == (PINGS, 2 * PINGS)


def check(kit, sides, source="10.1.0.1", target="10.2.0.1", *, readable=False):
    received, clear, seen = ping(kit, sides, source, target)
    assert (received, clear) == (PINGS, 2 * PINGS if readable else 0)
    assert seen >= 2 * PINGS
    for side in sides:
        counted = kit.result(side.plane.traffic(side.pair))
        assert (counted.packets_in, counted.packets_out) == (PINGS, PINGS)
        assert counted.bytes_in >= PINGS * 64
    for side in sides:
        kit.result(side.plane.remove(side.pair))
    received, clear, _ = ping(kit, sides, source, target)
    assert (received, clear) == (0, 0), "without an SA there is no traffic"


@pytest.mark.parametrize("keyword", SUITES)
def test_a_ping_crosses_the_tunnel_encrypted(kit, sides, keyword):
    connect(kit, sides, ChildSuite.parse(keyword), kit.policy())
    check(kit, sides)


@pytest.mark.parametrize("keyword", READABLE)
def test_a_ping_crosses_authenticated_and_readable_rfc4543_rfc2410(kit, sides, keyword):
    connect(kit, sides, ChildSuite.parse(keyword), kit.policy())
    check(kit, sides, readable=True)


@pytest.mark.parametrize("keyword", AH)
@pytest.mark.parametrize("mode", Mode)
def test_a_ping_crosses_under_ah_rfc4302(kit, sides, keyword, mode):
    suite = ChildSuite.parse(keyword, ProtocolId.AH)
    if mode is Mode.TUNNEL:
        connect(kit, sides, suite, kit.ah)
        check(kit, sides, readable=True)
    else:
        hosts = {"local_ts": kit.selectors("192.0.2.1/32"), "remote_ts": kit.selectors("192.0.2.2/32")}
        connect(kit, sides, suite, kit.policy(protocol=ProtocolId.AH, mode=mode, **hosts))
        check(kit, sides, "192.0.2.1", "192.0.2.2", readable=True)


@pytest.mark.parametrize("keyword", ["sha1", "sha256"])
def test_ah_over_ipv6_is_aligned_to_eight_octets_rfc4302_2_6(kit, sides, keyword):
    policy = kit.policy(protocol=ProtocolId.AH, local=kit.endpoint("2001:db8::1"), remote=kit.endpoint("2001:db8::2"))
    connect(kit, sides, ChildSuite.parse(keyword, ProtocolId.AH), policy)
    check(kit, sides, readable=True)


@pytest.mark.parametrize("window", [32, 33, 4096])
@pytest.mark.parametrize("keyword", ["aes256gcm16", "aes256gcm16-esn"])
def test_replay_windows_of_every_size_are_the_kernels_rfc4303_3_4_3(kit, sides, keyword, window):
    connect(kit, sides, ChildSuite.parse(keyword), kit.policy(), replay_window=window)
    shown = subprocess.run(["ip", "-n", sides[0].name, "xfrm", "state"], capture_output=True, text=True, check=True)
    large = f"replay_window {window}, bitmap-length {-(-window // 32)}" in shown.stdout
    assert large or f"replay-window {window}" in shown.stdout
    assert shown.stdout.count("flag esn") == (2 if keyword.endswith("esn") else 0)
    check(kit, sides)


def test_a_ping_crosses_in_udp_rfc3948(kit, sides):
    with ExitStack() as stack:
        for here, side in enumerate(sides, 1):
            with kit.entered(side.name):
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                bypass(sock)
                udp_encap(sock)
                sock.bind((f"192.0.2.{here}", 4500))
        connect(kit, sides, ChildSuite.parse("aes128-sha256"), kit.policy(), encap=True)
        check(kit, sides)


def test_both_families_share_one_pair(kit, sides):
    connect(kit, sides, ChildSuite.parse("aes256gcm16"), kit.mixed)
    received, clear, _ = ping(kit, sides, "fd00:1::1", "fd00:2::1")
    assert (received, clear) == (PINGS, 0)
    received, clear, _ = ping(kit, sides, "10.1.0.1", "10.2.0.1")
    assert (received, clear) == (PINGS, 0)


def test_ipv6_goes_through_an_ipv4_tunnel(kit, sides):
    policy = kit.policy(local_ts=kit.mixed.local_ts[1:], remote_ts=kit.mixed.remote_ts[1:])
    connect(kit, sides, ChildSuite.parse("aes256gcm16"), policy)
    check(kit, sides, "fd00:1::1", "fd00:2::1")


def test_transport_mode_protects_the_two_hosts(kit, sides):
    policy = kit.policy(
        mode=Mode.TRANSPORT,
        local_ts=kit.selectors("192.0.2.1/32", protocol=1),
        remote_ts=kit.selectors("192.0.2.2/32", protocol=1),
    )
    connect(kit, sides, ChildSuite.parse("aes256gcm16"), policy)
    check(kit, sides, "192.0.2.1", "192.0.2.2")


def test_what_was_not_negotiated_does_not_go_through(kit, sides):
    connect(
        kit,
        sides,
        ChildSuite.parse("aes256gcm16"),
        kit.policy(),
        local_ts=kit.selectors("10.1.7.0/24"),
        remote_ts=kit.selectors("10.2.0.0/16"),
    )
    received, clear, _ = ping(kit, sides, "10.1.0.1", "10.2.0.1")
    assert (received, clear) == (0, 0)
