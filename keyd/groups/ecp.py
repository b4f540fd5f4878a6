"""Random ECP groups 19, 20 and 21 (RFC 5903)."""

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyd.groups.errors import BadPublicValue
from keyd.secret import Secret
from privsep.algorithms import Group

_UNCOMPRESSED = b"\x04"
"""SEC 1 puts it before x|y, RFC 5903 does not."""
_CURVES: dict[Group, ec.EllipticCurve] = {
    Group.ECP_256: ec.SECP256R1(),
    Group.ECP_384: ec.SECP384R1(),
    Group.ECP_521: ec.SECP521R1(),
}


class EcpKeyPair:
    """RFC 5903 section 7: the public value is x|y, the shared secret is x alone."""

    __slots__ = ("_group", "_private", "public")

    def __init__(self, group: Group, private: ec.EllipticCurvePrivateKey) -> None:
        self._group = group
        self._private = private
        point = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.public = point.removeprefix(_UNCOMPRESSED)

    def agree(self, peer: bytes) -> Secret:
        """The x coordinate of g^xy; the point must be on the curve (RFC 6989 section 2.3), whose cofactor is 1."""
        if len(peer) != self._group.public_octets:
            raise BadPublicValue("public value has not the length of a point")
        if peer == self.public:
            raise BadPublicValue("public value is our own")
        try:
            point = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[self._group], _UNCOMPRESSED + peer)
            return Secret(self._private.exchange(ec.ECDH(), point))
        except ValueError:
            raise BadPublicValue("public value is not on the curve") from None


def generate(group: Group) -> EcpKeyPair:
    """A fresh key pair of an ECP group."""
    return EcpKeyPair(group, ec.generate_private_key(_CURVES[group]))


def from_scalar(group: Group, scalar: int) -> EcpKeyPair:
    """The key pair of a given secret, for the vectors of RFC 5903 section 8."""
    return EcpKeyPair(group, ec.derive_private_key(scalar, _CURVES[group]))
