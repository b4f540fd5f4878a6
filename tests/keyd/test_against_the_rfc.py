"""A peer written from RFC 2409 alone, with nothing of keyd, talks to keyd as responder and as initiator.

It shares neither formulas nor chains nor ciphers with keyd, so an error that both roles of keyd make alike shows here.
"""

import hashlib
import hmac
import os
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privsep.algorithms import ChildSuite, IkeSuite
from privsep.schema import keyd as ops

SA, KE, ID, HASH, NONCE, NOTIFY = 1, 4, 5, 8, 10, 11


def chain(*payloads: tuple[int, bytes]) -> bytes:
    """RFC 2408 section 3.2: next payload, reserved, length, body."""
    out = b""
    for index, (_, body) in enumerate(payloads):
        following = payloads[index + 1][0] if index + 1 < len(payloads) else 0
        out += struct.pack(">BBH", following, 0, len(body) + 4) + body
    return out


def walk(first: int, data: bytes) -> tuple[list[list], bytes]:
    """[type, body] of each payload, and the padding."""
    found, kind = [], first
    while kind:
        following, _, length = struct.unpack_from(">BBH", data)
        found.append([kind, data[4:length]])
        kind, data = following, data[length:]
    return found, data


class Peer:
    """One side of Main Mode with a pre-shared key, RFC 2409 sections 5, 5.4, 5.5 and appendix B."""

    def __init__(self, hash_name: str, key_octets: int, psk: bytes) -> None:
        self.hash_name, self.key_octets, self.psk = hash_name, key_octets, psk
        self.private = X25519PrivateKey.generate()
        self.ke = self.private.public_key().public_bytes_raw()
        self.nonce = os.urandom(20)

    def prf(self, key: bytes, *parts: bytes) -> bytes:
        return hmac.new(key, b"".join(parts), self.hash_name).digest()

    def key(self, *, g_xi: bytes, g_xr: bytes, ni: bytes, nr: bytes, cky_i: bytes, cky_r: bytes) -> None:
        self.g_xi, self.g_xr, self.cky_i, self.cky_r = g_xi, g_xr, cky_i, cky_r
        theirs = g_xr if g_xi == self.ke else g_xi
        g_xy = self.private.exchange(X25519PublicKey.from_public_bytes(theirs))
        self.skeyid = self.prf(self.psk, ni, nr)
        self.skeyid_d = self.prf(self.skeyid, g_xy, cky_i, cky_r, b"\0")
        self.skeyid_a = self.prf(self.skeyid, self.skeyid_d, g_xy, cky_i, cky_r, b"\1")
        skeyid_e = self.prf(self.skeyid, self.skeyid_a, g_xy, cky_i, cky_r, b"\2")
        ka = block = self.prf(skeyid_e, b"\0")
        while len(ka) < self.key_octets:
            block = self.prf(skeyid_e, block)
            ka += block
        self.cipher_key = (skeyid_e if self.key_octets <= len(skeyid_e) else ka)[: self.key_octets]
        self.iv = hashlib.new(self.hash_name, g_xi + g_xr).digest()[:16]

    def hash_i(self, sai_b: bytes, idii_b: bytes) -> bytes:
        return self.prf(self.skeyid, self.g_xi, self.g_xr, self.cky_i, self.cky_r, sai_b, idii_b)

    def hash_r(self, sai_b: bytes, idir_b: bytes) -> bytes:
        return self.prf(self.skeyid, self.g_xr, self.g_xi, self.cky_r, self.cky_i, sai_b, idir_b)

    def phase2(self, message_id: int) -> None:
        self.phase1_iv = getattr(self, "phase1_iv", self.iv)
        self.iv = hashlib.new(self.hash_name, self.phase1_iv + struct.pack(">I", message_id)).digest()[:16]

    def seal(self, plaintext: bytes) -> bytes:
        plaintext += bytes(-len(plaintext) % 16)
        context = Cipher(algorithms.AES(self.cipher_key), modes.CBC(self.iv)).encryptor()
        ciphertext = context.update(plaintext) + context.finalize()
        self.iv = ciphertext[-16:]
        return ciphertext

    def open(self, ciphertext: bytes) -> bytes:
        context = Cipher(algorithms.AES(self.cipher_key), modes.CBC(self.iv)).decryptor()
        self.iv = ciphertext[-16:]
        return context.update(ciphertext) + context.finalize()

    def keymat(self, spi: int, ni: bytes, nr: bytes, octets: int, g_qm_xy: bytes = b"") -> bytes:
        out = block = self.prf(self.skeyid_d, g_qm_xy, b"\3", struct.pack(">I", spi), ni, nr)
        while len(out) < octets:
            block = self.prf(self.skeyid_d, block, g_qm_xy, b"\3", struct.pack(">I", spi), ni, nr)
            out += block
        return out[:octets]


