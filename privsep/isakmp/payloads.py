"""Payload bodies as values (RFC 2408 sections 3.7 to 3.16, RFC 2407 section 4.6, RFC 3947 sections 3.2 and 5.2).

`privsep.payloads` walks the chain; here each (type, body) pair gets its meaning. The SA payload is in `association`.
"""

import ipaddress
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from privsep.errors import MalformedError
from privsep.iana import Doi, IdType, PayloadType
from privsep.isakmp.association import MAX_SPI, SecurityAssociation, encode_association, parse_association
from privsep.payloads import Chain, join_chain, split_chain
from privsep.types import Address
from privsep.wire import U8, U16, Layout, Reader, Tail

MAX_DELETED = 64
"""SPIs of one Delete payload; we delete one at a time, peers a handful."""
MAX_BODY = 16384
"""Octets of a certificate, vendor ID, notification data: whatever has no closer bound of its own."""
MAX_ID = 1020
"""Octets of identification data, as many as keyd takes with the four before it."""

KeyData = Annotated[bytes, Tail(1, 1024)]
"""Up to MODP-8192."""
NonceData = Annotated[bytes, Tail(8, 256)]
"""RFC 2409 section 5: the length of the nonce MUST be between 8 and 256 octets."""
IdData = Annotated[bytes, Tail(0, MAX_ID)]
DigestData = Annotated[bytes, Tail(1, 64)]
"""Up to SHA-512."""
AnyData = Annotated[bytes, Tail(0, MAX_BODY)]


@dataclass(slots=True, frozen=True)
class KeyExchange:
    """RFC 2408 section 3.7."""

    data: KeyData


@dataclass(slots=True, frozen=True, kw_only=True)
class Identification:
    """RFC 2407 section 4.6.2."""

    id_type: U8
    protocol: U8
    port: U16
    data: IdData


@dataclass(slots=True, frozen=True, kw_only=True)
class Certificate:
    """RFC 2408 section 3.9."""

    encoding: U8
    data: AnyData


@dataclass(slots=True, frozen=True, kw_only=True)
class CertificateRequest:
    """RFC 2408 section 3.10."""

    encoding: U8
    data: AnyData


@dataclass(slots=True, frozen=True)
class Hash:
    """RFC 2408 section 3.11."""

    data: DigestData


@dataclass(slots=True, frozen=True)
class Signature:
    """RFC 2408 section 3.12."""

    data: AnyData


@dataclass(slots=True, frozen=True)
class Nonce:
    """RFC 2408 section 3.13."""

    data: NonceData


@dataclass(slots=True, frozen=True, kw_only=True)
class Notification:
    """RFC 2408 section 3.14. `type` may be a number that NotifyType does not know."""

    doi: int = Doi.IPSEC
    protocol: int
    type: int
    spi: bytes = b""
    data: bytes = b""


@dataclass(slots=True, frozen=True, kw_only=True)
class Delete:
    """RFC 2408 section 3.15: SPIs of one protocol, all of one size."""

    doi: int = Doi.IPSEC
    protocol: int
    spis: tuple[bytes, ...]


@dataclass(slots=True, frozen=True)
class VendorId:
    """RFC 2408 section 3.16."""

    data: AnyData


@dataclass(slots=True, frozen=True)
class NatDiscovery:
    """RFC 3947 section 3.2."""

    data: DigestData


@dataclass(slots=True, frozen=True)
class NatOriginalAddress:
    """RFC 3947 section 5.2."""

    address: Address


@dataclass(slots=True, frozen=True)
class Unknown:
    """A payload type that has no meaning here; `rules` says whether it may be ignored."""

    type: int
    body: bytes


Payload = (
    SecurityAssociation
    | KeyExchange
    | Identification
    | Certificate
    | CertificateRequest
    | Hash
    | Signature
    | Nonce
    | Notification
    | Delete
    | VendorId
    | NatDiscovery
    | NatOriginalAddress
    | Unknown
)

_NOTIFICATION = struct.Struct(">IBBH")
_DELETE = struct.Struct(">IBBH")
_NAT_OA = struct.Struct(">B3s")
_ADDRESS_OCTETS = {int(IdType.IPV4_ADDR): 4, int(IdType.IPV6_ADDR): 16}


def _parse_notification(body: bytes) -> Notification:
    """RFC 2408 section 3.14; the SPI is as long as it says, or absent."""
    reader = Reader(body, "Notification")
    doi, protocol, spi_size, kind = reader.fields(_NOTIFICATION)
    if spi_size > MAX_SPI:
        raise MalformedError("Notification: SPI is too long")
    spi = reader.take(spi_size)
    if reader.left > MAX_BODY:
        raise MalformedError("Notification: too much data")
    return Notification(doi=doi, protocol=protocol, type=kind, spi=spi, data=reader.rest())


