"""Published answers that keyd's self-test compares with. Data only; each says where it was published."""

# ruff: noqa: E501 (lines of a published file)

from typing import NamedTuple

from privsep.algorithms import Group, Hash, IkeCipher


class Cbc(NamedTuple):
    """Encryption of whole blocks, in hexadecimal."""

    source: str
    cipher: IkeCipher
    key: str
    iv: str
    plaintext: str
    ciphertext: str


CBC = (
    Cbc(
        "RFC 3602 section 4 case 1",
        IkeCipher.AES_128,
        "06a9214036b8a15b512e03d534120006",
        "3dafba429d9eb430b422da802c9fac41",
        b"Single block msg".hex(),
        "e353779c1079aeb82708942dbe77181a",
    ),
    Cbc(
        "RFC 3602 section 4 case 2",
        IkeCipher.AES_128,
        "c286696d887c9aa0611bbb3e2025a45a",
        "562e17996d093d28ddb3ba695a2e6f58",
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        "d296cd94c2cccf8a3a863028b5e1dc0a7586602d253cfff91b8266bea6d61ab1",
    ),
    Cbc(
        "NIST SP 800-38A F.2.3",
        IkeCipher.AES_192,
        "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
        "000102030405060708090a0b0c0d0e0f",
        "6bc1bee22e409f96e93d7e117393172a",
        "4f021db243bc633d7178183a9fa071e8",
    ),
    Cbc(
        "NIST SP 800-38A F.2.5",
        IkeCipher.AES_256,
        "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
        "000102030405060708090a0b0c0d0e0f",
        "6bc1bee22e409f96e93d7e117393172a",
        "f58c4c04d6e5f1ba779eabfb5f7bfbd6",
    ),
    Cbc(
        "NIST SP 800-67 appendix B, first block",
        IkeCipher.TRIPLE_DES,
        "0123456789abcdef23456789abcdef01456789abcdef0123",
        "0000000000000000",
        b"The qufc".hex(),
        "a826fd8ce53b855f",
    ),
)


class Gcm(NamedTuple):
    """AES-GCM with a nonce of zeros, in hexadecimal."""

    source: str
    key: str
    plaintext: str
    sealed: str


GCM = (
    Gcm(
        "McGrew and Viega, The Galois/Counter Mode of Operation, test case 2",
        "00" * 16,
        "00" * 16,
        "0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf",
    ),
    Gcm(
        "McGrew and Viega, test case 14",
        "00" * 32,
        "00" * 16,
        "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
    ),
)


class Prf(NamedTuple):
    """HMAC of a text."""

    source: str
    hash: Hash
    key: bytes
    text: bytes
    answer: str


