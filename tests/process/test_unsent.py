"""What the kernel really says where nothing can leave, and what `up` says of it."""

import shutil
import time

import pytest
from lab import LEFT, RIGHT, run

pytestmark = pytest.mark.root

FAILED = 1
IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
ELSEWHERE = "203.0.113.9"


def refused(ours) -> str:
    """What `up` prints, which must be soon: at once, and as its last word after some seconds."""
    before = time.monotonic()
    done = ours.cli("up", "peer/net", check=False)
    assert time.monotonic() - before < 15, "as long as a peer's silence takes"
    assert done.returncode == FAILED
    first, told = done.stderr.strip(), done.stdout
    assert first.removeprefix("net: ") in told
    assert f'reason="{first.removeprefix("net: cannot send: ")}' in ours.text()
    return first


def test_a_local_address_that_is_not_ours(network, ours):
    ours.configure(IKE, ESP)
    ours.config.write_text(ours.config.read_text().replace(f'local     = "{LEFT}"', f'local     = "{ELSEWHERE}"'))
    ours.launch()
    told = refused(ours)
    assert told.startswith(f"net: cannot send: no interface of this machine has {ELSEWHERE}, or there is no route from")


def test_a_local_address_of_ipv6_that_is_not_ours(network, ours):
    for site, address in ((network.left, "2001:db8::1"), (network.right, "2001:db8::2")):
        run("ip", "-n", site.namespace, "address", "add", f"{address}/64", "dev", "wire0", "nodad")
    ours.configure(IKE, ESP)
    text = ours.config.read_text()
    for old, new in ((f'"{LEFT}"', '"2001:db8::9"'), (f'"{RIGHT}"', '"2001:db8::2"')):
        text = text.replace(old, new)
    ours.config.write_text(text)
    ours.secrets.write_text(ours.secrets.read_text().replace(LEFT, "2001:db8::9").replace(RIGHT, "2001:db8::2"))
    ours.launch()
    told = "no interface of this machine has 2001:db8::9; `local` must be one of our addresses"
    assert refused(ours) == f"net: cannot send: {told}"


def test_no_route_to_the_peer(network, ours):
    run("ip", "-n", network.left.namespace, "route", "del", "default")
    ours.configure(IKE, ESP)
    text = ours.config.read_text().replace(f'remote    = "{RIGHT}"', f'remote    = "{ELSEWHERE}"')
    ours.config.write_text(text)
    ours.launch()
    assert f"or there is no route from it to {ELSEWHERE}" in refused(ours)


def test_a_route_that_refuses(network, ours):
    run("ip", "-n", network.left.namespace, "route", "add", "unreachable", f"{RIGHT}/32")
    ours.start(IKE, ESP)
    assert refused(ours).startswith(f"net: cannot send: {RIGHT} is not reachable")


def test_a_firewall_of_our_own(network, ours):
    if shutil.which("nft") is None:
        pytest.skip("nft is missing")
    rules = "table inet closed { chain output { type filter hook output priority 0; udp dport 500 drop; }; }"
    run(*network.left.command("nft", rules))
    ours.start(IKE, ESP)
    assert refused(ours) == f"net: cannot send: a firewall of this machine drops what goes to {RIGHT}[500]"


def test_once_the_machine_lets_it_out_the_same_attempt_goes_on(network, ours, theirs):
    run("ip", "-n", network.left.namespace, "route", "add", "unreachable", f"{RIGHT}/32")
    ours.when = "up"
    ours.start(IKE, ESP)
    theirs.start(IKE, ESP, uid=62011)
    assert network.wait_for(lambda: "cannot-send" in ours.text())
    run("ip", "-n", network.left.namespace, "route", "del", "unreachable", f"{RIGHT}/32")
    assert network.wait_for(ours.children, 20), ours.text()
