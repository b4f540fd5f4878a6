"""The responders that the benchmark compares: ours, Debian's charon, Debian's pluto. All pinned to one core.

charon and pluto run over a preloaded shim that turns their SA installations into nothing, as the kernel may
have no ESP; ours installs into the userspace ESP process or, with the same shim under the monitor, into nothing.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHIM_SOURCE = REPOSITORY.parent / "shared" / "peers" / "fakexfrm.c"
LIBRESWAN = REPOSITORY / ".venv" / "libreswan"
CHARON = Path("/usr/lib/ipsec/charon")
LEFT, RIGHT = "192.0.2.1", "192.0.2.2"
LEFT_HOST, RIGHT_HOST = "10.1.0.1", "10.2.0.1"
PSK = "benchmark, not secrecy"
_CPUCLOCK_SCHED = 2
RESPONDER_CPU, INITIATOR_CPU = "0", "1"


def build_shim(directory: Path) -> Path | None:
    """The shim, or None where its source or a compiler is missing."""
    if not SHIM_SOURCE.exists() or shutil.which("cc") is None:
        return None
    shim = directory / "fakexfrm.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(shim), str(SHIM_SOURCE), "-ldl"], check=True)
    return shim


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads: its CPU clock, as clock_getcpuclockid(3) numbers it.

    /proc/PID/stat has the same in ticks of 10 ms, which is coarse for four processes and some hundred handshakes.
    """
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def resident_kb(pids: Iterable[int]) -> int:
    """Proportional set size, so that pages shared by our processes count once."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total


class Unsupported(Exception):
    """A responder does not do what the suite asks for; the text is its own reason."""


class Responder(ABC):
    """A daemon in the namespace `namespace`, answering for RIGHT."""

    name: str

    def __init__(self, namespace: str, directory: Path, shim: Path | None) -> None:
        self.namespace = namespace
        self.directory = directory / self.name.replace(" ", "-")
        self.directory.mkdir(parents=True)
        self.directory.chmod(0o755)
        self.shim = shim
        self.process: subprocess.Popen | None = None

    @abstractmethod
    def missing(self) -> str | None:
        """What this machine lacks to run it."""

    @abstractmethod
    def start(self, ike: str, esp: str) -> None:
        """Start and be ready to answer; Unsupported when it refuses the proposals."""

    def processes(self) -> dict[str, int]:
        """Name and pid of all of its processes."""
        return {self.name: self.process.pid}

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def _spawn(self, *words: str, environment: dict[str, str] | None = None) -> None:
        preload = {"LD_PRELOAD": str(self.shim)} if self.shim is not None else {}
        with (self.directory / "out").open("wb") as output:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "taskset", "-c", RESPONDER_CPU, *words],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **preload, **(environment or {})},
            )

    def _await(self, path: Path) -> None:
        deadline = time.monotonic() + 20
        while not path.exists():
            if time.monotonic() > deadline or (self.process is not None and self.process.poll() is not None):
                raise RuntimeError(f"{self.name} did not start: {(self.directory / 'out').read_text()}")
            time.sleep(0.05)


class Ours(Responder):
    name = "privsep-ike"
    remote = LEFT

    def missing(self) -> str | None:
        return None

    def start(self, ike: str, esp: str) -> None:
        config, secrets, run = (self.directory / each for each in ("gateway.toml", "secrets.toml", "run"))
        config.write_text(
            f"""
[gateway]
dataplane = "userspace"
users = {{ worker = 63001, keyd = 63002, userspace = 63003 }}
[connection.bench]
version = "ikev1"
local = "{RIGHT}"
remote = "{self.remote}"
local_id = "{RIGHT}"
remote_id = "{LEFT}"
auth = "psk"
ike = ["{ike}"]
[connection.bench.child.net]
local_ts = ["{RIGHT_HOST}/32"]
remote_ts = ["{LEFT_HOST}/32"]
esp = ["{esp}"]
start = "wait"
"""
        )
        secrets.touch(mode=0o600)
        secrets.write_text(f'[[psk]]\nids = ["{LEFT}", "{RIGHT}"]\nsecret = "{PSK}"\n')
        run.mkdir()
        self._run = run
        self.shim = None
        self._spawn(
            sys.executable, "-I", "-m", "privsep", "run", "--config", str(config), "--secrets", str(secrets),
            "--run-dir", str(run),
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while len(self.processes()) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.5)

    def processes(self) -> dict[str, int]:
        parent = self.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return {"monitor": parent} | {_module(pid): int(pid) for pid in children}


class Charon(Responder):
    name = "strongSwan charon"

    def missing(self) -> str | None:
        if not CHARON.exists() or shutil.which("swanctl") is None:
            return "strongSwan is not installed (make peers)"
        return None if self.shim is not None else "../shared/peers/fakexfrm.c or a compiler is missing"

    def start(self, ike: str, esp: str) -> None:
        settings, vici = self.directory / "strongswan.conf", self.directory / "vici"
        settings.write_text(
            f"""
