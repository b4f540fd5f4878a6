"""RFC 2409's formulas against a second statement of them, written from the RFC with `cryptography`'s HMAC."""

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from hypothesis import given
from hypothesis import strategies as st

from keyd import ikev1
from keyd.secret import Secret
from privsep.algorithms import ChildSuite, Hash, IkeCipher
from privsep.iana import ProtocolId

ALGORITHMS = {
    Hash.SHA1: hashes.SHA1,
    Hash.SHA2_256: hashes.SHA256,
    Hash.SHA2_384: hashes.SHA384,
    Hash.SHA2_512: hashes.SHA512,
}
CKY_I, CKY_R = b"IIIIIIII", b"RRRRRRRR"
some_bytes = st.binary(min_size=8, max_size=64)
any_hash = st.sampled_from(list(Hash))


def prf(hash_: Hash, key: bytes, *parts: bytes) -> bytes:
    context = hmac.HMAC(bytes(key), ALGORITHMS[hash_]())
    for part in parts:
        context.update(bytes(part))
    return context.finalize()


@given(any_hash, some_bytes, some_bytes, some_bytes)
def test_skeyid_of_a_pre_shared_key_rfc2409_5(hash_, psk, ni_b, nr_b):
    assert ikev1.skeyid_for_pre_shared_key(hash_, Secret(psk), ni_b, nr_b) == prf(hash_, psk, ni_b, nr_b)


@given(any_hash, some_bytes, some_bytes, some_bytes)
def test_skeyid_of_signatures_rfc2409_5(hash_, g_xy, ni_b, nr_b):
    assert ikev1.skeyid_for_signatures(hash_, ni_b, nr_b, Secret(g_xy)) == prf(hash_, ni_b + nr_b, g_xy)


@given(any_hash, some_bytes, some_bytes)
def test_skeyid_d_a_e_rfc2409_5(hash_, skeyid, g_xy):
    keys = ikev1.derive(hash_, Secret(skeyid), Secret(g_xy), CKY_I, CKY_R)
    skeyid_d = prf(hash_, skeyid, g_xy, CKY_I, CKY_R, b"\0")
    skeyid_a = prf(hash_, skeyid, skeyid_d, g_xy, CKY_I, CKY_R, b"\1")
    skeyid_e = prf(hash_, skeyid, skeyid_a, g_xy, CKY_I, CKY_R, b"\2")
    assert (keys.skeyid_d, keys.skeyid_a, keys.skeyid_e) == (skeyid_d, skeyid_a, skeyid_e)


@pytest.mark.parametrize("hash_", Hash)
@pytest.mark.parametrize("cipher", IkeCipher)
def test_cipher_key_is_cut_or_expanded_rfc2409_appendix_b(hash_, cipher):
    skeyid_e = bytes(range(hash_.digest))
    octets = cipher.key_bits // 8
    k1 = prf(hash_, skeyid_e, b"\0")
    k2 = prf(hash_, skeyid_e, k1)
    expected = skeyid_e[:octets] if octets <= hash_.digest else (k1 + k2)[:octets]
    assert ikev1.cipher_key(hash_, cipher, Secret(skeyid_e)) == expected
    assert len(expected) == octets


@given(any_hash, some_bytes, some_bytes, some_bytes, some_bytes, some_bytes)
def test_hash_i_and_hash_r_rfc2409_5(hash_, skeyid, g_xi, g_xr, sai_b, id_b):
    common = {"g_xi": g_xi, "g_xr": g_xr, "cky_i": CKY_I, "cky_r": CKY_R, "sai_b": sai_b}
    hash_i = ikev1.hash_i(hash_, Secret(skeyid), idii_b=id_b, **common)
    hash_r = ikev1.hash_r(hash_, Secret(skeyid), idir_b=id_b, **common)
    assert hash_i == prf(hash_, skeyid, g_xi, g_xr, CKY_I, CKY_R, sai_b, id_b)
    assert hash_r == prf(hash_, skeyid, g_xr, g_xi, CKY_R, CKY_I, sai_b, id_b)


@given(any_hash, some_bytes, st.integers(0, 2**32 - 1), some_bytes, some_bytes)
def test_hash_1_2_3_rfc2409_5_5(hash_, skeyid_a, message_id, one, other):
    key, mid = Secret(skeyid_a), message_id.to_bytes(4, "big")
    assert ikev1.hash_1(hash_, key, message_id, one) == prf(hash_, skeyid_a, mid, one)
    assert ikev1.hash_2(hash_, key, message_id, one, other) == prf(hash_, skeyid_a, mid, one, other)
    assert ikev1.hash_3(hash_, key, message_id, one, other) == prf(hash_, skeyid_a, b"\0", mid, one, other)


