"""Curve25519, group 31 (RFC 7748, RFC 8031 section 3)."""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from keyd.groups.errors import BadPublicValue
from keyd.secret import Secret
from privsep.algorithms import Group


class X25519KeyPair:
    """Public value and shared secret are the 32 octets of RFC 7748."""

    __slots__ = ("_private", "public")

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    def agree(self, peer: bytes) -> Secret:
        """RFC 7748 section 6.1: an all-zero result, which points of small order give, is refused."""
        if len(peer) != Group.CURVE25519.public_octets:
            raise BadPublicValue("public value has not 32 octets")
        if peer == self.public:
            raise BadPublicValue("public value is our own")
        try:
            shared = Secret(self._private.exchange(X25519PublicKey.from_public_bytes(peer)))
        except ValueError:
            raise BadPublicValue("public value has a small order") from None
        if not any(shared):
            raise BadPublicValue("public value has a small order")
        return shared


def generate(_: Group) -> X25519KeyPair:
    """A fresh key pair."""
    return X25519KeyPair(X25519PrivateKey.generate())


def from_octets(private: bytes) -> X25519KeyPair:
    """The key pair of a given secret, for the vectors of RFC 7748 section 6.1."""
    return X25519KeyPair(X25519PrivateKey.from_private_bytes(private))
