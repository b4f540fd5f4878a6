"""Registries of numbers that IKEv1 and IPsec put on the wire.

Each enum cites its registry or RFC. Unknown numbers never become members: a parser keeps them as plain
integers, and no table dispatches on them.
"""

from enum import IntEnum, IntFlag


class PayloadType(IntEnum):
    """RFC 2408 section 3.1, RFC 3947 section 9; IANA "Next Payload Types"."""

    NONE = 0
    SA = 1
    PROPOSAL = 2
    TRANSFORM = 3
    KE = 4
    ID = 5
    CERT = 6
    CERTREQ = 7
    HASH = 8
    SIG = 9
    NONCE = 10
    NOTIFY = 11
    DELETE = 12
    VENDOR_ID = 13
    NAT_D = 20
    NAT_OA = 21
    NAT_D_DRAFT = 130
    """draft-ietf-ipsec-nat-t-ike-03: private numbers that old peers still use."""
    NAT_OA_DRAFT = 131


class ExchangeType(IntEnum):
    """RFC 2408 section 3.1, RFC 2409 section 5 and appendix A."""

    BASE = 1
    MAIN_MODE = 2
    """RFC 2408 calls it Identity Protection."""
    AUTHENTICATION_ONLY = 3
    AGGRESSIVE_MODE = 4
    INFORMATIONAL = 5
    TRANSACTION = 6
    """draft-dukes-ike-mode-cfg: XAUTH and Mode Config."""
    QUICK_MODE = 32
    NEW_GROUP_MODE = 33


class HeaderFlag(IntFlag):
    """RFC 2408 section 3.1."""

    NONE = 0
    ENCRYPTION = 1
    COMMIT = 2
    AUTHENTICATION_ONLY = 4


class Doi(IntEnum):
    """RFC 2407 section 4.1."""

    ISAKMP = 0
    IPSEC = 1


class ProtocolId(IntEnum):
    """RFC 2407 section 4.4.1."""

    ISAKMP = 1
    AH = 2
    ESP = 3
    IPCOMP = 4


class IdType(IntEnum):
    """RFC 2407 section 4.6.2.1."""

    IPV4_ADDR = 1
    FQDN = 2
    USER_FQDN = 3
    IPV4_ADDR_SUBNET = 4
    IPV6_ADDR = 5
    IPV6_ADDR_SUBNET = 6
    IPV4_ADDR_RANGE = 7
    IPV6_ADDR_RANGE = 8
    DER_ASN1_DN = 9
    DER_ASN1_GN = 10
    KEY_ID = 11


class NotifyType(IntEnum):
    """RFC 2408 section 3.14.1, RFC 2407 section 4.6.3, RFC 3706 section 5.3."""

    INVALID_PAYLOAD_TYPE = 1
    DOI_NOT_SUPPORTED = 2
    SITUATION_NOT_SUPPORTED = 3
    INVALID_COOKIE = 4
    INVALID_MAJOR_VERSION = 5
    INVALID_MINOR_VERSION = 6
    INVALID_EXCHANGE_TYPE = 7
    INVALID_FLAGS = 8
    INVALID_MESSAGE_ID = 9
    INVALID_PROTOCOL_ID = 10
    INVALID_SPI = 11
    INVALID_TRANSFORM_ID = 12
    ATTRIBUTES_NOT_SUPPORTED = 13
    NO_PROPOSAL_CHOSEN = 14
    BAD_PROPOSAL_SYNTAX = 15
    PAYLOAD_MALFORMED = 16
    INVALID_KEY_INFORMATION = 17
    INVALID_ID_INFORMATION = 18
    INVALID_CERT_ENCODING = 19
    INVALID_CERTIFICATE = 20
    CERT_TYPE_UNSUPPORTED = 21
    INVALID_CERT_AUTHORITY = 22
    INVALID_HASH_INFORMATION = 23
    AUTHENTICATION_FAILED = 24
    INVALID_SIGNATURE = 25
    ADDRESS_NOTIFICATION = 26
    NOTIFY_SA_LIFETIME = 27
    CERTIFICATE_UNAVAILABLE = 28
    UNSUPPORTED_EXCHANGE_TYPE = 29
    UNEQUAL_PAYLOAD_LENGTHS = 30
    CONNECTED = 16384
    RESPONDER_LIFETIME = 24576
    REPLAY_STATUS = 24577
    INITIAL_CONTACT = 24578
    R_U_THERE = 36136
    R_U_THERE_ACK = 36137


class IkeAttribute(IntEnum):
    """Phase 1 attribute classes, RFC 2409 appendix A."""

    ENCRYPTION_ALGORITHM = 1
    HASH_ALGORITHM = 2
    AUTHENTICATION_METHOD = 3
    GROUP_DESCRIPTION = 4
    GROUP_TYPE = 5
    GROUP_PRIME = 6
    GROUP_GENERATOR_ONE = 7
    GROUP_GENERATOR_TWO = 8
    GROUP_CURVE_A = 9
    GROUP_CURVE_B = 10
    LIFE_TYPE = 11
    LIFE_DURATION = 12
    PRF = 13
    KEY_LENGTH = 14
    FIELD_SIZE = 15
    GROUP_ORDER = 16


