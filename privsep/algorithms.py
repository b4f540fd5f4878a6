"""The algorithm names of proposals: strongSwan's keywords, which operators already know.

A keyword such as ``aes256`` is the one name an algorithm has: in the configuration, in status, between our processes.
What a number means on the IKE wire stands beside it; what the kernel or a crypto library calls it stands where that
kernel or library is spoken to.
"""

from dataclasses import dataclass, field, replace
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
    """Diffie-Hellman group: keyword, IANA group number, length in octets of the KE payload's value, cost.

    `cost` is what a key pair and a shared secret take of the processor, in tenths of a millisecond of one core of 2020
    (measured; what counts is the ratio, and tests/keyd compares it with the truth).
    """

    MODP_1024 = ("modp1024", GroupDescription.MODP_1024, 128, 13)
    MODP_1536 = ("modp1536", GroupDescription.MODP_1536, 192, 4)
    MODP_2048 = ("modp2048", GroupDescription.MODP_2048, 256, 6)
    MODP_3072 = ("modp3072", GroupDescription.MODP_3072, 384, 15)
    MODP_4096 = ("modp4096", GroupDescription.MODP_4096, 512, 30)
    MODP_6144 = ("modp6144", GroupDescription.MODP_6144, 768, 65)
    MODP_8192 = ("modp8192", GroupDescription.MODP_8192, 1024, 136)
    ECP_256 = ("ecp256", GroupDescription.ECP_256, 64, 2)
    ECP_384 = ("ecp384", GroupDescription.ECP_384, 96, 10)
    ECP_521 = ("ecp521", GroupDescription.ECP_521, 132, 8)
    CURVE25519 = ("curve25519", GroupDescription.CURVE25519, 32, 1)

    def __init__(self, keyword: str, number: GroupDescription, public_octets: int, cost: int) -> None:
        self.keyword = keyword
        self.number = number
        self.public_octets = public_octets
        self.cost = cost


