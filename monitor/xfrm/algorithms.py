"""What the kernel calls our algorithms, and which of its build options bring them."""

from monitor.xfrm.structs import Attribute
from privsep.algorithms import ChildSuite, EspCipher, Integrity
from privsep.iana import EspTransform

_MODES: dict[EspTransform | None, bytes] = {
    EspTransform.AES_CBC: b"cbc(aes)",
    EspTransform.AES_CTR: b"rfc3686(ctr(aes))",
    EspTransform.AES_CCM_8: b"rfc4309(ccm(aes))",
    EspTransform.AES_CCM_12: b"rfc4309(ccm(aes))",
    EspTransform.AES_CCM_16: b"rfc4309(ccm(aes))",
    EspTransform.AES_GCM_8: b"rfc4106(gcm(aes))",
    EspTransform.AES_GCM_12: b"rfc4106(gcm(aes))",
    EspTransform.AES_GCM_16: b"rfc4106(gcm(aes))",
    EspTransform.NULL_AUTH_AES_GMAC: b"rfc4543(gcm(aes))",
    EspTransform.CAMELLIA_CBC: b"cbc(camellia)",
    EspTransform.TRIPLE_DES: b"cbc(des3_ede)",
    EspTransform.NULL: b"ecb(cipher_null)",
}
CIPHERS: dict[EspCipher, bytes] = {
    EspCipher.CHACHA20_POLY1305: b"rfc7539esp(chacha20,poly1305)",
    **{cipher: _MODES[cipher.number] for cipher in EspCipher if cipher.number is not None},
}
"""The kernel's templates named after an RFC take key and salt (or nonce) as one."""

INTEGRITIES: dict[Integrity, bytes] = {
    Integrity.HMAC_MD5: b"hmac(md5)",
    Integrity.HMAC_SHA1: b"hmac(sha1)",
    Integrity.HMAC_SHA2_256: b"hmac(sha256)",
    Integrity.HMAC_SHA2_384: b"hmac(sha384)",
    Integrity.HMAC_SHA2_512: b"hmac(sha512)",
    Integrity.AES_XCBC: b"xcbc(aes)",
    Integrity.AES_CMAC: b"cmac(aes)",
}

CONFIG: dict[bytes, str] = {
    b"cbc(aes)": "CONFIG_CRYPTO_CBC and CONFIG_CRYPTO_AES",
    b"rfc3686(ctr(aes))": "CONFIG_CRYPTO_CTR and CONFIG_CRYPTO_AES",
    b"rfc4309(ccm(aes))": "CONFIG_CRYPTO_CCM and CONFIG_CRYPTO_AES",
    b"rfc4106(gcm(aes))": "CONFIG_CRYPTO_GCM and CONFIG_CRYPTO_AES",
    b"rfc4543(gcm(aes))": "CONFIG_CRYPTO_GCM and CONFIG_CRYPTO_AES",
    b"rfc7539esp(chacha20,poly1305)": "CONFIG_CRYPTO_CHACHA20POLY1305",
    b"cbc(camellia)": "CONFIG_CRYPTO_CBC and CONFIG_CRYPTO_CAMELLIA",
    b"cbc(des3_ede)": "CONFIG_CRYPTO_CBC and CONFIG_CRYPTO_DES",
    b"ecb(cipher_null)": "CONFIG_CRYPTO_ECB and CONFIG_CRYPTO_NULL",
    b"hmac(md5)": "CONFIG_CRYPTO_HMAC and CONFIG_CRYPTO_MD5",
    b"hmac(sha1)": "CONFIG_CRYPTO_HMAC and CONFIG_CRYPTO_SHA1",
    b"hmac(sha256)": "CONFIG_CRYPTO_HMAC and CONFIG_CRYPTO_SHA256",
    b"hmac(sha384)": "CONFIG_CRYPTO_HMAC and CONFIG_CRYPTO_SHA512",
    b"hmac(sha512)": "CONFIG_CRYPTO_HMAC and CONFIG_CRYPTO_SHA512",
    b"xcbc(aes)": "CONFIG_CRYPTO_XCBC and CONFIG_CRYPTO_AES",
    b"cmac(aes)": "CONFIG_CRYPTO_CMAC and CONFIG_CRYPTO_AES",
}
"""The kernel's build options behind each name."""


def algorithms(suite: ChildSuite, encryption: bytes, integrity: bytes) -> list[Attribute]:
    """The algorithm attributes of an SA with these keys. Lengths are in bits.

    Integrity goes as AUTH_TRUNC: left to itself the kernel cuts HMAC-SHA-256 to 96 bits, where RFC 4868 has 128.
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
