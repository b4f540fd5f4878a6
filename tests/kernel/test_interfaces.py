"""Route-based tunnels, marks and limits over two kernels: what decides before selectors, what ends an SA but time."""

import re
import subprocess
import time

import pytest
from lab import LEFT, PSK, RIGHT, launch, run

from monitor.xfrm.interfaces import ALIAS, Interfaces, possible
from privsep.errors import OperatorError

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SECOND = "192.0.2.3"
"""Where the right gateway is another peer."""
LIFE_BYTES = "life_bytes = '64K'"
EVERYTHING = 'local_ts = ["0.0.0.0/0"]\nremote_ts = ["0.0.0.0/0"]\n'
EVERYTHING_IPV6 = 'local_ts = ["::/0"]\nremote_ts = ["::/0"]\n'

GATEWAY = """\
[gateway]
dataplane = "kernel"
on_stop = "remove"
users = {{ worker = {0}, keyd = {1}, userspace = {2} }}
"""
CONNECTION = """
[connection.{name}]
local  = "{local}"
remote = "{remote}"
ike    = ["aes256-sha256-modp2048"]
"""
CHILD = """
[connection.{name}.child.{child}]
esp = ["aes256gcm16"]
{keys}
"""


def configure(gateway, uid, *connections):
    """`connections`: name, our address, the peer's, and by name the keys of each child."""
    text = GATEWAY.format(uid, uid + 1, uid + 2)
    for name, local, remote, children in connections:
        text += CONNECTION.format(name=name, local=local, remote=remote)
        for child, keys in children.items():
            text += CHILD.format(name=name, child=child, keys=keys)
    gateway.config.write_text(text)
    gateway.secrets.touch(mode=0o600)
    gateway.secrets.write_text(
        "".join(f'[[psk]]\nids = ["{LEFT}", "{each}"]\nsecret = "{PSK}"\n' for each in (RIGHT, SECOND))
    )


def mirrored(ours, theirs, *connections):
    configure(ours, 62001, *connections)
    configure(theirs, 62011, *((name, remote, local, children) for name, local, remote, children in connections))
    launch(ours, theirs)


def up(gateway, connection, child="net"):
    result = gateway.ask("up", connection=connection, child=child, timeout=60)
    assert result["code"] == 0, f"{result['text']}\n{gateway.text()}"


def ping(site, source, target, *options):
    words = site.command("ping", "-n", "-q", "-c", "3", "-i", "0.2", "-W", "2", "-I", source, *options, target)
    return run(*words, check=False).stdout.partition(" packets transmitted, ")[2].partition(" ")[0]


def packets(gateway):
    return {
        (sa["connection"], child["name"]): (child["packets_in"], child["packets_out"])
        for sa in gateway.status()["ike_sas"]
        for child in sa["children"]
    }


def test_all_that_is_routed_into_the_interface_is_protected_and_nothing_else(network, ours, theirs, wiretap, row):
    line = row("aes256gcm16 tunnel, interfaces at both ends", "ourselves", "we")
    lane = "if_id = 7\ninterface = 'ipsec0'\n"
    children = {"net": EVERYTHING + lane, "six": EVERYTHING_IPV6 + lane}
    mirrored(ours, theirs, ("peer", LEFT, RIGHT, children))
    for site, six, routes in (
        (network.left, "fd01::1", ("10.2.0.1", "fd02::1")),
        (network.right, "fd02::1", ("10.1.0.1", "fd01::1")),
    ):
        assert f"alias {ALIAS}" in network.ip(site, "-d", "link", "show", "ipsec0")
        network.ip(site, "address", "add", f"{six}/128", "dev", "lo")
        for route in routes:
            network.ip(site, "route", "add", route, "dev", "ipsec0")
    assert ping(network.left, "10.1.0.1", "10.2.0.1", "-c", "1") == "0", "no SA, no traffic"
    up(ours, "peer")
    up(theirs, "peer", "six")
    assert ping(network.left, "10.1.0.1", "10.2.0.1") == "3"
    assert ping(network.left, "fd01::1", "fd02::1") == "3"
    assert ping(network.left, LEFT, RIGHT) == "3", "selectors of everything do not take what is not routed in"
    for gateway in (ours, theirs):
        assert packets(gateway)["peer", "net"] == (3, 3)
        assert gateway.xfrm("state").count("if_id 0x7") == 4
    counted = wiretap.counts()
    line.sent, line.received, line.protected, line.clear = 6, 6, counted["encrypted"], counted["cleartext"]
    assert counted["cleartext"] == 0
    for gateway, site in ((ours, network.left), (theirs, network.right)):
        assert gateway.stop() == 0
        assert (gateway.xfrm("state"), gateway.xfrm("policy")) == ("", "")
        assert "ipsec0" not in network.ip(site, "link", "show")


