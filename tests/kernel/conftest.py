"""Two gateways whose ESP is the kernel's. A kernel that has none skips them; `make test-kernel` boots one that has."""

import importlib.util
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Network, Ours, Site, Wiretap, made

from monitor.xfrm.netlink import XfrmNetlink
from monitor.xfrm.probe import lacking
from privsep.algorithms import ChildSuite
from privsep.cli.control import NotReachable, ask
from privsep.errors import OperatorError

SECONDS = 60
"""For what takes less than one on a real processor."""
PROBED = [ChildSuite.parse("aes256gcm16"), ChildSuite.parse("aes128-sha256")]


def interoperability():
    """The module beside us that knows how to run strongSwan."""
    path = Path(__file__).parents[1] / "interop" / "conftest.py"
    spec = importlib.util.spec_from_file_location("interop_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Gateway(Ours):
    """Our daemon over the kernel. Asked on its socket: a command of its own takes seconds in the virtual machine."""

    dataplane = "kernel"

    def ask(self, command: str, **fields) -> dict:
        return ask(str(self.run_dir), {"command": command, **fields}, seconds=SECONDS)

    def is_ready(self) -> bool:
        try:
            return self.status()["worker"] == "running"
        except NotReachable:
            return False

    def status(self) -> dict:
        return self.ask("status")["status"]

    def processes(self) -> dict[str, int]:
        return {each["name"]: each["pid"] for each in self.ask("audit")["processes"]}

    def order(self, command: str) -> None:
        result = self.ask(command, connection="peer", child="net", timeout=SECONDS)
        assert result["code"] == 0, f"{command}: {result['text']}\n{self.text()}"

    def xfrm(self, what: str) -> str:
        """What the kernel has, `state` or `policy`; without the IKE sockets' own bypass."""
        words = ["ip", "-n", self.site.namespace, "xfrm", what, "list", *(["nosock"] if what == "policy" else [])]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout


class Pinging:
    """Ten a second until it ends."""

    def __init__(self, site: Site, target: str) -> None:
        self._process = subprocess.Popen(
            site.command("ping", "-n", "-q", "-i", "0.1", "-I", site.inner, target), stdout=subprocess.PIPE, text=True
        )

    def end(self) -> tuple[int, int]:
        """How many were sent, how many came back."""
        self._process.send_signal(signal.SIGINT)
        output, _ = self._process.communicate(timeout=10)
        sent, received = re.search(r"(\d+) packets transmitted, (\d+) received", output).groups()
        return int(sent), int(received)


@pytest.fixture
def wire(tmp_path_factory) -> Iterator[Network]:
    yield from made(tmp_path_factory, "krn")


@pytest.fixture
def network(wire) -> Network:
    try:
        netlink = wire.left.enter(XfrmNetlink)
    except OperatorError as error:
        pytest.skip(f"{error}; make test-kernel boots a kernel that has it")
    reason = lacking(netlink, PROBED, [4])
    netlink.close()
    if reason is not None:
        pytest.skip(f"{reason}; make test-kernel boots a kernel that has it")
    return wire


@pytest.fixture
def ours(network) -> Iterator[Gateway]:
    daemon = Gateway(network.left)
    yield daemon
    daemon.stop()


@pytest.fixture
def theirs(network) -> Iterator[Gateway]:
    daemon = Gateway(network.right)
    yield daemon
    daemon.stop()


@pytest.fixture
def strongswan(network):
    module = interoperability()
    if not module.CHARON.exists():
        pytest.skip("strongSwan is missing: make peers installs it")
    daemon = module.StrongSwan(network.right)
    daemon.plugins = "kernel-netlink socket-default vici updown"
    yield daemon
    daemon.stop()


@pytest.fixture
def wiretap(network) -> Iterator[Wiretap]:
    tap = Wiretap(network)
    yield tap
    tap.close()


@pytest.fixture
def pinging(network) -> Iterator[Pinging]:
    """To be asked for after the tunnel is up: made by calling it."""
    started: list[Pinging] = []

    def start() -> Pinging:
        started.append(Pinging(network.left, network.right.inner))
        return started[-1]

    yield start
    for each in started:
        each.end()