class EspCipher(Enum):
    """Encryption of ESP: keyword, transform number, key bits (without salt), salt octets, IV octets, ICV octets.

    `icv` is nonzero only for combined-mode ciphers, which take no separate integrity algorithm. `number` is None where
    IKEv1 has none: its registry is closed (RFC 9395).
    """

    AES_128 = ("aes128", EspTransform.AES_CBC, 128, 0, 16, 0)
    AES_192 = ("aes192", EspTransform.AES_CBC, 192, 0, 16, 0)
    AES_256 = ("aes256", EspTransform.AES_CBC, 256, 0, 16, 0)
    AES_128_CTR = ("aes128ctr", EspTransform.AES_CTR, 128, 4, 8, 0)
    AES_192_CTR = ("aes192ctr", EspTransform.AES_CTR, 192, 4, 8, 0)
    AES_256_CTR = ("aes256ctr", EspTransform.AES_CTR, 256, 4, 8, 0)
    AES_128_CCM_8 = ("aes128ccm8", EspTransform.AES_CCM_8, 128, 3, 8, 8)
    AES_192_CCM_8 = ("aes192ccm8", EspTransform.AES_CCM_8, 192, 3, 8, 8)
    AES_256_CCM_8 = ("aes256ccm8", EspTransform.AES_CCM_8, 256, 3, 8, 8)
    AES_128_CCM_12 = ("aes128ccm12", EspTransform.AES_CCM_12, 128, 3, 8, 12)
    AES_192_CCM_12 = ("aes192ccm12", EspTransform.AES_CCM_12, 192, 3, 8, 12)
    AES_256_CCM_12 = ("aes256ccm12", EspTransform.AES_CCM_12, 256, 3, 8, 12)
    AES_128_CCM_16 = ("aes128ccm16", EspTransform.AES_CCM_16, 128, 3, 8, 16)
    AES_192_CCM_16 = ("aes192ccm16", EspTransform.AES_CCM_16, 192, 3, 8, 16)
    AES_256_CCM_16 = ("aes256ccm16", EspTransform.AES_CCM_16, 256, 3, 8, 16)
    AES_128_GCM_8 = ("aes128gcm8", EspTransform.AES_GCM_8, 128, 4, 8, 8)
    AES_192_GCM_8 = ("aes192gcm8", EspTransform.AES_GCM_8, 192, 4, 8, 8)
    AES_256_GCM_8 = ("aes256gcm8", EspTransform.AES_GCM_8, 256, 4, 8, 8)
    AES_128_GCM_12 = ("aes128gcm12", EspTransform.AES_GCM_12, 128, 4, 8, 12)
    AES_192_GCM_12 = ("aes192gcm12", EspTransform.AES_GCM_12, 192, 4, 8, 12)
    AES_256_GCM_12 = ("aes256gcm12", EspTransform.AES_GCM_12, 256, 4, 8, 12)
    AES_128_GCM_16 = ("aes128gcm16", EspTransform.AES_GCM_16, 128, 4, 8, 16)
    AES_192_GCM_16 = ("aes192gcm16", EspTransform.AES_GCM_16, 192, 4, 8, 16)
    AES_256_GCM_16 = ("aes256gcm16", EspTransform.AES_GCM_16, 256, 4, 8, 16)
    AES_128_GMAC = ("aes128gmac", EspTransform.NULL_AUTH_AES_GMAC, 128, 4, 8, 16)
    AES_192_GMAC = ("aes192gmac", EspTransform.NULL_AUTH_AES_GMAC, 192, 4, 8, 16)
    AES_256_GMAC = ("aes256gmac", EspTransform.NULL_AUTH_AES_GMAC, 256, 4, 8, 16)
    CHACHA20_POLY1305 = ("chacha20poly1305", None, 256, 4, 8, 16)
    CAMELLIA_128 = ("camellia128", EspTransform.CAMELLIA_CBC, 128, 0, 16, 0)
    CAMELLIA_192 = ("camellia192", EspTransform.CAMELLIA_CBC, 192, 0, 16, 0)
    CAMELLIA_256 = ("camellia256", EspTransform.CAMELLIA_CBC, 256, 0, 16, 0)
    TRIPLE_DES = ("3des", EspTransform.TRIPLE_DES, 192, 0, 8, 0)
    NULL = ("null", EspTransform.NULL, 0, 0, 0, 0)

    def __init__(self, keyword: str, number: EspTransform | None, key_bits: int, salt: int, iv: int, icv: int) -> None:
        self.keyword = keyword
        self.number = number
        self.key_bits = key_bits
        self.salt = salt
        self.iv = iv
        self.icv = icv

    @property
    def variable_key(self) -> bool:
        """Whether the Key Length attribute is sent (RFC 2407 section 4.5: not for ciphers of fixed length)."""
        return self not in (EspCipher.TRIPLE_DES, EspCipher.NULL, EspCipher.CHACHA20_POLY1305)

    @property
    def key_octets(self) -> int:
        """Octets of KEYMAT this cipher takes, with its salt or nonce behind the key.

        RFC 3686 section 5.1, RFC 4106 section 8.1, RFC 4309 section 7.1, RFC 4543 section 5.4, RFC 7634 section 2.
        """
        return self.key_bits // 8 + self.salt


