"""The chain of generic payload headers (RFC 2408 section 3.2), without a meaning for any payload.

Both the worker, which gives payloads their meaning, and keyd, which composes HASH, ID, NONCE and KE itself, walk it.
"""

from collections.abc import Iterable

from privsep.errors import MalformedError, PeerError
from privsep.iana import NotifyType, PayloadType

MAX_PAYLOADS = 64
"""Payloads of one message; real ones have under twenty."""
GENERIC_HEADER = 4

Chain = tuple[int, bytes]
"""Type of the first payload (0: none) and the payloads, each with its generic header."""


def split_chain(first: int, data: bytes, *, padding: bool = False) -> list[tuple[int, bytes]]:
    """(type, body) of each payload. MalformedError where a length is wrong or, without `padding`, octets are left over.

    `padding` is for plaintext: RFC 2409 appendix B lets zero to many octets follow the last payload.
    """
    payloads: list[tuple[int, bytes]] = []
    kind, offset = first, 0
    while kind != PayloadType.NONE:
        if len(payloads) == MAX_PAYLOADS:
            raise MalformedError("too many payloads")
        if len(data) - offset < GENERIC_HEADER:
            raise MalformedError("payload header is cut off")
        if data[offset + 1] != 0:
            raise MalformedError("reserved octet of a payload header is not zero")
        length = int.from_bytes(data[offset + 2 : offset + 4], "big")
        if length < GENERIC_HEADER or length > len(data) - offset:
            raise MalformedError("payload length is wrong")
        payloads.append((kind, data[offset + GENERIC_HEADER : offset + length]))
        kind = data[offset]
        offset += length
    if offset != len(data) and not padding:
        raise MalformedError("octets follow the last payload")
    return payloads


def join_chain(payloads: Iterable[tuple[int, bytes]]) -> Chain:
    """The chain of (type, body) pairs."""
    listed = list(payloads)
    if not listed:
        return PayloadType.NONE, b""
    kinds = [kind for kind, _ in listed][1:] + [PayloadType.NONE]
    data = b"".join(
        bytes((following, 0)) + (len(body) + GENERIC_HEADER).to_bytes(2, "big") + body
        for following, (_, body) in zip(kinds, listed, strict=True)
    )
    return listed[0][0], data


def only(payloads: list[tuple[int, bytes]], kind: PayloadType) -> bytes:
    """The body of the one payload of that type; PeerError if there is none or more than one."""
    found = [body for each, body in payloads if each == kind]
    if len(found) != 1:
        raise PeerError(f"{len(found)} {kind.name} payloads where one is right", NotifyType.INVALID_PAYLOAD_TYPE)
    return found[0]
