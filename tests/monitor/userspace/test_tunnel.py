"""Two ESP processes, confined as in production, over real TUN devices in two namespaces."""

import pytest

pytestmark = pytest.mark.root

SUITES = ["aes128gcm16", "aes256gcm16", "aes128-sha1", "aes256-sha256", "aes192-sha384", "aes256-sha512"]


def ping(side, target, count=3, *options):
    return side.run("ping", "-c", str(count), "-i", "0.05", "-W", "2", *options, target, check=False)


@pytest.mark.parametrize("encap", [True, False], ids=["udp", "raw"])
@pytest.mark.parametrize("address", ["10.2.0.1", "fd00:2::1"])
def test_pings_cross_the_tunnel_encrypted_only_rfc4303_3_1_2(cable, encrypted, encap, address):
    left, right = cable.connect(encap=encap)
    left.ask("install")
    right.ask("install")
    with encrypted(cable.left, "4500" if encap else "ESP(") as seen:
        assert " 0% packet loss" in ping(left, address)
    assert seen == {"esp": 6, "clear": 0}
    assert left.ask("traffic")[:2] == [3, 3]
    assert right.ask("traffic")[:2] == [3, 3]
