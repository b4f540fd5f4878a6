"""Two gateways whose ESP is the kernel's. A kernel that has none skips them; `make test-kernel` boots one that has."""

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import peers
import pytest
import star
from cases import CASES
from lab import Network, Ours, Site, Wiretap, made, made_directory, run, wait_for
from witness import Witness

from monitor.xfrm.netlink import XfrmNetlink
from monitor.xfrm.probe import lacking
from privsep.algorithms import ChildSuite
from privsep.cli.control import NotReachable, ask
from privsep.errors import OperatorError

SECONDS = 60
"""For what takes less than one on a real processor."""
PROBED = [ChildSuite.parse("aes256gcm16"), ChildSuite.parse("aes128-sha256")]
ROWS = pytest.StashKey[list["Row"]]()
FIRST = ("test_matrix", "test_crashes", "test_gateways", "test_moving")
"""Modules that tell most, in that order; the others come after them."""
BUDGET = float(os.environ.get("KERNEL_SECONDS", "inf"))
"""What would begin later than this is left out."""
BEGAN = pytest.StashKey[float]()
LEFT_OUT = pytest.StashKey["Counter[str]"]()


@dataclass
class Row:
    """A line of the table at the end; `result` is the test's."""

    case: str
    peer: str
    initiator: str = ""
    sent: int = 0
    received: int = 0
    protected: int | str = "-"
    """On the wire, both ways; a dash where nobody counted."""
    clear: int | str = "-"
    result: str = "failed"

    LINE = "{:52} {:11} {:9} {:>4} {:>8} {:>9} {:>5}  {}"

    def __str__(self) -> str:
        counts = self.sent, self.received, self.protected, self.clear
        return self.LINE.format(self.case, self.peer, self.initiator, *counts, self.result)


@pytest.fixture
def row(request) -> Callable[..., Row]:
    """Makes a line of the table for this test."""

    def add(case: str, peer: str, initiator: str = "") -> Row:
        request.node.stash[ROWS] = [*request.node.stash.get(ROWS, []), made := Row(case, peer, initiator)]
        return made

    return add


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        for each in item.stash.get(ROWS, []):
            each.result = report.outcome
            item.config.stash.setdefault(ROWS, []).append(each)
    return report


def pytest_collection_modifyitems(config, items):
    here = Path(__file__).parent

    def place(item) -> int:
        if item.path.parent != here:
            return len(FIRST) + 1
        return FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST)

    items.sort(key=place)
    config.stash[BEGAN], config.stash[LEFT_OUT] = time.monotonic(), Counter()


def pytest_runtest_setup(item):
    if time.monotonic() - item.config.stash[BEGAN] > BUDGET:
        item.config.stash[LEFT_OUT][item.path.stem] += 1
        pytest.skip(f"left out: KERNEL_SECONDS={BUDGET:.0f} are over")


def pytest_terminal_summary(terminalreporter, config):
    if left_out := config.stash.get(LEFT_OUT, None):
        terminalreporter.section(f"left out, {BUDGET:.0f} s being over")
        for module, count in left_out.items():
            terminalreporter.write_line(f"{module}: {count}")
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("what passed through the kernel")
        heads = "case", "peer", "initiator", "sent", "received", "protected", "clear", "result"
        terminalreporter.write_line(Row.LINE.format(*heads))
        for each in rows:
            terminalreporter.write_line(str(each))


class Gateway(Ours):
    """Our daemon over the kernel. Asked on its socket: a command of its own takes seconds in the virtual machine."""

    dataplane = "kernel"
    patience = 180.0

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

    def kill(self) -> None:
        """The monitor, and wait for all; a child that had only just been started notices on its first step."""
        pids = self.processes()
        os.kill(pids["monitor"], signal.SIGKILL)
        self.process.wait(10)
        assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()), SECONDS)

    def order(self, command: str) -> None:
        result = self.ask(command, connection="peer", child="net", timeout=SECONDS)
        assert result["code"] == 0, f"{command}: {result['text']}\n{self.text()}"

    def write(self, gateway: str, secrets: str) -> None:
        """The configuration, whatever it is."""
        self.config.write_text(gateway)
        self.secrets.touch(mode=0o600)
        self.secrets.write_text(secrets)

    def up(self, connection: str) -> str:
        """Have it negotiate the only child; what went wrong, or nothing."""
        result = self.ask("up", connection=connection, child="net", timeout=SECONDS)
        return "" if result["code"] == 0 else result["text"]

    def child(self, connection: str) -> dict | None:
        """The only child, if it is up."""
        status = self.ask("status", connection=connection)["status"]
        children = [child for sa in status["ike_sas"] for child in sa["children"]]
        return children[0] if len(children) == 1 and children[0]["state"] == "installed" else None

    def xfrm(self, what: str) -> str:
        """What the kernel has, `state` or `policy`; without the IKE sockets' own bypass.

        Nor its note that a packet asked for an SA, which has no SPI and goes by itself (net.core.xfrm_acq_expires).
        """
        words = ["ip", "-n", self.site.namespace, "xfrm", what, "list", *(["nosock"] if what == "policy" else [])]
        listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        entries = re.split(r"^(?=\S)", listed, flags=re.M)
        return "".join(each for each in entries if "spi 0x00000000 " not in each)


