"""ESP packets (RFC 4303): from a payload to a packet and back, for one direction of one SA. No I/O, no clock.

    SPI, sequence number | IV | payload, padding, pad length, next header | ICV
                              '------------- encrypted -----------------'
    '--------------------- authenticated -----------------------------'

A suite is a combined-mode cipher, or a cipher and an HMAC. Extended sequence numbers are not carried.
"""

import hmac
import os
import struct
from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.decrepit.ciphers.algorithms import Camellia, TripleDES
from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm, Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

from monitor.userspace.drops import Dropped, Reason
from monitor.userspace.replay import ReplayWindow
from privsep.algorithms import ChildSuite, EspCipher, Integrity
from privsep.iana import EspTransform, ProtocolId
from privsep.types import Spi

MAX_SEQUENCE = 2**32 - 1
"""RFC 4303 section 3.3.3: the number must not cycle; the SA ends here."""
NO_NEXT_HEADER = 59
"""RFC 4303 section 2.6: a dummy packet, discarded after authentication."""

_HEADER = struct.Struct("!II")
_HEADER_OCTETS = 8
_TRAILER_OCTETS = 2
_ALIGNMENT = 4
"""RFC 4303 section 2.4: the ciphertext ends on a multiple of 4 octets, whatever the cipher."""
_IV_OCTETS = 8
"""Of every cipher with a nonce. The IV is the sequence number, which does not repeat under one key either."""
_WHOLE_TAG = 16
_WARM_UP_WINDOW = 32
_PADDING = bytes(range(1, 256))
"""RFC 4303 section 2.4: 1, 2, 3, ..."""

_HASH_NAMES = {
    Integrity.HMAC_MD5: "md5",
    Integrity.HMAC_SHA1: "sha1",
    Integrity.HMAC_SHA2_256: "sha256",
    Integrity.HMAC_SHA2_384: "sha384",
    Integrity.HMAC_SHA2_512: "sha512",
}


class SequenceExhausted(Exception):
    """The SA sent its last packet (RFC 4303 section 3.3.3)."""


class Transform(Protocol):
    """Cryptography of one direction under one key."""

    alignment: int
    """The plaintext is padded to a multiple of this."""

    def seal(self, header: bytes, sequence: int, plaintext: bytes) -> bytes:
        """The whole packet. Once for each sequence number."""

    def open(self, packet: bytes) -> bytes:
        """The plaintext of an authentic packet; Dropped otherwise."""


class Combined:
    """A combined-mode cipher (RFC 4106 section 3, RFC 4309 section 4, RFC 4543 section 3, RFC 7634 section 2).

    Nonce: salt | IV. SPI and sequence number are the additional authenticated data.
    """

    __slots__ = ("_aead", "_icv", "_salt", "alignment")

    def __init__(self, cipher: EspCipher, key: bytes) -> None:
        """The key ends with the salt."""
        boundary = len(key) - cipher.salt
        self._salt = key[boundary:]
        self._aead = _aead(cipher, key[:boundary])
        self._icv = cipher.icv
        self.alignment = _ALIGNMENT

    def seal(self, header: bytes, sequence: int, plaintext: bytes) -> bytes:
        """Once for each sequence number: the IV never repeats under one key."""
        iv = sequence.to_bytes(_IV_OCTETS, "big")
        return header + iv + self._aead.encrypt(self._salt + iv, plaintext, header)

    def open(self, packet: bytes) -> bytes:
        """The plaintext of an authentic packet."""
        body = _HEADER_OCTETS + _IV_OCTETS
        encrypted = len(packet) - body - self._icv
        if encrypted < _ALIGNMENT or encrypted % _ALIGNMENT:
            raise Dropped(Reason.MALFORMED)
        try:
            return self._aead.decrypt(self._salt + packet[_HEADER_OCTETS:body], packet[body:], packet[:_HEADER_OCTETS])
        except InvalidTag:
            raise Dropped(Reason.NOT_AUTHENTIC) from None


