"""Two gateways in namespaces: ours on the left, another daemon (or ours again) on the right, real packets between."""

import shutil
from collections.abc import Iterator

import pytest
from lab import Network, Ours, Wiretap, made
from peers import CHARON, StrongSwan


@pytest.fixture
def network(tmp_path_factory) -> Iterator[Network]:
    yield from made(tmp_path_factory, "pikt")


@pytest.fixture
def ours(network) -> Iterator[Ours]:
    daemon = Ours(network.left)
    yield daemon
    daemon.stop()


@pytest.fixture
def other_ours(network) -> Iterator[Ours]:
    daemon = Ours(network.right)
    yield daemon
    daemon.stop()


@pytest.fixture
def strongswan(network) -> Iterator[StrongSwan]:
    if not CHARON.exists() or shutil.which("swanctl") is None:
        pytest.skip("strongSwan is missing: make peers installs it")
    daemon = StrongSwan(network.right, esp="kernel-libipsec")
    yield daemon
    daemon.stop()


@pytest.fixture
def wiretap(network) -> Iterator[Wiretap]:
    tap = Wiretap(network)
    yield tap
    tap.close()
