"""IPComp in the kernel (RFC 3173): compressed before it is encrypted, if both ends have it; never without ESP."""

import json
import re
import socket
import struct
import subprocess
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
BIG, SMALL, COUNT = 1000, 16, 5
IPIP, IPCOMP = 4, 108


def configure(daemon, *, ipcomp, esp=ESP, encap="auto", mode="tunnel", uid=62001):
    daemon.configure(IKE, esp, encap=encap, uid=uid)
    text = daemon.config.read_text()
    if mode == "transport":
        text = re.sub(r"(?m)^(local|remote)_ts.*\n", "", text) + 'mode = "transport"\n'
    daemon.config.write_text(text + f"ipcomp = {str(ipcomp).lower()}\n")


def launch(*daemons):
    with ThreadPoolExecutor() as pool:
        for started in [pool.submit(daemon.launch) for daemon in daemons]:
            started.result()


def ping(site, target, size, source=None):
    """Echo requests of that many zeros; how many came back."""
    words = ("ping", "-n", "-q", "-c", str(COUNT), "-i", "0.2", "-W", "2", "-s", str(size), "-p", "00")
    done = subprocess.run(
        site.command(*words, "-I", source or site.inner, target), capture_output=True, text=True, check=False
    )
    return int(re.search(r"(\d+) received", done.stdout)[1])


def sent(site):
    """Octets that left on the wire."""
    words = ["ip", "-n", site.namespace, "-s", "-j", "link", "show", "dev", "wire0"]
    (link,) = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return link["stats64"]["tx"]["bytes"]


def octets_of(network, site, other, size, **changes):
    """What the pings put on the wire, each way."""
    before = sent(network.left), sent(network.right)
    assert ping(site, other, size, **changes) == COUNT
    return sent(network.left) - before[0], sent(network.right) - before[1]


def only(daemon):
    (child,) = daemon.children()
    return child


@pytest.mark.parametrize(
    ("esp", "encap", "mode"),
    [(ESP, "auto", "tunnel"), ("aes128-sha256", "force", "tunnel"), (ESP, "auto", "transport")],
)
def test_big_packets_shrink_and_small_ones_pass_as_they_are_rfc3173_2_2(network, ours, theirs, esp, encap, mode):
    configure(ours, ipcomp=True, esp=esp, encap=encap, mode=mode)
    configure(theirs, ipcomp=True, esp=esp, encap=encap, mode=mode, uid=62011)
    launch(ours, theirs)
    ours.order("up")
    ends = (network.left.inner, network.right.inner) if mode == "tunnel" else (network.left.outer, network.right.outer)
    assert max(octets_of(network, network.left, ends[1], BIG, source=ends[0])) < COUNT * BIG // 3
    assert ping(network.left, ends[1], SMALL, source=ends[0]) == COUNT
    assert ping(network.right, ends[0], SMALL, source=ends[1]) == COUNT
    for gateway in (ours, theirs):
        child = only(gateway)
        assert (child["ipcomp"], child["packets_in"], child["packets_out"]) == (True, 3 * COUNT, 3 * COUNT)
        assert gateway.xfrm("state").count("proto comp") == 2
    ours.order("down")
    assert network.wait_for(lambda: not ours.xfrm("state") and not theirs.xfrm("state"))
    for gateway in (ours, theirs):
        assert gateway.stop() == 0
        assert (gateway.xfrm("state"), gateway.xfrm("policy")) == ("", "")


@pytest.mark.parametrize("first", ["with", "without"])
def test_a_peer_without_ipcomp_gets_esp_alone(network, ours, theirs, first):
    configure(ours, ipcomp=True)
    configure(theirs, ipcomp=False, uid=62011)
    launch(ours, theirs)
    (ours if first == "with" else theirs).order("up")
    assert min(octets_of(network, network.left, network.right.inner, BIG)) > COUNT * BIG
    for gateway in (ours, theirs):
        assert only(gateway)["ipcomp"] is False
        assert "proto comp" not in gateway.xfrm("state") + gateway.xfrm("policy")


def test_ipv6_within_ipv4_is_compressed_too(network, ours, theirs):
    inner = {network.left: "fd00:1::1", network.right: "fd00:2::1"}
    sides = {ours: network.left, theirs: network.right}
    for daemon, uid in ((ours, 62001), (theirs, 62011)):
        site = sides[daemon]
        other = network.right if site is network.left else network.left
        network.ip(site, "address", "add", f"{inner[site]}/128", "dev", "lo", "nodad")
        network.ip(site, "-6", "route", "add", f"{inner[other]}/128", "dev", "wire0")
        configure(daemon, ipcomp=True, uid=uid)
        text = daemon.config.read_text().replace(f"{site.inner}/32", inner[site])
        daemon.config.write_text(text.replace(f"{other.inner}/32", inner[other]))
    launch(ours, theirs)
    ours.order("up")
    source, target = inner[network.left], inner[network.right]
    assert max(octets_of(network, network.left, target, BIG, source=source)) < COUNT * BIG // 3
    assert ping(network.left, target, SMALL, source=source) == COUNT


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


@pytest.mark.parametrize("compressed", [True, False])
def test_a_tunnel_without_esp_satisfies_no_policy(network, ours, theirs, compressed):
    configure(ours, ipcomp=True)
    configure(theirs, ipcomp=True, uid=62011)
    launch(ours, theirs)
    ours.order("up")
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
    first = ("src", network.right.outer, "dst", network.left.outer, "proto", "comp", "reqid", "1", "mode", "tunnel")
    network.ip(network.left, "xfrm", "policy", "update", *traffic, "tmpl", *first, "level", "use")
    assert arrives()
    raw.close()


@pytest.mark.interop
@pytest.mark.parametrize("initiator", ["we", "strongSwan"])
@pytest.mark.parametrize("theirs_too", [True, False])
def test_ipcomp_with_strongswan_rfc2407_4_4_5(network, ours, strongswan, initiator, theirs_too):
    strongswan.start(IKE, ESP)
    conf = strongswan.site.directory / "swanctl.conf"
    if theirs_too:
        conf.write_text(conf.read_text().replace("net {", "net {\n    ipcomp = yes"))
        strongswan.swanctl("--load-conns", "--file", str(conf))
    configure(ours, ipcomp=True)
    ours.launch()
    if initiator == "we":
        ours.order("up")
    else:
        strongswan.swanctl("--initiate", "--child", "net", "--timeout", "40")
    octets = octets_of(network, network.left, network.right.inner, BIG)
    assert max(octets) < COUNT * BIG // 3 if theirs_too else min(octets) > COUNT * BIG
    assert ping(network.right, network.left.inner, SMALL) == COUNT
    child = only(ours)
    assert (child["ipcomp"], child["packets_in"], child["packets_out"]) == (theirs_too, 2 * COUNT, 2 * COUNT)
    assert ours.stop() == 0
    assert (ours.xfrm("state"), ours.xfrm("policy")) == ("", "")
