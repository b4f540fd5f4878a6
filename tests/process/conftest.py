"""Daemons at work in namespaces: ours on the left, whoever talks to it on the right."""

from collections.abc import Iterator

import pytest
from lab import Network, Ours, Wiretap, made

IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"


@pytest.fixture
def network(tmp_path_factory) -> Iterator[Network]:
    yield from made(tmp_path_factory, "prc")


@pytest.fixture
def ours(network) -> Iterator[Ours]:
    daemon = Ours(network.left)
    yield daemon
    daemon.stop()


@pytest.fixture
def theirs(network) -> Iterator[Ours]:
    daemon = Ours(network.right)
    yield daemon
    daemon.stop()


@pytest.fixture
def tunnel(network, ours, theirs) -> Ours:
    """Our daemon, with a tunnel to the other one that pings pass."""
    ours.start(IKE, ESP)
    theirs.start(IKE, ESP, uid=62011)
    ours.up(theirs)
    assert network.left.ping(network.right.inner, count=1) == 1
    return ours


@pytest.fixture
def wiretap(network) -> Iterator[Wiretap]:
    tap = Wiretap(network)
    yield tap
    tap.close()