class IkeEncryption(IntEnum):
    """RFC 2409 appendix A, RFC 3602; IANA "Encryption Algorithms" of IKEv1 phase 1."""

    DES_CBC = 1
    TRIPLE_DES_CBC = 5
    AES_CBC = 7
    CAMELLIA_CBC = 8


class IkeHash(IntEnum):
    """RFC 2409 appendix A, RFC 4868; IANA "Hash Algorithms"."""

    MD5 = 1
    SHA1 = 2
    SHA2_256 = 4
    SHA2_384 = 5
    SHA2_512 = 6


class AuthMethod(IntEnum):
    """RFC 2409 appendix A, RFC 4754."""

    PRE_SHARED_KEY = 1
    DSS_SIGNATURES = 2
    RSA_SIGNATURES = 3
    RSA_ENCRYPTION = 4
    REVISED_RSA_ENCRYPTION = 5
    ECDSA_SHA256_P256 = 9
    ECDSA_SHA384_P384 = 10
    ECDSA_SHA512_P521 = 11


class GroupDescription(IntEnum):
    """RFC 2409 section 6, RFC 3526, RFC 5903, RFC 8031; IANA "Group Descriptions" (31 is shared with IKEv2)."""

    MODP_768 = 1
    MODP_1024 = 2
    EC2N_155 = 3
    EC2N_185 = 4
    MODP_1536 = 5
    MODP_2048 = 14
    MODP_3072 = 15
    MODP_4096 = 16
    MODP_6144 = 17
    MODP_8192 = 18
    ECP_256 = 19
    ECP_384 = 20
    ECP_521 = 21
    CURVE25519 = 31


class LifeType(IntEnum):
    """RFC 2409 appendix A and RFC 2407 section 4.5 agree."""

    SECONDS = 1
    KILOBYTES = 2


class IpsecAttribute(IntEnum):
    """Phase 2 attribute classes, RFC 2407 section 4.5."""

    SA_LIFE_TYPE = 1
    SA_LIFE_DURATION = 2
    GROUP_DESCRIPTION = 3
    ENCAPSULATION_MODE = 4
    AUTHENTICATION_ALGORITHM = 5
    KEY_LENGTH = 6
    KEY_ROUNDS = 7
    COMPRESS_DICTIONARY_SIZE = 8
    COMPRESS_PRIVATE_ALGORITHM = 9
    ECN_TUNNEL = 10
    EXTENDED_SEQUENCE_NUMBER = 11


class EncapsulationMode(IntEnum):
    """RFC 2407 section 4.5, RFC 3947 section 5.1."""

    TUNNEL = 1
    TRANSPORT = 2
    UDP_TUNNEL = 3
    UDP_TRANSPORT = 4
    UDP_TUNNEL_DRAFT = 61443
    UDP_TRANSPORT_DRAFT = 61444


class AuthenticationAlgorithm(IntEnum):
    """RFC 2407 section 4.5, RFC 3566, RFC 4868; IANA "Authentication Algorithm"."""

    HMAC_MD5 = 1
    HMAC_SHA1 = 2
    DES_MAC = 3
    KPDK = 4
    HMAC_SHA2_256 = 5
    HMAC_SHA2_384 = 6
    HMAC_SHA2_512 = 7
    AES_XCBC_MAC = 9


class IsakmpTransform(IntEnum):
    """RFC 2407 section 4.4.2."""

    KEY_IKE = 1


class EspTransform(IntEnum):
    """RFC 2407 section 4.4.4, RFC 3602, 3686, 4106, 4309, 4312, 4543; IANA "IPSEC ESP Transform Identifiers"."""

    DES = 2
    TRIPLE_DES = 3
    NULL = 11
    AES_CBC = 12
    AES_CTR = 13
    AES_CCM_8 = 14
    AES_CCM_12 = 15
    AES_CCM_16 = 16
    AES_GCM_8 = 18
    AES_GCM_12 = 19
    AES_GCM_16 = 20
    CAMELLIA_CBC = 22
    NULL_AUTH_AES_GMAC = 23


class IpcompTransform(IntEnum):
    """RFC 2407 section 4.4.5; IANA "IPSEC IPCOMP Transform Identifiers"."""

    OUI = 1
    DEFLATE = 2
    LZS = 3
    LZJH = 4


class AhTransform(IntEnum):
    """RFC 2407 section 4.4.3, RFC 3566, RFC 4868; IANA "IPSEC AH Transform Identifiers"."""

    MD5 = 2
    SHA1 = 3
    DES = 4
    SHA2_256 = 5
    SHA2_384 = 6
    SHA2_512 = 7
    AES_XCBC_MAC = 9
