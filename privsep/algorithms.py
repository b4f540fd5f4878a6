"""The algorithm names of proposals: strongSwan's keywords, which operators already know.

A keyword such as ``aes256`` is the one name an algorithm has: in the configuration, in status, between our processes.
What a number means on the IKE wire stands beside it; what the kernel or a crypto library calls it stands where that
kernel or library is spoken to.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Self, TypeVar

from privsep.iana import (
    AhTransform,
    AuthenticationAlgorithm,
    EspTransform,
    GroupDescription,
    IkeEncryption,
    IkeHash,
    ProtocolId,
)

_T = TypeVar("_T")


class IkeCipher(Enum):
    """Encryption of ISAKMP messages: keyword, RFC 2409 appendix A number, key length in bits, block size in octets."""

    AES_128 = ("aes128", IkeEncryption.AES_CBC, 128, 16)
    AES_192 = ("aes192", IkeEncryption.AES_CBC, 192, 16)
    AES_256 = ("aes256", IkeEncryption.AES_CBC, 256, 16)
    TRIPLE_DES = ("3des", IkeEncryption.TRIPLE_DES_CBC, 192, 8)

    def __init__(self, keyword: str, number: IkeEncryption, key_bits: int, block: int) -> None:
        self.keyword = keyword
        self.number = number
        self.key_bits = key_bits
        self.block = block

    @property
    def variable_key(self) -> bool:
        """Whether the Key Length attribute is sent (RFC 2409 appendix A: not for ciphers of fixed length)."""
        return self.number is IkeEncryption.AES_CBC


class Hash(Enum):
    """Hash of phase 1, whose HMAC is the prf: keyword, RFC 2409 appendix A number, digest length in octets."""

    SHA1 = ("sha1", IkeHash.SHA1, 20)
    SHA2_256 = ("sha256", IkeHash.SHA2_256, 32)
    SHA2_384 = ("sha384", IkeHash.SHA2_384, 48)
    SHA2_512 = ("sha512", IkeHash.SHA2_512, 64)

    def __init__(self, keyword: str, number: IkeHash, digest: int) -> None:
        self.keyword = keyword
        self.number = number
        self.digest = digest


class Group(Enum):
    """Diffie-Hellman group: keyword, IANA group number, length in octets of the KE payload's value."""

    MODP_1024 = ("modp1024", GroupDescription.MODP_1024, 128)
    MODP_1536 = ("modp1536", GroupDescription.MODP_1536, 192)
    MODP_2048 = ("modp2048", GroupDescription.MODP_2048, 256)
    MODP_3072 = ("modp3072", GroupDescription.MODP_3072, 384)
    MODP_4096 = ("modp4096", GroupDescription.MODP_4096, 512)
    MODP_6144 = ("modp6144", GroupDescription.MODP_6144, 768)
    MODP_8192 = ("modp8192", GroupDescription.MODP_8192, 1024)
    ECP_256 = ("ecp256", GroupDescription.ECP_256, 64)
    ECP_384 = ("ecp384", GroupDescription.ECP_384, 96)
    ECP_521 = ("ecp521", GroupDescription.ECP_521, 132)
    CURVE25519 = ("curve25519", GroupDescription.CURVE25519, 32)

    def __init__(self, keyword: str, number: GroupDescription, public_octets: int) -> None:
        self.keyword = keyword
        self.number = number
        self.public_octets = public_octets


class EspCipher(Enum):
    """Encryption of ESP: keyword, transform number, key bits (without salt), salt octets, IV octets, ICV octets.

    `icv` is nonzero only for combined-mode ciphers (RFC 4106), which take no separate integrity algorithm.
    """

    AES_128 = ("aes128", EspTransform.AES_CBC, 128, 0, 16, 0)
    AES_192 = ("aes192", EspTransform.AES_CBC, 192, 0, 16, 0)
    AES_256 = ("aes256", EspTransform.AES_CBC, 256, 0, 16, 0)
    AES_128_GCM_16 = ("aes128gcm16", EspTransform.AES_GCM_16, 128, 4, 8, 16)
    AES_192_GCM_16 = ("aes192gcm16", EspTransform.AES_GCM_16, 192, 4, 8, 16)
    AES_256_GCM_16 = ("aes256gcm16", EspTransform.AES_GCM_16, 256, 4, 8, 16)

    def __init__(self, keyword: str, number: EspTransform, key_bits: int, salt: int, iv: int, icv: int) -> None:
        self.keyword = keyword
        self.number = number
        self.key_bits = key_bits
        self.salt = salt
        self.iv = iv
        self.icv = icv

    @property
    def key_octets(self) -> int:
        """Octets of KEYMAT this cipher takes, salt included (RFC 4106 section 8.1)."""
        return self.key_bits // 8 + self.salt