@pytest.mark.parametrize("lane", ["if_id = {0}\ninterface = 'ipsec{0}'", "mark_in = {0}\nmark_out = '0x{0}/0xf'"])
def test_two_peers_have_equal_selectors_in_lanes_of_their_own(network, ours, theirs, lane, row):
    line = row(f"aes256gcm16 tunnel, equal selectors, {lane.partition(' ')[0]}", "ourselves", "we")
    network.ip(network.right, "address", "add", f"{SECOND}/24", "dev", "wire0")
    network.ip(network.right, "address", "add", "10.2.0.2/32", "dev", "lo")
    network.ip(network.left, "address", "add", "10.1.0.2/32", "dev", "lo")
    children = [{"net": EVERYTHING + lane.format(number)} for number in (1, 2)]
    mirrored(ours, theirs, ("one", LEFT, RIGHT, children[0]), ("two", LEFT, SECOND, children[1]))
    marked = "mark" in lane
    for site, other in ((network.left, "10.2.0"), (network.right, "10.1.0")):
        for number in () if marked else (1, 2):
            network.ip(site, "route", "add", f"{other}.{number}", "dev", f"ipsec{number}")
    # replies have the mark of what they answer
    run(*network.right.command("sysctl", "-qw", "net.ipv4.fwmark_reflect=1"))
    up(ours, "one")
    up(theirs, "two")
    for number in (1, 2, 2):
        options = ("-m", str(number)) if marked else ()
        assert ping(network.left, f"10.1.0.{number}", f"10.2.0.{number}", *options) == "3"
    line.sent = line.received = 9
    for gateway in (ours, theirs):
        assert packets(gateway) == {("one", "net"): (3, 3), ("two", "net"): (6, 6)}
    for gateway in (ours, theirs):
        assert gateway.stop() == 0
        assert (gateway.xfrm("state"), gateway.xfrm("policy")) == ("", "")


def test_only_what_has_the_mark_is_protected_and_what_comes_has_the_other(network, ours, theirs):
    selectors = 'local_ts = ["{}/32"]\nremote_ts = ["{}/32"]\n'
    here, there = network.left.inner, network.right.inner
    marks = 'mark_out = "0x10/0xff"\nmark_in = "0x20/0xff"\npriority = 77\nreqid = 70000\n'
    configure(ours, 62001, ("peer", LEFT, RIGHT, {"net": selectors.format(here, there) + marks}))
    configure(theirs, 62011, ("peer", RIGHT, LEFT, {"net": selectors.format(there, here)}))
    launch(ours, theirs)
    assert ours.xfrm("policy").count("priority 77") == 3
    assert ours.xfrm("policy").count("reqid 70000") == 3
    up(ours, "peer")
    assert ping(network.left, here, there) == "0", "it leaves in clear, and the peer refuses it"
    assert ping(network.left, here, there, "-m", "16") == "3"
    assert packets(ours)["peer", "net"] == (3, 3)
    assert "output-mark 0x20/0xff" in ours.xfrm("state")
    assert ours.ask("down", connection="peer", child="net", timeout=60)["code"] == 0
    assert ours.xfrm("state") == "", "found by its mark, the outbound SA goes too"


