"""IPComp in the kernel (RFC 3173): compressed before it is encrypted, never without ESP. Peers: test_matrix.py."""

import json
import re
import socket
import struct
import subprocess
import zlib

import pytest
from lab import launch

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

BIG, SMALL, COUNT = 1000, 16, 5
IPIP, IPCOMP = 4, 108


@pytest.fixture(scope="module")
def compressing(couple):
    """A tunnel, up."""
    for daemon, uid in ((couple.ours, 62001), (couple.theirs, 62011)):
        daemon.configure("aes256-sha256-modp2048", "aes256gcm16-modp2048", uid=uid)
        daemon.config.write_text(daemon.config.read_text() + "ipcomp = true\n")
    launch(couple.ours, couple.theirs)
    couple.ours.order("up")
    return couple


def ping(site, target, size):
    """Echo requests of that many zeros; how many came back."""
    words = ("ping", "-n", "-q", "-c", str(COUNT), "-i", "0.2", "-W", "2", "-s", str(size), "-p", "00")
    done = subprocess.run(site.command(*words, "-I", site.inner, target), capture_output=True, text=True, check=False)
    return int(re.search(r"(\d+) received", done.stdout)[1])


def sent(site):
    """Octets that left on the wire."""
    words = ["ip", "-n", site.namespace, "-s", "-j", "link", "show", "dev", "wire0"]
    (link,) = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return link["stats64"]["tx"]["bytes"]


def assert_shrinks(network):
    """What pings put on the wire, each way."""
    before = sent(network.left), sent(network.right)
    assert ping(network.left, network.right.inner, BIG) == COUNT
    assert max(sent(network.left) - before[0], sent(network.right) - before[1]) < COUNT * BIG // 3


def test_big_packets_shrink_and_small_ones_pass_as_they_are_rfc3173_2_2(compressing, row):
    network, line = compressing.network, row("aes256gcm16 tunnel IPv4 IPComp, both sizes", "ourselves", "we")
    line.sent = 3 * COUNT
    assert_shrinks(network)
    assert ping(network.left, network.right.inner, SMALL) == COUNT
    assert ping(network.right, network.left.inner, SMALL) == COUNT
    line.received = 3 * COUNT
    for gateway in (compressing.ours, compressing.theirs):
        (child,) = gateway.children()
        assert (child["ipcomp"], child["packets_in"], child["packets_out"]) == (True, 3 * COUNT, 3 * COUNT)
        assert gateway.xfrm("state").count("proto comp") == 2


def checksummed(header, at):
    total = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:at] + struct.pack(">H", 0xFFFF - total) + header[at + 2 :]


def ipv4(source, target, protocol, payload):
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + ends
    return checksummed(header, 10) + payload


def echo_in_clear(network, cpi, *, compressed):
    """An echo request from behind the right gateway to behind the left one, tunnelled and not encrypted."""
    echo = checksummed(struct.pack(">BBHHH", 8, 0, 0, 1, 1) + bytes(256), 2)
    inner = ipv4(network.right.inner, network.left.inner, socket.IPPROTO_ICMP, echo)
    if not compressed:
        return ipv4(network.right.outer, network.left.outer, IPIP, inner)
    packer = zlib.compressobj(wbits=-11)
    payload = struct.pack(">BBH", IPIP, 0, cpi) + packer.compress(inner) + packer.flush()
    return ipv4(network.right.outer, network.left.outer, IPCOMP, payload)


def echoes(site):
    text = subprocess.run(site.command("cat", "/proc/net/snmp"), capture_output=True, text=True, check=True).stdout
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith("Icmp:"))
    return int(dict(zip(names, values, strict=True))["InEchos"])


def test_the_successor_of_a_killed_monitor_adopts_all_four_sas(compressing):
    network, ours = compressing.network, compressing.ours
    before = set(re.findall(r"proto (?:esp|comp) spi (\S+)", ours.xfrm("state")))
    ours.kill()
    assert_shrinks(network)
    ours.launch()
    assert "adopted=1 removed=0" in ours.text()

    def replaced():
        now = set(re.findall(r"proto (?:esp|comp) spi (\S+)", ours.xfrm("state")))
        return len(before) == len(now) == 4 and not before & now

    assert network.wait_for(replaced, 60), ours.xfrm("state")
    assert_shrinks(network)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_tunnel_without_esp_satisfies_no_policy(compressing, compressed):
    network, ours = compressing.network, compressing.ours
    assert ping(network.right, network.left.inner, BIG) == COUNT
    inbound = ours.xfrm("state").partition(f"src {network.right.outer} dst {network.left.outer}\n\tproto comp spi ")[2]
    packet = echo_in_clear(network, int(inbound.split()[0], 16), compressed=compressed)
    raw = network.right.enter(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))

    def arrives():
        before = echoes(network.left)
        raw.sendto(packet, (network.left.outer, 0))
        return network.wait_for(lambda: echoes(network.left) > before, 2)

    assert not arrives()
    # the same policy without its second template: it was not something else that stopped the packet
    traffic = ("src", f"{network.right.inner}/32", "dst", f"{network.left.inner}/32", "dir", "in")
    comp = ("src", network.right.outer, "dst", network.left.outer, "proto", "comp", "reqid", "1", "mode", "tunnel")
    esp = ("src", network.right.outer, "dst", network.left.outer, "proto", "esp", "reqid", "1", "mode", "transport")
    optional = ("tmpl", *comp, "level", "use")
    (priority,) = set(re.findall(r"dir in priority (\d+)", ours.xfrm("policy")))
    network.ip(network.left, "xfrm", "policy", "update", *traffic, "priority", priority, *optional)
    assert arrives()
    network.ip(network.left, "xfrm", "policy", "update", *traffic, "priority", priority, *optional, "tmpl", *esp)
    raw.close()


def test_a_clean_stop_leaves_nothing(compressing):
    compressing.ours.order("down")
    for gateway in (compressing.ours, compressing.theirs):
        assert compressing.network.wait_for(lambda each=gateway: not each.xfrm("state"))
        assert gateway.stop() == 0
        assert (gateway.xfrm("state"), gateway.xfrm("policy")) == ("", "")
