"""`privsep-ike demo`: two gateways in two network namespaces, a tunnel between them, real packets through it.

It drives the same daemon with the same commands as an operator would, and leaves nothing behind.
"""

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privsep.cli.control import ask
from privsep.errors import OperatorError

PINGS = 3
"""In each direction."""
START_SECONDS = 60.0
UP_SECONDS = 60
INSIDE = "0a"
"""The inner networks are 10.1.0.0/16 and 10.2.0.0/16; both begin with this octet."""

GATEWAY_TOML = """\
[gateway]
dataplane = "auto"
users = {{ worker = 61001, keyd = 61002, userspace = 61003 }}

[connection.demo]
version   = "ikev1"
mode      = "main"
local     = "{local}"
remote    = "{remote}"
local_id  = "{name}.example.org"
remote_id = "{other}.example.org"
auth      = "psk"
ike       = ["aes256-sha256-modp2048"]

[connection.demo.child.net]
local_ts  = ["{inside}"]
remote_ts = ["{other_inside}"]
esp       = ["aes256gcm16-modp2048"]
start     = "wait"
"""

SECRETS_TOML = """\
[[psk]]
ids    = ["left.example.org", "right.example.org"]
secret = "base64:{psk}"
"""


class DemoError(Exception):
    """A step did not work; the text says which and shows what the daemon logged."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Site:
    """One gateway with the network behind it."""

    name: str
    other: str
    namespace: str
    interface: str
    address: str
    peer: str
    host: str
    """The gateway's own address inside, which sends and answers pings."""
    inside: str
    other_host: str
    other_inside: str
    directory: Path

    @property
    def run_dir(self) -> Path:
        """Where its daemon's sockets are."""
        return self.directory / "run"

    @property
    def log(self) -> Path:
        """What its daemon says."""
        return self.directory / "log"

    def command(self, *words: str) -> list[str]:
        """An argument list that runs `privsep-ike` on this gateway."""
        return [*self.inside_namespace(), sys.executable, "-I", "-m", "privsep", *words]

    def inside_namespace(self) -> list[str]:
        """The prefix that runs a command in this gateway's namespace."""
        return ["ip", "netns", "exec", self.namespace]


class Narrator:
    """Says what happens; silent with --json."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._step = 0

    def step(self, text: str) -> None:
        """A numbered heading."""
        self._step += 1
        self.say(f"\n{self._step}. {text}")

    def say(self, text: str) -> None:
        """A line as it is."""
        if not self.quiet:
            print(text, flush=True)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser("demo", help="two gateways in namespaces, real packets through the tunnel (root)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the story")
    parser.add_argument(
        "--keep", action="store_true", help="leave all running, and say what that is, how to look and how to end it"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 only if traffic passed encrypted both ways."""
    narrator = Narrator(quiet=arguments.json)
    if os.geteuid() != 0:
        print("demo: needs root, for network namespaces and the data plane; try sudo", file=sys.stderr)
        return 1
    if shutil.which("ip") is None or shutil.which("ping") is None:
        print("demo: needs the commands ip and ping (Debian: iproute2, iputils-ping)", file=sys.stderr)
        return 1
    try:
        with contextlib.ExitStack() as stack:
            document = _tell(stack, narrator, keep=arguments.keep)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    traffic = document["traffic"]
    passed = (
        traffic["pings_received"] == traffic["pings_sent"] > 0
        and traffic["cleartext_packets_seen"] == 0
        and traffic["encrypted_packets_seen"] >= 2 * traffic["pings_sent"]
    )
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        verdict = "passed encrypted in both directions" if passed else "did NOT pass as it should"
        print(f"\nTraffic {verdict}.", flush=True)
    return 0 if passed else 1


