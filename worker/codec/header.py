"""The ISAKMP header (RFC 2408 section 3.1) and whole messages."""

from dataclasses import dataclass
from typing import Annotated

from privsep.errors import MalformedError, PeerError
from privsep.iana import HeaderFlag, NotifyType
from privsep.types import Cookie, MessageId
from privsep.wire import U8, U32, Field, Layout

HEADER_OCTETS = 28
MAX_MESSAGE = 60000
"""Octets. Below UDP's largest datagram, so that every body fits into one frame to keyd; real ones have under 10000."""

ZERO_COOKIE = Cookie(bytes(8))

VERSION = 0x10
"""1.0: major version in the upper four bits."""

_ENCRYPTION = int(HeaderFlag.ENCRYPTION)
_COMMIT = int(HeaderFlag.COMMIT)


@dataclass(slots=True, frozen=True, kw_only=True)
class Header:
    """RFC 2408 section 3.1. Numbers stay plain integers, known or not; compare them with the enums."""

    cky_i: Annotated[Cookie, Field("8s")]
    cky_r: Annotated[Cookie, Field("8s")]
    next_payload: U8
    version: U8 = VERSION
    exchange: U8
    flags: U8
    message_id: Annotated[MessageId, Field("I")]
    length: U32

    @property
    def encrypted(self) -> bool:
        """Whether all that follows is encrypted."""
        return self.flags & _ENCRYPTION != 0

    @property
    def commit(self) -> bool:
        """Whether the sender asks to wait for its CONNECTED notify."""
        return self.flags & _COMMIT != 0


_LAYOUT = Layout(Header)


def read_header(data: bytes) -> Header:
    """The fields of whatever claims to be a header, of any version; MalformedError if it is too short."""
    if len(data) < HEADER_OCTETS:
        raise MalformedError("shorter than an ISAKMP header")
    return _LAYOUT.parse(data[:HEADER_OCTETS])


def parse_header(data: bytes) -> Header:
    """The header of a datagram that holds exactly one message of ISAKMP 1.0.

    RFC 2408 section 5.1: where the datagram is longer or shorter than its Length field says, the message MUST be
    rejected. Section 3.1: a greater minor version SHOULD never be accepted. Section 5.2: the other fields are checked
    against the exchange (`rules.check_header`).
    """
    if len(data) > MAX_MESSAGE:
        raise PeerError("message is too long", NotifyType.UNEQUAL_PAYLOAD_LENGTHS)
    header = read_header(data)
    if header.version >> 4 != VERSION >> 4:
        raise PeerError("ISAKMP major version is not 1", NotifyType.INVALID_MAJOR_VERSION)
    if header.version != VERSION:
        raise PeerError("ISAKMP minor version is not 0", NotifyType.INVALID_MINOR_VERSION)
    if header.length != len(data):
        raise PeerError("datagram and header disagree about the length", NotifyType.UNEQUAL_PAYLOAD_LENGTHS)
    if header.cky_i == ZERO_COOKIE:
        raise PeerError("initiator cookie is zero", NotifyType.INVALID_COOKIE)
    return header


def encode_message(
    *,
    cky_i: Cookie,
    cky_r: Cookie,
    version: int = VERSION,
    exchange: int,
    flags: int,
    message_id: MessageId,
    first: int,
    body: bytes,
) -> bytes:
    """A whole message: header and `body`, whose first payload is of type `first`."""
    header = Header(
        cky_i=cky_i,
        cky_r=cky_r,
        next_payload=first,
        version=version,
        exchange=exchange,
        flags=flags,
        message_id=message_id,
        length=HEADER_OCTETS + len(body),
    )
    return _LAYOUT.encode(header) + body
