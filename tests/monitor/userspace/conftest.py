"""Fixtures: two namespaces joined by a cable, and a half gateway in each."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

GATEWAY = Path(__file__).with_name("gateway.py")
LAST = "224.0.0.99"
"""A group without members: what goes there needs no neighbour."""


class Side:
    """One gateway process and what it says."""

    def __init__(self, namespace: str, description: dict[str, object]) -> None:
        self.namespace = namespace
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, str(GATEWAY), json.dumps(description)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # a pipe as in production: the ESP process may write to no file
            stderr=subprocess.PIPE,
            text=True,
        )
        self.events: list[dict[str, object]] = []

    def answer(self) -> object:
        """The next answer; events that come before it are kept."""
        while line := self.process.stdout.readline():
            said = json.loads(line)
            if "event" in said:
                self.events.append(said)
            elif "error" in said:
                raise AssertionError(said["error"])
            else:
                return said["ok"]
        raise AssertionError(f"the gateway ended: {self.process.stderr.read()}")

    def event(self, name: str) -> dict[str, object]:
        """Wait for an event of that name."""
        while not any(event["event"] == name for event in self.events):
            said = json.loads(self.process.stdout.readline())
            self.events.append(said)
        return next(event for event in self.events if event["event"] == name)

    def tell(self, command: str) -> None:
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> object:
        self.tell(command)
        return self.answer()

    def run(self, *argv: str, check: bool = True) -> str:
        """A command in this side's namespace."""
        argv = ("ip", "netns", "exec", self.namespace, *argv)
        return subprocess.run(argv, check=check, capture_output=True, text=True, timeout=30).stdout

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """The same, left running."""
        argv = ("ip", "netns", "exec", self.namespace, *argv)
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.tell("stop")
        self.process.wait(timeout=10)
        sys.stderr.write(self.process.stderr.read())


class Cable:
    """Two namespaces, `192.0.2.1` and `192.0.2.2`, inner `10.1.0.1` and `10.2.0.1`, IPv6 alike."""

    def __init__(self) -> None:
        token = uuid.uuid4().hex[:6]
        self.left, self.right = f"usp{token}l", f"usp{token}r"
        self._sides: list[Side] = []

    def up(self) -> None:
        for name in (self.left, self.right):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", "cable", "netns", self.left, "type", "veth", "peer", "name", "cable", "netns", self.right)
        for number, name in ((1, self.left), (2, self.right)):
            _ip("-n", name, "addr", "add", f"192.0.2.{number}/24", "dev", "cable")
            _ip("-n", name, "addr", "add", f"2001:db8::{number}/64", "dev", "cable", "nodad")
            _ip("-n", name, "addr", "add", f"10.{number}.0.1/16", "dev", "lo")
            _ip("-n", name, "addr", "add", f"fd00:{number}::1/32", "dev", "lo", "nodad")
            _ip("-n", name, "link", "set", "cable", "up")

    def down(self) -> None:
        for side in self._sides:
            side.close()
        for name in (self.left, self.right):
            _ip("netns", "del", name)

    def connect(self, **changes: object) -> tuple[Side, Side]:
        """A gateway on each side with one policy and, in ESP's terms, each other's SPIs."""
        sides = []
        for here, there, spis, name in (
            (1, 2, (0x1001, 0x1002), self.left),
            (2, 1, (0x1002, 0x1001), self.right),
        ):
            description = {
                "listen": [],
                "local": f"192.0.2.{here}",
                "remote": f"192.0.2.{there}",
                "local_ts": [f"10.{here}.0.0/16", f"fd00:{here}::/32"],
                "remote_ts": [f"10.{there}.0.0/16", f"fd00:{there}::/32"],
                "mode": "TUNNEL",
                "encap": True,
                "suite": "aes256gcm16",
                "spi_in": spis[0],
                "spi_out": spis[1],
                "absent": _absent(),
            }
            for key, value in changes.items():
                text = json.dumps(value).replace("HERE", str(here)).replace("THAT", str(there))
                description[key] = json.loads(text)
            sides.append(Side(name, description))
            self._sides.append(sides[-1])
        for side in sides:
            side.answer()
        return sides[0], sides[1]


def _absent() -> list[str]:
    """Landlock is young; where a kernel lacks it these tests go on without."""
    lsm = Path("/sys/kernel/security/lsm")
    return [] if not lsm.exists() or "landlock" in lsm.read_text() else ["landlock"]


def _ip(*argv: str) -> None:
    subprocess.run(("ip", *argv), check=True, capture_output=True)


@pytest.fixture
def cable():
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    made = Cable()
    made.up()
    try:
        yield made
    finally:
        made.down()


@pytest.fixture
def encrypted():
    """Count ESP packets and clear pings that cross a side's cable while the block runs."""
    if shutil.which("tcpdump") is None:
        pytest.skip("needs tcpdump")

    @contextlib.contextmanager
    def capture(namespace: str, sign: str):
        counts: dict[str, int] = {}
        inside = ["ip", "netns", "exec", namespace]
        words = [*inside, "tcpdump", "--immediate-mode", "-n", "-l", "-i", "cable", "ip or ip6"]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stderr.readline()
        yield counts
        # nobody answers it, and when it is seen everything before it was
        subprocess.run([*inside, "ping", "-c", "1", "-W", "0.1", "-I", "cable", LAST], capture_output=True, check=False)
        lines = list(itertools.takewhile(lambda line: LAST not in line, process.stdout))
        process.terminate()
        process.communicate(timeout=10)
        counts["esp"] = sum(sign in line for line in lines)
        counts["clear"] = sum(" echo " in line for line in lines)

    return capture
