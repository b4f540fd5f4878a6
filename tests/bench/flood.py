"""What floods of spoofed first messages cost our responder: its memory, and handshakes of real peers.

``python tests/bench/flood.py`` (root) starts our daemon in a network namespace of its own and prints a line for each
flood. Real peers are a round trip of 300 ms away: this process holds their datagrams back.
"""

import argparse
import heapq
import ipaddress
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

import spoof
from load import Load
from responders import LEFT, LEFT_HOST, PSK, RIGHT, RIGHT_HOST, Ours

from privsep.schema import install

IKE, ESP = "aes128-sha256-curve25519", "aes128-sha256"
ROUND_TRIP = 0.3
PEERS = 8
PATIENCE = 45.0
"""Seconds; all retransmissions of a message take 41."""


# what is sent


def send(kind: str, per_second: int, octets: int, seconds: float) -> int:
    """The flooding process."""
    body = spoof.first_message(IKE)
    if octets:
        body = spoof.padded(body, octets)
    sock = spoof.raw_socket()
    began, sent = time.monotonic(), 0
    print("begun", flush=True)
    while (passed := time.monotonic() - began) < seconds:
        while sent < passed * per_second:
            source = (
                LEFT if kind == "spoofed" else str(ipaddress.IPv4Address(0x0A000000 + int.from_bytes(os.urandom(3))))
            )
            spoof.send(sock, body, source, 1024 + sent % 60000, RIGHT)
            sent += 1
        time.sleep(0.002)
    print(sent, flush=True)
    return 0


# real peers


class Far:
    """A socket whose datagrams take half a round trip in either direction."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._order = itertools.count()
        self._out: list[tuple[float, int, bytes]] = []
        self._in: list[tuple[float, int, bytes]] = []
        self._timeout = 0.0
        self.sent: list[bytes] = []

    def settimeout(self, seconds: float) -> None:
        self._timeout = seconds

    def send(self, data: bytes) -> None:
        self.sent.append(data)
        heapq.heappush(self._out, (time.monotonic() + ROUND_TRIP / 2, next(self._order), data))

    def recv(self, octets: int) -> bytes:
        deadline = time.monotonic() + self._timeout
        while True:
            now = time.monotonic()
            while self._out and self._out[0][0] <= now:
                self._sock.send(heapq.heappop(self._out)[2])
            if self._in and self._in[0][0] <= now:
                return heapq.heappop(self._in)[2]
            if now >= deadline:
                raise TimeoutError
            due = min([deadline, *(queue[0][0] for queue in (self._out, self._in) if queue)])
            if select.select([self._sock], [], [], max(0.0, due - now))[0]:
                data = self._sock.recv(octets)
                heapq.heappush(self._in, (time.monotonic() + ROUND_TRIP / 2, next(self._order), data))

    def close(self) -> None:
        self._sock.close()


class FarLoad(Load):
    """Tunnels over a long way."""

    def __init__(self, **values: str) -> None:
        super().__init__(**values)
        self._socket = Far(self._socket)

    @property
    def sent(self) -> list[bytes]:
        return self._socket.sent


def make_load() -> FarLoad:
    return FarLoad(local=LEFT, remote=RIGHT, inner=LEFT_HOST, other=RIGHT_HOST, ike=IKE, esp=ESP, psk=PSK)


def initiate() -> int:
    """Real peers, half a second after each other."""
    load, tunnels, began = make_load(), [], time.monotonic()
    starts, times = [], {}
    while time.monotonic() - began < PATIENCE and len(times) < PEERS:
        if len(tunnels) < PEERS and time.monotonic() - began > len(tunnels) * 0.5:
            starts.append(time.monotonic())
            tunnels.append(load.open())
        load.turn(0.01)
        for number, tunnel in enumerate(tunnels):
            if tunnel.outcome is install.Outcome.DONE and number not in times:
                times[number] = round(time.monotonic() - starts[number], 2)
    print(json.dumps(sorted(times.values())))
    return 0


# the measuring process


@contextmanager
def namespaces() -> Iterator[tuple[str, str]]:
    left, right = (f"fld{os.getpid()}{end}" for end in "lr")
    ip = ["ip", "-n"]
    try:
        for name in (left, right):
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run([*ip, name, "link", "set", "lo", "up"], check=True)
        subprocess.run(
            ["ip", "link", "add", "wire0", "netns", left, "type", "veth", "peer", "name", "wire0", "netns", right],
            check=True,
        )
        for name, outer, inner in ((left, LEFT, LEFT_HOST), (right, RIGHT, RIGHT_HOST)):
            subprocess.run([*ip, name, "address", "add", f"{outer}/24", "dev", "wire0"], check=True)
            subprocess.run([*ip, name, "address", "add", f"{inner}/32", "dev", "lo"], check=True)
            subprocess.run([*ip, name, "link", "set", "wire0", "mtu", "60000", "up"], check=True)
        # answers to nobody find a way, and sources from anywhere are taken
        subprocess.run([*ip, right, "route", "add", "default", "via", LEFT], check=True)
        for key in ("all", "wire0"):
            command = ["sysctl", "-qw", f"net.ipv4.conf.{key}.rp_filter=0"]
            subprocess.run(["ip", "netns", "exec", right, *command], check=True)
        yield left, right
    finally:
        for name in (left, right):
            subprocess.run(["ip", "netns", "del", name], check=False)


def inside(namespace: str, *arguments: str) -> subprocess.Popen:
    command = ["ip", "netns", "exec", namespace, sys.executable, __file__, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def resident(pid: int) -> float:
    """Megabytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Anybody(Ours):
    remote = "any"


