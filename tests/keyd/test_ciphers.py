"""CBC of ISAKMP messages (RFC 2409 appendix B) against the openssl command's idea of CBC, which is `cryptography`'s ECB
applied block by block here."""

import hashlib

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from keyd.ciphers import CbcChain, phase1_iv
from keyd.secret import Secret
from privsep.algorithms import Hash, IkeCipher

HASHLIB = {Hash.SHA1: "sha1", Hash.SHA2_256: "sha256", Hash.SHA2_384: "sha384", Hash.SHA2_512: "sha512"}


def cbc_by_hand(cipher: IkeCipher, key: bytes, iv: bytes, plaintext: bytes) -> bytes:
    algorithm = TripleDES(key) if cipher is IkeCipher.TRIPLE_DES else AES(key)
    ciphertext, previous = b"", iv
    for start in range(0, len(plaintext), cipher.block):
        block = bytes(a ^ b for a, b in zip(plaintext[start : start + cipher.block], previous, strict=True))
        previous = Cipher(algorithm, ECB()).encryptor().update(block)
        ciphertext += previous
    return ciphertext


def make(cipher: IkeCipher) -> tuple[bytes, bytes, CbcChain]:
    key, iv = bytes(range(cipher.key_bits // 8)), bytes(range(100, 100 + cipher.block))
    return key, iv, CbcChain.of_phase1(cipher, Secret(key), iv)


@pytest.mark.parametrize("cipher", IkeCipher)
@pytest.mark.parametrize("length", [1, 7, 8, 15, 16, 17, 40, 48])
def test_messages_are_padded_with_zeros_and_chain_through_the_last_block_rfc2409_appendix_b(cipher, length):
    key, iv, chain = make(cipher)
    for _ in range(3):
        plaintext = bytes(range(1, length + 1))
        padded = plaintext + bytes(-length % cipher.block)
        expected = cbc_by_hand(cipher, key, iv, padded)
        assert chain.seal(plaintext) == expected
        iv = expected[-cipher.block :]
        assert chain.iv == iv


@pytest.mark.parametrize("cipher", IkeCipher)
def test_opening_moves_the_iv_only_when_the_message_is_accepted(cipher):
    _, iv, sealing = make(cipher)
    _, _, opening = make(cipher)
    first, second = sealing.seal(b"first message of the chain"), sealing.seal(b"second")
    opening.open(bytes(len(first)))
    assert opening.iv == iv
    assert opening.open(first).startswith(b"first message of the chain")
    assert opening.iv == iv
    opening.accept(first)
    assert opening.open(second).startswith(b"second")


@pytest.mark.parametrize("cipher", IkeCipher)
def test_lengths_that_are_no_multiple_of_the_block_do_not_open(cipher):
    _, _, chain = make(cipher)
    for length in (0, 1, cipher.block - 1, cipher.block + 1, 3 * cipher.block - 1):
        assert chain.open(bytes(length)) is None


@pytest.mark.parametrize("cipher", IkeCipher)
@pytest.mark.parametrize("hash_", Hash)
def test_ivs_are_the_first_octets_of_the_hashes_of_rfc2409_appendix_b(cipher, hash_):
    name = HASHLIB[hash_]
    assert phase1_iv(hash_, cipher, b"g^xi", b"g^xr") == hashlib.new(name, b"g^xig^xr").digest()[: cipher.block]
    _, _, chain = make(cipher)
    chain.seal(b"the last message of phase 1")
    material = chain.iv + bytes.fromhex("01020304")
    branch = chain.branch(hash_, 0x01020304)
    assert branch.iv == hashlib.new(name, material).digest()[: cipher.block]
    branch.seal(b"phase 2")
    assert chain.branch(hash_, 0x01020304).iv == hashlib.new(name, material).digest()[: cipher.block]
