"""SA payload with its proposals, transforms and attributes (RFC 2408 sections 3.3 to 3.6, RFC 2407 section 4.6.1)."""

import struct
from dataclasses import dataclass

from privsep.errors import MalformedError, PeerError
from privsep.iana import Doi, NotifyType, PayloadType
from privsep.wire import Reader

MAX_PROPOSALS = 32
"""Of one SA payload. RFC 2409 section 5 lets us limit how many offers we inspect; real peers send under ten."""
MAX_TRANSFORMS = 255
"""Of one SA payload, in all its proposals: as many as the octet that counts those of one proposal can say (RFC 2408
section 3.5). A client that offers every combination of what it knows sends some two hundred."""
MAX_ATTRIBUTES = 32
"""Of one transform: each class of RFC 2409 appendix A once, and some lifetimes more."""
MAX_VALUE = 2048
"""Octets of a variable attribute; the largest are primes of private groups."""
MAX_SPI = 16
"""Octets; a cookie pair (RFC 2408 section 3.5)."""
SIT_IDENTITY_ONLY = 1
"""RFC 2407 section 4.2.1. The labelled situations have fields of their own, and nobody of ours supports them."""

_SA = struct.Struct(">II")
_PROPOSAL = struct.Struct(">BBHBBBB")
_TRANSFORM = struct.Struct(">BBHBBH")
_ATTRIBUTE = struct.Struct(">HH")
_BASIC = 0x8000
"""The AF bit: the value is in the length's place (RFC 2408 section 3.3)."""


@dataclass(slots=True, frozen=True)
class Attribute:
    """A data attribute (RFC 2408 section 3.3): basic with an int, variable with octets."""

    type: int
    value: int | bytes

    @property
    def number(self) -> int:
        """The value as a number, however encoded: a duration may be either (RFC 2409 appendix A)."""
        return self.value if isinstance(self.value, int) else int.from_bytes(self.value, "big")


@dataclass(slots=True, frozen=True)
class Transform:
    """RFC 2408 section 3.6."""

    number: int
    transform_id: int
    attributes: tuple[Attribute, ...]


@dataclass(slots=True, frozen=True)
class Proposal:
    """RFC 2408 section 3.5."""

    number: int
    protocol: int
    spi: bytes
    transforms: tuple[Transform, ...]


@dataclass(slots=True, frozen=True)
class SecurityAssociation:
    """RFC 2408 section 3.4; only the IPsec DOI and its identity-only situation can be parsed."""

    proposals: tuple[Proposal, ...]
    doi: int = Doi.IPSEC
    situation: int = SIT_IDENTITY_ONLY


def parse_attributes(data: bytes) -> tuple[Attribute, ...]:
    """The attributes that fill `data`."""
    attributes: list[Attribute] = []
    offset, end = 0, len(data)
    while offset < end:
        if len(attributes) == MAX_ATTRIBUTES:
            raise PeerError("too many attributes", NotifyType.BAD_PROPOSAL_SYNTAX)
        if end - offset < _ATTRIBUTE.size:
            raise MalformedError("attribute is cut off")
        kind, value = _ATTRIBUTE.unpack_from(data, offset)
        offset += _ATTRIBUTE.size
        if kind & _BASIC:
            attributes.append(Attribute(kind ^ _BASIC, value))
            continue
        if value > MAX_VALUE or value > end - offset:
            raise MalformedError("attribute length is wrong")
        attributes.append(Attribute(kind, data[offset : offset + value]))
        offset += value
    return tuple(attributes)


def encode_attributes(attributes: tuple[Attribute, ...]) -> bytes:
    """The octets of attributes."""
    return b"".join(
        _ATTRIBUTE.pack(attribute.type | _BASIC, attribute.value)
        if isinstance(attribute.value, int)
        else _ATTRIBUTE.pack(attribute.type, len(attribute.value)) + attribute.value
        for attribute in attributes
    )


def parse_association(body: bytes) -> SecurityAssociation:
    """An SA payload's body. Proposals and transforms of unknown numbers survive (RFC 2408 section 5.6)."""
    reader = Reader(body, "SA")
    doi, situation = reader.fields(_SA)
    if doi != Doi.IPSEC:
        raise PeerError("DOI is not IPSEC", NotifyType.DOI_NOT_SUPPORTED)
    if situation != SIT_IDENTITY_ONLY:
        raise PeerError("situation is not SIT_IDENTITY_ONLY", NotifyType.SITUATION_NOT_SUPPORTED)
    proposals: list[Proposal] = []
    following, budget = int(PayloadType.PROPOSAL), MAX_TRANSFORMS
    while following == PayloadType.PROPOSAL:
        if len(proposals) == MAX_PROPOSALS:
            raise PeerError("too many proposals", NotifyType.BAD_PROPOSAL_SYNTAX)
        following, reserved, length, number, protocol, spi_size, count = reader.fields(_PROPOSAL)
        if reserved != 0 or spi_size > MAX_SPI or length < _PROPOSAL.size + spi_size:
            raise PeerError("proposal header is wrong", NotifyType.BAD_PROPOSAL_SYNTAX)
        if not 0 < count <= budget:
            raise PeerError("no transforms or too many", NotifyType.BAD_PROPOSAL_SYNTAX)
        budget -= count
        spi = reader.take(spi_size)
        transforms = _parse_transforms(reader.take(length - _PROPOSAL.size - spi_size), count)
        proposals.append(Proposal(number, protocol, spi, transforms))
    if following != PayloadType.NONE:
        raise PeerError("something else than a proposal follows a proposal", NotifyType.BAD_PROPOSAL_SYNTAX)
    reader.finish()
    return SecurityAssociation(tuple(proposals), doi, situation)


def _parse_transforms(data: bytes, count: int) -> tuple[Transform, ...]:
    """Exactly `count` transforms that fill `data`."""
    reader = Reader(data, "proposal")
    transforms = []
    for index in range(count):
        following, reserved, length, number, transform_id, reserved2 = reader.fields(_TRANSFORM)
        right = PayloadType.TRANSFORM if index < count - 1 else PayloadType.NONE
        if following != right or reserved != 0 or reserved2 != 0 or length < _TRANSFORM.size:
            raise PeerError("transform header is wrong", NotifyType.BAD_PROPOSAL_SYNTAX)
        attributes = parse_attributes(reader.take(length - _TRANSFORM.size))
        transforms.append(Transform(number, transform_id, attributes))
    reader.finish()
    return tuple(transforms)


def encode_association(sa: SecurityAssociation) -> bytes:
    """The body of an SA payload."""
    parts = [_SA.pack(sa.doi, sa.situation)]
    for index, proposal in enumerate(sa.proposals, 1):
        following = PayloadType.PROPOSAL if index < len(sa.proposals) else PayloadType.NONE
        transforms = _encode_transforms(proposal.transforms)
        length = _PROPOSAL.size + len(proposal.spi) + len(transforms)
        count = len(proposal.transforms)
        parts.append(_PROPOSAL.pack(following, 0, length, proposal.number, proposal.protocol, len(proposal.spi), count))
        parts += (proposal.spi, transforms)
    return b"".join(parts)


def _encode_transforms(transforms: tuple[Transform, ...]) -> bytes:
    parts: list[bytes] = []
    for index, transform in enumerate(transforms, 1):
        following = PayloadType.TRANSFORM if index < len(transforms) else PayloadType.NONE
        attributes = encode_attributes(transform.attributes)
        length = _TRANSFORM.size + len(attributes)
        parts += (_TRANSFORM.pack(following, 0, length, transform.number, transform.transform_id, 0), attributes)
    return b"".join(parts)
