"""What a Quick Mode is about: SA payload and client identities, composed and read here (RFC 2409 section 5.5).

The worker names a child, SPIs and selectors; what the peer gets to see of them is made from the same values as KEYMAT
and as what the monitor is told. So nobody can be made to agree to one thing while keys are derived for another.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from keyd.handles import Refuse
from privsep.algorithms import ChildSuite
from privsep.config.model import Child
from privsep.errors import MalformedError, PeerError, Violation
from privsep.iana import NotifyType, PayloadType
from privsep.isakmp.association import SecurityAssociation, encode_association, parse_association
from privsep.isakmp.child_proposals import (
    accepted_child,
    describe_child,
    encapsulation_mode,
    notified_lifetime,
    offer_child,
    responder_lifetime,
    select_child,
)
from privsep.isakmp.identification import encode_selector, parse_selector
from privsep.isakmp.payloads import Identification, NatOriginalAddress, Notification, encode_payload, parse_payload
from privsep.isakmp.terms import MIN_CHILD_LIFETIME, agreed_lifetime
from privsep.payloads import only
from privsep.schema.keyd import Originals, QuickAnswer, QuickOffer, Refusal
from privsep.types import Cpi, Mode, Spi, TrafficSelector

MAX_SA_OCTETS = 16384
"""Of a peer's offer, which waits for the worker's choice; as many transforms as an offer may hold fit."""
MAX_NAMED = 8
"""Transforms that are written out in a refusal."""
MAX_ID_OCTETS = 64
"""Of a client identity: two IPv6 addresses and what stands before them are 36."""

Payloads = list[tuple[int, bytes]]
"""(type, body) of each."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Offer:
    """Our message 1, as far as the answer is compared with it."""

    child: Child
    encap: bool
    spi: Spi
    cpi: Cpi | None
    local_ts: TrafficSelector
    remote_ts: TrafficSelector
    sa: SecurityAssociation

    def payloads(self, originals: Originals) -> tuple[bytes, Payloads]:
        """The body of SA, and what stands behind nonce and KE."""
        ids = [encode_payload(encode_selector(each)) for each in (self.local_ts, self.remote_ts)]
        return encode_association(self.sa), [*ids, *_originals(originals)]


@dataclass(slots=True, frozen=True, kw_only=True)
class Question:
    """The peer's message 1, as far as it is answered."""

    sa: bytes
    """The body of its SA payload."""
    ids: tuple[bytes, ...]
    """Bodies of IDci and IDcr, or none."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Agreement:
    """What the peer agrees to, in messages that a HASH proves to be its own."""

    child: Child
    suite: ChildSuite
    encap: bool
    spi_in: Spi
    spi_out: Spi
    cpi_in: Cpi | None
    cpi_out: Cpi | None
    local_ts: TrafficSelector | None
    remote_ts: TrafficSelector | None
    lifetime: int

    @property
    def mode(self) -> Mode:
        """Tunnel or transport, as both SA payloads say."""
        return self.child.mode


def offer(child: Child, request: QuickOffer) -> Offer:
    """All suites of that group; Refuse if the child has none, or does not hold these selectors."""
    if all(suite.group is not request.group for suite in child.suites):
        raise Refuse(Refusal.BAD_PROPOSAL)
    if not child.covers(request.local_ts, request.remote_ts):
        raise Refuse(Refusal.BAD_SELECTORS)
    spi, cpi = Spi(request.spi_in), _cpi(child, request)
    encapsulation = encapsulation_mode(child.mode, udp=request.encap)
    return Offer(
        child=child,
        encap=request.encap,
        spi=spi,
        cpi=cpi,
        local_ts=request.local_ts,
        remote_ts=request.remote_ts,
        sa=offer_child(child.suites, request.group, encapsulation, spi, child.lifetime, cpi),
    )


def accepted(ours: Offer, answer: Payloads) -> Agreement:
    """Message 2 of the peer's: one of our transforms, our identities or none, perhaps a shorter lifetime. PeerError."""
    theirs = parse_association(_association(answer))
    try:
        selection = accepted_child(ours.sa, theirs)
    except PeerError as error:
        raise PeerError(
            f"{error.reason}: {_described(ours.sa)} was offered, it answers {_described(theirs)}", error.notify
        ) from None
    ids = [_selector(body) for body in _identities(answer)]
    if ids and ids != [ours.local_ts, ours.remote_ts]:
        idci, idcr = ids
        raise PeerError(
            f"the peer answers with other client identities: {idci} with {idcr}, "
            f"where {ours.local_ts} with {ours.remote_ts} was offered",
            NotifyType.INVALID_ID_INFORMATION,
        )
    lifetime = selection.agreed_lifetime(ours.child.lifetime)
    for kind, body in answer:
        notification = parse_payload(kind, body) if kind == PayloadType.NOTIFY else None
        if isinstance(notification, Notification) and notification.type == NotifyType.RESPONDER_LIFETIME:
            lifetime = agreed_lifetime(lifetime, notified_lifetime(notification) or lifetime, MIN_CHILD_LIFETIME)
    compression = selection.compression
    return Agreement(
        child=ours.child,
        suite=selection.suite,
        encap=ours.encap,
        spi_in=ours.spi,
        spi_out=selection.spi,
        cpi_in=ours.cpi if compression is not None else None,
        cpi_out=compression.cpi if compression is not None else None,
        local_ts=ours.local_ts,
        remote_ts=ours.remote_ts,
        lifetime=lifetime,
    )


