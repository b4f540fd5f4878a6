"""Distinguished names as text to DER, for ID_DER_ASN1_DN (RFC 2407 section 4.6.2.10; RFC 5280 section 4.1.2.4).

The peer's certificate is compared octet by octet, so the string types are those that certificates use: IA5String where
RFC 5280 appendix A.1 says so, PrintableString where the characters allow it, else UTF8String.
"""

import re

from privsep.config.problems import quote
from privsep.config.reader import suggest

MAX_RDNS = 32
MAX_VALUE = 200

_OIDS = {
    "CN": "550403",
    "SN": "550404",
    "SERIALNUMBER": "550405",
    "C": "550406",
    "L": "550407",
    "ST": "550408",
    "STREET": "550409",
    "O": "55040a",
    "OU": "55040b",
    "T": "55040c",
    "G": "55042a",
    "UID": "0992268993f22c640101",
    "DC": "0992268993f22c640119",
    "E": "2a864886f70d010901",
    "EMAILADDRESS": "2a864886f70d010901",
}
"""DER content of each attribute type's object identifier (RFC 4519 section 2, RFC 2985 section 5.2.1)."""
_IA5 = {"DC", "E", "EMAILADDRESS"}
_PRINTABLE = re.compile(r"[A-Za-z0-9 '()+,./:=?-]+", re.ASCII)

_SEQUENCE, _SET, _OID, _UTF8, _PRINTABLE_STRING, _IA5_STRING = 0x30, 0x31, 0x06, 0x0C, 0x13, 0x16


def encode(text: str) -> bytes:
    r"""DER of "C=DE, O=Example, CN=gw1", most significant first; a backslash escapes a comma. ValueError if not."""
    parts = re.split(r"(?<!\\),", text)
    if len(parts) > MAX_RDNS:
        raise ValueError(f"{quote(text)} has {len(parts)} parts; {MAX_RDNS} are possible")
    return _tlv(_SEQUENCE, b"".join(_relative(part, text) for part in parts))


def _relative(part: str, whole: str) -> bytes:
    kind, equals, value = (piece.strip() for piece in part.partition("="))
    kind, value = kind.upper(), re.sub(r"\\(.)", r"\1", value)
    if not equals or not value or len(value) > MAX_VALUE:
        raise ValueError(f'{quote(whole)} is no distinguished name; "C=DE, O=Example, CN=gw1" would be right')
    if kind not in _OIDS:
        raise ValueError(f"{quote(whole)} has the unknown attribute {quote(kind)}; {suggest(kind, _OIDS)}")
    if kind in _IA5 and value.isascii():
        tag = _IA5_STRING
    else:
        tag = _PRINTABLE_STRING if _PRINTABLE.fullmatch(value) else _UTF8
    attribute = _tlv(_OID, bytes.fromhex(_OIDS[kind])) + _tlv(tag, value.encode())
    return _tlv(_SET, _tlv(_SEQUENCE, attribute))


def _tlv(tag: int, content: bytes) -> bytes:
    """DER: tag, length in the shortest form, content (X.690 section 10.1)."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content
