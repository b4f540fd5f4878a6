"""MODP groups: 2 (RFC 2409 section 6.2), 5 and 14 to 18 (RFC 3526). The only module that uses finite-field DH.

All primes are p = 2q + 1 with q prime, so the one small subgroup is {1, p-1}, and RFC 6989 section 2.1 asks for
exactly 1 < r < p-1. A Legendre symbol would add nothing: what it protects is one bit of an exponent that is used once,
and computing it costs as much as the exponentiation.

OpenSSL knows the primes of RFC 3526 and is fastest there (short exponents of twice the group's strength, RFC 3526
section 8). It does not know the prime of group 2 and would prove it anew for every peer's value, 28 ms that anybody
could make us spend; Python's `pow` takes one. `pow` is not constant in time, which a secret of one use can bear.
"""

import secrets
import warnings

from cryptography.hazmat.primitives.asymmetric import dh
from cryptography.utils import CryptographyDeprecationWarning

from keyd.groups.errors import BadPublicValue
from keyd.secret import Secret
from privsep.algorithms import Group

# known (pyproject.toml pins what still has it); printing it would open source files, which a confined process cannot
warnings.filterwarnings("ignore", "Diffie-Hellman over finite fields", CryptographyDeprecationWarning)

GENERATOR = 2
GROUP_2_EXPONENT_BITS = 240
"""Three times the 80 bits of strength that a prime of 1024 bits has at most."""


def _pi(bits: int) -> int:
    """floor(2^bits * pi) by Machin's formula, pi = 16 arctan(1/5) - 4 arctan(1/239), with 64 guard bits."""

    def arctan_of_inverse(x: int) -> int:
        power = one // x
        total, divisor, sign = power, 1, 1
        while power:
            power //= x * x
            divisor += 2
            sign = -sign
            total += sign * (power // divisor)
        return total

    one = 1 << (bits + 64)
    return (16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239)) >> 64


_OFFSETS = {
    Group.MODP_1024: 129093,
    Group.MODP_1536: 741804,
    Group.MODP_2048: 124476,
    Group.MODP_3072: 1690314,
    Group.MODP_4096: 240904,
    Group.MODP_6144: 929484,
    Group.MODP_8192: 4743158,
}


def _primes() -> dict[Group, int]:
    """RFC 2409 section 6.2, RFC 3526 sections 2 to 7: 2^n - 2^(n-64) - 1 + 2^64 * ([2^(n-130) pi] + offset)."""
    longest = max(group.public_octets for group in _OFFSETS) * 8
    pi = _pi(longest)
    primes = {}
    for group, offset in _OFFSETS.items():
        n = group.public_octets * 8
        middle = (pi >> (longest - (n - 130))) + offset
        primes[group] = (1 << n) - (1 << (n - 64)) - 1 + (middle << 64)
    return primes


PRIMES = _primes()
_NUMBERS: dict[Group, dh.DHParameterNumbers] = {
    group: dh.DHParameterNumbers(p, GENERATOR) for group, p in PRIMES.items() if group is not Group.MODP_1024
}
_PARAMETERS: dict[Group, dh.DHParameters] = {group: numbers.parameters() for group, numbers in _NUMBERS.items()}


def generate(group: Group) -> "ModpKeyPair | Modp1024KeyPair":
    """A fresh key pair of a MODP group."""
    return Modp1024KeyPair() if group is Group.MODP_1024 else ModpKeyPair(group)


def _checked(peer: bytes, own: bytes, group: Group) -> int:
    """The peer's value as a number (RFC 2409 section 5: as long as the prime), after RFC 6989 section 2.1."""
    if len(peer) != group.public_octets:
        raise BadPublicValue("public value has not the length of the prime")
    if peer == own:
        raise BadPublicValue("public value is our own")
    value = int.from_bytes(peer, "big")
    if not 1 < value < PRIMES[group] - 1:
        raise BadPublicValue("public value is out of range")
    return value


class ModpKeyPair:
    """Groups that OpenSSL knows by their prime."""

    __slots__ = ("_group", "_private", "public")

    def __init__(self, group: Group) -> None:
        self._group = group
        self._private = _PARAMETERS[group].generate_private_key()
        self.public = self._private.public_key().public_numbers().y.to_bytes(group.public_octets, "big")

    def agree(self, peer: bytes) -> Secret:
        """g^xy, as long as the prime."""
        value = _checked(peer, self.public, self._group)
        try:
            shared = self._private.exchange(dh.DHPublicNumbers(value, _NUMBERS[self._group]).public_key())
        except ValueError:
            raise BadPublicValue("public value is refused") from None
        return Secret(shared.rjust(self._group.public_octets, b"\0"))


class Modp1024KeyPair:
    """Group 2, with Python's integers."""

    __slots__ = ("_exponent", "public")

    def __init__(self) -> None:
        self._exponent = secrets.randbits(GROUP_2_EXPONENT_BITS) | 1 << (GROUP_2_EXPONENT_BITS - 1)
        self.public = self._power(GENERATOR)

    def agree(self, peer: bytes) -> Secret:
        """g^xy, as long as the prime."""
        return Secret(self._power(_checked(peer, self.public, Group.MODP_1024)))

    def _power(self, base: int) -> bytes:
        return pow(base, self._exponent, PRIMES[Group.MODP_1024]).to_bytes(Group.MODP_1024.public_octets, "big")
