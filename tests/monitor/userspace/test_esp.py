"""RFC 4303 packets: against strongSwan's, and against everything that could be wrong with them."""

import json
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from monitor.userspace import esp
from monitor.userspace.drops import Dropped, Reason
from monitor.userspace.esp import Inbound, Outbound, SequenceExhausted, transform
from privsep.algorithms import ChildSuite, EspCipher, Integrity
from privsep.iana import ProtocolId
from privsep.types import Spi

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("charon-esp.json").read_text())["sas"]
SUITES = [
    "aes128gcm16",
    "aes192gcm16",
    "aes256gcm16",
    *(f"aes{bits}-{hash_}" for bits in (128, 192, 256) for hash_ in ("sha1", "sha256", "sha384", "sha512")),
    *(
        f"aes{bits}{mode}"
        for bits, mode in ((128, "gcm8"), (256, "gcm12"), (128, "ccm8"), (192, "ccm12"), (256, "ccm16"))
    ),
    *(f"aes{bits}gmac" for bits in (128, 192, 256)),
    "chacha20poly1305",
    *(f"aes{bits}ctr-sha256" for bits in (128, 192, 256)),
    *(f"camellia{bits}-sha512" for bits in (128, 192, 256)),
    "3des-md5",
    "null-sha256",
]
BLOCKS = {"AES_CBC": 16, "CAMELLIA_CBC": 16, "TRIPLE_DES": 8}


def keys(suite):
    integrity = suite.integrity.key_octets if suite.integrity else 0
    return bytes(range(suite.cipher.key_octets)), bytes(range(100, 100 + integrity))


def pair(name, window=64):
    suite = ChildSuite.parse(name)
    return Outbound(Spi(0x1234), transform(suite, *keys(suite))), Inbound(transform(suite, *keys(suite)), window)


def reason(inbound, packet):
    with pytest.raises(Dropped) as caught:
        inbound.open(packet)
    return caught.value.reason


@pytest.mark.parametrize("sa", GOLDEN, ids=lambda sa: f"{sa['suite']}-{sa['sender']}")
def test_strongswans_packets_open_rfc4303_3_4(sa):
    keys_of_sa = bytes.fromhex(sa["encryption"]), bytes.fromhex(sa["integrity"])
    inbound = Inbound(transform(ChildSuite.parse(sa["suite"]), *keys_of_sa), 64)
    for packet in sa["packets"]:
        next_header, payload = inbound.open(bytes.fromhex(packet))
        assert next_header == 4
        assert payload[:2] == b"\x45\x00"
        assert int.from_bytes(payload[2:4], "big") == len(payload) == 48
        source, destination = ("0a010001", "0a020001") if sa["sender"] == "initiator" else ("0a020001", "0a010001")
        assert payload[12:20].hex() == source + destination


@pytest.mark.parametrize("sa", [sa for sa in GOLDEN if "gcm" in sa["suite"]], ids=lambda sa: sa["suite"])
def test_our_gcm_packet_is_strongswans_octet_for_octet_where_the_iv_is_the_same_rfc4106_3(sa):
    foreign = bytes.fromhex(sa["packets"][0])
    cryptography = transform(ChildSuite.parse(sa["suite"]), bytes.fromhex(sa["encryption"]), b"")
    plaintext = cryptography.open(foreign)
    iv = int.from_bytes(foreign[8:16], "big")
    assert cryptography.seal(foreign[:8], iv, plaintext) == foreign


@pytest.mark.parametrize("name", SUITES)
@given(payload=st.binary(max_size=200), next_header=st.integers(0, 255))
def test_what_is_sealed_opens_to_the_same(name, payload, next_header):
    outbound, inbound = pair(name)
    packet = outbound.seal(next_header, payload)
    assert inbound.open(packet) == (next_header, payload)


@pytest.mark.parametrize("name", SUITES)
def test_a_packet_begins_with_spi_and_a_sequence_number_from_one_rfc4303_2_1_2_2(name):
    outbound, _ = pair(name)
    assert [outbound.seal(4, b"x")[:8].hex() for _ in range(3)] == [
        "0000123400000001",
        "0000123400000002",
        "0000123400000003",
    ]


