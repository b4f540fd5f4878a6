"""The promise, looked for: secrets of running sessions, searched in the memory of every live process.

The peer is an initiator inside this test, which so knows what both ends know: RFC 2409 section 5's SKEYID, SKEYID_d, _a
and _e, both g^xy, appendix B's cipher key, section 5.5's KEYMAT. One session is established; another is held after
message 4, where our daemon has derived everything and nobody has authenticated yet.
"""

import contextlib
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import LEFT, LEFT_HOST, RIGHT, RIGHT_HOST
from load import Load

from keyd import ikev1
from privsep.schema.install import Outcome

pytestmark = [pytest.mark.root, pytest.mark.filterwarnings("ignore:Diffie-Hellman over finite fields")]

CHUNK = 1 << 20
PIECE = 16
"""Octets at either end of a secret that are looked for, so that half of it is found as well."""
NOT_MEMORY = ("[vvar]", "[vvar_vclock]", "[vsyscall]")
HEADER_FLAGS, ENCRYPTED = 19, 1
"""RFC 2408 section 3.1: offset of the flags, and the bit of what is encrypted."""

SUITES = [("aes256-sha256-modp2048", "aes256gcm16-modp2048"), ("aes128-sha1-curve25519", "aes128-sha256-curve25519")]


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, bytes]]:
    """What keyd's formulas take and give in this process meanwhile, by name."""
    derive, cipher_key, keymat = ikev1.derive, ikev1.cipher_key, ikev1.keymat
    found: dict[str, bytes] = {}

    def recording_derive(hash_, skeyid, g_xy, *cookies):
        keys = derive(hash_, skeyid, g_xy, *cookies)
        found.update({"SKEYID": bytes(skeyid), "g^xy": bytes(g_xy)})
        found.update({f"SKEYID_{each}": bytes(getattr(keys, f"skeyid_{each}")) for each in "dae"})
        return keys

    def recording_cipher_key(*arguments):
        key = cipher_key(*arguments)
        found["the cipher's key"] = bytes(key)
        return key

    def recording_keymat(*arguments, g_qm_xy, **more):
        found["g(qm)^xy"] = bytes(g_qm_xy)
        return keymat(*arguments, g_qm_xy=g_qm_xy, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ikev1, "derive", recording_derive)
        patch.setattr(ikev1, "cipher_key", recording_cipher_key)
        patch.setattr(ikev1, "keymat", recording_keymat)
        yield found


class Silenced:
    """The initiator's socket, which loses every encrypted message: phase 1 stops after message 4."""

    def __init__(self, sock) -> None:
        self._sock = sock

    def send(self, data: bytes) -> None:
        if not data[HEADER_FLAGS] & ENCRYPTED:
            self._sock.send(data)

    def __getattr__(self, name: str):
        return getattr(self._sock, name)


def open_session(load: Load) -> dict[str, bytes]:
    """The secrets of a tunnel that both ends have completed."""
    with recorded() as found:
        tunnel = load.open()
        turn(load, lambda: tunnel.outcome is not None)
    assert tunnel.outcome is Outcome.DONE, tunnel.text
    (redeemed,) = tunnel.redeemed
    salt = redeemed.suite.cipher.salt
    for way in ("in", "out"):
        encryption, integrity = getattr(redeemed, f"encryption_{way}"), getattr(redeemed, f"integrity_{way}")
        found[f"KEYMAT {way}, cipher"] = encryption[: len(encryption) - salt]
        if integrity:
            found[f"KEYMAT {way}, integrity"] = integrity
    return found


def hold_session(load: Load) -> dict[str, bytes]:
    """The secrets of an IKE SA whose keys both ends have derived and whose initiator then falls silent."""
    with recorded() as found:
        load._socket = Silenced(load._socket)
        load.open()
        turn(load, lambda: found)
    return found


def turn(load: Load, until: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not until() and time.monotonic() < deadline:
        load.turn(0.2)


def readable(pid: int) -> Iterator[tuple[int, int]]:
    """Each mapping of the process that has read permission."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        start, end, mode = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line).groups()
        if mode.startswith("r") and not line.endswith(NOT_MEMORY):
            yield int(start, 16), int(end, 16)


def search(pid: int, name: str, wanted: dict[str, bytes]) -> set[str]:
    """Names of those whose first or last octets are in the process's memory, raw or in hexadecimal of either case."""
    patterns = [
        (form, what)
        for what, octets in wanted.items()
        for piece in (octets[:PIECE], octets[-PIECE:])
        for form in (piece, piece.hex().encode(), piece.hex().upper().encode())
    ]
    longest = max(len(form) for form, _ in patterns)
    found: set[str] = set()
    scanned = mappings = 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, end in readable(pid):
            mappings += 1
            before = b""
            memory.seek(start)
            for offset in range(start, end, CHUNK):
                octets = memory.read(min(CHUNK, end - offset))
                assert len(octets) == min(CHUNK, end - offset), f"{name}: a mapping ends early"
                # what lies across two chunks is found too
                window = before + octets
                found |= {what for form, what in patterns if form in window}
                before = window[1 - longest :]
                scanned += len(octets)
    print(f"{name}: {scanned / 1e6:.0f} MB in {mappings} mappings; found {sorted(found) or 'nothing'}")
    return found


@pytest.mark.parametrize(("ike", "esp"), SUITES)
def test_the_worker_s_memory_holds_no_secret_of_a_running_session(network, ours, ike, esp):
    psk, marker = secrets.token_hex(20), f"c{secrets.token_hex(12)}"
    ours.configure(ike, esp, psk=psk)
    # every process knows the connection's name: a search that does not find it has not looked
    ours.config.write_text(ours.config.read_text().replace("connection.peer", f"connection.{marker}"))
    ours.launch()
    inside = {"local": RIGHT, "remote": LEFT, "inner": RIGHT_HOST, "other": LEFT_HOST}
    load = network.right.enter(lambda: Load(**inside, ike=ike, esp=esp, psk=psk))
    try:
        running, held = open_session(load), hold_session(load)
    finally:
        load.close()
    (sa,) = (sa for sa in ours.status()["ike_sas"] if sa["state"] == "established")
    cookies = {"cookies": b"".join(bytes.fromhex(cookie[2:]) for cookie in sa["cookies"])}
    esp_keys = {name: octets for name, octets in running.items() if name.startswith("KEYMAT")}
    ike_keys = {"PSK": psk.encode()} | {name: octets for name, octets in running.items() if name not in esp_keys}
    ike_keys |= {f"{name} of the held session": octets for name, octets in held.items()}
    assert len(ike_keys) == 1 + 7 + 6
    assert len(esp_keys) == (2 if "gcm" in esp else 4)
    name = {"the marker": marker.encode()}
    found = {
        process: search(pid, process, ike_keys | esp_keys | cookies | name) for process, pid in ours.processes().items()
    }

    assert found["worker"] == {"the marker", "cookies"}
    assert found["monitor"] & ike_keys.keys() == set()
    assert "the marker" in found["monitor"]
    assert found["userspace"] == esp_keys.keys()
    # keyd holds what it still needs: SKEYID_e as the cipher's key (appendix B), SKEYID until both have authenticated
    assert found["keyd"] >= {"the marker", "PSK", "SKEYID_d", "SKEYID_a", "the cipher's key"}
    assert found["keyd"] >= {f"{each} of the held session" for each in ("SKEYID", "SKEYID_d", "SKEYID_a")}
