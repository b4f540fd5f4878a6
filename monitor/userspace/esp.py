"""ESP packets (RFC 4303): from a payload to a packet and back, for one direction of one SA. No I/O, no clock.

    SPI, sequence number | IV | payload, padding, pad length, next header | ICV
                              '------------- encrypted -----------------'
    '--------------------- authenticated -----------------------------'

Combined mode is AES-GCM (RFC 4106); else AES-CBC (RFC 3602) and then HMAC (RFC 2404, RFC 4868). Extended sequence
numbers are not negotiated.
"""

import hmac
import os
import struct
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from monitor.userspace.drops import Dropped, Reason
from monitor.userspace.replay import ReplayWindow
from privsep.algorithms import ChildSuite, EspCipher, Integrity
from privsep.iana import ProtocolId
from privsep.types import Spi

MAX_SEQUENCE = 2**32 - 1
"""RFC 4303 section 3.3.3: the number must not cycle; the SA ends here."""
NO_NEXT_HEADER = 59
"""RFC 4303 section 2.6: a dummy packet, discarded after authentication."""

_HEADER = struct.Struct("!II")
_HEADER_OCTETS = 8
_TRAILER_OCTETS = 2
_BLOCK = 16
_GCM_ALIGNMENT = 4
"""RFC 4303 section 2.4: the ciphertext ends on a multiple of 4 octets, whatever the cipher."""
_GCM_SALT = 4
_GCM_IV = 8
_GCM_ICV = 16
_WARM_UP_WINDOW = 32
_PADDING = bytes(range(1, 256))
"""RFC 4303 section 2.4: 1, 2, 3, ..."""

_HASH_NAMES = {
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


class AesGcm:
    """AES-GCM with a 16-octet ICV (RFC 4106)."""

    __slots__ = ("_aead", "_salt", "alignment")

    def __init__(self, key: bytes) -> None:
        """The key ends with the salt (section 8.1)."""
        self._aead = AESGCM(key[:-_GCM_SALT])
        self._salt = key[-_GCM_SALT:]
        self.alignment = _GCM_ALIGNMENT

    def seal(self, header: bytes, sequence: int, plaintext: bytes) -> bytes:
        """Section 3.1: the IV never repeats under one key; the sequence number does not either, so it is the IV."""
        iv = sequence.to_bytes(_GCM_IV, "big")
        return header + iv + self._aead.encrypt(self._salt + iv, plaintext, header)

    def open(self, packet: bytes) -> bytes:
        """Section 5: SPI and sequence number are the additional authenticated data."""
        body = _HEADER_OCTETS + _GCM_IV
        encrypted = len(packet) - body - _GCM_ICV
        if encrypted < _GCM_ALIGNMENT or encrypted % _GCM_ALIGNMENT:
            raise Dropped(Reason.MALFORMED)
        try:
            return self._aead.decrypt(self._salt + packet[_HEADER_OCTETS:body], packet[body:], packet[:_HEADER_OCTETS])
        except InvalidTag:
            raise Dropped(Reason.NOT_AUTHENTIC) from None


class AesCbcHmac:
    """AES-CBC (RFC 3602), then HMAC over everything before the ICV (RFC 4303 section 3.3.2.1).

    One cipher context lives as long as the SA; making one for each packet costs more than encrypting it. CBC decrypts
    a block with nothing but the ciphertext block before it, so a context that is fed IV | ciphertext yields a block of
    noise and then the plaintext, whatever it was fed before. Encrypting works alike: the context is fed a fresh random
    block first, whose ciphertext nobody can predict (RFC 3602 section 3) and which is the IV of what follows.
    """

    __slots__ = ("_decryptor", "_encryptor", "_icv", "_mac", "alignment")

    def __init__(self, integrity: Integrity, encryption_key: bytes, integrity_key: bytes) -> None:
        cipher = Cipher(algorithms.AES(encryption_key), modes.CBC(bytes(_BLOCK)))
        self._encryptor = cipher.encryptor()
        self._decryptor = cipher.decryptor()
        self._mac = hmac.new(integrity_key, digestmod=_HASH_NAMES[integrity])
        self._icv = integrity.icv
        self.alignment = _BLOCK

    def seal(self, header: bytes, sequence: int, plaintext: bytes) -> bytes:
        """Encrypt, then MAC."""
        packet = header + self._encryptor.update(os.urandom(_BLOCK) + plaintext)
        return packet + self._tag(packet)

    def open(self, packet: bytes) -> bytes:
        """Compare the ICV, in constant time, before anything is decrypted (RFC 4303 section 3.4.4.1)."""
        end = len(packet) - self._icv
        encrypted = end - _HEADER_OCTETS - _BLOCK
        if encrypted < _BLOCK or encrypted % _BLOCK:
            raise Dropped(Reason.MALFORMED)
        if not hmac.compare_digest(self._tag(packet[:end]), packet[end:]):
            raise Dropped(Reason.NOT_AUTHENTIC)
        return self._decryptor.update(packet[_HEADER_OCTETS:end])[_BLOCK:]

    def _tag(self, data: bytes) -> bytes:
        """RFC 4868 section 2.6: HMAC truncated to its left half (RFC 2404: 96 bits of SHA-1)."""
        mac = self._mac.copy()
        mac.update(data)
        return mac.digest()[: self._icv]


def transform(suite: ChildSuite, encryption_key: bytes, integrity_key: bytes) -> Transform:
    """The cryptography of a suite; ValueError where a key has the wrong length or the suite is not ESP's."""
    cipher, integrity = suite.cipher, suite.integrity
    if cipher is None or not suite.in_userspace:
        raise ValueError(f"{suite.described} is not carried here")
    if len(encryption_key) != suite.encryption_octets or len(integrity_key) != suite.integrity_octets:
        raise ValueError("a key has the wrong length")
    if integrity is None:
        if not cipher.icv:
            raise ValueError("the suite authenticates nothing")
        return AesGcm(encryption_key)
    if cipher.icv:
        raise ValueError("the suite authenticates twice")
    return AesCbcHmac(integrity, encryption_key, integrity_key)


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