@pytest.mark.parametrize("name", SUITES)
def test_packets_are_aligned_and_of_the_length_that_the_rfc_gives_rfc4303_2_4(name):
    suite = ChildSuite.parse(name)
    outbound, _ = pair(name)
    # RFC 4303 section 2.4: 4 where the cipher wants nothing else
    block = BLOCKS.get(suite.cipher.number.name if suite.cipher.number else "", 4)
    icv = suite.cipher.icv or suite.integrity.icv
    for length in range(40):
        padded = -(-(length + 2) // block) * block
        assert len(outbound.seal(4, bytes(length))) == 8 + suite.cipher.iv + padded + icv


def test_ivs_never_repeat_rfc4106_3_1_rfc3602_3():
    for name, end in (
        ("aes128gcm16", 16),
        ("aes128ccm8", 16),
        ("chacha20poly1305", 16),
        ("aes128gmac", 16),
        ("aes128ctr-sha1", 16),
        ("aes128-sha1", 24),
        ("3des-sha1", 16),
    ):
        outbound, _ = pair(name)
        assert len({outbound.seal(4, b"same")[8:end] for _ in range(500)}) == 500


@pytest.mark.parametrize("name", ["aes256gcm16", "aes128-sha256"])
@given(data=st.data())
def test_any_change_of_any_octet_is_dropped_as_not_authentic_rfc4303_3_4_4(name, data):
    outbound, inbound = pair(name)
    packet = bytearray(outbound.seal(4, b"0123456789"))
    # the SPI is looked up before; here it is covered by the ICV
    packet[data.draw(st.integers(0, len(packet) - 1))] ^= data.draw(st.integers(1, 255))
    assert reason(inbound, bytes(packet)) in (Reason.NOT_AUTHENTIC, Reason.REPLAYED)
    assert inbound.highest == 0


@pytest.mark.parametrize("name", ["aes256gcm16", "aes128-sha256"])
def test_every_truncation_is_dropped(name):
    outbound, inbound = pair(name)
    packet = outbound.seal(4, b"0123456789")
    for length in range(len(packet)):
        assert reason(inbound, packet[:length]) in (Reason.MALFORMED, Reason.NOT_AUTHENTIC)
    assert inbound.open(packet) == (4, b"0123456789")


@pytest.mark.parametrize("name", ["aes256gcm16", "aes128-sha256"])
@given(garbage=st.binary(max_size=300))
def test_garbage_is_dropped(name, garbage):
    _, inbound = pair(name)
    assert reason(inbound, garbage) in (Reason.MALFORMED, Reason.NOT_AUTHENTIC, Reason.REPLAYED)


@pytest.mark.parametrize("name", ["aes256gcm16", "aes128-sha256"])
@pytest.mark.parametrize(
    "trailer",
    [bytes((255, 4)), bytes((9, 8, 7, 6, 4, 4)), bytes((0, 0, 2, 4)), bytes((1, 2, 3, 5, 4, 4))],
    ids=["longer than the packet", "descending", "zeros", "one wrong"],
)
def test_wrong_padding_is_dropped_after_authentication_rfc4303_2_4(name, trailer):
    suite = ChildSuite.parse(name)
    cryptography = transform(suite, *keys(suite))
    plaintext = bytes(-len(trailer) % 16) + trailer
    packet = cryptography.seal(bytes.fromhex("0000123400000001"), 1, plaintext)
    _, inbound = pair(name)
    assert reason(inbound, packet) is Reason.MALFORMED
    assert inbound.highest == 1


@pytest.mark.parametrize("name", ["aes256gcm16", "aes128-sha256"])
def test_a_packet_opens_once_and_in_any_order_within_the_window_rfc4303_3_4_3(name):
    outbound, inbound = pair(name)
    packets = [outbound.seal(4, bytes((number,))) for number in range(100)]
    assert inbound.open(packets[99]) == (4, bytes((99,)))
    assert inbound.open(packets[36]) == (4, bytes((36,)))
    assert reason(inbound, packets[36]) is Reason.REPLAYED
    assert reason(inbound, packets[99]) is Reason.REPLAYED
    assert reason(inbound, packets[35]) is Reason.REPLAYED


def test_a_forged_sequence_number_does_not_move_the_window_rfc4303_3_4_3():
    outbound, inbound = pair("aes256gcm16")
    first = outbound.seal(4, b"first")
    assert reason(inbound, first[:4] + b"\xff\xff\xff\xf0" + first[8:]) is Reason.NOT_AUTHENTIC
    assert inbound.open(first) == (4, b"first")


def test_the_sa_ends_before_its_sequence_number_cycles_rfc4303_3_3_3(monkeypatch):
    monkeypatch.setattr(esp, "MAX_SEQUENCE", 3)
    outbound, _ = pair("aes256gcm16")
    for _ in range(3):
        outbound.seal(4, b"")
    with pytest.raises(SequenceExhausted):
        outbound.seal(4, b"")


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("name", ["aes256gcm16", "aes128-sha256"])
def test_keys_of_wrong_length_are_refused(name, change):
    suite = ChildSuite.parse(name)
    encryption, integrity = keys(suite)
    with pytest.raises(ValueError, match="length"):
        transform(suite, bytes(len(encryption) + change), integrity)
    with pytest.raises(ValueError, match="length"):
        transform(suite, encryption, bytes(max(1, len(integrity) + change)))


@pytest.mark.parametrize(
    ("cipher", "integrity", "protocol", "esn"),
    [
        (None, Integrity.HMAC_SHA1, ProtocolId.AH, False),
        (EspCipher.AES_128, Integrity.AES_XCBC, ProtocolId.ESP, False),
        (EspCipher.AES_128, Integrity.AES_CMAC, ProtocolId.ESP, False),
        (EspCipher.AES_128_GCM_16, None, ProtocolId.ESP, True),
        (EspCipher.AES_128, None, ProtocolId.ESP, False),
        (EspCipher.AES_128_GCM_16, Integrity.HMAC_SHA1, ProtocolId.ESP, False),
    ],
)
def test_what_cannot_be_carried_is_refused(cipher, integrity, protocol, esn):
    suite = ChildSuite(protocol, cipher, integrity, None, esn=esn)
    with pytest.raises(ValueError, match=r"carried|nothing, or twice"):
        transform(suite, bytes(suite.encryption_octets), bytes(suite.integrity_octets))


def test_what_the_configuration_believes_to_be_carried_is_carried():
    for cipher in EspCipher:
        for integrity in (None,) if cipher.icv else tuple(Integrity):
            suite = ChildSuite(ProtocolId.ESP, cipher, integrity, None)
            if suite.in_userspace:
                assert transform(suite, bytes(suite.encryption_octets), bytes(suite.integrity_octets))


RFC7634_PLAINTEXT = """
    45 00 00 54 a6 f2 00 00 40 01 e7 78 c6 33 64 05 c0 00 02 05 08 00 5b 7a 3a 08 00 00 55 3b ec 10
    00 07 36 27 08 09 0a 0b 0c 0d 0e 0f 10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f 20 21 22 23
    24 25 26 27 28 29 2a 2b 2c 2d 2e 2f 30 31 32 33 34 35 36 37 01 02 02 04
"""
RFC7634_PACKET = """
    01 02 03 04 00 00 00 05 10 11 12 13 14 15 16 17
    24 03 94 28 b9 7f 41 7e 3c 13 75 3a 4f 05 08 7b 67 c3 52 e6 a7 fa b1 b9 82 d4 66 ef 40 7a e5 c6
    14 ee 80 99 d5 28 44 eb 61 aa 95 df ab 4c 02 f7 2a a7 1e 7c 4c 4f 64 c9 be fe 2f ac c6 38 e8 f3
    cb ec 16 3f ac 46 9b 50 27 73 f6 fb 94 e6 64 da 91 65 b8 28 29 f6 41 e0
    76 aa a8 26 6b 7f b0 f7 b1 1b 36 99 07 e1 ad 43
"""


def test_the_packet_of_rfc7634_appendix_a():
    suite = ChildSuite.parse("chacha20poly1305")
    cryptography = transform(suite, bytes(range(0x80, 0xA4)), b"")
    packet, plaintext = bytes.fromhex(RFC7634_PACKET), bytes.fromhex(RFC7634_PLAINTEXT)
    assert cryptography.open(packet) == plaintext
    assert cryptography.seal(packet[:8], int.from_bytes(packet[8:16], "big"), plaintext) == packet


@pytest.mark.parametrize(
    ("key", "iv", "nonce", "plaintext", "ciphertext"),
    [
        (
            "ae6852f8121067cc4bf7a5765577f39e",
            "0000000000000000",
            "00000030",
            b"Single block msg".hex(),
            "e4095d4fb7a7b3792d6175a3261311b8",
        ),
        (
            "7e24067817fae0d743d6ce1f32539163",
            "c0543b59da48d90b",
            "006cb6db",
            bytes(range(32)).hex(),
            "5104a106168a72d9790d41ee8edad388eb2e1efc46da57c8fce630df9141be28",
        ),
    ],
)
def test_the_test_vectors_of_rfc3686_6(key, iv, nonce, plaintext, ciphertext):
    counter_mode = esp.Ctr(bytes.fromhex(key), bytes.fromhex(nonce))
    assert counter_mode.encrypt(int(iv, 16), bytes.fromhex(plaintext)).hex() == iv + ciphertext
    assert counter_mode.decrypt(bytes.fromhex(iv + ciphertext)).hex() == plaintext


@pytest.mark.parametrize("icv", [8, 12])
def test_a_short_gcm_icv_is_the_beginning_of_the_long_one_rfc4106_6(icv):
    key, header = bytes(range(20)), bytes.fromhex("0000123400000001")
    plaintext = bytes(range(30)) + b"\0\4"
    long = transform(ChildSuite.parse("aes128gcm16"), key, b"").seal(header, 1, plaintext)
    short = transform(ChildSuite.parse(f"aes128gcm{icv}"), key, b"").seal(header, 1, plaintext)
    assert long[: icv - 16] == short


def test_gmac_covers_spi_number_iv_and_payload_and_hides_nothing_rfc4543_3_3():
    key = bytes(range(20))
    outbound, _ = pair("aes128gmac")
    packet = outbound.seal(4, b"in the clear")
    assert packet[16:28] == b"in the clear"
    assert AESGCM(key[:16]).encrypt(key[16:] + packet[8:16], b"", packet[:-16]) == packet[-16:]


def test_null_hides_nothing_rfc2410():
    outbound, _ = pair("null-sha256")
    assert outbound.seal(4, b"in the clear")[8:20] == b"in the clear"


def test_warm_up_covers_every_algorithm_without_error():
    esp.warm_up()


@pytest.mark.parametrize(
    "name", ["aes128-sha1", "aes192-sha256", "aes256-sha384", "aes256-sha512", "camellia192-sha1", "3des-md5"]
)
def test_our_cbc_packets_are_what_openssl_makes_of_the_same_iv_rfc3602_3_rfc4868_2(name):
    """Several in a row: the cipher context of an SA lives on from packet to packet, that of the oracle does not."""
    suite = ChildSuite.parse(name)
    encryption, integrity = keys(suite)
    outbound, _ = pair(name)
    cipher, _, digest = name.partition("-")
    openssl = "des-ede3-cbc" if cipher == "3des" else f"{cipher.rstrip('0123456789')}-{suite.cipher.key_bits}-cbc"
    iv = suite.cipher.iv
    for payload in (b"first payload", b"", bytes(100)):
        packet = outbound.seal(4, payload)
        body, icv = packet[: -suite.integrity.icv], packet[-suite.integrity.icv :]
        pad = -(len(payload) + 2) % iv
        command = ["openssl", "enc", f"-{openssl}", "-nopad", "-K", encryption.hex()]
        made = subprocess.run(
            [*command, "-iv", body[8 : 8 + iv].hex()],
            input=payload + bytes(range(1, pad + 1)) + bytes((pad, 4)),
            capture_output=True,
            check=True,
        ).stdout
        assert body[8 + iv :] == made
        command = ["openssl", "dgst", f"-{digest}", "-mac", "HMAC", "-macopt", f"hexkey:{integrity.hex()}", "-binary"]
        mac = subprocess.run(command, input=body, capture_output=True, check=True).stdout
        assert icv == mac[: len(icv)]