class _Aead(Protocol):
    """What `cryptography`'s AEAD classes have in common."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes: ...


def _aead(cipher: EspCipher, key: bytes) -> _Aead:
    match cipher.number:
        case EspTransform.AES_GCM_16:
            return AESGCM(key)
        case EspTransform.AES_GCM_8 | EspTransform.AES_GCM_12:
            return _ShortGcm(key, cipher.icv)
        case EspTransform.AES_CCM_8 | EspTransform.AES_CCM_12 | EspTransform.AES_CCM_16:
            return AESCCM(key, tag_length=cipher.icv)
        case EspTransform.NULL_AUTH_AES_GMAC:
            return _Gmac(key)
        case _:
            return ChaCha20Poly1305(key)


class _ShortGcm:
    """AES-GCM with a truncated ICV (RFC 4106 section 6), which AESGCM makes and does not take."""

    def __init__(self, key: bytes, icv: int) -> None:
        self._aead, self._algorithm, self._icv = AESGCM(key), algorithms.AES(key), icv

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes:
        """The ICV is the first octets of the tag."""
        return self._aead.encrypt(nonce, data, associated_data)[: self._icv - _WHOLE_TAG]

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes:
        """InvalidTag if it is not authentic."""
        tag = data[-self._icv :]
        decryptor = Cipher(self._algorithm, modes.GCM(nonce, tag, min_tag_length=self._icv)).decryptor()
        decryptor.authenticate_additional_data(associated_data)
        return decryptor.update(data[: -self._icv]) + decryptor.finalize()


class _Gmac:
    """AES-GMAC (RFC 4543 section 3.3): nothing is encrypted; the IV, which ends the nonce, is authenticated too."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes:
        """The data in clear and the tag."""
        return data + self._aead.encrypt(nonce, b"", associated_data + nonce[-_IV_OCTETS:] + data)

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes:
        """InvalidTag if it is not authentic."""
        clear = data[:-_WHOLE_TAG]
        self._aead.decrypt(nonce, data[-_WHOLE_TAG:], associated_data + nonce[-_IV_OCTETS:] + clear)
        return clear


class Encryption(Protocol):
    """A cipher without integrity: IV | ciphertext and back."""

    iv: int
    block: int

    def encrypt(self, sequence: int, plaintext: bytes) -> bytes:
        """Once for each sequence number."""

    def decrypt(self, body: bytes) -> bytes:
        """Whatever it decrypts to."""


class Cbc:
    """AES (RFC 3602), Camellia (RFC 4312) or 3DES (RFC 2451) in CBC mode.

    One cipher context lives as long as the SA; making one for each packet costs more than encrypting it. CBC decrypts
    a block with nothing but the ciphertext block before it, so a context that is fed IV | ciphertext yields a block of
    noise and then the plaintext, whatever it was fed before. Encrypting works alike: the context is fed a fresh random
    block first, whose ciphertext nobody can predict (RFC 3602 section 3) and which is the IV of what follows.
    """

    __slots__ = ("_decryptor", "_encryptor", "block", "iv")

    def __init__(self, algorithm: BlockCipherAlgorithm) -> None:
        self.iv = self.block = algorithm.block_size // 8
        cipher = Cipher(algorithm, modes.CBC(bytes(self.block)))
        self._encryptor = cipher.encryptor()
        self._decryptor = cipher.decryptor()

    def encrypt(self, sequence: int, plaintext: bytes) -> bytes:
        """With an IV of chance."""
        return self._encryptor.update(os.urandom(self.block) + plaintext)

    def decrypt(self, body: bytes) -> bytes:
        """Of IV | ciphertext."""
        return self._decryptor.update(body)[self.block :]


class Ctr:
    """AES in counter mode (RFC 3686): counter blocks are nonce | IV | 1, 2, ..."""

    __slots__ = ("_algorithm", "_nonce", "block", "iv")

    def __init__(self, key: bytes, nonce: bytes) -> None:
        self._algorithm, self._nonce = algorithms.AES(key), nonce
        self.iv, self.block = _IV_OCTETS, _ALIGNMENT

    def encrypt(self, sequence: int, plaintext: bytes) -> bytes:
        """Section 3.1: the IV never repeats under one key."""
        iv = sequence.to_bytes(_IV_OCTETS, "big")
        return iv + self._stream(iv).update(plaintext)

    def decrypt(self, body: bytes) -> bytes:
        """The same stream again."""
        return self._stream(body[:_IV_OCTETS]).update(body[_IV_OCTETS:])

    def _stream(self, iv: bytes) -> CipherContext:
        return Cipher(self._algorithm, modes.CTR(self._nonce + iv + b"\0\0\0\1")).encryptor()


class Null:
    """No encryption (RFC 2410)."""

    __slots__ = ("block", "iv")

    def __init__(self) -> None:
        self.iv, self.block = 0, _ALIGNMENT

    def encrypt(self, sequence: int, plaintext: bytes) -> bytes:
        """As it is."""
        return plaintext

    def decrypt(self, body: bytes) -> bytes:
        """As it is."""
        return body


class WithHmac:
    """A cipher, then HMAC over everything before the ICV (RFC 4303 section 3.3.2.1)."""

    __slots__ = ("_encryption", "_icv", "_mac", "alignment")

    def __init__(self, encryption: Encryption, integrity: Integrity, key: bytes) -> None:
        self._encryption = encryption
        self._mac = hmac.new(key, digestmod=_HASH_NAMES[integrity])
        self._icv = integrity.icv
        self.alignment = encryption.block

    def seal(self, header: bytes, sequence: int, plaintext: bytes) -> bytes:
        """Encrypt, then MAC."""
        packet = header + self._encryption.encrypt(sequence, plaintext)
        return packet + self._tag(packet)

    def open(self, packet: bytes) -> bytes:
        """Compare the ICV, in constant time, before anything is decrypted (RFC 4303 section 3.4.4.1)."""
        end = len(packet) - self._icv
        encrypted = end - _HEADER_OCTETS - self._encryption.iv
        if encrypted < self.alignment or encrypted % self.alignment:
            raise Dropped(Reason.MALFORMED)
        if not hmac.compare_digest(self._tag(packet[:end]), packet[end:]):
            raise Dropped(Reason.NOT_AUTHENTIC)
        return self._encryption.decrypt(packet[_HEADER_OCTETS:end])

    def _tag(self, data: bytes) -> bytes:
        """RFC 4868 section 2.6: HMAC truncated to its left half (RFC 2403, RFC 2404: to 96 bits)."""
        mac = self._mac.copy()
        mac.update(data)
        return mac.digest()[: self._icv]


