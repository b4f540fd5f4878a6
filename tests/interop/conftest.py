"""Two gateways in namespaces: ours on the left, another daemon (or ours again) on the right, real packets between."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import LEFT, LEFT_HOST, PSK, RIGHT, RIGHT_HOST, Network, Ours, Site, Wiretap, made, wait_for

CHARON = Path("/usr/lib/ipsec/charon")

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
  load = random nonce openssl aes sha1 sha2 md5 hmac kdf gmp curve25519 gcm ccm ctr {rest}
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

    plugins = PLUGINS

    def __init__(self, site: Site) -> None:
        self.site = site
        self.process: subprocess.Popen | None = None
        self._environment = {**os.environ, "STRONGSWAN_CONF": str(site.directory / "strongswan.conf")}

    def start(self, ike: str, esp: str, *, psk: str = PSK) -> None:
        directory = self.site.directory
        other = RIGHT_HOST if self.site.inner == LEFT_HOST else LEFT_HOST
        remote = RIGHT if self.site.outer == LEFT else LEFT
        (directory / "strongswan.conf").write_text(STRONGSWAN_CONF.format(directory=directory, rest=self.plugins))
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
    yield from made(tmp_path_factory, "pikt")


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
    tap = Wiretap(network)
    yield tap
    tap.close()