charon {{
  load = random nonce openssl aes sha1 sha2 hmac kdf gmp curve25519 gcm kernel-netlink socket-default vici
  plugins {{ vici {{ socket = unix://{vici} }} }}
  filelog {{ log {{ path = {self.directory}/log
      default = 0 }} }}
}}
swanctl {{ load = pem pkcs1 x509 openssl random }}
"""
        )
        swanctl = self.directory / "swanctl.conf"
        swanctl.write_text(
            f"""
connections {{ bench {{
  version = 1
  unique = never
  proposals = {ike}
  local_addrs = {RIGHT}
  remote_addrs = {LEFT}
  local {{ auth = psk }}
  remote {{ auth = psk }}
  children {{ net {{
    local_ts = {RIGHT_HOST}/32
    remote_ts = {LEFT_HOST}/32
    esp_proposals = {esp} }} }} }} }}
secrets {{ ike-bench {{ secret = "{PSK}" }} }}
"""
        )
        environment = {"STRONGSWAN_CONF": str(settings)}
        self._spawn("sh", "-c", f"mount -t tmpfs tmpfs /run && exec {CHARON}", environment=environment)
        self._await(vici)
        subprocess.run(
            ["swanctl", "--load-all", "--file", str(swanctl), "--uri", f"unix://{vici}"],
            env={**os.environ, **environment}, check=True, capture_output=True,
        )  # fmt: skip


class Pluto(Responder):
    name = "libreswan pluto"

    def missing(self) -> str | None:
        if not (LIBRESWAN / "usr/libexec/ipsec/pluto").exists():
            return "libreswan is not unpacked (make peers)"
        return None if self.shim is not None else "../shared/peers/fakexfrm.c or a compiler is missing"

    def start(self, ike: str, esp: str) -> None:
        libexec = LIBRESWAN / "usr/libexec/ipsec"
        config, secrets, nss = self.directory / "ipsec.conf", self.directory / "ipsec.secrets", self.directory / "nss"
        cipher, digest, group = ike.split("-")
        esp_cipher, *rest = esp.split("-")
        names = {"sha256": "sha2_256", "curve25519": "dh31", "aes256gcm16": "aes_gcm256", "aes128gcm16": "aes_gcm128"}
        group = names.get(group, group)
        proposal = "-".join([names.get(esp_cipher, esp_cipher), *(names.get(r, r) for r in rest if r in ("sha256",))])
        pfs = [names.get(r, r) for r in rest if r not in ("sha256",)]
        config.write_text(
            f"""
version 2.0
config setup
\tuniqueids=no
\tikev1-policy=accept
conn bench
\tleft={LEFT}
\tright={RIGHT}
\tleftsubnet={LEFT_HOST}/32
\trightsubnet={RIGHT_HOST}/32
\tauthby=secret
\tleftupdown=%disabled
\trightupdown=%disabled
\tikev2=no
\tike={cipher}-{names.get(digest, digest)};{group}
\tesp={proposal}{";" + pfs[0] if pfs else ""}
\tpfs={"yes" if pfs else "no"}
\tauto=add
"""
        )
        secrets.write_text(f'{LEFT} {RIGHT} : PSK "{PSK}"\n')
        secrets.chmod(0o600)
        nss.mkdir()
        subprocess.run(["certutil", "-N", "-d", f"sql:{nss}", "--empty-password"], check=True)
        control = self.directory / "pluto.ctl"
        self._spawn(
            "sh", "-c",
            f"mount --bind {LIBRESWAN}/usr/libexec /usr/libexec && exec /usr/libexec/ipsec/pluto --nofork"
            f" --config {config} --rundir {self.directory} --ipsecdir {self.directory} --nssdir {nss}"
            f" --secretsfile {secrets} --dumpdir {self.directory} --no-dnssec --logfile {self.directory}/log",
        )  # fmt: skip
        self._await(control)
        self._run(str(libexec / "whack"), "--rundir", str(self.directory), "--listen")
        added = self._run(str(libexec / "addconn"), "--config", str(config), "--ctlsocket", str(control), "bench")
        if added.returncode:
            said = [line.partition(': "bench": ')[2] for line in (self.directory / "log").read_text().splitlines()]
            raise Unsupported("; ".join(filter(None, dict.fromkeys(said))) or "addconn failed")

    def _run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["ip", "netns", "exec", self.namespace, *words], check=False, capture_output=True)


def _module(pid: str) -> str:
    """What `python -m` runs in that process, without its package."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return words[words.index("-m") + 1].rpartition(".")[2] if "-m" in words else "starting"


ALL: tuple[type[Responder], ...] = (Ours, Charon, Pluto)
