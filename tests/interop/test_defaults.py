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


def test_strongswans_default_meets_ours_as_we_initiate(network, ours, strongswan):
    strongswan.start("default", "default")
    ours.start("", "")
    done = ours.cli("up", "peer/net", check=False)
    print(done.stdout, done.stderr, strongswan.text()[-6000:])
    print(ours.status()["ike_sas"])
    assert network.left.ping(network.right.inner) == 3


def test_strongswans_default_meets_ours_as_it_initiates(network, ours, strongswan):
    ours.start("", "")
    strongswan.start("default", "default")
    print(strongswan.up("net"))
    print(strongswan.text()[-6000:], ours.text())
    print(ours.status()["ike_sas"])
    assert network.left.ping(network.right.inner) == 3
