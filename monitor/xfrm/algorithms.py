"""What the kernel calls our algorithms, and which of its build options bring them."""

from monitor.xfrm.structs import Attribute
from privsep.algorithms import ChildSuite, EspCipher, Integrity

CIPHERS: dict[EspCipher, bytes] = {
    EspCipher.AES_128: b"cbc(aes)",
    EspCipher.AES_192: b"cbc(aes)",
    EspCipher.AES_256: b"cbc(aes)",
    EspCipher.AES_128_GCM_16: b"rfc4106(gcm(aes))",
    EspCipher.AES_192_GCM_16: b"rfc4106(gcm(aes))",
    EspCipher.AES_256_GCM_16: b"rfc4106(gcm(aes))",
}
"""RFC 3602; RFC 4106, whose kernel template takes key and salt as one."""

INTEGRITIES: dict[Integrity, bytes] = {
    Integrity.HMAC_SHA1: b"hmac(sha1)",
    Integrity.HMAC_SHA2_256: b"hmac(sha256)",
    Integrity.HMAC_SHA2_384: b"hmac(sha384)",
    Integrity.HMAC_SHA2_512: b"hmac(sha512)",
}

CONFIG: dict[bytes, str] = {
    b"cbc(aes)": "CONFIG_CRYPTO_CBC and CONFIG_CRYPTO_AES",
    b"rfc4106(gcm(aes))": "CONFIG_CRYPTO_GCM and CONFIG_CRYPTO_AES",
    b"hmac(sha1)": "CONFIG_CRYPTO_HMAC and CONFIG_CRYPTO_SHA1",
    b"hmac(sha256)": "CONFIG_CRYPTO_HMAC and CONFIG_CRYPTO_SHA256",
    b"hmac(sha384)": "CONFIG_CRYPTO_HMAC and CONFIG_CRYPTO_SHA512",
    b"hmac(sha512)": "CONFIG_CRYPTO_HMAC and CONFIG_CRYPTO_SHA512",
}
"""The kernel's build options behind each name."""


def algorithms(suite: ChildSuite, encryption: bytes, integrity: bytes) -> list[Attribute]:
    """The algorithm attributes of an SA with these keys. Lengths are in bits.

    HMACs go as AUTH_TRUNC: left to itself the kernel cuts HMAC-SHA-256 to 96 bits, where RFC 4868 has 128.
    """
    found: list[Attribute] = []
    if suite.integrity is not None:
        name = INTEGRITIES[suite.integrity]
        lengths = {"key_len": len(integrity) * 8, "trunc_len": suite.integrity.icv * 8}
        found.append(("XFRMA_ALG_AUTH_TRUNC", {"name": name, **lengths, "key": integrity}))
    if suite.cipher is not None:
        name = CIPHERS[suite.cipher]
        values = {"name": name, "key_len": len(encryption) * 8, "key": encryption}
        if suite.cipher.icv:
            found.append(("XFRMA_ALG_AEAD", {**values, "icv_len": suite.cipher.icv * 8}))
        else:
            found.append(("XFRMA_ALG_CRYPT", values))
    return found