LIFE = bytes.fromhex("80010001 00020004 00000e10")
"""SA-LIFE-TYPE seconds and SA-LIFE-DURATION 3600 (RFC 2407 section 4.5)."""
proposals = {
    # tunnel (attribute 4), key length (6), authentication algorithm (5), group (3); RFC 2407 section 4.5, RFC 4106
    "aes128-sha256": (12, bytes.fromhex("80040001 80060080 80050005") + LIFE),
    "aes256gcm16-curve25519": (20, bytes.fromhex("80040001 80060100 8003001f") + LIFE),
    "aes256gcm16": (20, bytes.fromhex("80040001 80060100") + LIFE),
}
"""ESP's transform and its attributes."""


def sa_of(spi, proposal):
    """An SA payload's body with one proposal of one transform (RFC 2408 sections 3.4 to 3.6)."""
    transform_id, attributes = proposal
    transform = struct.pack(">BBHBBH", 0, 0, 8 + len(attributes), 1, transform_id, 0) + attributes
    return struct.pack(">IIBBHBBBBI", 1, 1, 0, 0, 12 + len(transform), 1, 3, 4, 1, spi) + transform


SUITES = [
    ("aes128-sha1-curve25519", "sha1", 16),
    ("aes256-sha1-curve25519", "sha1", 32),
    ("aes256-sha256-curve25519", "sha256", 32),
    ("aes192-sha512-curve25519", "sha512", 24),
]
PSK = b"a pre-shared key of both"


@pytest.mark.parametrize(("suite", "hash_name", "key_octets"), SUITES)
@pytest.mark.parametrize("child", ["aes128-sha256", "aes256gcm16-curve25519"])
def test_keyd_as_responder_understands_an_initiator_written_from_rfc2409(
    make_world, build, suite, hash_name, key_octets, child
):
    child_suite = ChildSuite.parse(child)
    world = make_world(suite, (child,), (PSK, PSK))
    keyd, peer = world.right, Peer(hash_name, key_octets, PSK)
    ours = keyd.do(world.answer(peer.ke, peer.nonce, suite=IkeSuite.parse(suite)))
    peer.key(g_xi=peer.ke, g_xr=ours.ke, ni=peer.nonce, nr=ours.nonce, cky_i=world.cky_i, cky_r=world.cky_r)
    # message 5, with UDP and port 500 in the ID payload (RFC 2407 section 4.6.2)
    idii_b = b"\x02\x11\x01\xf4gw1.example.org"
    fifth = peer.seal(chain((ID, idii_b), (HASH, peer.hash_i(world.sai_b, idii_b))))
    authenticated = keyd.do(ops.AuthOpen(ike=ours.ike, ciphertext=fifth))
    assert authenticated.identity == build.LEFT_ID
    # message 6
    sixth = keyd.do(ops.AuthSeal(ike=ours.ike, next_payload=0, payloads=b"")).ciphertext
    (idir, hash_r), padding = walk(ID, peer.open(sixth))
    assert idir == [ID, b"\x02\0\0\0gw2.example.org"]
    assert hash_r == [HASH, peer.hash_r(world.sai_b, idir[1])]
    assert not any(padding)
    # Quick Mode message 1
    message_id, ni = 0x0BADCAFE, os.urandom(16)
    mid = struct.pack(">I", message_id)
    pfs = X25519PrivateKey.generate() if child_suite.group else None
    ke = [(KE, pfs.public_key().public_bytes_raw())] if pfs else []
    rest = chain((SA, sa_of(0xBBBB, proposals[child])), (NONCE, ni), *ke)
    peer.phase2(message_id)
    value = peer.prf(peer.skeyid_a, mid, rest)
    first = peer.seal(struct.pack(">BBH", SA, 0, 4 + len(value)) + value + rest)
    opened = keyd.do(ops.QuickOpen(ike=ours.ike, message_id=message_id, ciphertext=first))
    assert (opened.next_payload, opened.payloads) == (SA, rest)
    # message 2
    answer = keyd.do(world.quick_answer(opened.quick, child_suite, spi_in=0xAAAA))
    plaintext = peer.open(answer.ciphertext)
    payloads, padding = walk(HASH, plaintext)
    after_hash = plaintext[4 + len(payloads[0][1]) : len(plaintext) - len(padding)]
    assert payloads[0][1] == peer.prf(peer.skeyid_a, mid, ni, after_hash)
    assert [kind for kind, _ in payloads] == [HASH, SA, NONCE] + ([KE] if pfs else [])
    assert payloads[1][1] == sa_of(0xAAAA, proposals[child])
    nr = payloads[2][1]
    redeemed = keyd.redeem_inbound(answer.keymat)
    # message 3
    third = peer.seal(chain((HASH, peer.prf(peer.skeyid_a, b"\0", mid, ni, nr))))
    assert keyd.do(ops.QuickConfirm(quick=opened.quick, ciphertext=third)) == ops.Done()
    # both sides' KEYMAT
    g_qm_xy = pfs.exchange(X25519PublicKey.from_public_bytes(payloads[3][1])) if pfs else b""
    outbound = keyd.redeem_outbound(answer.keymat)
    octets = len(redeemed.encryption_in + redeemed.integrity_in)
    assert redeemed.encryption_in + redeemed.integrity_in == peer.keymat(0xAAAA, ni, nr, octets, g_qm_xy)
    assert outbound.encryption_out + outbound.integrity_out == peer.keymat(0xBBBB, ni, nr, octets, g_qm_xy)