PRF = (
    Prf(
        "RFC 2202 section 3 case 2",
        Hash.SHA1,
        b"Jefe",
        b"what do ya want for nothing?",
        "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79",
    ),
    Prf(
        "RFC 4231 section 4.3",
        Hash.SHA2_256,
        b"Jefe",
        b"what do ya want for nothing?",
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    Prf(
        "RFC 4231 section 4.3",
        Hash.SHA2_384,
        b"Jefe",
        b"what do ya want for nothing?",
        "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
    ),
    Prf(
        "RFC 4231 section 4.3",
        Hash.SHA2_512,
        b"Jefe",
        b"what do ya want for nothing?",
        "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554"
        "9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
    ),
)


class Agreement(NamedTuple):
    """Both sides' secret and public values and what they agree on, in hexadecimal."""

    source: str
    group: Group
    secret_i: str
    public_i: str
    secret_r: str
    public_r: str
    shared: str


AGREEMENTS = (
    Agreement(
        "RFC 7748 section 6.1",
        Group.CURVE25519,
        "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
    ),
    Agreement(
        "RFC 8031 appendix A",
        Group.CURVE25519,
        "701fb4308655b476b6789b7325f9ea8cddd16a58533ff6d9e60009464a5f9d54",
        "48d5ddd4061257ba166fa3f9bbdb74f1a4e81c089384fa77f790709f0dfbc766",
        "0854645253290d60ddadd0e030bacd9e5501efdc220755a1e978f1b839a05648",
        "0be7c1f5aad87d7e448662673298a443478b859745179eaf564c79c0ef6eee25",
        "c74950607a12327f3204d94b6825bfb068b7f8319a9e3708ed3d43ce8130c950",
    ),
    Agreement(
        "RFC 5903 section 8.1",
        Group.ECP_256,
        "c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433",
        "dad0b65394221cf9b051e1feca5787d098dfe637fc90b9ef945d0c37725811805271a0461cdb8252d61f1c456fa3e59a"
        "b1f45b33accf5f58389e0577b8990bb3",
        "c6ef9c5d78ae012a011164acb397ce2088685d8f06bf9be0b283ab46476bee53",
        "d12dfb5289c8d4f81208b70270398c342296970a0bccb74c736fc7554494bf6356fbf3ca366cc23e8157854c13c58d6a"
        "ac23f046ada30f8353e74f33039872ab",
        "d6840f6b42f6edafd13116e0e12565202fef8e9ece7dce03812464d04b9442de",
    ),
    Agreement(
        "RFC 5903 section 8.2",
        Group.ECP_384,
        "099f3c7034d4a2c699884d73a375a67f7624ef7c6b3c0f160647b67414dce655e35b538041e649ee3faef896783ab194",
        "667842d7d180ac2cde6f74f37551f55755c7645c20ef73e31634fe72b4c55ee6de3ac808acb4bdb4c88732aee95f41aa"
        "9482ed1fc0eeb9cafc4984625ccfc23f65032149e0e144ada024181535a0f38eeb9fcff3c2c947dae69b4c634573a81c",
        "41cb0779b4bdb85d47846725fbec3c9430fab46cc8dc5060855cc9bda0aa2942e0308312916b8ed2960e4bd55a7448fc",
        "e558dbef53eecde3d3fccfc1aea08a89a987475d12fd950d83cfa41732bc509d0d1ac43a0336def96fda41d0774a3571"
        "dcfbec7aacf3196472169e838430367f66eebe3c6e70c416dd5f0c68759dd1fff83fa40142209dff5eaad96db9e6386c",
        "11187331c279962d93d604243fd592cb9d0a926f422e47187521287e7156c5c4d603135569b9e9d09cf5d4a270f59746",
    ),
    Agreement(
        "RFC 5903 section 8.3",
        Group.ECP_521,
        "0037ade9319a89f4dabdb3ef411aaccca5123c61acab57b5393dce47608172a095aa85a30fe1c2952c6771d937ba9777"
        "f5957b2639bab072462f68c27a57382d4a52",
        "0015417e84dbf28c0ad3c278713349dc7df153c897a1891bd98bab4357c9ecbee1e3bf42e00b8e380aeae57c2d107564"
        "941885942af5a7f4601723c4195d176ced3e017cae20b6641d2eeb695786d8c946146239d099e18e1d5a514c739d7cb4"
        "a10ad8a788015ac405d7799dc75e7b7d5b6cf2261a6a7f1507438bf01beb6ca3926f9582",
        "0145ba99a847af43793fdd0e872e7cdfa16be30fdc780f97bccc3f078380201e9c677d600b343757a3bdbf2a3163e4c2"
        "f869cca7458aa4a4effc311f5cb151685eb9",
        "00d0b3975ac4b799f5bea16d5e13e9af971d5e9b984c9f39728b5e5739735a219b97c356436adc6e95bb0352f6be64a6"
        "c2912d4ef2d0433ced2b6171640012d9460f015c68226383956e3bd066e797b623c27ce0eac2f551a10c2c724d985207"
        "7b87220b6536c5c408a1d2aebb8e86d678ae49cb57091f4732296579ab44fcd17f0fc56a",
        "01144c7d79ae6956bc8edb8e7c787c4521cb086fa64407f97894e5e6b2d79b04d1427e73ca4baa240a34786859810c06"
        "b3c715a3a8cc3151f2bee417996d19f3ddea",
    ),
)

CAVS = """
[SHA-1]
COUNT = 0
CKY_I = 83d374c30b3b5082
CKY_R = 5afc0da06c728029
Ni = b9a2d0e922dc66dd
Nr = 2130166863b5ddef
g^xy = 739003ba2c11c982946c65e26acf661fbf8ebb78011a9fead79efa12fe3e71cc
pre-shared-key = 75
SKEYID = 62b04d112877e442fc3282fc37c076997718a0b9
SKEYID_d = 369e5aad1bdb5faf6a3d929d500cdc236710a9ab
SKEYID_a = 588e957d8d790d093b3a39f121473473af78e9bb
SKEYID_e = cd74b0c048219db81384d3fda8f6cda51e398a2b

[SHA-256]
COUNT = 0
CKY_I = 4e30e8d4da0fecbf
CKY_R = cf8ce1348665f112
Ni = ead9ced494868f41
Nr = f1aff4f425a94f18
g^xy = ea6c7c00e276d86adace3368f0c8245c3e486b8c6c1474a533b7da3b9c9b3f1f
pre-shared-key = a0
SKEYID = 558a99b299773d267cf7c8ef073bf3b7af362c206c75a538403c5ef884d4cace
SKEYID_d = 3b4bb2bf33fc3f002c84f59370f39ac705ea8efd299f64aaf723b7995a2b1560
SKEYID_a = c78ad634ec47feee88cda902731e731eb594114db6a1882bc2c948ee9765958c
SKEYID_e = 33b10be0f43bc5984a86a1470c48ece12290915589b8c73fa5c7b8faf2bb6503

[SHA-384]
COUNT = 0
CKY_I = 9ccc539d30d4f929
CKY_R = a88216c6e1824511
Ni = d6596b7e5b398534
Nr = 136fbdfa8d0ceb8e
g^xy = b2d1434e169be2b6463f65c958ebc51a3f2da220bbe66b7d7a7d14ca4a7724c7
pre-shared-key = 9e
SKEYID = b54fa27cb4251051e44a659d73591845691d11f1874bf4e4088e5df6462d28e57a3a2af3ab4f9b746a8f5766f8785f2b
SKEYID_d = 5d168e1223d7e375b159ce3ead6aa46a194b59e96168db061ea571b87edf843f26ea41e5b54b23a6f5a037318830640d
SKEYID_a = 04cdf9df4afa53d3884624f7612768a0e4a01c1c5471315c5c99867831be20b4a55efbce9091c9eb69741d704dfe5e74
SKEYID_e = 3849065ad3f9ab2ec0f61c5c61b0ccc04f77d9ee5092a132f679972dc9c75c9334aff957b4cbbaf54cb65dfae1b55417

[SHA-512]
COUNT = 0
CKY_I = 2ce3422d3dcba7f5
CKY_R = 82ca94cbe7b77049
Ni = 482a05eca86fba51
Nr = 84ee19d02272de2e
g^xy = aea3ae089168001f2e4bd693bc8303ad094b71ec57921bb0f9d1252c09c46ed1
pre-shared-key = 4c
SKEYID = 5bcb5499ae4c1437ce6c195392bf26bf7980a59bcb787a0b58671771a3d4b06dc1eb7809241b7e5931740b05bf8a9873bb493c5f067e28e4f58ab65c3dbe44cd
SKEYID_d = 7be2bdc8c03d05b5932b95387cad909718dace7bf9e4eeacbaae431d6521828b70f8a6011640927eae4ebbf72f3dd154040b7ee7ed2fc15683190d3da50ac7e6
SKEYID_a = 75149f3f671435eafafb3868eff58a6367ebbb50006c8723ccead82fe49967651decf63a079b0ffaa241eb341a90d612876e76866450739e49f88ba306861b73
SKEYID_e = 39dd0670384325de75cc2dbd681d15423b630e93e5fefb0224f1defca1a9b0fdda61f8c922428b00cde4c386c4ca8898a48969e4c19f1fe30899a6260c5d8d46
"""
"""NIST CAVS 17.3, 'IKE v1 Pre-shared Key Authentication': the first case of each hash, in the published format."""