class Integrity(Enum):
    """Integrity of ESP and AH: keyword, attribute number, AH transform, key and ICV octets (RFC 4868 section 2.3)."""

    HMAC_SHA1 = ("sha1", AuthenticationAlgorithm.HMAC_SHA1, AhTransform.SHA1, 20, 12)
    HMAC_SHA2_256 = ("sha256", AuthenticationAlgorithm.HMAC_SHA2_256, AhTransform.SHA2_256, 32, 16)
    HMAC_SHA2_384 = ("sha384", AuthenticationAlgorithm.HMAC_SHA2_384, AhTransform.SHA2_384, 48, 24)
    HMAC_SHA2_512 = ("sha512", AuthenticationAlgorithm.HMAC_SHA2_512, AhTransform.SHA2_512, 64, 32)

    def __init__(
        self, keyword: str, number: AuthenticationAlgorithm, ah: AhTransform, key_octets: int, icv: int
    ) -> None:
        self.keyword = keyword
        self.number = number
        self.ah = ah
        self.key_octets = key_octets
        self.icv = icv


IKE_CIPHERS = {cipher.keyword: cipher for cipher in IkeCipher}
HASHES = {hash_.keyword: hash_ for hash_ in Hash}
GROUPS = {group.keyword: group for group in Group} | {"x25519": Group.CURVE25519}
ESP_CIPHERS = {cipher.keyword: cipher for cipher in EspCipher}
INTEGRITIES = {integrity.keyword: integrity for integrity in Integrity}


@dataclass(slots=True, frozen=True)
class IkeSuite:
    """What phase 1 negotiates besides the authentication method; `str()` is its keyword, `parse` the way back."""

    cipher: IkeCipher
    hash: Hash
    group: Group

    def __str__(self) -> str:
        return f"{self.cipher.keyword}-{self.hash.keyword}-{self.group.keyword}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The suite that a keyword names; ValueError says which part is wrong and what would be right."""
        parts = text.split("-")
        if len(parts) != 3:
            raise ValueError(f"{text!r} is not cipher-hash-group, as in aes256-sha256-modp2048")
        return cls(
            _named(parts[0], IKE_CIPHERS, "IKE cipher"),
            _named(parts[1], HASHES, "hash"),
            _named(parts[2], GROUPS, "group"),
        )


@dataclass(slots=True, frozen=True)
class ChildSuite:
    """What phase 2 negotiates for one child SA; a group means perfect forward secrecy (RFC 2409 section 5.5)."""

    protocol: ProtocolId
    cipher: EspCipher | None
    integrity: Integrity | None
    group: Group | None

    def __str__(self) -> str:
        return "-".join(part.keyword for part in (self.cipher, self.integrity, self.group) if part is not None)

    @classmethod
    def parse(cls, text: str, protocol: ProtocolId = ProtocolId.ESP) -> Self:
        """The suite that a keyword names; ValueError says which part is wrong and what would be right."""
        parts = text.split("-")
        if parts[0] == "null":
            raise ValueError("NULL encryption is refused: name a cipher, as in aes256gcm16")
        cipher = _named(parts.pop(0), ESP_CIPHERS, "ESP cipher")
        integrity = INTEGRITIES.get(parts[0]) if parts else None
        if integrity is not None:
            parts.pop(0)
        group = _named(parts.pop(0), GROUPS, "integrity algorithm or group") if parts else None
        if parts:
            raise ValueError(f"{text!r} has a surplus part {parts[0]!r}; an ESP proposal is cipher[-integrity][-group]")
        if cipher.icv and integrity is not None:
            raise ValueError(f"{text!r}: {cipher.keyword} brings its own integrity; leave {integrity.keyword} away")
        if not cipher.icv and integrity is None:
            raise ValueError(f"{text!r} lacks integrity; {cipher.keyword}-sha256 would be right")
        return cls(protocol, cipher, integrity, group)

    def without_group(self) -> "ChildSuite":
        """The same transform without its PFS group, which is what the data plane knows."""
        return ChildSuite(self.protocol, self.cipher, self.integrity, None)


def _named(keyword: str, table: dict[str, _T], what: str) -> _T:
    try:
        return table[keyword]
    except KeyError:
        raise ValueError(f"{keyword!r} is no {what} we know; one of {', '.join(table)}") from None