@pytest.fixture(scope="session")
def esp(tmp_path_factory) -> None:
    """Skip where the kernel has none."""
    site = Site(f"esp{os.getpid()}", "", "", made_directory(tmp_path_factory) / "esp")
    run("ip", "netns", "add", site.namespace)
    try:
        lacked = site.enter(what_lacks)
    finally:
        run("ip", "netns", "del", site.namespace)
    if lacked:
        pytest.skip(f"{lacked}; make test-kernel boots a kernel that has it")


def what_lacks() -> str:
    """Of ESP in this kernel; nothing if it is there."""
    try:
        netlink = XfrmNetlink()
    except OperatorError as error:
        return str(error)
    with closing(netlink):
        return lacking(netlink, PROBED, [4]) or ""


@pytest.fixture
def network(tmp_path_factory, esp) -> Iterator[Network]:
    yield from made(tmp_path_factory, "krn")


class Matrix:
    """The star with its daemons, each serving all of its cases."""

    def __init__(self, network: star.Star) -> None:
        self.star = network
        self.ours = Gateway(network.left)
        self.theirs = Gateway(network.sites["ourselves"])
        self.strongswan = peers.StrongSwan(network.sites["strongSwan"])
        self.libreswan = peers.Libreswan(network.sites["libreswan"])
        self.witness = Witness(network.gateways)

    def start(self) -> None:
        """All at once."""
        of = self.star.of
        for gateway, words in (
            (self.ours, star.ours(self.star.placed, 1, 62001)),
            (self.theirs, star.ours(of("ourselves"), 2, 62011)),
        ):
            gateway.write(*words)
        names = [each.name for each in of("libreswan")]
        with ThreadPoolExecutor() as pool:
            for started in [
                pool.submit(self.ours.launch),
                pool.submit(self.theirs.launch),
                pool.submit(self.strongswan.launch, star.strongswan(of("strongSwan"))),
                pool.submit(self.libreswan.launch, *star.libreswan(of("libreswan")), names),
            ]:
                started.result()

    def initiate(self, placed: star.Placed) -> str:
        """What went wrong, or nothing."""
        initiator = self.ours if placed.case.initiator == "we" else self._peer(placed)
        return initiator.up(placed.name)

    def _peer(self, placed: star.Placed) -> Gateway | peers.Daemon:
        return {"ourselves": self.theirs, "strongSwan": self.strongswan, "libreswan": self.libreswan}[placed.case.peer]

    def text(self, placed: star.Placed) -> str:
        """What both ends say."""
        return f"{self.ours.text()}\n{'-' * 40}\n{self._peer(placed).text()}"

    def ports(self, placed: star.Placed) -> set[int]:
        """Of the end inside, as the kernel outside knows them: where packets are sent to."""
        return {int(port) for port in re.findall(r"dport (\d+)", self._leading_to(placed, placed.inside))}

    def is_up(self, placed: star.Placed) -> bool:
        """At both ends."""
        return self.ours.child(placed.name) is not None and "spi" in self._leading_to(placed, 1)

    def _leading_to(self, placed: star.Placed, end: int) -> str:
        """The SAs that the other end's kernel has for what goes to this one."""
        other = self.star.site(placed, 3 - end)
        words = ["ip", "-n", other.namespace, "xfrm", "state", "list", "dst", placed.seen(end)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    def stop(self) -> None:
        for daemon in (self.ours, self.theirs, self.strongswan, self.libreswan):
            daemon.stop()
        self.witness.close()


@pytest.fixture(scope="module")
def matrix(tmp_path_factory, esp) -> Iterator[Matrix]:
    for needed in (peers.CHARON, peers.LIBRESWAN):
        if not needed.exists():
            pytest.skip(f"{needed} is missing: make peers installs it")
    directory = made_directory(tmp_path_factory)
    placed = tuple(star.Placed(number, case) for number, case in enumerate(CASES, 1))
    network = star.Star(directory, "mtx", placed)
    with ExitStack() as stack:
        stack.callback(network.down)
        network.up()
        built = Matrix(network)
        stack.callback(built.stop)
        built.start()
        yield built


@dataclass
class Couple:
    """Two gateways of ours that the tests of one module share, in their order."""

    network: Network
    ours: Gateway
    theirs: Gateway


@pytest.fixture(scope="module")
def couple(tmp_path_factory, esp) -> Iterator[Couple]:
    """To be configured and launched."""
    with contextmanager(made)(tmp_path_factory, "cpl") as network:
        built = Couple(network, Gateway(network.left), Gateway(network.right))
        yield built
        built.ours.stop()
        built.theirs.stop()


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
def wiretap(network) -> Iterator[Wiretap]:
    tap = Wiretap(network)
    yield tap
    tap.close()
