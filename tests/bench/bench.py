"""`make bench`: handshakes of our responder, charon and pluto, side by side in one run.

Each responder is pinned to one core, the initiator runs on the other. A handshake is Main Mode and one Quick Mode with
PFS.
Responder CPU is user and system time of all its processes; memory is proportional set size over a baseline.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from responders import (
    ALL,
    INITIATOR_CPU,
    LEFT,
    LEFT_HOST,
    PSK,
    RIGHT,
    RIGHT_HOST,
    Responder,
    Unsupported,
    build_shim,
    cpu_seconds,
    resident_kb,
)

SUITES = {
    "MODP-2048": ("aes128-sha256-modp2048", "aes128-sha256-modp2048"),
    "Curve25519": ("aes128-sha256-curve25519", "aes128-sha256-curve25519"),
}
WARM_UP = 20
AT_ONCE = 8
SECONDS = 300.0


@dataclass(frozen=True)
class Row:
    responder: str
    suite: str
    tunnels: int
    per_second: float
    cpu_ms: float
    kb_per_tunnel: float
    missing: str = ""
    processes: dict[str, float] = field(default_factory=dict)
    """CPU ms of each process for a handshake."""


def in_namespace(mark: str) -> tuple[str, str]:
    left, right = f"{mark}l", f"{mark}r"
    for name in (left, right):
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    subprocess.run(
        ["ip", "link", "add", "wire0", "netns", left, "type", "veth", "peer", "name", "wire0", "netns", right],
        check=True,
    )
    for name, outer, inner in ((left, LEFT, LEFT_HOST), (right, RIGHT, RIGHT_HOST)):
        subprocess.run(["ip", "-n", name, "address", "add", f"{outer}/24", "dev", "wire0"], check=True)
        subprocess.run(["ip", "-n", name, "address", "add", f"{inner}/32", "dev", "lo"], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "wire0", "up"], check=True)
    return left, right


def measure(responder: Responder, initiator_namespace: str, suite: str, tunnels: int) -> Row:
    ike, esp = SUITES[suite]
    missing = responder.missing()
    if missing:
        return Row(responder.name, suite, 0, 0.0, 0.0, 0.0, missing)
    try:
        try:
            responder.start(ike, esp)
        except Unsupported as reason:
            return Row(responder.name, suite, 0, 0.0, 0.0, 0.0, str(reason))
        # the warm-up and the measured tunnels are one process, told by its standard input when to go on
        load = subprocess.Popen(
            ["ip", "netns", "exec", initiator_namespace, "taskset", "-c", INITIATOR_CPU, sys.executable, __file__,
             "--initiate", ike, esp, str(tunnels)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert load.stdin is not None
        assert load.stdout is not None
        if load.stdout.readline() != "warm\n":
            return Row(responder.name, suite, 0, 0.0, 0.0, 0.0, "the warm-up failed")
        time.sleep(0.5)
        processes = responder.processes()
        cpu, memory = {name: cpu_seconds(pid) for name, pid in processes.items()}, resident_kb(processes.values())
        load.stdin.write("go\n")
        load.stdin.flush()
        line = load.stdout.readline()
        time.sleep(0.5)
        each = {name: 1000 * (cpu_seconds(pid) - cpu[name]) / tunnels for name, pid in processes.items()}
        memory = resident_kb(processes.values()) - memory
        load.stdin.close()
        load.wait(30)
        if not line:
            return Row(responder.name, suite, 0, 0.0, 0.0, 0.0, "the initiator failed")
        return Row(
            responder.name,
            suite,
            tunnels,
            per_second=tunnels / float(line),
            cpu_ms=sum(each.values()),
            kb_per_tunnel=memory / tunnels,
            processes=each,
        )
    finally:
        responder.stop()


def initiate(ike: str, esp: str, tunnels: int) -> int:
    """The initiator's process."""
    from load import Load

    load = Load(local=LEFT, remote=RIGHT, inner=LEFT_HOST, other=RIGHT_HOST, ike=ike, esp=esp, psk=PSK)
    load.open_many(WARM_UP, at_once=1, seconds=60)
    print("warm", flush=True)
    sys.stdin.readline()
    print(load.open_many(tunnels, at_once=AT_ONCE, seconds=SECONDS), flush=True)
    sys.stdin.read()
    return 0


def table(rows: list[Row]) -> str:
    lines = []
    for suite in SUITES:
        of_suite = [row for row in rows if row.suite == suite]
        peers = [row.cpu_ms for row in of_suite if row.tunnels and not row.responder.startswith("privsep")]
        best = min(peers, default=0.0)
        lines.append(f"\n{suite}: Main Mode with PSK and Quick Mode with PFS")
        lines.append(f"{'responder':18} {'handshakes/s':>12} {'CPU ms each':>12} {'KB each':>8}  CPU to best peer")
        for row in of_suite:
            if not row.tunnels:
                lines.append(f"{row.responder:18} {row.missing}")
                continue
            ratio = f"{row.cpu_ms / best:.2f}" if best else "-"
            lines.append(
                f"{row.responder:18} {row.per_second:12.0f} {row.cpu_ms:12.2f} {row.kb_per_tunnel:8.1f}  {ratio}"
            )
        for row in of_suite:
            if len(row.processes) > 1:
                shares = ", ".join(f"{name} {ms:.2f}" for name, ms in row.processes.items())
                lines.append(f"{row.responder}'s CPU ms each: {shares}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tunnels", type=int, default=500)
    parser.add_argument("--only", default="", help="part of a responder's name")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--initiate", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.initiate:
        ike, esp, tunnels = arguments.initiate
        return initiate(ike, esp, int(tunnels))
    if os.geteuid() != 0:
        print("bench: needs root, for network namespaces", file=sys.stderr)
        return 1
    directory = Path(tempfile.mkdtemp(prefix="privsep-ike-bench-"))
    directory.chmod(0o755)
    rows: list[Row] = []
    try:
        shim = build_shim(directory)
        for suite in SUITES:
            for number, kind in enumerate(ALL):
                if arguments.only not in kind.name:
                    continue
                mark = f"pikb{os.getpid() % 10000}{number}"
                left, right = in_namespace(mark)
                try:
                    responder = kind(right, directory / suite, shim)
                    rows.append(measure(responder, left, suite, arguments.tunnels))
                finally:
                    for name in (left, right):
                        subprocess.run(["ip", "netns", "del", name], check=False)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps([asdict(row) for row in rows], indent=2) if arguments.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