def _encode_notification(value: Notification) -> bytes:
    return _NOTIFICATION.pack(value.doi, value.protocol, len(value.spi), value.type) + value.spi + value.data


def _parse_delete(body: bytes) -> Delete:
    """RFC 2408 section 3.15: as many SPIs as it says, of the size that it says, fill the payload."""
    reader = Reader(body, "Delete")
    doi, protocol, spi_size, count = reader.fields(_DELETE)
    if not 0 < spi_size <= MAX_SPI or not 0 < count <= MAX_DELETED or spi_size * count != reader.left:
        raise MalformedError("Delete: SPI size and count do not fit the length")
    return Delete(doi=doi, protocol=protocol, spis=tuple(reader.take(spi_size) for _ in range(count)))


def _encode_delete(value: Delete) -> bytes:
    sizes = {len(spi) for spi in value.spis}
    if len(sizes) != 1:
        raise ValueError("the SPIs of a Delete have one size")
    return _DELETE.pack(value.doi, value.protocol, sizes.pop(), len(value.spis)) + b"".join(value.spis)


def _parse_nat_oa(body: bytes) -> NatOriginalAddress:
    """RFC 3947 section 5.2: only single addresses.

    The reserved octets must be zero where they are sent. They stand where an ID payload has its protocol and port, and
    peers are known that fill these in, so they are ignored. RESERVED fields of ISAKMP itself are not: RFC 2408 sections
    2.5.2 and 5.3 have the message discarded (`privsep/payloads.py`, `association.py`).
    """
    reader = Reader(body, "NAT-OA")
    id_type, _ = reader.fields(_NAT_OA)
    address = reader.rest()
    if len(address) != _ADDRESS_OCTETS.get(id_type):
        raise MalformedError("NAT-OA: no address")
    return NatOriginalAddress(ipaddress.ip_address(address))


def _encode_nat_oa(value: NatOriginalAddress) -> bytes:
    id_type = IdType.IPV4_ADDR if value.address.version == 4 else IdType.IPV6_ADDR
    return _NAT_OA.pack(id_type, bytes(3)) + value.address.packed


_T = TypeVar("_T")


def _declared(record: type[_T]) -> tuple[type[_T], Callable[[bytes], _T], Callable[[_T], bytes]]:
    layout = Layout(record)
    return record, layout.parse, layout.encode


_FORMATS: dict[int, tuple[type[Any], Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    PayloadType.SA: (SecurityAssociation, parse_association, encode_association),
    PayloadType.KE: _declared(KeyExchange),
    PayloadType.ID: _declared(Identification),
    PayloadType.CERT: _declared(Certificate),
    PayloadType.CERTREQ: _declared(CertificateRequest),
    PayloadType.HASH: _declared(Hash),
    PayloadType.SIG: _declared(Signature),
    PayloadType.NONCE: _declared(Nonce),
    PayloadType.NOTIFY: (Notification, _parse_notification, _encode_notification),
    PayloadType.DELETE: (Delete, _parse_delete, _encode_delete),
    PayloadType.VENDOR_ID: _declared(VendorId),
    PayloadType.NAT_D: _declared(NatDiscovery),
    PayloadType.NAT_OA: (NatOriginalAddress, _parse_nat_oa, _encode_nat_oa),
}
_PARSERS = {int(kind): parse for kind, (_, parse, _) in _FORMATS.items()}
_ENCODERS = {record: (int(kind), encode) for kind, (record, _, encode) in _FORMATS.items()}


def parse_payload(kind: int, body: bytes) -> Payload:
    """The value of a payload's body (its octets after the generic header)."""
    parse = _PARSERS.get(kind)
    if parse is None:
        return Unknown(kind, body)
    value: Payload = parse(body)
    return value


def encode_payload(payload: Payload) -> tuple[int, bytes]:
    """(type, body) of a payload."""
    if isinstance(payload, Unknown):
        return payload.type, payload.body
    kind, encode = _ENCODERS[type(payload)]
    return kind, encode(payload)


def parse_chain(first: int, data: bytes, *, padding: bool = False) -> list[Payload]:
    """All payloads of a message. Who needs a body itself (RFC 2409 section 5: SAi_b) splits the chain first."""
    return [parse_payload(kind, body) for kind, body in split_chain(first, data, padding=padding)]


def encode_chain(payloads: Iterable[Payload]) -> Chain:
    """(type of the first payload, all payloads with their generic headers)."""
    return join_chain(encode_payload(payload) for payload in payloads)
