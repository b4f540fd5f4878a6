"""Gateways in network namespaces with real packets between them: what the tests of whole daemons share.

Found by `pythonpath` in pyproject.toml. Each folder's conftest.py makes fixtures of it.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from privsep.cli.control import ask

LEFT, RIGHT = "192.0.2.1", "192.0.2.2"
LEFT_HOST, RIGHT_HOST = "10.1.0.1", "10.2.0.1"
PSK = "interoperability, not secrecy"
CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def run(*words: str, check: bool = True, timeout: float = 30) -> subprocess.CompletedProcess:
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done


def wait_for(condition: Callable[[], object], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


class Site:
    """One namespace with an outer address on the wire and an inner one behind."""

    def __init__(self, namespace: str, outer: str, inner: str, directory: Path) -> None:
        self.namespace, self.outer, self.inner, self.directory = namespace, outer, inner, directory
        directory.mkdir()
        directory.chmod(0o755)

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *words]

    def ping(self, target: str, count: int = 3) -> int:
        done = run(
            *self.command("ping", "-n", "-q", "-c", str(count), "-i", "0.2", "-W", "2", "-I", self.inner, target),
            check=False,
        )
        match = re.search(r"(\d+) received", done.stdout)
        return int(match.group(1)) if match else 0

    def enter(self, work: Callable[[], T]) -> T:
        """What `work` returns, done inside; sockets that it makes stay inside for good."""
        results: list[T] = []

        def inside() -> None:
            # a thread of its own: namespaces belong to threads
            with open(f"/run/netns/{self.namespace}") as namespace:
                if ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET) == 0:
                    results.append(work())

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        assert results, f"{self.namespace} cannot be entered, or the work in it failed"
        return results[0]


class Network:
    def __init__(self, directory: Path, mark: str) -> None:
        mark = f"{mark}{os.getpid()}"
        self.left = Site(f"{mark}l", LEFT, LEFT_HOST, directory / "left")
        self.right = Site(f"{mark}r", RIGHT, RIGHT_HOST, directory / "right")

    def up(self) -> None:
        for site in (self.left, self.right):
            run("ip", "netns", "add", site.namespace)
        run("ip", "link", "add", "wire0", "netns", self.left.namespace, "type", "veth",
            "peer", "name", "wire0", "netns", self.right.namespace)  # fmt: skip
        for site in (self.left, self.right):
            run("ip", "-n", site.namespace, "link", "set", "lo", "up")
            run("ip", "-n", site.namespace, "address", "add", f"{site.inner}/32", "dev", "lo")
            run("ip", "-n", site.namespace, "address", "add", f"{site.outer}/24", "dev", "wire0")
            run("ip", "-n", site.namespace, "link", "set", "wire0", "up")
        for site, other in ((self.left, self.right), (self.right, self.left)):
            # so that a packet that escapes the tunnel shows on the wire
            run("ip", "-n", site.namespace, "route", "add", "default", "via", other.outer)

    def down(self) -> None:
        for site in (self.left, self.right):
            run("ip", "netns", "del", site.namespace, check=False)

    def ip(self, site: Site, *words: str) -> str:
        return run("ip", "-n", site.namespace, *words).stdout

    def wait_for(self, condition: Callable[[], object], seconds: float = 10) -> bool:
        return wait_for(condition, seconds)

    def alive(self, pid: int) -> bool:
        return Path(f"/proc/{pid}").exists()

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)


class Wiretap:
    """Counts on the wire what a stranger could read."""

    def __init__(self, network: Network) -> None:
        ends = (network.left.namespace, network.right.namespace)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "privsep.cli.wiretap", "wire0", "0a", *ends],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout.readline() == "ready\n"

    def counts(self) -> dict[str, int]:
        output, _ = self._process.communicate(timeout=10)
        return json.loads(output)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def none_in_clear(network: Network, *, least: int) -> Iterator[None]:
    """Twenty pings a second meanwhile, of which more than `least` are sent and none is seen on the wire in clear."""
    tap = Wiretap(network)
    left, right = network.left, network.right
    words = left.command("ping", "-n", "-q", "-i", "0.05", "-I", left.inner, right.inner)
    sender = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        sender.send_signal(signal.SIGINT)
        output, _ = sender.communicate(timeout=30)
        clear = tap.counts()["cleartext"]
    sent = int(re.search(r"(\d+) packets transmitted", output).group(1))
    print(f"{clear} of {sent} pings in clear")
    assert sent > least
    assert clear == 0


CONNECTION = """\
[gateway]
dataplane = "{dataplane}"
on_stop = "{on_stop}"
users = {{ worker = {worker}, keyd = {keyd}, userspace = {userspace} }}

