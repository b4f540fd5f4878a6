"""Floods of first messages from forged addresses, against a real worker: bounded memory, and peers get in meanwhile."""

import itertools
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import LEFT, RIGHT, run
from spoof import first_message, padded, raw_socket, send

pytestmark = pytest.mark.root

IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
PER_SECOND = 300
MAX_GROWTH_KB = 32 << 10


def resident_kb(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


@contextmanager
def flood(network, octets: int, source) -> Iterator[list[int]]:
    """As long as it lasts, and so many messages so far."""
    sock, over, sent = network.right.enter(raw_socket), threading.Event(), [0]
    template = first_message(IKE)

    def work() -> None:
        began = time.monotonic()
        for number in itertools.count():
            if over.is_set():
                return
            send(sock, padded(template, octets, number) if octets else template, *source(number), LEFT)
            sent[0] += 1
            time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield sent
    finally:
        over.set()
        thread.join()
        sock.close()


def from_anywhere(number: int) -> tuple[str, int]:
    return f"10.77.{random.randrange(256)}.{random.randrange(1, 255)}", 500


def from_the_peer(number: int) -> tuple[str, int]:
    return RIGHT, 1024 + number % 60000


@pytest.mark.parametrize(("octets", "source"), [(50_000, from_anywhere), (14_000, from_anywhere), (0, from_the_peer)])
def test_a_flood_costs_a_worker_little_memory_and_its_peers_nothing(network, ours, theirs, octets, source):
    """50 KB at 200 a second took 120 MB in four seconds, and gave nothing back."""
    for site in (network.left, network.right):
        run("ip", "-n", site.namespace, "link", "set", "wire0", "mtu", "60000")
    run(*network.left.command("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.wire0.rp_filter=0"))
    ours.configure(IKE, ESP)
    if source is from_anywhere:
        ours.config.write_text(ours.config.read_text().replace(f'remote = "{RIGHT}"', 'remote = "any"'))
    ours.launch()
    theirs.start(IKE, ESP, uid=62011)
    worker = ours.processes()["worker"]
    before = resident_kb(worker)
    with flood(network, octets, source) as sent:
        time.sleep(3)
        began = time.monotonic()
        theirs.cli("up", "peer/net")
        took = time.monotonic() - began
        time.sleep(1)
    assert sent[0] > PER_SECOND
    assert ours.processes()["worker"] == worker
    assert resident_kb(worker) - before < MAX_GROWTH_KB
    assert took < 20
    assert network.right.ping(network.left.inner) == 3