@given(
    any_hash,
    some_bytes,
    st.none() | some_bytes,
    st.integers(256, 2**32 - 1),
    some_bytes,
    some_bytes,
    st.integers(1, 140),
)
def test_keymat_is_chained_with_and_without_pfs_rfc2409_5_5(hash_, skeyid_d, g_qm_xy, spi, ni_b, nr_b, octets):
    seed = (g_qm_xy or b"") + b"\x03" + spi.to_bytes(4, "big") + ni_b + nr_b
    expected = block = prf(hash_, skeyid_d, seed)
    while len(expected) < octets:
        block = prf(hash_, skeyid_d, block, seed)
        expected += block
    derived = ikev1.keymat(
        hash_,
        Secret(skeyid_d),
        g_qm_xy=None if g_qm_xy is None else Secret(g_qm_xy),
        protocol=ProtocolId.ESP,
        spi=spi,
        ni_b=ni_b,
        nr_b=nr_b,
        octets=octets,
    )
    assert derived == expected[:octets]


@pytest.mark.parametrize(
    ("suite", "encryption", "integrity"),
    [
        ("aes128-sha1", 16, 20),
        ("aes256-sha256", 32, 32),
        ("aes192-sha384", 24, 48),
        ("aes256-sha512", 32, 64),
        ("aes128gcm16", 20, 0),
        ("aes192gcm16", 28, 0),
        ("aes256gcm16", 36, 0),
        ("aes128gcm8-esn", 20, 0),
        ("aes192gcm12-modp2048", 28, 0),
        ("aes128ctr-sha256", 20, 32),
        ("aes192ctr-sha256", 28, 32),
        ("aes256ctr-sha256", 36, 32),
        ("aes128ccm8", 19, 0),
        ("aes192ccm12", 27, 0),
        ("aes256ccm16", 35, 0),
        ("aes128gmac", 20, 0),
        ("aes192gmac", 28, 0),
        ("aes256gmac", 36, 0),
        ("chacha20poly1305", 36, 0),
        ("camellia128-md5", 16, 16),
        ("camellia192-aesxcbc", 24, 16),
        ("camellia256-aescmac", 32, 16),
        ("3des-sha1", 24, 20),
        ("null-sha512", 0, 64),
    ],
)
def test_keymat_is_split_encryption_first_salt_at_its_end(suite, encryption, integrity):
    """RFC 3686 5.1, RFC 4106 8.1, RFC 4309 7.1, RFC 4543 5.4, RFC 4868 2.1.1, RFC 7634 2; RFC 2451 for 3DES."""
    parsed = ChildSuite.parse(suite)
    assert ikev1.keymat_octets(parsed) == encryption + integrity
    material = bytes(range(encryption + integrity))
    keys = ikev1.split(parsed, Secret(material))
    assert keys.encryption == material[:encryption]
    assert keys.integrity == material[encryption:]


@pytest.mark.parametrize(
    ("suite", "octets"),
    [("md5", 16), ("sha1", 20), ("sha256-esn", 32), ("sha384", 48), ("sha512", 64), ("aesxcbc", 16), ("aescmac", 16)],
)
def test_keymat_of_ah_is_the_integrity_key_alone_rfc4302(suite, octets):
    parsed = ChildSuite.parse(suite, ProtocolId.AH)
    keys = ikev1.split(parsed, Secret(bytes(range(octets))))
    assert (ikev1.keymat_octets(parsed), keys.encryption, keys.integrity) == (octets, b"", bytes(range(octets)))


def test_keymat_depends_on_the_protocol_rfc2409_5_5():
    def derived(protocol):
        return ikev1.keymat(
            Hash.SHA2_256,
            Secret(bytes(32)),
            g_qm_xy=None,
            protocol=protocol,
            spi=0x1234,
            ni_b=b"ni",
            nr_b=b"nr",
            octets=32,
        )

    seed = bytes.fromhex("02 00001234") + b"ninr"
    assert derived(ProtocolId.AH) == prf(Hash.SHA2_256, bytes(32), seed) != derived(ProtocolId.ESP)
