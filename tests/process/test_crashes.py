"""Processes that die at work: what goes on, what is restarted, what is said, what is left behind (DESIGN section 2)."""

import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import run, wait_for

from privsep.cli.exits import Exit

pytestmark = pytest.mark.root

DEATHS = [
    ("worker", signal.SIGSEGV),
    ("keyd", signal.SIGABRT),
    ("worker", signal.SIGKILL),
    ("keyd", signal.SIGSEGV),
    ("worker", signal.SIGABRT),
]
PAUSES = ["0.2", "0.4", "0.8", "1.6", "3.2"]
PING_INTERVAL = "0.01"


@pytest.fixture(autouse=True)
def cores_allowed() -> Iterator[None]:
    """The daemon starts without a limit on core files, so that it is the daemon that prevents them."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


class Pings:
    """Pings from the left to the right until they are counted."""

    def __init__(self, network) -> None:
        left, right = network.left, network.right
        self._process = subprocess.Popen(
            left.command("ping", "-n", "-q", "-i", PING_INTERVAL, "-W", "2", "-I", left.inner, right.inner),
            stdout=subprocess.PIPE,
            text=True,
        )

    def count(self) -> tuple[int, int]:
        """How many were sent and how many answered."""
        self._process.send_signal(signal.SIGINT)
        output, _ = self._process.communicate(timeout=10)
        sent, received = re.search(r"(\d+) packets transmitted, (\d+) received", output).groups()
        return int(sent), int(received)


def core_files(daemon, cwds: set[str]) -> list[Path]:
    """Where a plain core_pattern would put one: the places where our processes are and were."""
    places = {Path("/"), Path.cwd(), *map(Path, cwds)}
    found = [file for place in places for file in place.glob("core*") if file.is_file()]
    return [*found, *daemon.site.directory.rglob("core*")]


def restarted(daemon, victim: str, pid: int) -> bool:
    processes = daemon.processes()
    return len(processes) == 4 and processes[victim] != pid


def test_children_that_crash_are_restarted_with_growing_pauses_and_traffic_never_stops(network, tunnel, theirs):
    monitor = tunnel.processes()["monitor"]
    cwds = {os.readlink(f"/proc/{pid}/cwd") for pid in tunnel.pids()}
    before = set(core_files(tunnel, cwds))
    pings = Pings(network)
    for victim, number in DEATHS:
        pid = tunnel.processes()[victim]
        os.kill(pid, number)
        assert wait_for(lambda victim=victim, pid=pid: restarted(tunnel, victim, pid), 15), tunnel.text()
        # named with its end; a SIGKILL of somebody else's looks like the supervisor's own
        level = "info" if number is signal.SIGKILL else "error"
        line = f'{level} process-ended process={victim} pid={pid} how="killed by {number.name}"'
        assert line in tunnel.text().splitlines(), tunnel.text()
    sent, received = pings.count()
    # the last one may be on its way
    assert sent > 100
    assert received >= sent - 1
    assert re.findall(r"^notice restart after_s=(\S+)$", tunnel.text(), re.M) == PAUSES
    assert tunnel.processes()["monitor"] == monitor
    assert set(core_files(tunnel, cwds)) == before
    # the new worker knows what is installed, and negotiates anew
    assert len(tunnel.status()["adopted"]) == 1
    tunnel.up(theirs)
    assert network.left.ping(network.right.inner) == 3


def test_the_end_of_the_userspace_esp_process_ends_the_daemon_and_no_clear_text_leaves(
    network, tunnel, theirs, wiretap
):
    pids = tunnel.processes()
    pings = Pings(network)
    os.kill(pids["userspace"], signal.SIGKILL)
    try:
        assert tunnel.process.wait(15) == 1, tunnel.text()
    finally:
        pings.count()
    # the daemon is gone: its traffic is still refused, not sent in the clear
    assert network.left.ping(network.right.inner, count=1) == 0
    assert wiretap.counts()["cleartext"] == 0
    assert "error process-ended process=userspace" in tunnel.text()
    assert wait_for(lambda: not any(network.alive(pid) for pid in pids.values()))
    # the next one takes over what was left
    tunnel.launch()
    tunnel.up(theirs)
    assert network.left.ping(network.right.inner) == 3


def test_a_killed_monitor_takes_its_children_along_and_no_clear_text_leaves(network, tunnel, theirs, wiretap):
    pids = tunnel.processes()
    os.kill(pids["monitor"], signal.SIGKILL)
    tunnel.process.wait(5)
    assert wait_for(lambda: not any(network.alive(pid) for pid in pids.values())), tunnel.text()
    # the next one takes over what was left, and there is no moment in between
    pings = Pings(network)
    tunnel.launch()
    sent, received = pings.count()
    assert (sent > 10, received) == (True, 0)
    assert wiretap.counts()["cleartext"] == 0
    tunnel.up(theirs)
    assert network.left.ping(network.right.inner) == 3


def test_sigterm_leaves_no_process_device_route_rule_or_socket(network, tunnel):
    def found() -> dict[str, str]:
        return {
            "devices": network.ip(network.left, "-brief", "link"),
            "routes": network.ip(network.left, "route", "show", "table", "all"),
            "rules": network.ip(network.left, "rule"),
            "sockets": run(*network.left.command("cat", "/proc/net/udp", "/proc/net/raw")).stdout,
        }

    during = found()
    pids = tunnel.pids()
    assert tunnel.stop() == 0, tunnel.text()
    after = found()
    for pid in pids:
        assert not network.alive(pid)
    assert ("pike" in during["devices"], "pike" in after["devices"]) == (True, False)
    for table in ("4500", "unreachable"):
        assert (table in during["routes"], table in after["routes"]) == (True, False)
    assert ("4500" in during["rules"], "4500" in after["rules"]) == (True, False)
    for port in (":01F4 ", ":1194 "):
        assert (port in during["sockets"], port in after["sockets"]) == (True, False)
    assert not (tunnel.run_dir / "control.sock").exists()
    # the file of the lock may stay, the lock went with the process
    assert {file.name for file in tunnel.run_dir.rglob("*") if not file.is_dir()} <= {"lock"}


def test_a_worker_that_stands_still_does_not_keep_status_from_answering(network, tunnel):
    worker = tunnel.processes()["worker"]
    os.kill(worker, signal.SIGSTOP)
    try:
        done = tunnel.cli("status", check=False)
        assert done.returncode == Exit.TIMED_OUT
        assert "peer/net" in done.stdout
        assert "worker: not answering" in done.stdout
        assert "does not answer" in done.stderr
        assert network.left.ping(network.right.inner) == 3
    finally:
        os.kill(worker, signal.SIGCONT)
    assert wait_for(tunnel.is_ready)
    assert tunnel.processes()["worker"] == worker
    assert tunnel.status()["ike_sas"][0]["state"] == "established"