def _tell(stack: contextlib.ExitStack, narrator: Narrator, *, keep: bool) -> dict[str, Any]:
    directory = Path(tempfile.mkdtemp(prefix="privsep-ike-demo-"))
    # the daemons' unprivileged users must pass through to their own directories
    directory.chmod(0o755)
    left, right = _sites(directory)
    daemons: dict[Site, subprocess.Popen[bytes]] = {}
    if keep:
        stack.callback(_tell_kept, directory, (left, right), daemons)
    else:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)

    narrator.step("Two network namespaces stand for two gateways, joined by one wire (a veth pair).")
    _network(stack, left, right, keep=keep)
    for site in (left, right):
        narrator.say(f"   {site.name:5}  outside {site.address}, inside {site.inside}, pings as {site.host}")

    narrator.step("On each, the daemon starts as confined processes.")
    psk = secrets.token_urlsafe(32).replace("-", "+").replace("_", "/") + "="
    for site in (left, right):
        daemons[site] = _start(stack, site, psk, keep=keep)
    for site, daemon in daemons.items():
        _await(site, daemon)
        for line in _audit_lines(site):
            narrator.say(f"   {line}")

    narrator.step("A witness listens on the wire. The left gateway negotiates (Main Mode, then Quick Mode).")
    tap = _listen(stack, left, right)
    _up(left, narrator)

    narrator.step(f"Pings from inside to inside, {PINGS} each way.")
    received = sum(_ping(site, narrator) for site in (left, right))
    seen = _witness(tap)
    narrator.say(
        f"   on the wire: {seen['ike']} IKE messages, {seen['encrypted']} encrypted packets, "
        f"{seen['cleartext']} in clear"
    )

    narrator.step("What the gateways say now.")
    statuses = {site.name: _status(site) for site in (left, right)}
    if not narrator.quiet:
        subprocess.run(left.command("status", "--run-dir", str(left.run_dir)), check=False)
    return statuses["left"] | {
        "traffic": {
            "pings_sent": 2 * PINGS,
            "pings_received": received,
            "cleartext_packets_seen": seen["cleartext"],
            "encrypted_packets_seen": seen["encrypted"],
        },
        "gateways": statuses,
    }


def _tell_kept(directory: Path, sites: tuple[Site, ...], daemons: "dict[Site, subprocess.Popen[bytes]]") -> None:
    """What --keep keeps, also of a demo that failed or was interrupted, and how to end it."""
    pids = [str(daemon.pid) for daemon in daemons.values()]
    looks = [" ".join(site.command("status", "--run-dir", str(site.run_dir))) for site in daemons]
    ends = [
        *([f"kill {' '.join(pids)}"] if pids else []),
        *(f"ip netns del {site.namespace}" for site in sites),
        f"rm -r {directory}",
    ]
    lines = [
        "",
        "Kept:",
        f"   files        {directory} (configurations, secrets, logs, sockets)",
        f"   namespaces   {' '.join(site.namespace for site in sites)}",
        f"   daemons      {' '.join(pids) or 'none'}",
        "Look with:",
        *(f"   {look}" for look in looks),
        "End it with:",
        *(f"   {end}" for end in ends),
        "",
    ]
    sys.stderr.write("\n".join(lines))
    sys.stderr.flush()


def _sites(directory: Path) -> tuple[Site, Site]:
    mark = f"pike{os.getpid()}"
    left = Site(
        name="left", other="right", namespace=f"{mark}l", interface="wire0", address="192.0.2.1", peer="192.0.2.2",
        host="10.1.0.1", inside="10.1.0.0/16", other_host="10.2.0.1", other_inside="10.2.0.0/16",
        directory=directory / "left",
    )  # fmt: skip
    right = Site(
        name="right", other="left", namespace=f"{mark}r", interface="wire0", address="192.0.2.2", peer="192.0.2.1",
        host="10.2.0.1", inside="10.2.0.0/16", other_host="10.1.0.1", other_inside="10.1.0.0/16",
        directory=directory / "right",
    )  # fmt: skip
    return left, right


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _network(stack: contextlib.ExitStack, left: Site, right: Site, *, keep: bool) -> None:
    for site in (left, right):
        _ip("netns", "add", site.namespace)
        if not keep:
            stack.callback(subprocess.run, ["ip", "netns", "del", site.namespace], check=False)
    _ip("link", "add", left.interface, "netns", left.namespace, "type", "veth",
        "peer", "name", right.interface, "netns", right.namespace)  # fmt: skip
    for site in (left, right):
        _ip("-n", site.namespace, "link", "set", "lo", "up")
        _ip("-n", site.namespace, "address", "add", f"{site.host}/32", "dev", "lo")
        _ip("-n", site.namespace, "address", "add", f"{site.address}/24", "dev", site.interface)
        _ip("-n", site.namespace, "link", "set", site.interface, "up")
        # a default route, so that a packet that escaped the tunnel would show on the wire
        _ip("-n", site.namespace, "route", "add", "default", "via", site.peer)