[connection.peer]
version   = "ikev1"
mode      = "main"
local     = "{local}"
remote    = "{remote}"
local_id  = "{local}"
remote_id = "{remote}"
auth      = "psk"
ike       = ["{ike}"]
encap     = "{encap}"

[connection.peer.child.net]
local_ts  = ["{inner}/32"]
remote_ts = ["{other}/32"]
esp       = ["{esp}"]
start     = "{when}"
"""


class Ours:
    """Our daemon."""

    dataplane = "userspace"
    when = "wait"
    """`start` of the child."""
    on_stop = "remove"
    """Gateways follow each other in one network namespace, and what one leaves would refuse the next one's traffic."""
    patience = 60.0
    """Seconds until it serves."""
    options: tuple[str, ...] = ()
    """More of `run`."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.run_dir = site.directory / "run"
        self.config, self.secrets = site.directory / "gateway.toml", site.directory / "secrets.toml"
        self.log = site.directory / "log"
        self.process: subprocess.Popen | None = None

    def start(self, ike: str, esp: str, *, psk: str = PSK, encap: str = "auto", uid: int = 62001) -> None:
        self.configure(ike, esp, psk=psk, encap=encap, uid=uid)
        self.launch()

    def configure(self, ike: str, esp: str, *, psk: str = PSK, encap: str = "auto", uid: int = 62001) -> None:
        other = RIGHT_HOST if self.site.inner == LEFT_HOST else LEFT_HOST
        remote = RIGHT if self.site.outer == LEFT else LEFT
        self.config.write_text(
            CONNECTION.format(
                dataplane=self.dataplane,
                on_stop=self.on_stop,
                when=self.when,
                local=self.site.outer,
                remote=remote,
                ike=ike,
                esp=esp,
                inner=self.site.inner,
                other=other,
                encap=encap,
                worker=uid,
                keyd=uid + 1,
                userspace=uid + 2,
            )
        )
        self.secrets.touch(mode=0o600)
        self.secrets.write_text(f'[[psk]]\nids = ["{LEFT}", "{RIGHT}"]\nsecret = "{psk}"\n')

    def launch(self) -> None:
        """Start with the configuration that is there, and wait until it serves."""
        self.run_dir.mkdir(exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.words("run", "--config", str(self.config), "--secrets", str(self.secrets), *self.options),
                stdout=log,
                stderr=log,
            )
        ready = wait_for(lambda: self.process.poll() is not None or self.is_ready(), self.patience)
        assert ready, self.text()
        assert self.process.poll() is None, self.text()

    def is_ready(self) -> bool:
        done = self.cli("status", "--json", check=False)
        return done.returncode == 0 and json.loads(done.stdout)["worker"] == "running"

    def words(self, *words: str) -> list[str]:
        return self.site.command(sys.executable, "-I", "-m", "privsep", *words, "--run-dir", str(self.run_dir))

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(self.words(*words), capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}\n{self.text()}"
        return done

    def up(self, other: "Ours") -> None:
        """The tunnel, at both ends: who initiated is done one message before the other (RFC 2409 section 5.5)."""
        self.cli("up", "peer/net")
        both = wait_for(lambda: {c["spi_out"] for c in self.children()} <= {c["spi_in"] for c in other.children()})
        assert both, f"{self.text()}\n{other.text()}"

    def status(self) -> dict:
        return json.loads(self.cli("status", "--json").stdout)

    def children(self) -> list[dict]:
        return [child for sa in self.status()["ike_sas"] for child in sa["children"]]

    def processes(self) -> dict[str, int]:
        answer = ask(str(self.run_dir), {"command": "audit"}, seconds=10)
        return {each["name"]: each["pid"] for each in answer["processes"]}

    def pids(self) -> list[int]:
        return list(self.processes().values())

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.process = None


def launch(*daemons: Ours) -> None:
    """All at once."""
    with ThreadPoolExecutor() as pool:
        for started in [pool.submit(daemon.launch) for daemon in daemons]:
            started.result()


def made(tmp_path_factory, mark: str) -> Iterator[Network]:
    """Two sites on one wire; `mark` begins the names of the namespaces."""
    network = Network(made_directory(tmp_path_factory), mark)
    network.up()
    try:
        yield network
    finally:
        network.down()


def made_directory(tmp_path_factory) -> Path:
    """For daemons in namespaces; skips the test where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("root is missing: namespaces need it")
    for tool in ("ip", "ping"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    directory = tmp_path_factory.mktemp("site")
    for parent in (directory, *directory.parents):
        # the daemon's unprivileged users must pass through
        mode = stat.S_IMODE(parent.stat().st_mode)
        if mode & 0o055 == 0o055:
            break
        parent.chmod(mode | 0o055)
    return directory