def memory(responder: Ours, left: str, kind: str, per_second: int, octets: int, seconds: float) -> dict:
    worker = responder.processes()["worker"]
    before = peak = resident(worker)
    flood = inside(left, "--send", kind, str(per_second), str(octets), str(seconds))
    while flood.poll() is None:
        peak = max(peak, resident(worker))
        time.sleep(0.2)
    time.sleep(60)
    return {"before_mb": round(before), "peak_mb": round(peak), "after_a_minute_mb": round(resident(worker))}


def handshakes(left: str, kind: str, per_second: int) -> dict:
    flood = inside(left, "--send", kind, str(per_second), "0", str(PATIENCE + 10))
    flood.stdout.readline()
    time.sleep(3)
    peers = inside(left, "--initiate")
    times = json.loads(peers.communicate()[0])
    flood.kill()
    flood.wait()
    return {"succeeded": f"{len(times)} of {PEERS}", "seconds": times}


FLOODS = {
    "51 KB, 200/s from anywhere, 20 s": (
        Anybody, lambda responder, left: memory(responder, left, "any", 200, 50_000, 20)),
    "14 KB, 200/s from anywhere, 20 s": (
        Anybody, lambda responder, left: memory(responder, left, "any", 200, 14_000, 20)),
    "small, 5000/s from anywhere, 20 s": (
        Anybody, lambda responder, left: memory(responder, left, "any", 5000, 0, 20)),
    "1000/s from the peer's address, peers 300 ms away": (
        Ours, lambda responder, left: handshakes(left, "spoofed", 1000)),
    "5000/s from anywhere, peers 300 ms away": (
        Anybody, lambda responder, left: handshakes(left, "any", 5000)),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--send", nargs=4)
    parser.add_argument("--initiate", action="store_true")
    parser.add_argument("--only", default="", help="floods whose name has this in it")
    arguments = parser.parse_args()
    if arguments.send:
        kind, per_second, octets, seconds = arguments.send
        return send(kind, int(per_second), int(octets), float(seconds))
    if arguments.initiate:
        return initiate()
    for name, (kind, measure) in FLOODS.items():
        if arguments.only in name:
            with namespaces() as (left, right), tempfile.TemporaryDirectory() as directory:
                Path(directory).chmod(0o755)
                responder = kind(right, Path(directory), None)
                responder.start(IKE, ESP)
                try:
                    print(f"{name}: {json.dumps(measure(responder, left))}", flush=True)
                finally:
                    responder.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