def transform(suite: ChildSuite, encryption_key: bytes, integrity_key: bytes) -> Transform:
    """The cryptography of a suite; ValueError where a key has the wrong length or the suite is none of ours."""
    cipher, integrity = suite.cipher, suite.integrity
    if cipher is None or not suite.in_userspace:
        raise ValueError(f"{suite.described} is not carried here")
    if len(encryption_key) != suite.encryption_octets or len(integrity_key) != suite.integrity_octets:
        raise ValueError("a key has the wrong length")
    if (cipher.icv != 0) != (integrity is None):
        raise ValueError("the suite authenticates nothing, or twice")
    if integrity is None:
        return Combined(cipher, encryption_key)
    return WithHmac(_encryption(cipher, encryption_key), integrity, integrity_key)


_BLOCK_CIPHERS: dict[EspTransform | None, Callable[[bytes], BlockCipherAlgorithm]] = {
    EspTransform.AES_CBC: algorithms.AES,
    EspTransform.CAMELLIA_CBC: Camellia,
    EspTransform.TRIPLE_DES: TripleDES,
}


def _encryption(cipher: EspCipher, key: bytes) -> Encryption:
    if cipher is EspCipher.NULL:
        return Null()
    boundary = len(key) - cipher.salt
    if cipher.number is EspTransform.AES_CTR:
        return Ctr(key[:boundary], key[boundary:])
    return Cbc(_BLOCK_CIPHERS[cipher.number](key))


class Outbound:
    """Our sending direction: numbers packets and seals them."""

    __slots__ = ("_sequence", "_spi", "_transform")

    def __init__(self, spi: Spi, cryptography: Transform) -> None:
        self._spi = spi
        self._transform = cryptography
        self._sequence = 0

    @property
    def sequence(self) -> int:
        """The last number sent."""
        return self._sequence

    def seal(self, next_header: int, payload: bytes) -> bytes:
        """RFC 4303 section 3.3: pad, number, encrypt, authenticate. SequenceExhausted instead of a second lap."""
        if self._sequence == MAX_SEQUENCE:
            raise SequenceExhausted
        self._sequence = sequence = self._sequence + 1
        pad = -(len(payload) + _TRAILER_OCTETS) % self._transform.alignment
        plaintext = payload + _PADDING[:pad] + bytes((pad, next_header))
        return self._transform.seal(_HEADER.pack(self._spi, sequence), sequence, plaintext)


class Inbound:
    """Our receiving direction: replay window and ICV, then the payload."""

    __slots__ = ("_transform", "_window")

    def __init__(self, cryptography: Transform, replay_window: int) -> None:
        self._transform = cryptography
        self._window = ReplayWindow(replay_window)

    @property
    def highest(self) -> int:
        """The highest sequence number that proved authentic."""
        return self._window.highest

    def open(self, packet: bytes) -> tuple[int, bytes]:
        """RFC 4303 section 3.4: (next header, payload) of a packet that has this SA's SPI; Dropped for any other."""
        if len(packet) < _HEADER_OCTETS:
            raise Dropped(Reason.MALFORMED)
        sequence = int.from_bytes(packet[4:_HEADER_OCTETS], "big")
        if not self._window.admits(sequence):
            raise Dropped(Reason.REPLAYED)
        plaintext = self._transform.open(packet)
        self._window.accept(sequence)
        pad = plaintext[-2]
        end = len(plaintext) - _TRAILER_OCTETS - pad
        if end < 0 or plaintext[end:-_TRAILER_OCTETS] != _PADDING[:pad]:
            raise Dropped(Reason.MALFORMED)
        return plaintext[-1], plaintext[:end]


def warm_up() -> None:
    """Seal and open once with every algorithm: the crypto library loads some late, which it cannot after lock-down."""
    for cipher in EspCipher:
        for integrity in (None,) if cipher.icv else tuple(Integrity):
            suite = ChildSuite(ProtocolId.ESP, cipher, integrity, None)
            if not suite.in_userspace:
                continue
            keys = bytes(suite.encryption_octets), bytes(suite.integrity_octets)
            sealed = Outbound(Spi(256), transform(suite, *keys)).seal(NO_NEXT_HEADER, b"")
            Inbound(transform(suite, *keys), _WARM_UP_WINDOW).open(sealed)
