"""A peer behind a NAT gets another port: the kernel reports it (XFRM_MSG_MAPPING), and both SAs and IKE follow.

The NAT is a rule at the peer's own end that rewrites its outer header, both ways, and drops what comes to the old port.
"""

import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
NEW_PORT = 4600
NEW_ADDRESS = "192.0.2.3"


@pytest.fixture
def natted(network, ours, theirs):
    """Both up, with ESP in UDP."""
    ours.configure(IKE, ESP, encap="force")
    theirs.configure(IKE, ESP, encap="force", uid=62011)
    with ThreadPoolExecutor() as pool:
        for started in [pool.submit(gateway.launch) for gateway in (ours, theirs)]:
            started.result()
    ours.order("up")
    assert network.right.ping(network.left.inner) == 3
    return network


def rewrite(site, leaving, entering):
    rules = f"""
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
    translated = f"udp dport 4500 drop; udp dport {NEW_PORT} udp dport set 4500"
    rewrite(site, f"udp sport set {NEW_PORT}", translated)


def spis(gateway):
    (child,) = gateway.children()
    return child["spi_in"], child["spi_out"]


def test_both_sas_and_ike_follow_the_peer_to_its_new_port_rfc3948_3(natted, ours, theirs):
    before = spis(ours)
    other_port(natted.right)
    assert natted.left.ping(natted.right.inner, count=1) == 0
    natted.right.ping(natted.left.inner, count=1)
    assert natted.wait_for(lambda: f"[{NEW_PORT}]" in ours.children()[0]["remote"])
    assert natted.left.ping(natted.right.inner) == 3
    assert natted.right.ping(natted.left.inner) == 3
    assert spis(ours) == before
    shown = ours.xfrm("state")
    assert f"sport {NEW_PORT} dport 4500" in shown
    assert f"sport 4500 dport {NEW_PORT}" in shown
    assert ours.ask("status")["status"]["ike_sas"][0]["remote"] == f"{natted.right.outer}[{NEW_PORT}]"
    ours.order("down")
    assert natted.wait_for(lambda: not theirs.xfrm("state")), "IKE went to the old port"


def test_a_packet_that_does_not_verify_moves_nobody(natted, ours):
    spi = int(spis(ours)[0], 16).to_bytes(4, "big")

    def forge():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((natted.right.outer, NEW_PORT))
            for sequence in range(1000, 1020):
                sock.sendto(spi + sequence.to_bytes(4, "big") + bytes(96), (natted.left.outer, 4500))
        return True

    assert natted.right.enter(forge)
    assert not natted.wait_for(lambda: f"port {NEW_PORT}" in ours.xfrm("state"), 2)
    # the same port, in a packet that verifies
    other_port(natted.right)
    natted.right.ping(natted.left.inner, count=1)
    assert natted.wait_for(lambda: f"dport {NEW_PORT}" in ours.xfrm("state"))


def test_an_authentic_packet_from_another_address_moves_nobody(natted, ours):
    natted.ip(natted.right, "address", "add", f"{NEW_ADDRESS}/24", "dev", "wire0")
    rewrite(natted.right, f"ip saddr set {NEW_ADDRESS}", f"ip daddr {NEW_ADDRESS} accept")
    natted.right.ping(natted.left.inner, count=1)
    assert natted.wait_for(lambda: "move-ignored" in ours.text())
    assert NEW_ADDRESS not in ours.xfrm("state") + ours.xfrm("policy")
