"""Two gateways in namespaces: ours on the left, another daemon (or ours again) on the right, real packets between."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LEFT, RIGHT = "192.0.2.1", "192.0.2.2"
LEFT_HOST, RIGHT_HOST = "10.1.0.1", "10.2.0.1"
CHARON = Path("/usr/lib/ipsec/charon")
PSK = "interoperability, not secrecy"


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


class Network:
    def __init__(self, directory: Path) -> None:
        mark = f"pikt{os.getpid()}"
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
    """Counts on the left's wire what a stranger could read."""

    def __init__(self, site: Site) -> None:
        self._process = subprocess.Popen(
            site.command(sys.executable, "-I", "-m", "privsep.cli.wiretap", "wire0", "0a"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout.readline() == "ready\n"

    def counts(self) -> dict[str, int]:
        output, _ = self._process.communicate(timeout=10)
        return json.loads(output)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


CONNECTION = """\
[gateway]
dataplane = "userspace"
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
start     = "wait"
"""


class Ours:
    """Our daemon."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.run_dir = site.directory / "run"
        self.log = site.directory / "log"
        self.process: subprocess.Popen | None = None

    def start(self, ike: str, esp: str, *, psk: str = PSK, encap: str = "auto", uid: int = 62001) -> None:
        other = RIGHT_HOST if self.site.inner == LEFT_HOST else LEFT_HOST
        remote = RIGHT if self.site.outer == LEFT else LEFT
        config, secrets = self.site.directory / "gateway.toml", self.site.directory / "secrets.toml"
        config.write_text(
            CONNECTION.format(
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
        secrets.touch(mode=0o600)
        secrets.write_text(f'[[psk]]\nids = ["{LEFT}", "{RIGHT}"]\nsecret = "{psk}"\n')
        self.run_dir.mkdir(exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.words("run", "--config", str(config), "--secrets", str(secrets)), stdout=log, stderr=log
            )
        ready = wait_for(lambda: self.process.poll() is not None or self.is_ready(), 20)
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

    def status(self) -> dict:
        return json.loads(self.cli("status", "--json").stdout)

    def children(self) -> list[dict]:
        return [child for sa in self.status()["ike_sas"] for child in sa["children"]]

    def processes(self) -> dict[str, int]:
        done = self.cli("audit", "--json", check=False)
        return {each["name"]: each["pid"] for each in json.loads(done.stdout)["processes"]}

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


SWANCTL_CONF = """\
connections {{ peer {{
  version = 1
  proposals = {ike}
  local_addrs = {local}
  remote_addrs = {remote}
  local {{ auth = psk
           id = {local} }}
  remote {{ auth = psk
            id = {remote} }}
  children {{ net {{
    local_ts = {inner}/32
    remote_ts = {other}/32
    esp_proposals = {esp} }} }} }} }}
secrets {{ ike-peer {{ secret = "{psk}" }} }}
"""

PLUGINS = "kernel-libipsec kernel-netlink socket-default vici updown"

STRONGSWAN_CONF = """\
charon {{
  load = random nonce openssl aes sha1 sha2 hmac kdf gmp curve25519 gcm {rest}
  retransmit_tries = 3
  retransmit_timeout = 2
  install_routes = yes
  plugins {{ vici {{ socket = unix://{directory}/vici }} }}
  filelog {{ log {{ path = {directory}/charon.log
      default = 1
      flush_line = yes }} }}
}}
swanctl {{ load = pem pkcs1 x509 openssl random }}
"""


class StrongSwan:
    """Debian's charon with ESP in user space (kernel-libipsec)."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.process: subprocess.Popen | None = None
        self._environment = {**os.environ, "STRONGSWAN_CONF": str(site.directory / "strongswan.conf")}

    def start(self, ike: str, esp: str, *, psk: str = PSK) -> None:
        directory = self.site.directory
        other = RIGHT_HOST if self.site.inner == LEFT_HOST else LEFT_HOST
        remote = RIGHT if self.site.outer == LEFT else LEFT
        (directory / "strongswan.conf").write_text(
            STRONGSWAN_CONF.format(directory=directory, rest=PLUGINS)
        )
        (directory / "swanctl.conf").write_text(
            SWANCTL_CONF.format(
                ike=ike, esp=esp, local=self.site.outer, remote=remote, inner=self.site.inner, other=other, psk=psk
            )
        )
        with (directory / "charon.out").open("wb") as output:
            # charon's pid file has a fixed place in /run: give it a /run of its own
            self.process = subprocess.Popen(
                self.site.command("sh", "-c", f"mount -t tmpfs tmpfs /run && exec {CHARON}"),
                stdout=output, stderr=output, env=self._environment,
            )  # fmt: skip
        assert wait_for((directory / "vici").exists), (directory / "charon.out").read_text()
        self.swanctl("--load-all", "--file", str(directory / "swanctl.conf"))

    def swanctl(self, command: str, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            ["swanctl", command, "--uri", f"unix://{self.site.directory}/vici", *words],
            capture_output=True, text=True, timeout=60, env=self._environment, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.text()}"
        return done.stdout + done.stderr

    def text(self) -> str:
        log = self.site.directory / "charon.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


@pytest.fixture
def network(tmp_path_factory) -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("root is missing: namespaces need it")
    for tool in ("ip", "ping"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    directory = tmp_path_factory.mktemp("site")
    for parent in (directory, directory.parent, directory.parent.parent):
        # the daemon's unprivileged users must pass through
        parent.chmod(0o755)
    made = Network(directory)
    made.up()
    yield made
    made.down()


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
    daemon = StrongSwan(network.right)
    yield daemon
    daemon.stop()


@pytest.fixture
def wiretap(network) -> Iterator[Wiretap]:
    tap = Wiretap(network.left)
    yield tap
    tap.close()
