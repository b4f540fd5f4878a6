"""Message 1 of Main Mode, answered at once and remembered in a record (RFC 2409 section 5, RFC 2408 section 2.5.3).

Anybody can send one, from any address, so the path is short: equal messages get the verdict that the first of them
got, and nothing is made before there is one. What messages 1 and 2 have in common stands here too.
"""

from collections.abc import Iterable

from privsep.config.model import Connection, Encap
from privsep.errors import PeerError
from privsep.iana import ExchangeType, HeaderFlag, NotifyType
from privsep.isakmp.association import SecurityAssociation
from privsep.isakmp.payloads import Payload, VendorId, encode_chain, parse_payload
from privsep.payloads import split_chain
from privsep.types import Cookie, MessageId
from worker.codec import rules
from worker.codec.header import ZERO_COOKIE, encode_message
from worker.codec.vendor import Vendor
from worker.context import Context
from worker.exchange import Received
from worker.half_open import HalfOpen, Key, Offer, Unacceptable, Verdict, whose
from worker.ikev1 import informational
from worker.negotiate import choose_ike

MAX_FIRST = 16384
"""Octets of a message that nobody's cookie protects. As many transforms as one octet can count take some 9,200."""


def answer(context: Context, first: Received) -> None:
    """Send message 2, once for a message and rarely for its duplicates, or one notification at most."""
    rules.check_header(first.header, 1)
    if len(first.data) > MAX_FIRST:
        raise PeerError("first message is too long")
    table = context.half_open
    began = whose(first.header.cky_i, first.remote)
    known = table.begun(began)
    candidates = context.gateway.candidates(first.local.address, first.remote.address)
    key = table.key(first.data, candidates)
    if known is not None:
        if known.offer.key == key and known.admit(context.now):
            _send(context, first, known)
        return
    verdict = table.verdict(key)
    if verdict is None:
        verdict = _judge(first, candidates, key)
        table.remember(key, verdict)
    match verdict:
        case Offer():
            record = HalfOpen(began, new_cookie(context), first.local, verdict)
            table.add(record)
            _send(context, first, record)
        case Unacceptable():
            informational.notify_in_clear(context, first, verdict.notify)
            raise PeerError(verdict.reason, verdict.notify)


def _judge(first: Received, candidates: tuple[Connection, ...], key: Key) -> Verdict:
    try:
        payloads = parse_message(first, 1)
    except PeerError as error:
        # nobody is told about what is no message
        return Unacceptable(error.reason, None)
    try:
        choice = choose_ike(association(payloads), candidates)
    except PeerError as error:
        return Unacceptable(error.reason, error.notify)
    traversal = knows_nat_traversal(payloads) and choice.connection.encap is not Encap.OFF
    return Offer(
        key=key,
        connection=choice.connection,
        suite=choice.selection.suite,
        lifetime=choice.selection.lifetime,
        sai_b=split_chain(first.header.next_payload, first.body)[0][1],
        nat_traversal=traversal,
        knows_dpd=knows_dpd(payloads),
        answer=encode_chain([choice.selection.answer, *vendor_ids(nat_traversal=traversal)]),
    )


def _send(context: Context, first: Received, record: HalfOpen) -> None:
    """HDR, SA: what was chosen, and our cookie."""
    next_payload, payloads = record.offer.answer
    message = encode_message(
        cky_i=record.cky_i,
        cky_r=record.cky_r,
        exchange=ExchangeType.MAIN_MODE,
        flags=HeaderFlag.NONE,
        message_id=MessageId(0),
        first=next_payload,
        body=payloads,
    )
    context.send(record.local, first.remote, message)


def parse_message(received: Received, number: int) -> list[Payload]:
    """The payloads of the `number`th message, in clear; those of private types are ignored."""
    row = rules.check_header(received.header, number)
    listed = split_chain(received.header.next_payload, received.body)
    rules.check(row, (kind for kind, _ in listed))
    return [parse_payload(kind, body) for kind, body in listed]


def association(payloads: list[Payload]) -> SecurityAssociation:
    """The payload that messages 1 and 2 begin with, and what is read of Quick Mode (RFC 2409 sections 5 and 5.5)."""
    first = payloads[0]
    if not isinstance(first, SecurityAssociation):
        raise PeerError("message begins with the wrong payload", NotifyType.INVALID_PAYLOAD_TYPE)
    return first


def new_cookie(context: Context) -> Cookie:
    """RFC 2408 section 2.5.3. Random: as a responder's it is remembered, within a budget, and so needs no secret."""
    cookie = ZERO_COOKIE
    while cookie == ZERO_COOKIE:
        cookie = Cookie(context.random(len(ZERO_COOKIE)))
    return cookie


def vendor_ids(*, nat_traversal: bool) -> tuple[VendorId, ...]:
    """What we announce in messages 1 and 2."""
    natt = (VendorId(Vendor.RFC_3947.data),) if nat_traversal else ()
    return (*natt, VendorId(Vendor.DPD.data))


def knows_nat_traversal(payloads: Iterable[Payload]) -> bool:
    """RFC 3947 section 3.1."""
    return VendorId(Vendor.RFC_3947.data) in payloads


def knows_dpd(payloads: Iterable[Payload]) -> bool:
    """RFC 3706 section 5.1."""
    return VendorId(Vendor.DPD.data) in payloads