@pytest.mark.parametrize(("suite", "hash_name", "key_octets"), SUITES)
def test_keyd_as_initiator_understands_a_responder_written_from_rfc2409(
    make_world, build, suite, hash_name, key_octets
):
    world = make_world(suite, psks=(PSK, PSK))
    keyd, peer = world.left, Peer(hash_name, key_octets, PSK)
    ours = keyd.do(world.offer())
    agree = ops.IkeAgree(ike=ours.ike, ke=peer.ke, nonce=peer.nonce)
    assert keyd.do(agree) == ops.Done()
    peer.key(g_xi=ours.ke, g_xr=peer.ke, ni=ours.nonce, nr=peer.nonce, cky_i=world.cky_i, cky_r=world.cky_r)
    fifth = keyd.do(ops.AuthSeal(ike=ours.ike, next_payload=0, payloads=b"")).ciphertext
    (idii, hash_i), _ = walk(ID, peer.open(fifth))
    assert hash_i == [HASH, peer.hash_i(world.sai_b, idii[1])]
    idir_b = b"\x02\0\0\0gw2.example.org"
    sixth = peer.seal(chain((ID, idir_b), (HASH, peer.hash_r(world.sai_b, idir_b)), (NOTIFY, b"extra")))
    authenticated = keyd.do(ops.AuthOpen(ike=ours.ike, ciphertext=sixth))
    assert (authenticated.next_payload, authenticated.payloads) == (NOTIFY, chain((NOTIFY, b"extra")))
    # an Informational of the peer's (section 5.7), then a Quick Mode of keyd's
    peer.phase2(7)
    rest = chain((NOTIFY, b"status"))
    value = peer.prf(peer.skeyid_a, struct.pack(">I", 7), rest)
    informational = peer.seal(struct.pack(">BBH", NOTIFY, 0, 4 + len(value)) + value + rest)
    opened = keyd.do(ops.InfoOpen(ike=ours.ike, message_id=7, ciphertext=informational))
    assert opened == ops.Opened(next_payload=NOTIFY, payloads=rest)
    offered = keyd.do(world.quick_offer(ours.ike, build.ESP))
    peer.phase2(offered.message_id)
    mid = struct.pack(">I", offered.message_id)
    plaintext = peer.open(offered.ciphertext)
    payloads, padding = walk(HASH, plaintext)
    after_hash = plaintext[4 + len(payloads[0][1]) : len(plaintext) - len(padding)]
    assert payloads[0][1] == peer.prf(peer.skeyid_a, mid, after_hash)
    ni, nr = payloads[2][1], os.urandom(16)
    assert payloads[1][1] == sa_of(0x1001, proposals["aes256gcm16"])
    ids = [b"\x04\0\0\0\x0a\x01\0\0\xff\xff\0\0", b"\x04\0\0\0\x0a\x02\0\0\xff\xff\0\0"]
    assert [body for kind, body in payloads if kind == ID] == ids
    rest = chain((SA, sa_of(0x2002, proposals["aes256gcm16"])), (NONCE, nr))
    value = peer.prf(peer.skeyid_a, mid, ni, rest)
    second = peer.seal(struct.pack(">BBH", SA, 0, 4 + len(value)) + value + rest)
    finished = keyd.do(ops.QuickFinish(quick=offered.quick, ciphertext=second))
    assert (finished.next_payload, finished.payloads) == (SA, rest)
    assert (finished.suite, finished.spi_out, finished.lifetime) == (build.ESP, 0x2002, 3600)
    keyed = keyd.do(ops.QuickAccept(quick=offered.quick))
    (hash_3,), _ = walk(HASH, peer.open(keyed.ciphertext))
    assert hash_3 == [HASH, peer.prf(peer.skeyid_a, b"\0", mid, ni, nr)]
    assert keyd.redeem_inbound(keyed.keymat).encryption_in == peer.keymat(0x1001, ni, nr, 36)
    assert keyd.redeem_outbound(keyed.keymat).encryption_out == peer.keymat(0x2002, ni, nr, 36)
