import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

STATUS = {
    "schema_version": 1,
    "dataplane": "userspace",
    "dataplane_reason": "the kernel has no ESP",
    "worker": "running",
    "connections": [
        {
            "name": "paris",
            "state": "established",
            "local": "192.0.2.1",
            "remote": "192.0.2.2",
            "local_id": "gw1.example.org",
            "remote_id": "gw2.example.org",
            "children": [{"name": "lan", "state": "installed", "local_ts": ["10.1.0.0/16"]}],
        },
        {
            "name": "berlin",
            "state": "down",
            "local": "any",
            "remote": "198.51.100.0/24",
            "local_id": "gw1.example.org",
            "remote_id": None,
            "children": [{"name": "net", "state": "down", "local_ts": ["10.1.0.0/16"], "remote_ts": ["10.9.0.0/16"]}],
        },
    ],
    "ike_sas": [
        {
            "connection": "paris",
            "version": "ikev1",
            "role": "initiator",
            "mode": "main",
            "state": "established",
            "local": "192.0.2.1[500]",
            "remote": "192.0.2.2[500]",
            "local_id": "gw1.example.org",
            "remote_id": "gw2.example.org",
            "auth": "psk",
            "cookies": ["0x0102030405060708", "0x1112131415161718"],
            "proposal": "aes256-sha256-modp2048",
            "nat": "none",
            "established_s": 3,
            "rekey_in_s": 28000,
            "children": [
                {
                    "name": "lan",
                    "state": "installed",
                    "protocol": "esp",
                    "mode": "tunnel",
                    "spi_in": "0xc0000001",
                    "spi_out": "0xc0000002",
                    "proposal": "aes256gcm16-modp2048",
                    "local_ts": ["10.1.0.0/16"],
                    "remote_ts": ["10.2.0.0/16"],
                    "bytes_in": 252,
                    "bytes_out": 1536,
                    "packets_in": 3,
                    "packets_out": 3,
                    "expires_in_s": 3500,
                }
            ],
        }
    ],
    "adopted": [],
}


@pytest.fixture
def status_document():
    """A fresh copy of what a daemon answers."""
    return json.loads(json.dumps(STATUS))


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short, because a socket's path has 107 octets at most."""
    with tempfile.TemporaryDirectory(prefix="cli") as name:
        yield Path(name)


@pytest.fixture
def cli():
    """Runs the command as an operator would."""

    def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "privsep", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=os.environ | variables,
        )

    return run


@pytest.fixture
def daemon(run_dir):
    """`daemon(*lines)`: answers one request with these lines (dicts, or octets as they are), then hangs up.

    Returns the list into which the request comes; with `linger`, it stays connected until the client leaves.
    """
    threads, sockets = [], []

    def start(*lines: dict | bytes, linger: bool = False) -> list[dict]:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(run_dir / "control.sock"))
        listener.listen()
        requests: list[dict] = []

        def serve() -> None:
            client, _ = listener.accept()
            # a client may leave before it has read everything
            with contextlib.suppress(OSError), client, client.makefile("rb") as file:
                requests.append(json.loads(file.readline()))
                for line in lines:
                    client.sendall(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
                if linger:
                    file.read()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        threads.append(thread)
        sockets.append(listener)
        return requests

    yield start
    for thread in threads:
        thread.join(5)
    for sock in sockets:
        sock.close()
