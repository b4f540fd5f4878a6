"""Which payloads may and must appear in which message of which exchange, as a table.

RFC 2409 sections 5 and 5.4 (Main Mode), 5.5 (Quick Mode), 5.7 (Informational); RFC 3947 sections 3.2 and 5.2 (NAT-D,
NAT-OA); RFC 2407 section 4.6.3 (status notifies only under protection). Header fields: RFC 2408 sections 3.1 and 5.2.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from privsep.errors import PeerError
from privsep.iana import ExchangeType, HeaderFlag, NotifyType, PayloadType
from privsep.types import Auth
from worker.codec.header import Header

PRIVATE_USE = 128
"""RFC 2408 section 3.1: payload types from here on are for private use. We announce none, so they are ignored."""

_Counts = Collection[int]
_ONE = (1,)
_OPTIONAL = (0, 1)
_BOTH_OR_NONE = (0, 2)
_VENDOR_IDS = range(33)
_FEW = range(9)
_NAT_DS = range(17)
"""One for us and one for each address the peer may have (RFC 3947 section 3.2)."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Message:
    """One row: `begins` with these payloads in this order, holds each type as often as `payloads` says, others never.

    `sealed` stands before everything else and is keyd's: verified and taken away before the worker sees the rest.
    """

    sealed: tuple[PayloadType, ...] = ()
    begins: tuple[PayloadType, ...] = ()
    payloads: Mapping[int, _Counts]
    some_of: frozenset[PayloadType] = frozenset()
    """At least one payload of these types."""

    @property
    def encrypted(self) -> bool:
        """Whether the message is under the protection of the IKE SA."""
        return bool(self.sealed)


_P = PayloadType

_ANYWHERE: dict[int, _Counts] = {_P.CERT: _FEW, _P.CERTREQ: _FEW, _P.NOTIFY: _FEW, _P.VENDOR_ID: _VENDOR_IDS}
"""At any point of phase 1 (RFC 2408 sections 3.9, 3.10, 3.14 and 3.16). What is not understood there is ignored."""

_MAIN_SA = Message(begins=(_P.SA,), payloads={_P.SA: _ONE, **_ANYWHERE})
_MAIN_KE = Message(payloads={_P.KE: _ONE, _P.NONCE: _ONE, _P.NAT_D: _NAT_DS, **_ANYWHERE})
_MAIN_HASH = Message(sealed=(_P.ID, _P.HASH), payloads=_ANYWHERE)

_QUICK_SA = Message(
    sealed=(_P.HASH,),
    begins=(_P.SA,),
    payloads={
        _P.SA: _ONE,
        _P.NONCE: _ONE,
        _P.KE: _OPTIONAL,
        _P.ID: _BOTH_OR_NONE,
        _P.NAT_OA: _BOTH_OR_NONE,
        _P.NOTIFY: _FEW,
        _P.VENDOR_ID: _VENDOR_IDS,
    },
)
_QUICK_HASH = Message(sealed=(_P.HASH,), payloads={_P.NOTIFY: _FEW, _P.VENDOR_ID: _VENDOR_IDS})

_INFORMATIONAL = Message(
    sealed=(_P.HASH,),
    payloads={_P.NOTIFY: _FEW, _P.DELETE: _FEW, _P.VENDOR_ID: _VENDOR_IDS},
    some_of=frozenset({_P.NOTIFY, _P.DELETE}),
)
_INFORMATIONAL_CLEAR = Message(payloads={_P.NOTIFY: _ONE, _P.VENDOR_ID: _VENDOR_IDS})
"""Before there are keys (RFC 2409 section 5.7). A Delete MUST be protected (RFC 2408 section 5.15)."""

_EXCHANGES: dict[tuple[int, Auth], tuple[Message, ...]] = {
    (ExchangeType.MAIN_MODE, Auth.PSK): (_MAIN_SA, _MAIN_SA, _MAIN_KE, _MAIN_KE, _MAIN_HASH, _MAIN_HASH),
    (ExchangeType.QUICK_MODE, Auth.PSK): (_QUICK_SA, _QUICK_SA, _QUICK_HASH),
    (ExchangeType.INFORMATIONAL, Auth.PSK): (_INFORMATIONAL,),
}
_TABLE: dict[tuple[int, Auth, int, bool], Message] = {
    (exchange, auth, number, message.encrypted): message
    for (exchange, auth), messages in _EXCHANGES.items()
    for number, message in enumerate(messages, 1)
} | {(ExchangeType.INFORMATIONAL, auth, 1, False): _INFORMATIONAL_CLEAR for auth in Auth}
"""Row by exchange, authentication method, number of the message, encrypted or not."""

_KNOWN_EXCHANGES = frozenset(exchange for exchange, _, _, _ in _TABLE)
_FLAGS = int(HeaderFlag.ENCRYPTION | HeaderFlag.COMMIT)


def expected(exchange: int, number: int, *, encrypted: bool, auth: Auth = Auth.PSK) -> Message:
    """The row of a message. PeerError if there is none: such a message does not exist, or not (un)encrypted."""
    row = _TABLE.get((exchange, auth, number, encrypted))
    if row is not None:
        return row
    if exchange not in _KNOWN_EXCHANGES:
        raise PeerError("exchange type is not supported", NotifyType.UNSUPPORTED_EXCHANGE_TYPE)
    if (exchange, auth, number, not encrypted) in _TABLE:
        raise PeerError("encryption flag is wrong for this message", NotifyType.INVALID_FLAGS)
    raise PeerError("the exchange has no such message", NotifyType.INVALID_EXCHANGE_TYPE)


def check_header(header: Header, number: int, auth: Auth = Auth.PSK) -> Message:
    """RFC 2408 section 5.2, steps 2 and 4 to 6, for the `number`th message of its exchange; its row.

    The Authentication Only bit would ask us to act on what is not encrypted; nobody uses it and it is refused.
    """
    row = expected(header.exchange, number, encrypted=header.encrypted, auth=auth)
    if header.flags & ~_FLAGS:
        raise PeerError("flags that we do not support", NotifyType.INVALID_FLAGS)
    if row.sealed and header.next_payload != row.sealed[0]:
        raise PeerError("encrypted message begins with the wrong payload", NotifyType.INVALID_PAYLOAD_TYPE)
    if (header.exchange == ExchangeType.MAIN_MODE) != (header.message_id == 0) and row is not _INFORMATIONAL_CLEAR:
        raise PeerError("message id is wrong for this exchange", NotifyType.INVALID_MESSAGE_ID)
    return row


def check(row: Message, kinds: Iterable[int]) -> None:
    """RFC 2408 section 5.3 for the payloads that the worker sees, in order, of a message of that row."""
    listed = [kind for kind in kinds if kind < PRIVATE_USE]
    if tuple(listed[: len(row.begins)]) != row.begins:
        raise PeerError("message begins with the wrong payload", NotifyType.INVALID_PAYLOAD_TYPE)
    counts = {kind: listed.count(kind) for kind in listed}
    if not row.payloads.keys() >= counts.keys():
        raise PeerError("a payload has no place in this message", NotifyType.INVALID_PAYLOAD_TYPE)
    for kind, allowed in row.payloads.items():
        if (count := counts.get(kind, 0)) not in allowed:
            raise PeerError(f"{count} {_P(kind).name} payloads", NotifyType.INVALID_PAYLOAD_TYPE)
    if row.some_of and not row.some_of & counts.keys():
        raise PeerError("message says nothing", NotifyType.INVALID_PAYLOAD_TYPE)
