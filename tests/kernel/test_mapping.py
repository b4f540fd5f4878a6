"""A peer behind a NAT gets another port: the kernel reports it (XFRM_MSG_MAPPING), and both SAs and IKE follow.

The NAT is a rule at the peer's own end that rewrites its outer header, both ways, and drops what comes to the old port.
"""

import socket
import subprocess

import pytest
from lab import launch

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
NEW_PORT = 4600
NEW_ADDRESS = "192.0.2.3"


@pytest.fixture(scope="module")
def natted(couple):
    """Both up, with ESP in UDP."""
    couple.ours.configure(IKE, ESP, encap="force")
    couple.theirs.configure(IKE, ESP, encap="force", uid=62011)
    launch(couple.ours, couple.theirs)
    couple.ours.order("up")
    assert couple.network.right.ping(couple.network.left.inner) == 3
    return couple


def rewrite(site, leaving, entering):
    rules = f"""
    table ip nat
    flush table ip nat
    table ip nat {{
      chain leave {{
        type filter hook postrouting priority 100;
        udp sport 4500 {leaving};
      }}
      chain enter {{
        type filter hook prerouting priority -400;
        {entering};
      }}
    }}
    """
    subprocess.run(site.command("nft", "-f", "-"), input=rules, text=True, check=True)


def other_port(site):
    # ESP in UDP over IPv4 has no checksum (RFC 3948 section 2.1), which a correction would make a wrong one
    entering = f"udp dport 4500 drop; udp dport {NEW_PORT} udp dport set 4500 udp checksum set 0"
    rewrite(site, f"udp sport set {NEW_PORT} udp checksum set 0", entering)


def spis(gateway):
    (child,) = gateway.children()
    return child["spi_in"], child["spi_out"]


def test_a_packet_that_does_not_verify_moves_nobody(natted):
    """The next test has the same port in packets that do."""
    network, ours = natted.network, natted.ours
    spi = int(spis(ours)[0], 16).to_bytes(4, "big")

    def forge():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((network.right.outer, NEW_PORT))
            for sequence in range(1000, 1020):
                sock.sendto(spi + sequence.to_bytes(4, "big") + bytes(96), (network.left.outer, 4500))
        return True

    assert network.right.enter(forge)
    assert not network.wait_for(lambda: f"port {NEW_PORT}" in ours.xfrm("state"), 2)


def test_an_authentic_packet_from_another_address_moves_nobody(natted):
    network, ours = natted.network, natted.ours
    network.ip(network.right, "address", "add", f"{NEW_ADDRESS}/24", "dev", "wire0")
    rewrite(network.right, f"ip saddr set {NEW_ADDRESS}", f"ip daddr {NEW_ADDRESS} accept")
    network.right.ping(network.left.inner, count=1)
    assert network.wait_for(lambda: "move-ignored" in ours.text())
    assert NEW_ADDRESS not in ours.xfrm("state") + ours.xfrm("policy")


def test_both_sas_and_ike_follow_the_peer_to_its_new_port_rfc3948_3(natted, row):
    network, ours, theirs = natted.network, natted.ours, natted.theirs
    line = row("aes256gcm16 tunnel IPv4 UDP, new port", "ourselves", "we")
    before = spis(ours)
    other_port(network.right)
    assert network.left.ping(network.right.inner, count=1) == 0
    network.right.ping(network.left.inner, count=1)
    assert network.wait_for(lambda: f"[{NEW_PORT}]" in ours.children()[0]["remote"])
    assert network.left.ping(network.right.inner) == 3
    assert network.right.ping(network.left.inner) == 3
    line.sent, line.received = 8, 6
    assert spis(ours) == before
    shown = ours.xfrm("state")
    assert f"sport {NEW_PORT} dport 4500" in shown
    assert f"sport 4500 dport {NEW_PORT}" in shown
    assert ours.ask("status")["status"]["ike_sas"][0]["remote"] == f"{network.right.outer}[{NEW_PORT}]"
    ours.order("down")
    assert network.wait_for(lambda: not theirs.xfrm("state")), "IKE went to the old port"