def _start(stack: contextlib.ExitStack, site: Site, psk: str, *, keep: bool) -> "subprocess.Popen[bytes]":
    site.directory.mkdir()
    site.run_dir.mkdir()
    config, secret = (site.directory / name for name in ("gateway.toml", "secrets.toml"))
    inner = {"inside": site.inside, "other_inside": site.other_inside}
    outer = {"local": site.address, "remote": site.peer, "name": site.name, "other": site.other}
    config.write_text(GATEWAY_TOML.format(**outer, **inner))
    secret.touch(mode=0o600)
    secret.write_text(SECRETS_TOML.format(psk=psk))
    with site.log.open("wb") as output:
        daemon = subprocess.Popen(
            site.command("run", "--config", str(config), "--secrets", str(secret), "--run-dir", str(site.run_dir)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    if not keep:
        stack.callback(_stop, daemon)
    return daemon


def _await(site: Site, daemon: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(site):
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise DemoError(f"the {site.name} gateway's daemon did not start:\n{site.log.read_text(errors='replace')}")
        time.sleep(0.1)


def _stop(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _answers(site: Site) -> bool:
    try:
        result = ask(str(site.run_dir), {"command": "status"}, seconds=START_SECONDS)
    except OperatorError:
        return False
    return bool(result["status"]["worker"] == "running")


def _status(site: Site) -> dict[str, Any]:
    return _json_of(site, "status")


def _json_of(site: Site, command: str) -> dict[str, Any]:
    done = subprocess.run(
        site.command(command, "--json", "--run-dir", str(site.run_dir)), capture_output=True, text=True, check=False
    )
    try:
        document = json.loads(done.stdout)
    except ValueError:
        raise DemoError(f"{command} on the {site.name} gateway: {done.stderr.strip()}") from None
    if not isinstance(document, dict):
        raise DemoError(f"{command} on the {site.name} gateway printed no object")
    return document


def _audit_lines(site: Site) -> Iterator[str]:
    done = subprocess.run(
        site.command("audit", "--run-dir", str(site.run_dir)), capture_output=True, text=True, check=False
    )
    yield f"{site.name}:"
    for line in done.stdout.splitlines():
        yield f"  {line}"
    if done.returncode:
        raise DemoError(f"audit on the {site.name} gateway found a weaker confinement:\n{done.stdout}{done.stderr}")


def _up(site: Site, narrator: Narrator) -> None:
    process = subprocess.Popen(
        site.command("up", "demo/net", "--timeout", str(UP_SECONDS), "--run-dir", str(site.run_dir)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    if process.stdout is not None:
        for line in process.stdout:
            lines.append(line)
            narrator.say(f"   {line.rstrip()}")
    if process.wait():
        log = site.log.read_text(errors="replace")
        raise DemoError(f"the tunnel did not come up:\n{''.join(lines)}\nlog of {site.name}:\n{log}")


def _listen(stack: contextlib.ExitStack, *ends: Site) -> "subprocess.Popen[str]":
    namespaces = [site.namespace for site in ends]
    tap = subprocess.Popen(
        [sys.executable, "-I", "-m", "privsep.cli.wiretap", ends[0].interface, INSIDE, *namespaces],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.callback(tap.kill)
    if tap.stdout is None or tap.stdout.readline() != "ready\n":
        raise DemoError("the witness on the wire did not start")
    return tap


def _witness(tap: "subprocess.Popen[str]") -> dict[str, int]:
    output, _ = tap.communicate(timeout=10)
    counts: dict[str, int] = json.loads(output)
    return counts


def _ping(site: Site, narrator: Narrator) -> int:
    done = subprocess.run(
        [*site.inside_namespace(), "ping", "-n", "-q", "-c", str(PINGS), "-i", "0.2", "-W", "2",
         "-I", site.host, site.other_host],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    match = re.search(r"(\d+) received", done.stdout)
    received = int(match.group(1)) if match else 0
    narrator.say(f"   {site.host} -> {site.other_host}: {received} of {PINGS} answered")
    return received
