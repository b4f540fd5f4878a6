"""The live daemon under bad input: thousands of datagrams that no honest peer sends, beside a tunnel that works.

All are sent on the wire itself, so that any source address and port can be claimed: what a stranger on the path can do.
"""

import random
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import LEFT, RIGHT, wait_for

pytestmark = pytest.mark.root

IKE_PORT, NATT_PORT = 500, 4500
NON_ESP_MARKER = bytes(4)
GOLDEN = Path(__file__).parents[1] / "golden" / "isakmp"
MAIN_MODE, INFORMATIONAL, QUICK_MODE = 2, 5, 32
ENCRYPTED = 1
HASH, NOTIFY, DELETE = 8, 11, 12
MIN_SENT = 200
READING_SECONDS = 20
MAX_GROWTH_KB = 16 * 1024
"""1536 SAs of strangers at some 8 KB each, and what the allocator keeps."""
MAX_LOG_OCTETS = 64 * 1024


class Stranger:
    """Sends from whatever address and port, and after each burst waits until the daemon has read it."""

    BURST = 25

    def __init__(self, site, victim) -> None:
        self._victim = victim
        self._socket = site.enter(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        self.sent = 0

    def send(self, data: bytes, *, port: int = IKE_PORT, source: str = RIGHT, source_port: int = IKE_PORT) -> None:
        # RFC 768: a checksum of zero was not computed; the kernel fills in what IP needs
        udp = struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(LEFT))
        self._socket.sendto(ip + udp, (LEFT, 0))
        self.sent += 1
        if self.sent % self.BURST == 0:
            deadline = time.monotonic() + READING_SECONDS
            while self._victim.enter(unread) and time.monotonic() < deadline:
                time.sleep(0.001)

    def send_to_both(self, data: bytes) -> None:
        """The same message on port 500 and, behind the non-ESP marker, on 4500."""
        self.send(data)
        self.send(NON_ESP_MARKER + data, port=NATT_PORT, source_port=NATT_PORT)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def stranger(network) -> Iterator[Stranger]:
    made = Stranger(network.right, network.left)
    yield made
    made.close()


@pytest.fixture
def chance() -> random.Random:
    return random.Random(2408)


@pytest.fixture
def unharmed(network, tunnel, theirs, stranger):
    """Afterwards: all was read; the same processes, SAs and traffic; bounded memory and log; `up` still works."""
    site = network.left
    pids, child = tunnel.processes(), tunnel.children()[0]
    resident, logged = resident_kb(pids["worker"]), len(tunnel.text())
    read, lost = arrived(site), counted(site, "RcvbufErrors")
    yield
    assert stranger.sent >= MIN_SENT
    wait_for(lambda: arrived(site) - read >= stranger.sent, 20)
    assert counted(site, "RcvbufErrors") == lost, "the stranger is too fast: the daemon has not seen all of it"
    assert arrived(site) - read >= stranger.sent, tunnel.text()
    assert tunnel.processes() == pids, tunnel.text()
    (sa,) = (sa for sa in tunnel.status()["ike_sas"] if sa["state"] == "established")
    assert [(each["spi_in"], each["spi_out"], each["state"]) for each in sa["children"]] == [
        (child["spi_in"], child["spi_out"], "installed")
    ]
    assert network.left.ping(network.right.inner) == 3
    growth, log = resident_kb(pids["worker"]) - resident, len(tunnel.text()) - logged
    print(f"{stranger.sent} datagrams: the worker grew by {growth} KB, the log by {log} octets")
    assert growth < MAX_GROWTH_KB
    assert log < MAX_LOG_OCTETS
    tunnel.cli("down", "peer")
    tunnel.up(theirs)
    assert network.left.ping(network.right.inner) == 3
    assert tunnel.processes() == pids


def resident_kb(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1))


def unread() -> int:
    """Octets that wait in UDP sockets of the namespace that this runs in."""
    tables = (Path(f"/proc/thread-self/net/{name}").read_text() for name in ("udp", "udp6"))
    return sum(int(line.split()[4].split(":")[1], 16) for table in tables for line in table.splitlines()[1:])


def arrived(site) -> int:
    """Datagrams that the kernel gave to a socket or, as they came from no peer's address, did not."""
    return counted(site, "InDatagrams") + counted(site, "InErrors")


def counted(site, name: str) -> int:
    """A counter of the namespace's UDP: InDatagrams were read by a process, RcvbufErrors found a full buffer."""
    snmp = site.enter(lambda: Path("/proc/thread-self/net/snmp").read_text())
    names, values = (line.split() for line in snmp.splitlines() if line.startswith("Udp:"))
    return int(values[names.index(name)])


def recorded() -> list[bytes]:
    """Every message of the recorded exchanges of strongSwan and libreswan; encrypted ones with plaintext in place."""
    messages = []
    for file in sorted(GOLDEN.glob("*.txt")):
        for header, body in re.findall(r"^header (\w+)\nbody (\w+)$", file.read_text(), re.M):
            messages.append(bytes.fromhex(header) + bytes.fromhex(body))
    return messages


