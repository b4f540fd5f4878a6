"""When `run` says that it is ready (systemd's Type=notify): everything that is to be protected is, however much."""

import os
import socket
import subprocess
import time

import pytest

pytestmark = pytest.mark.root

CONNECTIONS = 1200
READY_SECONDS = 90.0
"""systemd's DefaultTimeoutStartSec; a tenth of it would do here on a machine with nothing else to do."""


def test_ready_comes_when_every_policy_is_in_place(network, ours, tmp_path):
    site = ours.site
    ours.configure("aes256-sha256-modp2048", "aes256gcm16")
    gateway, peers, secrets = ours.config.read_text().split("[connection.")[0], [], []
    for number in range(CONNECTIONS):
        remote = f"198.18.{number // 250}.{number % 250 + 1}"
        peers.append(
            f'[connection.c{number}]\nlocal = "{site.outer}"\nremote = "{remote}"\n'
            f'[connection.c{number}.child.net]\nlocal_ts = ["{site.inner}/32"]\n'
            f'remote_ts = ["172.16.{number // 250}.{number % 250}/32"]\n'
        )
        secrets.append(f'[[psk]]\nids = ["{site.outer}", "{remote}"]\nsecret = "{"0123456789abcdef" * 2}{number}"\n')
    ours.config.write_text(gateway + "".join(peers))
    ours.secrets.write_text("".join(secrets))

    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(READY_SECONDS)
    ours.run_dir.mkdir()
    words = ours.words("run", "--config", str(ours.config), "--secrets", str(ours.secrets))
    began = time.monotonic()
    with ours.log.open("wb") as log, manager:
        ours.process = subprocess.Popen(
            words, stdout=log, stderr=log, env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        )
        assert manager.recv(100) == b"READY=1", ours.text()
    placed = network.ip(site, "route", "show", "table", "all", "type", "unreachable").count("172.16.")
    print(f"{placed} policies placed when ready, after {time.monotonic() - began:.1f} s")
    assert placed == CONNECTIONS
