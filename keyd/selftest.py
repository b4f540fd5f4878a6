"""`python -m keyd.selftest [--cavs FILE]`: the shipped derivation and ciphers against published answers.

A CAVS file (NIST's algorithm validation, RFC 2409 section 5) has sections whose bracketed lines set the hash, and cases
of ``name = value`` lines. A case with a pre-shared key is checked with that formula of SKEYID, one without with that of
signatures.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyd import ikev1, vectors
from keyd.ciphers import CbcChain
from keyd.groups import KeyPair, ecp, x25519
from keyd.secret import Secret
from privsep.algorithms import Group, Hash

MAX_CAVS_OCTETS = 64 << 20

_CAVS_HASHES = {
    "SHA-1": Hash.SHA1,
    "SHA-256": Hash.SHA2_256,
    "SHA-384": Hash.SHA2_384,
    "SHA-512": Hash.SHA2_512,
}
_CAVS_INPUTS = ("CKY_I", "CKY_R", "Ni", "Nr", "g^xy")
_CAVS_ANSWERS = ("SKEYID", "SKEYID_d", "SKEYID_a", "SKEYID_e")


class CavsError(ValueError):
    """The file is not what it should be; the text says where."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Case:
    """One CAVS case: its hash and its values by name."""

    name: str
    hash: Hash
    values: dict[str, bytes]

    def passes(self) -> bool:
        """Whether all four keys come out as published."""
        v = self.values
        ni_b, nr_b, g_xy = v["Ni"], v["Nr"], Secret(v["g^xy"])
        if "pre-shared-key" in v:
            skeyid = ikev1.skeyid_for_pre_shared_key(self.hash, Secret(v["pre-shared-key"]), ni_b, nr_b)
        else:
            skeyid = ikev1.skeyid_for_signatures(self.hash, ni_b, nr_b, g_xy)
        keys = ikev1.derive(self.hash, skeyid, g_xy, v["CKY_I"], v["CKY_R"])
        derived = (skeyid, keys.skeyid_d, keys.skeyid_a, keys.skeyid_e)
        return [bytes(key) for key in derived] == [v[name] for name in _CAVS_ANSWERS]


def parse_cavs(text: str) -> Iterator[Case]:
    """The cases of a CAVS file; CavsError for a line that is none, a case that is incomplete or under no known hash."""
    heading, count, values = "", "", dict[str, bytes]()

    def case() -> Case:
        missing = [name for name in _CAVS_INPUTS + _CAVS_ANSWERS if name not in values]
        if heading not in _CAVS_HASHES:
            raise CavsError(f"case {count}: hash {heading or 'unnamed'} is none of {', '.join(_CAVS_HASHES)}")
        if missing:
            raise CavsError(f"{heading} case {count} lacks {', '.join(missing)}")
        return Case(name=f"{heading} case {count}", hash=_CAVS_HASHES[heading], values=values)

    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            if values:
                yield case()
                values = {}
            if line.startswith("[SHA"):
                heading = line.strip("[]")
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise CavsError(f"line {number}: neither a setting, a value nor a comment")
        if name == "COUNT":
            if values:
                yield case()
            count, values = value, {}
            continue
        try:
            values[name] = bytes.fromhex(value)
        except ValueError:
            raise CavsError(f"line {number}: {name} is not hexadecimal") from None
    if values:
        yield case()


def known_answers() -> Iterator[tuple[str, bool]]:
    """(what, passed) of every embedded vector."""
    for cbc in vectors.CBC:
        key, iv, plaintext, ciphertext = map(bytes.fromhex, cbc[2:])
        sealed = CbcChain.of_phase1(cbc.cipher, Secret(key), iv).seal(plaintext)
        opened = CbcChain.of_phase1(cbc.cipher, Secret(key), iv).open(ciphertext)
        yield f"{cbc.cipher.keyword} CBC, {cbc.source}", (sealed, opened) == (ciphertext, plaintext)
    for gcm in vectors.GCM:
        sealed = AESGCM(bytes.fromhex(gcm.key)).encrypt(bytes(12), bytes.fromhex(gcm.plaintext), None)
        yield f"AES-GCM, {gcm.source}", sealed.hex() == gcm.sealed
    for prf in vectors.PRF:
        answer = ikev1.prf(prf.hash, prf.key, prf.text).hex()
        yield f"prf {prf.hash.keyword}, {prf.source}", answer == prf.answer
    for agreement in vectors.AGREEMENTS:
        yield f"{agreement.group.keyword}, {agreement.source}", _agrees(agreement)
    for case in parse_cavs(vectors.CAVS):
        yield f"SKEYID, SKEYID_d, _a, _e, NIST CAVS {case.name}", case.passes()


def _agrees(agreement: vectors.Agreement) -> bool:
    make: Callable[[str], KeyPair] = _from_hex if agreement.group is Group.CURVE25519 else _from_scalar(agreement.group)
    public_i, public_r, shared = map(bytes.fromhex, (agreement.public_i, agreement.public_r, agreement.shared))
    ours, theirs = make(agreement.secret_i), make(agreement.secret_r)
    agreed = bytes(ours.agree(public_r)), bytes(theirs.agree(public_i))
    return (ours.public, theirs.public) == (public_i, public_r) and agreed == (shared, shared)


def _from_hex(secret: str) -> KeyPair:
    return x25519.from_octets(bytes.fromhex(secret))


def _from_scalar(group: Group) -> Callable[[str], KeyPair]:
    return lambda secret: ecp.from_scalar(group, int(secret, 16))


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 if everything passed, 1 if anything failed or there was nothing to check."""
    parser = argparse.ArgumentParser(prog="keyd.selftest", description="Known-answer tests of keyd's cryptography.")
    parser.add_argument("--cavs", metavar="FILE", type=Path, help="a NIST CAVS file of IKEv1 (PSK or signatures)")
    file = parser.parse_args(arguments).cavs
    results: list[tuple[str, bool]] = []
    try:
        results += known_answers() if file is None else _of_file(file)
    except (OSError, CavsError) as error:
        sys.stderr.write(f"{file}: {error}\n")
        return 1
    for what, passed in results:
        if file is None or not passed:
            sys.stdout.write(f"{'ok  ' if passed else 'FAIL'}  {what}\n")
    passed_count = sum(passed for _, passed in results)
    sys.stdout.write(f"{passed_count} passed, {len(results) - passed_count} failed\n")
    return 0 if results and passed_count == len(results) else 1


def _of_file(file: Path) -> Iterator[tuple[str, bool]]:
    with file.open("rb") as stream:
        octets = stream.read(MAX_CAVS_OCTETS + 1)
    if len(octets) > MAX_CAVS_OCTETS:
        raise CavsError(f"longer than {MAX_CAVS_OCTETS} octets")
    for case in parse_cavs(octets.decode("ascii", "replace")):
        yield case.name, case.passes()


if __name__ == "__main__":
    sys.exit(main())
