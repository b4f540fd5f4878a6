"""A peer behind a NAT gets another address: its pairs go there (XFRM_MSG_MIGRATE) until those that replace them send.

The NAT is a rule at the peer's own end that rewrites its outer header. What is sent to its old address still arrives,
as if the NAT had two ways out: so only packets are lost that we refuse, or have no SA for.
"""

import re
import subprocess
from contextlib import closing

import peers
import pytest
from flow import Flow
from lab import LEFT, LEFT_HOST, PSK, RIGHT, RIGHT_HOST, launch

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

IKE, ESP, ESN = "aes256-sha256-modp2048", "aes256gcm16-modp2048", "aes256-sha256-modp2048-esn"
SECONDS = 60
ELSEWHERE, PORT = "192.0.2.3", 4600
CHILDREN = {"net": RIGHT_HOST, "later": "10.2.0.9"}
"""With their inner address at the right; the second is there so that the peer has something to say in IKE."""

GATEWAY = """\
[gateway]
dataplane = "kernel"
users = {{ worker = {uid}, keyd = {keyd}, userspace = {userspace} }}
[connection.peer]
version = "ikev1"
local = "{local}"
remote = "{remote}"
local_id = "{local}"
remote_id = "{remote_id}"
auth = "psk"
ike = ["{ike}"]
encap = "force"
"""
CHILD = """\
[connection.peer.child.{name}]
local_ts = ["{inner}/32"]
remote_ts = ["{other}/32"]
esp = ["{esp}"]
ipcomp = {ipcomp}
start = "wait"
"""
SWANCTL = """\
connections {{ peer {{
  version = 1
  encap = yes
  proposals = {ike}
  local_addrs = {local}
  remote_addrs = {remote}
  local {{ auth = psk
           id = {local} }}
  remote {{ auth = psk
            id = {remote} }}
  children {{
    {children}
  }} }} }}
secrets {{ ike-peer {{ secret = "{psk}" }} }}
"""


def configure(gateway, esp, ipcomp, uid):
    """A road warrior at the right, whose address is open at the left."""
    site = gateway.site
    at_left = site.outer == LEFT
    connection = GATEWAY.format(
        uid=uid, keyd=uid + 1, userspace=uid + 2, local=site.outer, remote="any" if at_left else LEFT,
        remote_id=RIGHT if at_left else LEFT, ike=IKE,
    )  # fmt: skip
    for name, right in CHILDREN.items():
        inner, other = (LEFT_HOST, right) if at_left else (right, LEFT_HOST)
        connection += CHILD.format(name=name, inner=inner, other=other, esp=esp, ipcomp=ipcomp)
    gateway.write(connection, f'[[psk]]\nids = ["{LEFT}", "{RIGHT}"]\nsecret = "{PSK}"\n')


def move(site):
    rules = f"""
    table ip nat {{
      chain leave {{
        type filter hook postrouting priority 100;
        udp sport 4500 ip saddr set {ELSEWHERE} udp sport set {PORT} udp checksum set 0;
      }}
      chain enter {{
        type filter hook prerouting priority -400;
        ip daddr {ELSEWHERE} udp dport {PORT} ip daddr set {RIGHT} udp dport set 4500 udp checksum set 0;
      }}
    }}
    """
    subprocess.run(site.command("nft", "-f", "-"), input=rules, text=True, check=True)


def test_a_peer_that_moves_loses_no_packet(network, ours, theirs, row):
    """With extended sequence numbers, of which the upper halves are not on the wire: both ends go on with their own."""
    line = row("aes256-sha256-esn tunnel IPv4 UDP, new address", "ourselves", "peer")
    line.sent, line.received = moving(network, ours, travelling(ours, theirs, ESN))
    assert line.sent == line.received


def test_ipcomp_goes_with_what_is_around_it(network, ours, theirs, row):
    """Until IKE has moved, nothing arrives: inside ESP in transport mode there is a tunnel from the old address."""
    line = row("IPComp in aes256gcm16 IPv4 UDP, new address", "ourselves", "peer")
    line.sent, line.received = moving(network, ours, travelling(ours, theirs, ESP, ipcomp="true"))
    assert line.received > 0.9 * line.sent


@pytest.mark.skipif(not peers.CHARON.exists(), reason=f"{peers.CHARON} is missing: make peers installs it")
def test_strongswan_that_moves_loses_no_packet(network, ours, row):
    line = row("aes256gcm16 tunnel IPv4 UDP, new address", "strongSwan", "peer")
    children = "\n".join(
        f"{name} {{ local_ts = {inner}/32\n remote_ts = {LEFT_HOST}/32\n esp_proposals = {ESP} }}"
        for name, inner in CHILDREN.items()
    )
    configure(ours, ESP, "false", 62001)
    ours.launch()
    charon = peers.StrongSwan(network.right)
    try:
        charon.launch(SWANCTL.format(ike=IKE, local=RIGHT, remote=LEFT, children=children, psk=PSK))
        line.sent, line.received = moving(network, ours, charon.up)
    finally:
        charon.stop()
    assert line.sent == line.received


def travelling(ours, theirs, esp, ipcomp="false"):
    """Ourselves as the road warrior; what brings a child of theirs up, or says what went wrong."""
    configure(ours, esp, ipcomp, 62001)
    configure(theirs, esp, ipcomp, 62011)
    launch(ours, theirs)

    def up(child):
        result = theirs.ask("up", connection="peer", child=child, timeout=SECONDS)
        return "" if result["code"] == 0 else result["text"]

    return up


def moving(network, ours, up):
    """Pings while the peer moves, from before until what it had is gone: how many were sent, and how many came back."""
    assert not (wrong := up("net")), f"{wrong}\n{ours.text()}"
    old = spis(ours)
    network.ip(network.right, "address", "add", f"{ELSEWHERE}/24", "dev", "wire0")
    with closing(Flow(network.right, network.left.inner)) as flow:
        move(network.right)
        assert network.wait_for(lambda: "move-ignored" in ours.text(), SECONDS), ours.text()
        assert ELSEWHERE not in ours.xfrm("state") + ours.xfrm("policy")
        assert not (wrong := up("later")), f"{wrong}\n{ours.text()}"
        assert network.wait_for(lambda: f"notice moved connection=peer child=net remote={ELSEWHERE}" in ours.text())
        assert network.wait_for(lambda: not old & spis(ours), SECONDS), ours.text()
        sent, lost = flow.end()
    assert f"src {RIGHT} " not in ours.xfrm("state")
    assert len(spis(ours)) == 4
    return sent, sent - lost


def spis(gateway):
    return set(re.findall(r"proto esp spi (0x[0-9a-f]+)", gateway.xfrm("state")))
