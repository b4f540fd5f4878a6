"""Against Debian's libreswan, as far as its kernel's ESP is not needed."""

from collections.abc import Iterator

import pytest
from lab import LEFT, LEFT_HOST, PSK, RIGHT, RIGHT_HOST
from peers import LIBRESWAN, Libreswan

pytestmark = pytest.mark.root

IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
IPSEC_CONF = f"""\
version 2.0
config setup
\tuniqueids=no
\tikev1-policy=accept
conn peer
\tauthby=secret
\tikev2=yes
\tleft={RIGHT}
\tright={LEFT}
\tleftsubnet={RIGHT_HOST}/32
\trightsubnet={LEFT_HOST}/32
\tretransmit-timeout=10s
"""


@pytest.fixture
def libreswan(network) -> Iterator[Libreswan]:
    if not LIBRESWAN.exists():
        pytest.skip("libreswan is missing: make peers unpacks it")
    daemon = Libreswan(network.right)
    yield daemon
    daemon.stop()


def test_libreswan_understands_that_we_do_not_speak_ikev2_rfc7296_1_5(network, ours, libreswan):
    ours.start(IKE, ESP)
    libreswan.launch(IPSEC_CONF, f': PSK "{PSK}"\n', ["peer"])
    told = libreswan.up("peer")
    assert "INVALID_MAJOR_VERSION" in told + libreswan.text()
    assert "warning not-spoken connection=peer remote=192.0.2.2[500] wants=IKEv2" in ours.text()
