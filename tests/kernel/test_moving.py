"""A peer behind a NAT gets another address: its pairs go there (XFRM_MSG_MIGRATE) until those that replace them send.

The NAT is a rule at the peer's own end that rewrites its outer header. What is sent to its old address still arrives,
as if the NAT had two ways out: so only packets are lost that we refuse, or have no SA for.
"""

import re
import subprocess
from contextlib import ExitStack, closing

import peers
import pytest
from flow import Flow
from lab import LEFT, LEFT_HOST, PSK, RIGHT, RIGHT_HOST, launch

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

IKE, ESP, ESN = "aes256-sha256-modp2048", "aes256gcm16-modp2048", "aes256-sha256-modp2048-esn"
SECONDS = 60
ELSEWHERE, PORT = "192.0.2.3", 4600
CHILDREN = {
    "net": (RIGHT_HOST, ESN, "false"),
    "comp": ("10.2.0.8", ESP, "true"),
    "later": ("10.2.0.9", ESP, "false"),
}
"""Inner address at the right, proposal, `ipcomp`; the last is there so that the peer has something to say in IKE."""
THEIRS = {"net": (RIGHT_HOST, ESP, "false"), "later": CHILDREN["later"]}
"""strongSwan has no extended sequence numbers in IKEv1."""

GATEWAY = """\
[gateway]
dataplane = "kernel"
on_stop = "remove"
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


def configure(gateway, children, uid):
    """A road warrior at the right, whose address is open at the left."""
    site = gateway.site
    at_left = site.outer == LEFT
    connection = GATEWAY.format(
        uid=uid, keyd=uid + 1, userspace=uid + 2, local=site.outer, remote="any" if at_left else LEFT,
        remote_id=RIGHT if at_left else LEFT, ike=IKE,
    )  # fmt: skip
    for name, (right, esp, ipcomp) in children.items():
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
    """Extended sequence numbers have upper halves that are not on the wire: both ends go on with their own.

    With IPComp nothing arrives until IKE has moved: inside ESP in transport mode is a tunnel from the old address.
    """
    line = row("aes256-sha256-esn tunnel IPv4 UDP, new address", "ourselves", "peer")
    beside = row("IPComp in aes256gcm16 IPv4 UDP, new address", "ourselves", "peer")
    configure(ours, CHILDREN, 62001)
    configure(theirs, CHILDREN, 62011)
    launch(ours, theirs)

    def up(child):
        result = theirs.ask("up", connection="peer", child=child, timeout=SECONDS)
        return "" if result["code"] == 0 else result["text"]

    counts = moving(network, ours, up, CHILDREN)
    line.sent, line.received = counts["net"]
    beside.sent, beside.received = counts["comp"]
    assert line.sent == line.received
    assert beside.received > 0.5 * beside.sent


@pytest.mark.skipif(not peers.CHARON.exists(), reason=f"{peers.CHARON} is missing: make peers installs it")
def test_strongswan_that_moves_loses_no_packet(network, ours, row):
    line = row("aes256gcm16 tunnel IPv4 UDP, new address", "strongSwan", "peer")
    children = "\n".join(
        f"{name} {{ local_ts = {inner}/32\n remote_ts = {LEFT_HOST}/32\n esp_proposals = {esp} }}"
        for name, (inner, esp, _) in THEIRS.items()
    )
    configure(ours, THEIRS, 62001)
    ours.launch()
    charon = peers.StrongSwan(network.right)
    try:
        charon.launch(SWANCTL.format(ike=IKE, local=RIGHT, remote=LEFT, children=children, psk=PSK))
        line.sent, line.received = moving(network, ours, charon.up, THEIRS)["net"]
    finally:
        charon.stop()
    assert line.sent == line.received


def moving(network, ours, up, children):
    """Pings while the peer moves, from before until what it had is gone: for each child, how many and how many back."""
    *first, last = children
    for child in first:
        network.ip(network.right, "address", "replace", f"{children[child][0]}/32", "dev", "lo")
        assert not (wrong := up(child)), f"{wrong}\n{ours.text()}"
    old = spis(ours)
    network.ip(network.right, "address", "add", f"{ELSEWHERE}/24", "dev", "wire0")
    with ExitStack() as stack:
        flows = {
            child: stack.enter_context(closing(Flow(network.right, network.left.inner, children[child][0])))
            for child in first
        }
        move(network.right)
        assert network.wait_for(lambda: "move-ignored" in ours.text(), SECONDS), ours.text()
        assert ELSEWHERE not in ours.xfrm("state") + ours.xfrm("policy")
        assert not (wrong := up(last)), f"{wrong}\n{ours.text()}"
        for child in first:
            moved = f"notice moved connection=peer child={child} remote={ELSEWHERE}"
            assert network.wait_for(lambda moved=moved: moved in ours.text(), SECONDS), ours.text()
        assert network.wait_for(lambda: not old & spis(ours), SECONDS), ours.text()
        counts = {child: flow.end() for child, flow in flows.items()}
    assert network.wait_for(lambda: f"src {RIGHT} " not in ours.xfrm("state"))
    assert len(spis(ours)) == 2 * len(children)
    return {child: (sent, sent - lost) for child, (sent, lost) in counts.items()}


def spis(gateway):
    return set(re.findall(r"proto esp spi (0x[0-9a-f]+)", gateway.xfrm("state")))