class Integrity(Enum):
    """Integrity of ESP and AH: keyword, attribute number, AH transform, key and ICV octets.

    RFC 2403, RFC 2404, RFC 3566, RFC 4494, RFC 4868 section 2.3. The numbers are None where IKEv1 has none.
    """

    HMAC_MD5 = ("md5", AuthenticationAlgorithm.HMAC_MD5, AhTransform.MD5, 16, 12)
    HMAC_SHA1 = ("sha1", AuthenticationAlgorithm.HMAC_SHA1, AhTransform.SHA1, 20, 12)
    HMAC_SHA2_256 = ("sha256", AuthenticationAlgorithm.HMAC_SHA2_256, AhTransform.SHA2_256, 32, 16)
    HMAC_SHA2_384 = ("sha384", AuthenticationAlgorithm.HMAC_SHA2_384, AhTransform.SHA2_384, 48, 24)
    HMAC_SHA2_512 = ("sha512", AuthenticationAlgorithm.HMAC_SHA2_512, AhTransform.SHA2_512, 64, 32)
    AES_XCBC = ("aesxcbc", AuthenticationAlgorithm.AES_XCBC_MAC, AhTransform.AES_XCBC_MAC, 16, 12)
    AES_CMAC = ("aescmac", None, None, 16, 12)

    def __init__(
        self, keyword: str, number: AuthenticationAlgorithm | None, ah: AhTransform | None, key_octets: int, icv: int
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
_SEQUENCE_NUMBERS = {"esn": True, "noesn": False}
_KERNEL_ONLY = frozenset({Integrity.AES_XCBC, Integrity.AES_CMAC})


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
    esn: bool = field(default=False, kw_only=True)
    """Extended sequence numbers (RFC 4304)."""

    def __str__(self) -> str:
        named = "-".join(part.keyword for part in (self.cipher, self.integrity, self.group) if part is not None)
        return f"{named}-esn" if self.esn else named

    @classmethod
    def parse(cls, text: str, protocol: ProtocolId = ProtocolId.ESP) -> Self:
        """The suite that a keyword names; ValueError says which part is wrong and what would be right."""
        parts = text.split("-")
        esn = len(parts) > 1 and parts[-1] in _SEQUENCE_NUMBERS and _SEQUENCE_NUMBERS[parts.pop()]
        cipher = _named(parts.pop(0), ESP_CIPHERS, "ESP cipher") if protocol is ProtocolId.ESP else None
        integrity = INTEGRITIES.get(parts[0]) if parts else None
        if integrity is not None:
            parts.pop(0)
        elif cipher is None:
            raise ValueError(f"{parts[0]!r} is no AH integrity algorithm we know; one of {', '.join(INTEGRITIES)}")
        group = _named(parts.pop(0), GROUPS, "integrity algorithm or group" if cipher else "group") if parts else None
        if parts:
            form = "an ESP proposal is cipher[-integrity]" if cipher else "an AH proposal is integrity"
            raise ValueError(f"{text!r} has a surplus part {parts[0]!r}; {form}[-group][-esn]")
        if cipher and cipher.icv and integrity is not None:
            raise ValueError(f"{text!r}: {cipher.keyword} brings its own integrity; leave {integrity.keyword} away")
        if cipher and not cipher.icv and integrity is None:
            raise ValueError(f"{text!r} lacks integrity; {cipher.keyword}-sha256 would be right")
        return cls(protocol, cipher, integrity, group, esn=esn)

    @property
    def described(self) -> str:
        """For people: the keyword, which may be the same for both protocols, with the protocol if it is AH."""
        return f"AH {self}" if self.protocol is ProtocolId.AH else str(self)

    @property
    def without_number(self) -> str | None:
        """The keyword of what IKEv1 has no number for, so that it cannot be negotiated; None if it has all."""
        parts: tuple[EspCipher | Integrity | None, ...] = (self.cipher, self.integrity)
        return next((part.keyword for part in parts if part is not None and part.number is None), None)

    @property
    def in_userspace(self) -> bool:
        """Whether the ESP process, the data plane without a kernel, carries it too (`monitor/userspace/esp.py`)."""
        return self.protocol is ProtocolId.ESP and not self.esn and self.integrity not in _KERNEL_ONLY

    @property
    def encryption_octets(self) -> int:
        """Of KEYMAT, for encryption."""
        return self.cipher.key_octets if self.cipher is not None else 0

    @property
    def integrity_octets(self) -> int:
        """Of KEYMAT, for a separate integrity algorithm."""
        return self.integrity.key_octets if self.integrity is not None else 0

    def without_group(self) -> "ChildSuite":
        """The same transform without its PFS group, which is what the data plane knows."""
        return replace(self, group=None)


def _named(keyword: str, table: dict[str, _T], what: str) -> _T:
    try:
        return table[keyword]
    except KeyError:
        raise ValueError(f"{keyword!r} is no {what} we know; one of {', '.join(table)}") from None