def cookies_of(tunnel) -> bytes:
    (sa,) = tunnel.status()["ike_sas"]
    return b"".join(bytes.fromhex(cookie[2:]) for cookie in sa["cookies"])


def message(cookies: bytes, first: int, exchange: int, flags: int, message_id: int, body: bytes) -> bytes:
    """RFC 2408 section 3.1's header, with version 1.0 and the right length, before a body."""
    return cookies + struct.pack("!BBBBII", first, 0x10, exchange, flags, message_id, 28 + len(body)) + body


def payload(body: bytes, following: int = 0) -> bytes:
    return struct.pack("!BBH", following, 0, 4 + len(body)) + body


def test_truncated_and_mutated_messages_of_real_peers_rfc2408_5(tunnel, stranger, chance, unharmed):
    messages = recorded()
    assert len(messages) >= 20
    ours = cookies_of(tunnel)
    for original in messages:
        for data in (original, ours + original[16:]):
            for length in range(0, len(data), 7):
                stranger.send_to_both(data[:length])
                # with a length field that agrees
                stranger.send(data[:24] + struct.pack("!I", length) + data[28:length])
            for _ in range(30):
                index, octet = (
                    chance.randrange(len(data)),
                    bytes((chance.choice((0, 1, 127, 255, chance.randrange(256))),)),
                )
                stranger.send_to_both(data[:index] + octet + data[index + 1 :])
            stranger.send(data + data)


def test_random_octets_and_wrong_cookies(tunnel, stranger, chance, unharmed):
    ours = cookies_of(tunnel)
    for _ in range(500):
        stranger.send_to_both(chance.randbytes(chance.randrange(1400)))
        # nobody's, half of ours
        for cookies in (chance.randbytes(16), ours[:8] + chance.randbytes(8), chance.randbytes(8) + ours[8:]):
            stranger.send(
                message(
                    cookies,
                    chance.randrange(256),
                    chance.choice((MAIN_MODE, INFORMATIONAL, QUICK_MODE, chance.randrange(256))),
                    chance.randrange(8),
                    chance.getrandbits(32),
                    payload(chance.randbytes(chance.randrange(200)), chance.randrange(16)),
                )
            )
    # ESP for the very SA, not authentic, with sequence numbers that would move its replay window (RFC 4303 3.4.3)
    spi = int(tunnel.children()[0]["spi_in"], 16)
    for sequence in (*range(200), *(chance.getrandbits(32) for _ in range(200))):
        esp = struct.pack("!II", spi, sequence) + chance.randbytes(88)
        stranger.send(esp, port=NATT_PORT, source_port=NATT_PORT)


def test_unprotected_notify_and_delete_with_the_sa_s_cookies_rfc2409_5_7(tunnel, stranger, chance, unharmed):
    cookies = cookies_of(tunnel)
    child = tunnel.children()[0]
    spis = b"".join(bytes.fromhex(child[name][2:]) for name in ("spi_in", "spi_out"))
    doi, isakmp, esp = 1, 1, 3
    for flags in (0, ENCRYPTED):
        for message_id in (0, chance.getrandbits(32)):
            deletes = [
                struct.pack("!IBBH", doi, isakmp, 16, 1) + cookies,
                struct.pack("!IBBH", doi, esp, 4, 2) + spis,
            ]
            for body in deletes:
                bare = payload(body)
                # alone, and behind a HASH that is not one
                stranger.send_to_both(message(cookies, DELETE, INFORMATIONAL, flags, message_id, bare))
                fake = payload(chance.randbytes(32), DELETE) + bare
                stranger.send_to_both(message(cookies, HASH, INFORMATIONAL, flags, message_id, fake))
            # every notification that RFC 2408 section 3.14.1 and RFC 2407 section 4.6.3 know, and DPD's (RFC 3706)
            for kind in (*range(1, 31), 16384, *range(24576, 24581), 36136, 36137):
                body = struct.pack("!IBBH", doi, isakmp, 16, kind) + cookies
                stranger.send_to_both(message(cookies, NOTIFY, INFORMATIONAL, flags, message_id, payload(body)))


def test_garbage_ciphertext_for_the_sa_rfc2409_5_5(tunnel, stranger, chance, unharmed):
    cookies = cookies_of(tunnel)
    for number in range(1000):
        exchange = (QUICK_MODE, INFORMATIONAL, MAIN_MODE)[number % 3]
        body = chance.randbytes(16 * chance.randrange(1, 40) + (number % 5 == 0))
        message_id = 0 if exchange == MAIN_MODE else chance.getrandbits(32)
        stranger.send(message(cookies, HASH, exchange, ENCRYPTED, message_id, body))


def test_two_thousand_first_messages_from_everywhere_rfc2408_2_5_3(tunnel, stranger, chance, unharmed):
    """One of our own proposals, which the daemon answers, under as many cookies, from 100 addresses and many ports."""
    proposal = next(data for data in recorded() if data[18] == MAIN_MODE and data[8:16] == bytes(8))
    for number in range(2000):
        stranger.send(
            chance.randbytes(8) + proposal[8:],
            source=f"192.0.2.{100 + number % 100}" if number % 2 else RIGHT,
            source_port=chance.randrange(1024, 65536),
        )
