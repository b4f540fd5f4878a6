"""Encryption of ISAKMP messages: CBC, its IVs and its padding (RFC 2409 appendix B, RFC 3602, RFC 2451)."""

import hashlib
from typing import Self

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from keyd.ikev1 import HASH_NAMES
from keyd.secret import Secret
from privsep.algorithms import Hash, IkeCipher


def phase1_iv(hash_: Hash, cipher: IkeCipher, g_xi: bytes, g_xr: bytes) -> bytes:
    """IV of the first encrypted message of phase 1: hash(g^xi | g^xr), as much as a block takes."""
    return _hash(hash_, g_xi + g_xr)[: cipher.block]


def _hash(hash_: Hash, material: bytes) -> bytes:
    return hashlib.new(HASH_NAMES[hash_], material, usedforsecurity=False).digest()


class CbcChain:
    """The one IV context of an exchange: each message's last block is the next message's IV, in both directions.

    An IV is as long as a block.
    """

    __slots__ = ("_algorithm", "iv")

    def __init__(self, algorithm: AES | TripleDES, iv: bytes) -> None:
        self._algorithm = algorithm
        self.iv = iv

    @classmethod
    def of_phase1(cls, cipher: IkeCipher, key: Secret, iv: bytes) -> Self:
        """The context of phase 1; its last IV is the base of those of phase 2."""
        return cls(TripleDES(bytes(key)) if cipher is IkeCipher.TRIPLE_DES else AES(key), iv)

    def branch(self, hash_: Hash, message_id: int) -> Self:
        """The context of one phase 2 exchange: IV = hash(last phase 1 CBC output block | M-ID)."""
        material = self.iv + message_id.to_bytes(4, "big")
        return type(self)(self._algorithm, _hash(hash_, material)[: len(self.iv)])

    def seal(self, plaintext: bytes) -> bytes:
        """Pad with zeros to the next block, encrypt, and move the IV on."""
        padded = plaintext + bytes(-len(plaintext) % len(self.iv))
        encryptor = Cipher(self._algorithm, CBC(self.iv)).encryptor()
        ciphertext = encryptor.update(padded) + encryptor.finalize()
        self.accept(ciphertext)
        return ciphertext

    def open(self, ciphertext: bytes) -> bytes | None:
        """The plaintext with its padding, or None for a length that CBC cannot have. The IV stays: see `accept`."""
        if not ciphertext or len(ciphertext) % len(self.iv):
            return None
        decryptor = Cipher(self._algorithm, CBC(self.iv)).decryptor()
        return decryptor.update(ciphertext) + decryptor.finalize()

    def accept(self, ciphertext: bytes) -> None:
        """Move the IV on, once the message has proved to be the peer's: a forged one must not break the chain."""
        self.iv = ciphertext[-len(self.iv) :]