@pytest.mark.timeout(400)
def test_sas_that_are_used_up_are_replaced_without_a_loss(network, ours, theirs, row):
    limits = {"packets": ("10.1.0.1", "10.2.0.1", "life_packets = 150"), "bytes": ("10.1.0.2", "10.2.0.2", LIFE_BYTES)}
    keys = 'local_ts = ["{}/32"]\nremote_ts = ["{}/32"]\n{}'
    for site, inner in ((network.left, "10.1.0.2"), (network.right, "10.2.0.2")):
        network.ip(site, "address", "add", f"{inner}/32", "dev", "lo")
    children = {name: keys.format(*limit) for name, limit in limits.items()}
    configure(ours, 62001, ("peer", LEFT, RIGHT, children))
    children = {name: keys.format(there, here, limit) for name, (here, there, limit) in limits.items()}
    configure(theirs, 62011, ("peer", RIGHT, LEFT, children))
    launch(ours, theirs)
    for name in limits:
        up(ours, "peer", name)
    options = ("-n", "-q", "-c", "320", "-i", "0.1", "-W", "5", "-s", "400")
    flows = {
        name: subprocess.Popen(
            network.left.command("ping", *options, "-I", here, there), stdout=subprocess.PIPE, text=True
        )
        for name, (here, there, _) in limits.items()
    }
    seen = {name: set() for name in limits}
    while any(flow.poll() is None for flow in flows.values()):
        for child in ours.children():
            seen[child["name"]].add(child["spi_in"])
        time.sleep(0.5)
    for name, flow in flows.items():
        line = row(f"aes256gcm16 tunnel IPv4, {limits[name][2]}", "ourselves", "we")
        line.sent, line.received = map(int, re.findall(r"(\d+) (?:packets transmitted|received)", flow.stdout.read()))
        assert line.sent == line.received == 320, name
        assert len(seen[name]) >= 3, ours.text()
    assert " expired" not in ours.text() + theirs.text(), "the limit itself was never reached"


def test_an_interface_is_made_adopted_and_removed_but_one_of_the_operators_is_left(network):
    def work():
        assert possible()
        first = Interfaces({"ipsec0": 7, "ipsec1": 8})
        second = Interfaces({"ipsec0": 7})
        second.close()
        left = network.ip(network.left, "-d", "link", "show")
        assert "ipsec0" not in left
        assert "ipsec1" in left
        first.close()
        assert "ipsec" not in network.ip(network.left, "link", "show")
        network.ip(network.left, "link", "add", "theirs", "type", "xfrm", "if_id", "9")
        Interfaces({"theirs": 9}).close()
        assert "theirs" in network.ip(network.left, "link", "show", "up")
        told = []
        kept = Interfaces({"kept": 12})
        for wanted in ({"theirs": 10}, {"lo": 10}, {"ipsec0": 9}, {"kept": 12, "ipsec0": 11, "theirs": 10}):
            with pytest.raises(OperatorError) as caught:
                Interfaces(wanted)
            told.append(str(caught.value))
        left = network.ip(network.left, "link", "show")
        assert "ipsec0" not in left
        assert "kept" in left, "an instance that cannot start takes away none that was there"
        kept.close()
        assert "kept" not in network.ip(network.left, "link", "show")
        return told

    assert network.left.enter(work) == [
        "interface theirs exists and has if_id 9; another name, or if_id 10, would be right",
        "interface lo exists and is no XFRM interface; another name, or if_id 10, would be right",
        "interface ipsec0 cannot be made: if_id 9 is another's; it needs CONFIG_XFRM_INTERFACE",
        "interface theirs exists and has if_id 9; another name, or if_id 10, would be right",
    ]
