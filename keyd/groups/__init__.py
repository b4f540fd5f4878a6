"""Diffie-Hellman groups behind one seam (RFC 2409 section 6, RFC 3526, RFC 5903, RFC 8031).

Key pairs are for one exchange each. A peer's public value is checked for length, for membership in its group and for
not being our own value sent back, before our secret touches it.
"""

from collections.abc import Callable
from typing import Protocol

from keyd.groups import ecp, modp, x25519
from keyd.groups.errors import BadPublicValue
from keyd.secret import Secret
from privsep.algorithms import Group

__all__ = ["BadPublicValue", "KeyPair", "generate"]


class KeyPair(Protocol):
    """A secret exponent and the public value that belongs to it."""

    @property
    def public(self) -> bytes:
        """The body of our KE payload."""

    def agree(self, peer: bytes) -> Secret:
        """g^xy of the peer's KE body, in the octets that the group's RFC feeds to the prf; BadPublicValue."""


_MODULES: dict[Group, Callable[[Group], KeyPair]] = {
    Group.MODP_1024: modp.generate,
    Group.MODP_1536: modp.generate,
    Group.MODP_2048: modp.generate,
    Group.MODP_3072: modp.generate,
    Group.MODP_4096: modp.generate,
    Group.MODP_6144: modp.generate,
    Group.MODP_8192: modp.generate,
    Group.ECP_256: ecp.generate,
    Group.ECP_384: ecp.generate,
    Group.ECP_521: ecp.generate,
    Group.CURVE25519: x25519.generate,
}


def generate(group: Group) -> KeyPair:
    """A fresh key pair."""
    return _MODULES[group](group)
