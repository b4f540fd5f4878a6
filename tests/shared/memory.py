"""Secrets of running sessions, and the search for them in the memory of live processes.

The peer is an initiator inside the test, which so knows what both ends know.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from load import Load, Tunnel

from keyd import ikev1
from privsep.schema.install import Outcome

CHUNK = 1 << 20
PIECE = 16
"""Octets at either end of a secret that are looked for, so that half of it is found as well."""
NOT_MEMORY = ("[vvar]", "[vvar_vclock]", "[vsyscall]")


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


def open_session(load: Load) -> dict[str, bytes]:
    """The secrets of a tunnel that both ends have completed."""
    with recorded() as found:
        tunnel = load.open()
        turn(load, lambda: tunnel.outcome is not None)
    return found | traffic_keys(tunnel)


def traffic_keys(tunnel: Tunnel) -> dict[str, bytes]:
    """KEYMAT of the pair that the initiator would now install."""
    assert tunnel.outcome is Outcome.DONE, tunnel.text
    ((redeemed, outbound),) = tunnel.redeemed
    salt = redeemed.suite.cipher.salt
    found = {}
    for way, half in (("in", redeemed), ("out", outbound)):
        encryption, integrity = getattr(half, f"encryption_{way}"), getattr(half, f"integrity_{way}")
        found[f"KEYMAT {way}, cipher"] = encryption[: len(encryption) - salt]
        if integrity:
            found[f"KEYMAT {way}, integrity"] = integrity
    return found


def turn(load: Load, until: Callable[[], object], seconds: float = 10) -> None:
    """Let the initiator work until then, or for that long."""
    deadline = time.monotonic() + seconds
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
