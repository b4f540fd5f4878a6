"""strongSwan and libreswan, as Debian builds them, in network namespaces."""

import os
import subprocess
from pathlib import Path

from lab import LEFT, LEFT_HOST, PSK, RIGHT, RIGHT_HOST, Site, run, wait_for

CHARON = Path("/usr/lib/ipsec/charon")
LIBRESWAN = Path(__file__).resolve().parents[2] / ".venv" / "libreswan"
SECONDS = 120

STRONGSWAN_CONF = """\
charon {{
  load = random nonce openssl aes sha1 sha2 md5 hmac kdf gmp curve25519 gcm ccm ctr {plugins}
  retransmit_tries = 3
  retransmit_timeout = 2
  install_routes = yes
  plugins {{ vici {{ socket = unix://{directory}/vici }} }}
  filelog {{ log {{ path = {directory}/log
      default = 1
      flush_line = yes }} }}
}}
swanctl {{ load = pem pkcs1 x509 openssl random }}
"""

SWANCTL_CONF = """\
connections {{ peer {{
  version = {version}
  {more}
  proposals = {ike}
  local_addrs = {local}
  remote_addrs = {remote}
  local {{ auth = psk
           id = {local_id} }}
  remote {{ auth = psk
            id = {remote_id} }}
  children {{ net {{
    local_ts = {inner}/32
    remote_ts = {other}/32
    esp_proposals = {esp} }} }} }} }}
secrets {{ ike-peer {{ secret = "{psk}" }} }}
"""


class Daemon:
    """Another daemon in a namespace; what the machine itself has in /run is left alone."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._environment = dict(os.environ)
        self._process: subprocess.Popen | None = None

    def up(self, connection: str) -> str:
        """Have it negotiate; what went wrong, or nothing."""
        raise NotImplementedError

    def text(self) -> str:
        """Its log."""
        log = self.site.directory / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    @property
    def pid(self) -> int:
        """Of its only process."""
        return self._process.pid

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _spawn(self, script: str, socket: str) -> None:
        # of one that was killed
        (self.site.directory / socket).unlink(missing_ok=True)
        with (self.site.directory / "out").open("wb") as output:
            self._process = subprocess.Popen(
                self.site.command("sh", "-c", script), stdout=output, stderr=output, env=self._environment
            )
        ready = wait_for((self.site.directory / socket).exists, SECONDS)
        assert ready, (self.site.directory / "out").read_text(errors="replace")

    def _do(self, *words: str) -> subprocess.CompletedProcess[str]:
        words = self.site.command(*words)
        return subprocess.run(
            words, capture_output=True, text=True, env=self._environment, timeout=SECONDS, check=False
        )

    def _told(self, *words: str) -> str:
        """Nothing if it did as it was told, else its last words."""
        done = self._do(*words)
        return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()


class StrongSwan(Daemon):
    """Debian's charon. `esp` is the plugin that carries it: the kernel's, or in user space kernel-libipsec."""

    def __init__(self, site: Site, esp: str = "") -> None:
        super().__init__(site)
        self._plugins = f"{esp} kernel-netlink socket-default vici updown"
        self._environment["STRONGSWAN_CONF"] = str(site.directory / "strongswan.conf")

    def start(
        self,
        ike: str,
        esp: str,
        *,
        psk: str = PSK,
        ids: tuple[str, str] = (LEFT, RIGHT),
        version: int = 1,
        more: str = "",
    ) -> None:
        """With one connection between the two sites of a `lab.Network`; `ids` are the left's and the right's.

        `more` are settings of it.
        """
        here, there = (LEFT, LEFT_HOST, ids[0]), (RIGHT, RIGHT_HOST, ids[1])
        if self.site.outer == RIGHT:
            here, there = there, here
        (local, inner, local_id), (remote, other, remote_id) = here, there
        self.launch(
            SWANCTL_CONF.format(
                version=version,
                more=more,
                ike=ike,
                esp=esp,
                local=local,
                remote=remote,
                local_id=local_id,
                remote_id=remote_id,
                inner=inner,
                other=other,
                psk=psk,
            )
        )

    def launch(self, swanctl_conf: str) -> None:
        directory = self.site.directory
        settings = STRONGSWAN_CONF.format(directory=directory, plugins=self._plugins)
        (directory / "strongswan.conf").write_text(settings)
        (directory / "swanctl.conf").write_text(swanctl_conf)
        # its pid file has a fixed place in /run: give it a /run of its own
        self._spawn(f"mount -t tmpfs tmpfs /run && exec {CHARON}", "vici")
        self.swanctl("--load-all", "--file", str(directory / "swanctl.conf"))

    def up(self, connection: str) -> str:
        return self._told(*self._swanctl("--initiate", "--child", connection, "--timeout", "60"))

    def swanctl(self, command: str, *words: str, check: bool = True) -> str:
        """What it says."""
        done = self._do(*self._swanctl(command, *words))
        assert not check or done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.text()}"
        return done.stdout + done.stderr

    def _swanctl(self, command: str, *words: str) -> list[str]:
        return ["swanctl", command, "--uri", f"unix://{self.site.directory}/vici", *words]


class Libreswan(Daemon):
    """Debian's pluto, unpacked by `make peers`."""

    def launch(self, ipsec_conf: str, secrets: str, connections: list[str]) -> None:
        directory = self.site.directory
        (directory / "ipsec.conf").write_text(ipsec_conf)
        (directory / "secrets").touch(mode=0o600)
        (directory / "secrets").write_text(secrets)
        (directory / "nss").mkdir()
        run("certutil", "-N", "-d", f"sql:{directory}/nss", "--empty-password", timeout=SECONDS)
        # it calls its helpers by their full paths
        self._spawn(
            f"mount --bind {LIBRESWAN}/usr/libexec /usr/libexec && exec /usr/libexec/ipsec/pluto --nofork"
            f" --config {directory}/ipsec.conf --rundir {directory} --ipsecdir {directory} --nssdir {directory}/nss"
            f" --secretsfile {directory}/secrets --dumpdir {directory} --no-dnssec --logfile {directory}/log",
            "pluto.ctl",
        )
        refused = self._libexec("whack", "--rundir", str(directory), "--listen") or self._libexec(
            "addconn", "--config", f"{directory}/ipsec.conf", "--ctlsocket", f"{directory}/pluto.ctl", *connections
        )
        assert not refused, f"{refused}\n{self.text()}"

    def up(self, connection: str) -> str:
        return self._libexec("whack", "--rundir", str(self.site.directory), "--initiate", "--name", connection)

    def _libexec(self, command: str, *words: str) -> str:
        return self._told(str(LIBRESWAN / "usr/libexec/ipsec" / command), *words)
