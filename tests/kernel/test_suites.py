"""Every ESP and AH suite over two kernels, with ourselves and with strongSwan: negotiated, pinged through, counted.

One connection with a child for each suite, so that the daemons start once; the two ends take turns as initiator.
"""

import re
import subprocess

import pytest

from privsep.algorithms import ChildSuite
from privsep.iana import ProtocolId

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

IKE = "aes256-sha256-modp2048"
PINGS = 2
START_SECONDS = 120
"""The first of them has the kernel load a module for each algorithm."""
ESP = (
    "aes128gcm8",
    "aes192gcm12",
    "aes256gcm16-esn",
    "aes128ccm8",
    "aes192ccm12",
    "aes256ccm16",
    "aes128ctr-sha256",
    "aes256ctr-sha512-esn",
    "aes256gmac",
    "aes128-md5",
    "aes192-sha1",
    "aes256-sha256-esn",
    "aes256-sha384",
    "aes128-aesxcbc",
    "camellia128-sha256",
    "camellia256-sha512",
    "3des-sha1",
    "null-sha256",
)
AH = ("md5", "sha1", "sha256", "sha384-esn", "sha512", "aesxcbc")
SUITES = tuple(ChildSuite.parse(each) for each in ESP) + tuple(ChildSuite.parse(each, ProtocolId.AH) for each in AH)

CHILD = """
[connection.peer.child.{name}]
local_ts  = ["{inner}/32"]
remote_ts = ["{other}/32"]
{key} = ["{suite}"]
"""
SWANCTL_CHILD = """
{name} {{ local_ts = {inner}/32
          remote_ts = {other}/32
          {key} = {suite} }}
"""


def names():
    """Each suite with the name and the number of its child."""
    return [(f"c{number}", number, suite) for number, suite in enumerate(SUITES, 1)]


def inner(site, number):
    """An address behind the gateway for one suite alone."""
    return f"{site.inner.rpartition('.')[0].rpartition('.')[0]}.{number}.1"


def children(template, keys, site, other):
    return "".join(
        template.format(
            name=name,
            inner=inner(site, number),
            other=inner(other, number),
            key=keys[suite.protocol is ProtocolId.AH],
            suite=suite,
        )
        for name, number, suite in names()
    )


def configure(daemon, other, uid):
    daemon.configure(IKE, "aes256gcm16", uid=uid)
    connection, table, _ = daemon.config.read_text().partition("[connection.peer.child.")
    assert table
    daemon.config.write_text(connection + children(CHILD, ("esp", "ah"), daemon.site, other))


@pytest.fixture
def hosts(network):
    for site in (network.left, network.right):
        for _, number, _ in names():
            network.ip(site, "address", "add", f"{inner(site, number)}/32", "dev", "lo")
    return network


def ping(site, source, target):
    words = site.command("ping", "-n", "-q", "-c", str(PINGS), "-i", "0.2", "-W", "2", "-I", source, target)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return int(re.search(r"(\d+) received", done.stdout)[1])


def judge(hosts, ours, peer, ours_up, theirs_up, capsys):
    """Each suite brought up by one end and used; a row for each, and none may have failed."""
    rows = []
    for name, number, suite in names():
        initiator, up = (("we", ours_up), (peer, theirs_up))[number % 2]
        refusal = up(name)
        received = 0 if refusal else ping(hosts.left, inner(hosts.left, number), inner(hosts.right, number))
        rows.append([name, suite.described, initiator, received, refusal])
    shown = {child["name"]: child for child in ours.children()}
    for row in rows:
        child = shown.get(row[0], {})
        counted = (child.get("packets_in"), child.get("packets_out")) == (PINGS, PINGS)
        row[4] = row[4] or ("" if row[3] == PINGS and counted else f"status has {child}")
    with capsys.disabled():
        print(f"\n{'suite':24}{'peer':12}{'initiator':12}{'pings':7}result")
        for _, suite, initiator, received, refusal in rows:
            print(f"{suite:24}{peer:12}{initiator:12}{received:<7}{refusal or 'passed'}")
    assert [row for row in rows if row[4]] == []
    for name, _, suite in names():
        assert shown[name]["proposal"] == str(suite)
        assert shown[name]["protocol"] == suite.protocol.name.lower()


def order(daemon):
    def up(name):
        result = daemon.ask("up", connection="peer", child=name, timeout=60)
        return result["text"] if result["code"] else ""

    return up


def test_every_suite_with_ourselves(hosts, ours, theirs, capsys):
    configure(ours, hosts.right, 62001)
    configure(theirs, hosts.left, 62011)
    # one after the other: both at once, each with modules to load, take the other's time
    for gateway in (theirs, ours):
        gateway.launch(START_SECONDS)
    judge(hosts, ours, "ourselves", order(ours), order(theirs), capsys)
    for gateway in (ours, theirs):
        assert gateway.stop() == 0
        assert (gateway.xfrm("state"), gateway.xfrm("policy")) == ("", "")


@pytest.mark.interop
def test_every_suite_with_strongswan(hosts, ours, strongswan, capsys):
    strongswan.start(IKE, "aes256gcm16")
    conf = strongswan.site.directory / "swanctl.conf"
    head, _, rest = conf.read_text().partition("net {")
    swanctl_children = children(SWANCTL_CHILD, ("esp_proposals", "ah_proposals"), hosts.right, hosts.left)
    conf.write_text(head + swanctl_children + rest.partition("}")[2])
    strongswan.swanctl("--load-conns", "--file", str(conf))

    def theirs_up(name):
        told = strongswan.swanctl("--initiate", "--child", name, "--timeout", "40", check=False)
        return "" if "initiate completed successfully" in told else told.strip().splitlines()[-1]

    configure(ours, hosts.right, 62001)
    ours.launch(START_SECONDS)
    judge(hosts, ours, "strongSwan", order(ours), theirs_up, capsys)
    assert ours.stop() == 0
    assert (ours.xfrm("state"), ours.xfrm("policy")) == ("", "")
