"""Identities of the configuration: the type is inferred, or forced by a prefix (RFC 2407 section 4.6.2)."""

import ipaddress
import re
from collections.abc import Callable

from privsep.config.distinguished_names import encode
from privsep.config.problems import quote
from privsep.iana import IdType
from privsep.types import Identity

MAX_IDENTITY = 255
"""Octets of a name or key id."""
_PRINTABLE = re.compile(r"[!-~]{1,255}", re.ASCII)
_FQDN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}", re.ASCII)
_NUMERIC = re.compile(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", re.ASCII)
_HEX = re.compile(r"(?:0x)?((?:[0-9A-Fa-f]{2})+)", re.ASCII)


def parse_identity(text: str) -> Identity:
    """The identity; ValueError says what would be right."""
    prefix, colon, rest = text.partition(":")
    if colon and prefix in _FORCED:
        return _FORCED[prefix](rest)
    try:
        return _address(text)
    except ValueError:
        pass
    if "=" in text:
        return _dn(text)
    if "@" in text.strip("@"):
        return _email(text)
    if text.startswith("@"):
        raise ValueError(f'{quote(text)} is no e-mail address; "fqdn:{text[1:]}" would be right for a name')
    if _FQDN.fullmatch(text) and not _NUMERIC.fullmatch(text):
        return _fqdn(text)
    raise ValueError(
        f"{quote(text)} is no address, name, e-mail address or distinguished name; "
        f"one of {' '.join(each + ':' for each in _FORCED)} before it would say what it is"
    )


def _address(text: str, version: int | None = None) -> Identity:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f'{quote(text)} is no address; "192.0.2.1" or "2001:db8::1" would be right') from None
    if version not in (None, address.version):
        raise ValueError(f"{quote(text)} is IPv{address.version}; ipv{address.version}: would be right")
    if address.version == 6 and address.scope_id is not None:
        raise ValueError(f"{quote(text)} has a zone; the same without '%{address.scope_id}' would be right")
    return Identity.of_address(address)


def _fqdn(text: str) -> Identity:
    if not _PRINTABLE.fullmatch(text):
        raise ValueError(f"{quote(text)} is no name; 1 to {MAX_IDENTITY} printable ASCII characters would be right")
    return Identity(IdType.FQDN, text.encode("ascii"))


def _email(text: str) -> Identity:
    user, _, host = text.rpartition("@")
    if not (user and host and _PRINTABLE.fullmatch(text)):
        raise ValueError(f'{quote(text)} is no e-mail address; "user@example.org" would be right')
    return Identity(IdType.USER_FQDN, text.encode("ascii"))


def _dn(text: str) -> Identity:
    return Identity(IdType.DER_ASN1_DN, encode(text))


def _key_id(text: str) -> Identity:
    """An even number of hexadecimal digits is hexadecimal, everything else text; `str()` of a key id reads back."""
    match = _HEX.fullmatch(text)
    data = bytes.fromhex(match[1]) if match else text.encode()
    if not 1 <= len(data) <= MAX_IDENTITY:
        raise ValueError(f"{quote(text)} is no key id; 1 to {MAX_IDENTITY} octets in text or hex would be right")
    return Identity(IdType.KEY_ID, data)


_FORCED: dict[str, Callable[[str], Identity]] = {
    "fqdn": _fqdn,
    "email": _email,
    "ipv4": lambda text: _address(text, 4),
    "ipv6": lambda text: _address(text, 6),
    "dn": _dn,
    "keyid": _key_id,
}
