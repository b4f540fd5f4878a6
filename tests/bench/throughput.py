"""iperf3 between two gateways in namespaces, `make bench`: what each data plane carries and what it costs.

In one run: no ESP at all, our userspace ESP, strongSwan's (kernel-libipsec) and, where the kernel has ESP, the kernel's
under our daemon. Where it has none, the same is done again in the virtual machine of `make test-kernel`: its processor
is emulated, so that only ratios mean something there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from lab import Network, Ours, run, wait_for
from peers import CHARON, StrongSwan
from responders import cpu_seconds

from monitor.xfrm.netlink import XfrmNetlink
from monitor.xfrm.probe import lacking
from privsep.algorithms import ChildSuite
from privsep.cli.control import NotReachable, ask
from privsep.errors import OperatorError

REPOSITORY = Path(__file__).resolve().parents[2]
IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16"
SECONDS = 4
"""Of each measurement."""
DATAGRAM = 1300
START_SECONDS = 60
VM_SECONDS = 600
REFERENCE = "strongSwan kernel-libipsec"

Pids = Callable[[], list[int]]


@dataclass(frozen=True)
class Row:
    plane: str
    traffic: str
    mbits: float
    cpu: float
    """Seconds of both gateways' daemons for a gigabit; the kernel's own work is in no process."""


class Gateway(Ours):
    """As the operator's command would, without starting Python for it."""

    def is_ready(self) -> bool:
        try:
            return ask(str(self.run_dir), {"command": "status"}, seconds=START_SECONDS)["status"]["worker"] == "running"
        except NotReachable:
            return False


@contextmanager
def nobody(network: Network) -> Iterator[Pids]:
    yield list


@contextmanager
def ours(network: Network, dataplane: str) -> Iterator[Pids]:
    gateways = [Gateway(site) for site in (network.left, network.right)]
    try:
        for number, gateway in enumerate(gateways):
            gateway.dataplane = dataplane
            gateway.start(IKE, ESP, uid=64001 + 10 * number)
        order = {"command": "up", "connection": "peer", "child": "net", "timeout": START_SECONDS}
        result = ask(str(gateways[0].run_dir), order, seconds=START_SECONDS)
        if result["code"]:
            raise RuntimeError(result["text"])
        yield lambda: [pid for gateway in gateways for pid in gateway.pids()]
    finally:
        for gateway in gateways:
            gateway.stop()


@contextmanager
def libipsec(network: Network) -> Iterator[Pids]:
    daemons = [StrongSwan(site, esp="kernel-libipsec") for site in (network.left, network.right)]
    try:
        for daemon in daemons:
            daemon.start(IKE, ESP)
        refused = daemons[0].up("net")
        if refused:
            raise RuntimeError(refused)
        yield lambda: [daemon.pid for daemon in daemons]
    finally:
        for daemon in daemons:
            daemon.stop()


def planes() -> dict[str, Callable[[Network], object]]:
    found = {
        "no ESP": nobody,
        "privsep-ike userspace": lambda network: ours(network, "userspace"),
    }
    if CHARON.exists():
        found[REFERENCE] = libipsec
    if kernel_has_esp():
        found["privsep-ike kernel"] = lambda network: ours(network, "kernel")
    return found


def kernel_has_esp() -> bool:
    try:
        netlink = XfrmNetlink()
    except OperatorError:
        return False
    reason = lacking(netlink, [ChildSuite.parse(ESP)], [4])
    netlink.close()
    return reason is None


def iperf3(network: Network, *words: str) -> float:
    """Mbit/s that arrived."""
    right, left = network.right, network.left
    server = subprocess.Popen(right.command("iperf3", "-s", "-1", "-B", right.inner), stdout=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: "5201" in run(*right.command("ss", "-lnt")).stdout)
        client = left.command("iperf3", "-c", right.inner, "-B", left.inner, "-t", str(SECONDS), "-J", *words)
        report = json.loads(run(*client, timeout=SECONDS + START_SECONDS).stdout)
    finally:
        server.kill()
        server.wait()
    return report["end"]["sum_received"]["bits_per_second"] / 1e6


def measure(name: str, plane: Callable[[Network], object], directory: Path, number: int) -> Iterator[Row]:
    directory.mkdir()
    network = Network(directory, f"thr{number}")
    network.up()
    try:
        with plane(network) as pids:
            assert wait_for(lambda: network.left.ping(network.right.inner, count=1), START_SECONDS)
            for traffic, words in (("TCP", ()), ("UDP", ("-u", "-b", "0", "-l", str(DATAGRAM)))):
                processes = pids()
                before = sum(map(cpu_seconds, processes))
                mbits = iperf3(network, *words)
                used = sum(map(cpu_seconds, processes)) - before
                yield Row(name, traffic, mbits, used / (mbits * SECONDS / 1000) if processes and mbits else 0.0)
                time.sleep(0.5)
    finally:
        network.down()


def here() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="privsep-ike-throughput-") as directory:
        Path(directory).chmod(0o755)
        return [
            row
            for number, (name, plane) in enumerate(planes().items())
            for row in measure(name, plane, Path(directory) / str(number), number)
        ]


def in_the_machine() -> list[Row]:
    """The same in the virtual machine; nothing where there is none."""
    if not (REPOSITORY / ".venv" / "kernel" / "lib" / "modules").is_dir():
        return []
    # nobody there makes the device nodes of modules that are not loaded
    script = f"modprobe tun && exec {sys.executable} {__file__} --json"
    words = [str(REPOSITORY / "tests" / "kernel" / "boot"), "sh", "-c", script]
    environment = {**os.environ, "VM_SECONDS": str(VM_SECONDS)}
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("[{"):
            return [Row(**row) for row in json.loads(line)]
    print(done.stdout, file=sys.stderr)
    return []


def table(title: str, rows: list[Row]) -> str:
    lines = [f"\n{title}: iperf3 through two gateways, {ESP}, {SECONDS} s each"]
    lines.append(f"{'data plane':28} {'traffic':8} {'Mbit/s':>8} {'CPU s/Gbit':>11}  to kernel-libipsec")
    for row in rows:
        reference = next((each.mbits for each in rows if (each.plane, each.traffic) == (REFERENCE, row.traffic)), 0.0)
        ratio = f"{row.mbits / reference:.2f}" if reference else "-"
        cpu = f"{row.cpu:.2f}" if row.cpu else "-"
        lines.append(f"{row.plane:28} {row.traffic:8} {row.mbits:8.1f} {cpu:>11}  {ratio}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true", help="measure on this machine alone, and print one line of JSON")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("throughput: needs root, for network namespaces", file=sys.stderr)
        return 1
    rows = here()
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    print(table("this machine", rows))
    emulated = [] if any(row.plane == "privsep-ike kernel" for row in rows) else in_the_machine()
    if emulated:
        print(table("the virtual machine, emulated: ratios only", emulated))
    return 0


if __name__ == "__main__":
    sys.exit(main())
