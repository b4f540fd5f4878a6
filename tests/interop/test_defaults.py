"""A fresh pair: no `ike` and no `esp` key at our side, the daemon's own default at the other."""

import re

import pytest

pytestmark = pytest.mark.root


@pytest.fixture
def ours(ours):
    """With nothing said of proposals."""
    configure = ours.configure

    def without_proposals(*arguments, **changes) -> None:
        configure(*arguments, **changes)
        ours.config.write_text(re.sub(r"(?m)^(ike|esp) *=.*\n", "", ours.config.read_text()))

    ours.configure = without_proposals
    return ours


def agreed(ours) -> tuple[str, list[str]]:
    (sa,) = ours.status()["ike_sas"]
    return sa["proposal"], [child["proposal"] for child in sa["children"]]


def test_strongswans_default_takes_our_strongest_as_we_initiate(network, ours, strongswan):
    """It has no forward secrecy for ESP: what has none is offered last (RFC 2409 section 5.5)."""
    strongswan.start("default", "default")
    ours.start("", "")
    steps = ours.cli("up", "peer/net").stdout
    assert [line.rpartition(" ")[2] for line in steps.splitlines() if "offering" in line][1:] == [
        *("aes128-sha256-curve25519", "aes128-sha1-modp2048", "aes128-sha256")
    ]
    ike, (esp,) = agreed(ours)
    assert ike.startswith("aes256-sha256-")
    assert esp in ("aes256-sha256", "aes256gcm16")
    assert network.left.ping(network.right.inner) == 3
    assert network.right.ping(network.left.inner) == 3


def test_strongswans_default_is_taken_as_it_initiates(network, ours, strongswan):
    """It offers 128 bits alone; of its two for ESP we take GCM, though it prefers the other."""
    ours.start("", "")
    strongswan.start("default", "default")
    assert strongswan.up("net") == ""
    ike, esp = agreed(ours)
    assert ike.startswith("aes128-sha256-")
    assert esp == ["aes128gcm16"]
    assert network.left.ping(network.right.inner) == 3
    assert network.right.ping(network.left.inner) == 3