def _described(sa: SecurityAssociation) -> str:
    """The first few transforms, for people."""
    return ", ".join(dict.fromkeys(describe_child(sa)[:MAX_NAMED]))


def question(payloads: Payloads) -> Question:
    """The peer's message 1, bounded; its SA is read when the worker has chosen. PeerError."""
    sa, ids = _association(payloads), _identities(payloads)
    if len(sa) > MAX_SA_OCTETS:
        raise PeerError("offer is too long", NotifyType.BAD_PROPOSAL_SYNTAX)
    return Question(sa=sa, ids=ids)


def answer(child: Child, theirs: Question, request: QuickAnswer) -> tuple[Agreement, bytes, Payloads]:
    """What is agreed on, the body of our SA, and what stands behind nonce and KE.

    Refuse if the peer does not offer the suite, the child does not have it, or not for the peer's selectors.
    """
    cpi = _cpi(child, request)
    try:
        offered = parse_association(theirs.sa)
        encapsulation = encapsulation_mode(child.mode, udp=request.encap)
        selection = select_child(offered, (request.suite,), encapsulation, ipcomp=cpi is not None)
        idci, idcr = map(_selector, theirs.ids) if theirs.ids else (None, None)
    except PeerError as error:
        raise Refuse(Refusal.BAD_MESSAGE, error) from None
    if selection is None or request.suite not in child.suites or not _keys_differ(request.spi_in, selection.spi):
        raise Refuse(Refusal.BAD_PROPOSAL)
    if idci is not None and idcr is not None and not child.covers(idcr, idci):
        raise Refuse(Refusal.BAD_SELECTORS)
    compression = selection.compression
    agreed = Agreement(
        child=child,
        suite=request.suite,
        encap=request.encap,
        spi_in=Spi(request.spi_in),
        spi_out=selection.spi,
        cpi_in=cpi if compression is not None else None,
        cpi_out=compression.cpi if compression is not None else None,
        local_ts=idcr,
        remote_ts=idci,
        lifetime=selection.agreed_lifetime(child.lifetime),
    )
    rest: Payloads = [*((PayloadType.ID, body) for body in theirs.ids), *_originals(request.originals)]
    if agreed.lifetime != selection.lifetime:
        # RFC 2407 section 4.6.3.1: the one that the responder chose
        rest.append(encode_payload(responder_lifetime(child.protocol, agreed.spi_in, agreed.lifetime)))
    return agreed, encode_association(selection.answer(agreed.spi_in, agreed.cpi_in)), rest


def _keys_differ(ours: int, theirs: int) -> bool:
    """KEYMAT differs by direction only in the SPI: equal ones would share a key (RFC 2409 section 5.5)."""
    return ours != theirs


def _cpi(child: Child, request: QuickOffer | QuickAnswer) -> Cpi | None:
    """Ours, for a child that compresses."""
    if request.cpi_in is None:
        return None
    if not child.ipcomp:
        raise Refuse(Refusal.BAD_PROPOSAL)
    return Cpi(request.cpi_in)


def _originals(addresses: Originals) -> Iterable[tuple[int, bytes]]:
    if len(addresses) == 1:
        raise Violation("one original address where none or two are right")
    return (encode_payload(NatOriginalAddress(address)) for address in addresses)


def _association(payloads: Payloads) -> bytes:
    """The body of the one SA payload, which comes first (RFC 2409 section 5.5)."""
    body = only(payloads, PayloadType.SA)
    if payloads[0][0] != PayloadType.SA:
        raise PeerError("message begins with the wrong payload", NotifyType.INVALID_PAYLOAD_TYPE)
    return body


def _identities(payloads: Payloads) -> tuple[bytes, ...]:
    """Bodies of IDci and IDcr, or none."""
    ids = tuple(body for kind, body in payloads if kind == PayloadType.ID)
    if len(ids) not in (0, 2):
        raise PeerError(f"{len(ids)} client identities where none or two are right", NotifyType.INVALID_PAYLOAD_TYPE)
    if any(len(body) > MAX_ID_OCTETS for body in ids):
        raise PeerError("client identity is too long", NotifyType.INVALID_ID_INFORMATION)
    return ids


def _selector(body: bytes) -> TrafficSelector:
    payload = parse_payload(PayloadType.ID, body)
    if not isinstance(payload, Identification):
        raise MalformedError("client identity is none")
    return parse_selector(payload)
