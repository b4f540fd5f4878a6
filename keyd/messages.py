"""What keyd puts into messages itself and takes out of them: HASH, ID (RFC 2407 section 4.6.2), nonce, KE."""

from collections.abc import Iterable

from privsep.errors import MalformedError, Violation
from privsep.iana import PayloadType
from privsep.isakmp.identification import encode_identity, parse_identity
from privsep.isakmp.payloads import Identification, encode_payload, parse_payload
from privsep.payloads import GENERIC_HEADER, Chain, join_chain, only, split_chain
from privsep.types import Identity

NONCE_OCTETS = 32
"""Ours. RFC 2409 section 5 allows 8 to 256; as long as SHA-256's output, so that no prf loses strength by it."""
MIN_NONCE, MAX_NONCE = 8, 256

AUTH_EXTRAS = frozenset({PayloadType.NOTIFY, PayloadType.VENDOR_ID})
INFO_EXTRAS = frozenset({PayloadType.NOTIFY, PayloadType.DELETE, PayloadType.VENDOR_ID})
"""What the worker may have sealed, unread. HASH(1) of an Informational and of Quick Mode are made alike: SA, nonce and
KE sealed as an Informational would be a Quick Mode message of the worker's composition."""


def with_extras(
    payloads: Iterable[tuple[int, bytes]], next_payload: int, extras: bytes, allowed: frozenset[PayloadType]
) -> Chain:
    """Our payloads, then the worker's chain; Violation if that holds what is keyd's to compose."""
    try:
        listed = split_chain(next_payload, extras)
    except MalformedError as error:
        raise Violation(f"payloads to seal: {error}") from None
    if any(kind not in allowed for kind, _ in listed):
        raise Violation("payloads to seal: a type that the worker may not add")
    return join_chain([*payloads, *listed])


def put_hash(value: bytes, rest: Chain) -> bytes:
    """A HASH payload and the chain that it covers."""
    first, data = rest
    return bytes((first, 0)) + (GENERIC_HEADER + len(value)).to_bytes(2, "big") + value + data


def take_hash(plaintext: bytes) -> tuple[bytes, Chain]:
    """The leading HASH payload's value, and the chain after it without the padding; PeerError."""
    payloads = split_chain(PayloadType.HASH, plaintext, padding=True)
    end = sum(GENERIC_HEADER + len(body) for _, body in payloads)
    value = payloads[0][1]
    return value, (plaintext[0], plaintext[GENERIC_HEADER + len(value) : end])


def take_nonce_and_ke(payloads: list[tuple[int, bytes]]) -> tuple[bytes, bytes | None]:
    """The one nonce and the KE, if there is one, of a Quick Mode message; PeerError."""
    nonce = only(payloads, PayloadType.NONCE)
    if not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise MalformedError("nonce is too short or too long")
    has_ke = any(kind == PayloadType.KE for kind, _ in payloads)
    return nonce, only(payloads, PayloadType.KE) if has_ke else None


def id_body(identity: Identity) -> bytes:
    """Our ID payload's body in phase 1."""
    return encode_payload(encode_identity(identity))[1]


def identity_of(body: bytes) -> Identity:
    """The identity of a phase 1 ID payload's body; PeerError."""
    payload = parse_payload(PayloadType.ID, body)
    if not isinstance(payload, Identification):
        raise MalformedError("no identification payload")
    return parse_identity(payload)
