"""RFC 2409's formulas, under RFC 2409's names (sections 5, 5.4, 5.5, 5.7, appendix B); RFC 4106 section 8.1,
RFC 4868 section 2.1.1.

prf(key, msg) is the HMAC of the negotiated hash; `_b` names are payload bodies without the generic header.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass

from keyd.secret import Secret
from privsep.algorithms import ChildSuite, Hash, IkeCipher
from privsep.iana import ProtocolId

HASH_NAMES = {Hash.SHA1: "sha1", Hash.SHA2_256: "sha256", Hash.SHA2_384: "sha384", Hash.SHA2_512: "sha512"}
"""What Python's hashlib and hmac call them."""


def prf(hash_: Hash, key: bytes | Secret, message: bytes | bytearray) -> bytes:
    """Section 4: no prf is negotiated, so it is the HMAC version of the negotiated hash."""
    return hmac.digest(key, message, HASH_NAMES[hash_])


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class Skeyids:
    """What section 5 derives from SKEYID."""

    skeyid_d: Secret
    skeyid_a: Secret
    skeyid_e: Secret

    def wipe(self) -> None:
        """Overwrite all three."""
        self.skeyid_d.wipe()
        self.skeyid_a.wipe()
        self.skeyid_e.wipe()


def skeyid_for_pre_shared_key(hash_: Hash, psk: Secret, ni_b: bytes, nr_b: bytes) -> Secret:
    """SKEYID = prf(pre-shared-key, Ni_b | Nr_b)."""
    return Secret(prf(hash_, psk, ni_b + nr_b))


def skeyid_for_signatures(hash_: Hash, ni_b: bytes, nr_b: bytes, g_xy: Secret) -> Secret:
    """SKEYID = prf(Ni_b | Nr_b, g^xy)."""
    return Secret(prf(hash_, ni_b + nr_b, g_xy))


def derive(hash_: Hash, skeyid: Secret, g_xy: Secret, cky_i: bytes, cky_r: bytes) -> Skeyids:
    """Section 5, the keys of the ISAKMP SA.

    SKEYID_d = prf(SKEYID, g^xy | CKY-I | CKY-R | 0)
    SKEYID_a = prf(SKEYID, SKEYID_d | g^xy | CKY-I | CKY-R | 1)
    SKEYID_e = prf(SKEYID, SKEYID_a | g^xy | CKY-I | CKY-R | 2)
    """
    material = Secret(g_xy + cky_i + cky_r)
    skeyid_d = Secret(prf(hash_, skeyid, material + b"\x00"))
    skeyid_a = Secret(prf(hash_, skeyid, skeyid_d + material + b"\x01"))
    skeyid_e = Secret(prf(hash_, skeyid, skeyid_a + material + b"\x02"))
    material.wipe()
    return Skeyids(skeyid_d=skeyid_d, skeyid_a=skeyid_a, skeyid_e=skeyid_e)


def cipher_key(hash_: Hash, cipher: IkeCipher, skeyid_e: Secret) -> Secret:
    """Appendix B: the first octets of SKEYID_e or, where that is too short, of Ka = K1 | K2 | ...

    K1 = prf(SKEYID_e, 0), K2 = prf(SKEYID_e, K1), ... For 3DES the appendix takes the first 24 octets as they come: it
    asks for weak key checks with DES only, and of 3DES keys drawn at random none in 2^50 has a weak part.
    """
    octets = cipher.key_bits // 8
    if octets <= len(skeyid_e):
        return Secret(skeyid_e[:octets])
    return _expand(octets, b"\x00", lambda previous: prf(hash_, skeyid_e, previous))


def hash_i(
    hash_: Hash, skeyid: Secret, *, g_xi: bytes, g_xr: bytes, cky_i: bytes, cky_r: bytes, sai_b: bytes, idii_b: bytes
) -> bytes:
    """Section 5: HASH_I = prf(SKEYID, g^xi | g^xr | CKY-I | CKY-R | SAi_b | IDii_b)."""
    return prf(hash_, skeyid, g_xi + g_xr + cky_i + cky_r + sai_b + idii_b)


def hash_r(
    hash_: Hash, skeyid: Secret, *, g_xi: bytes, g_xr: bytes, cky_i: bytes, cky_r: bytes, sai_b: bytes, idir_b: bytes
) -> bytes:
    """Section 5: HASH_R = prf(SKEYID, g^xr | g^xi | CKY-R | CKY-I | SAi_b | IDir_b)."""
    return prf(hash_, skeyid, g_xr + g_xi + cky_r + cky_i + sai_b + idir_b)


def hash_1(hash_: Hash, skeyid_a: Secret, message_id: int, rest: bytes) -> bytes:
    """Section 5.5 and 5.7: HASH(1) = prf(SKEYID_a, M-ID | the message after the HASH payload, without padding)."""
    return prf(hash_, skeyid_a, message_id.to_bytes(4, "big") + rest)


def hash_2(hash_: Hash, skeyid_a: Secret, message_id: int, ni_b: bytes, rest: bytes) -> bytes:
    """Section 5.5: HASH(2) = prf(SKEYID_a, M-ID | Ni_b | the message after the HASH payload)."""
    return prf(hash_, skeyid_a, message_id.to_bytes(4, "big") + ni_b + rest)


def hash_3(hash_: Hash, skeyid_a: Secret, message_id: int, ni_b: bytes, nr_b: bytes) -> bytes:
    """Section 5.5: HASH(3) = prf(SKEYID_a, 0 | M-ID | Ni_b | Nr_b)."""
    return prf(hash_, skeyid_a, b"\x00" + message_id.to_bytes(4, "big") + ni_b + nr_b)


def keymat(
    hash_: Hash,
    skeyid_d: Secret,
    *,
    g_qm_xy: Secret | None,
    protocol: ProtocolId,
    spi: int,
    ni_b: bytes,
    nr_b: bytes,
    octets: int,
) -> Secret:
    """Section 5.5: KEYMAT of the SA of one SPI; its receiver chose the SPI, so each direction has its own.

    K1 = prf(SKEYID_d, [g(qm)^xy |] protocol | SPI | Ni_b | Nr_b), K2 = prf(SKEYID_d, K1 | [g(qm)^xy |] ...), ...
    """
    seed = (g_qm_xy or b"") + bytes((protocol,)) + spi.to_bytes(4, "big") + ni_b + nr_b
    return _expand(octets, b"", lambda previous: prf(hash_, skeyid_d, previous + seed))


def _expand(octets: int, start: bytes, following: Callable[[bytes], bytes]) -> Secret:
    """As many blocks, each made from the one before, as `octets` take."""
    expanded, block = Secret(), start
    while len(expanded) < octets:
        block = following(block)
        expanded += block
    del expanded[octets:]
    return expanded


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class SaKeys:
    """Keys of one direction; `encryption` ends with the salt or nonce where the cipher has one."""

    encryption: Secret
    integrity: Secret

    def wipe(self) -> None:
        """Overwrite both."""
        self.encryption.wipe()
        self.integrity.wipe()


def keymat_octets(suite: ChildSuite) -> int:
    """Octets that one direction takes: salt or nonce belong to the cipher's, and AH has the integrity key alone."""
    return suite.encryption_octets + suite.integrity_octets


def split(suite: ChildSuite, material: Secret) -> SaKeys:
    """RFC 2401 section 4.6.2: encryption keys are the first bits of the string, authentication keys the remaining."""
    boundary = suite.encryption_octets
    return SaKeys(encryption=Secret(material[:boundary]), integrity=Secret(material[boundary:]))
