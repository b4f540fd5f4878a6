"""IPv4 and IPv6 in each other: the outer addresses have a family, the traffic has one; neither decides the other."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
from lab import LEFT, LEFT_HOST, RIGHT, RIGHT_HOST, run

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

OUTER = {4: (LEFT, RIGHT), 6: ("fd00:9::1", "fd00:9::2")}
INNER = {4: (LEFT_HOST, RIGHT_HOST), 6: ("fd01::1", "fd02::1")}


def configure(gateway, outer, inner, uid, encap):
    gateway.configure("aes256-sha256-modp2048", "aes256gcm16", encap=encap, uid=uid)
    for path in (gateway.config, gateway.secrets):
        text = path.read_text()
        for version, addresses in ((outer, OUTER), (inner, INNER)):
            for old, new in zip(addresses[4], addresses[version], strict=True):
                text = text.replace(f'"{old}"', f'"{new}"')
                text = text.replace(f'"{old}/32"', f'"{new}/{32 if version == 4 else 128}"')
        path.write_text(text)


@pytest.fixture
def both(network):
    """Addresses of both families, outside and inside."""
    for at, site in enumerate((network.left, network.right)):
        network.ip(site, "address", "add", f"{OUTER[6][at]}/64", "dev", "wire0", "nodad")
        network.ip(site, "address", "add", f"{INNER[6][at]}/128", "dev", "lo")
        network.ip(site, "route", "add", f"{INNER[6][1 - at]}/128", "dev", "wire0")
    return network


@pytest.mark.parametrize(("outer", "inner", "encap"), list(itertools.product((4, 6), (4, 6), ("auto", "force"))))
def test_each_family_passes_through_a_tunnel_of_each(both, ours, theirs, outer, inner, encap):
    configure(ours, outer, inner, 62001, encap)
    configure(theirs, outer, inner, 62011, encap)
    with ThreadPoolExecutor() as pool:
        for started in [pool.submit(gateway.launch) for gateway in (ours, theirs)]:
            started.result()
    # the responder judges client identities of the other family too
    (ours if encap == "auto" else theirs).order("up")
    here, there = INNER[inner]
    words = both.left.command("ping", "-n", "-q", "-c", "3", "-i", "0.2", "-W", "2", "-I", here, there)
    assert ", 3 received" in run(*words, check=False).stdout
    for gateway in (ours, theirs):
        (child,) = gateway.children()
        assert (child["packets_in"], child["packets_out"]) == (3, 3)
        assert child["local"].startswith("fd00:9::") is (outer == 6)
    for gateway in (ours, theirs):
        assert gateway.stop() == 0
        assert (gateway.xfrm("state"), gateway.xfrm("policy")) == ("", "")
