"""Phase 1 proposals: IkeSuites to SA payload and back (RFC 2409 section 5 and appendix A, RFC 2407 section 4.6.1).

The responder's configured order decides, not the peer's: the operator of each gateway says what is best, and a peer
that prefers weak algorithms cannot have them while a stronger one is common to both.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from privsep.algorithms import Group, Hash, IkeCipher, IkeSuite
from privsep.errors import PeerError
from privsep.iana import AuthMethod, IkeAttribute, IsakmpTransform, NotifyType, ProtocolId
from privsep.isakmp.association import Attribute, Proposal, SecurityAssociation, Transform
from privsep.isakmp.terms import IKE_LIFE, Terms, chosen, life_attributes, numbers, read_terms
from privsep.types import Auth

_AUTH_METHODS = {Auth.PSK: AuthMethod.PRE_SHARED_KEY}

_ENCRYPTION = int(IkeAttribute.ENCRYPTION_ALGORITHM)
_HASH = int(IkeAttribute.HASH_ALGORITHM)
_AUTH = int(IkeAttribute.AUTHENTICATION_METHOD)
_GROUP = int(IkeAttribute.GROUP_DESCRIPTION)
_KEY_LENGTH = int(IkeAttribute.KEY_LENGTH)
_CLASSES = frozenset({_ENCRYPTION, _HASH, _AUTH, _GROUP, _KEY_LENGTH})

_Value = int | bytes | None
_CIPHERS: dict[tuple[_Value, _Value], IkeCipher] = {
    (int(cipher.number), cipher.key_bits if cipher.variable_key else None): cipher for cipher in IkeCipher
}
_HASHES: dict[_Value, Hash] = {int(hash_.number): hash_ for hash_ in Hash}
_GROUP_NUMBERS: dict[_Value, Group] = {int(group.number): group for group in Group}


@dataclass(slots=True, frozen=True, kw_only=True)
class IkeSelection:
    """What phase 1 agreed on. `lifetime` in seconds is what was offered; the shorter of it and ours counts."""

    suite: IkeSuite
    lifetime: int
    answer: SecurityAssociation
    """The chosen proposal with the chosen transform alone, as the peer sent it."""


def offer_ike(suites: Iterable[IkeSuite], auth: Auth, lifetime: int) -> SecurityAssociation:
    """RFC 2409 section 5: all suites as transforms of one proposal, in our order of preference."""
    life = life_attributes(lifetime, IKE_LIFE)
    transforms = tuple(
        Transform(number, IsakmpTransform.KEY_IKE, (*_attributes(suite, auth), *life))
        for number, suite in enumerate(suites, 1)
    )
    return SecurityAssociation((Proposal(1, ProtocolId.ISAKMP, b"", transforms),))


def _attributes(suite: IkeSuite, auth: Auth) -> Iterable[Attribute]:
    yield Attribute(_ENCRYPTION, suite.cipher.number)
    if suite.cipher.variable_key:
        yield Attribute(_KEY_LENGTH, suite.cipher.key_bits)
    yield Attribute(_HASH, suite.hash.number)
    yield Attribute(_AUTH, _AUTH_METHODS[auth])
    yield Attribute(_GROUP, suite.group.number)


def select_ike(sa: SecurityAssociation, suites: Sequence[IkeSuite], auth: Auth) -> IkeSelection | None:
    """The first of our suites that the peer offers with this authentication, or None (NO-PROPOSAL-CHOSEN).

    A transform with anything that we do not know cannot be answered unchanged and agreed to, so it is passed over.
    """
    proposal = _only_proposal(sa)
    method = _AUTH_METHODS[auth]
    offers: dict[IkeSuite, tuple[Transform, Terms]] = {}
    for transform in proposal.transforms:
        terms = read_terms(transform.attributes, IKE_LIFE)
        suite = _suite(transform, terms)
        if suite is not None and terms.values[_AUTH] == method:
            offers.setdefault(suite, (transform, terms))
    for suite in suites:
        if suite in offers:
            transform, terms = offers[suite]
            return IkeSelection(suite=suite, lifetime=terms.seconds, answer=_answer(sa, proposal, transform))
    return None


def accepted_ike(offer: SecurityAssociation, answer: SecurityAssociation) -> IkeSelection:
    """What the responder chose of our offer; PeerError if it is not one of our transforms, unmodified."""
    _, transform, terms = chosen(offer, answer, IKE_LIFE)
    suite = _suite(transform, terms)
    if suite is None:
        raise PeerError("answer is not what we offered", NotifyType.BAD_PROPOSAL_SYNTAX)
    return IkeSelection(suite=suite, lifetime=terms.seconds, answer=answer)


def describe_ike(sa: SecurityAssociation) -> tuple[str, ...]:
    """Each transform as the keyword an operator would configure, or its numbers; for "offered ..., configured ...".

    Cannot fail on what `parse_association` gave: it is called when something is wrong already.
    """
    return tuple(_describe(transform) for proposal in sa.proposals for transform in proposal.transforms)


def _describe(transform: Transform) -> str:
    try:
        terms = read_terms(transform.attributes, IKE_LIFE)
    except PeerError as error:
        return error.reason
    suite = _suite(transform, terms)
    get = terms.values.get
    if suite is not None and get(_AUTH) in _AUTH_METHODS.values():
        return str(suite)
    if suite is None:
        what = numbers(cipher=get(_ENCRYPTION), bits=get(_KEY_LENGTH), hash=get(_HASH), group=get(_GROUP))
    else:
        what = str(suite)
    return f"{what} {numbers(authentication=get(_AUTH))}"


def _only_proposal(sa: SecurityAssociation) -> Proposal:
    """RFC 2409 section 5: one proposal in phase 1; its SPI MUST be ignored (RFC 2408 section 3.5)."""
    if len(sa.proposals) != 1:
        raise PeerError("phase 1 with several proposals", NotifyType.BAD_PROPOSAL_SYNTAX)
    if sa.proposals[0].protocol != ProtocolId.ISAKMP:
        raise PeerError("phase 1 proposal is not for ISAKMP", NotifyType.INVALID_PROTOCOL_ID)
    return sa.proposals[0]


def _suite(transform: Transform, terms: Terms) -> IkeSuite | None:
    """The suite that a transform means, if it means nothing else besides."""
    values = terms.values
    if transform.transform_id != IsakmpTransform.KEY_IKE or not values.keys() <= _CLASSES or _AUTH not in values:
        return None
    cipher = _CIPHERS.get((values.get(_ENCRYPTION), values.get(_KEY_LENGTH)))
    hash_ = _HASHES.get(values.get(_HASH))
    group = _GROUP_NUMBERS.get(values.get(_GROUP))
    if cipher is None or hash_ is None or group is None:
        return None
    return IkeSuite(cipher, hash_, group)


def _answer(sa: SecurityAssociation, proposal: Proposal, transform: Transform) -> SecurityAssociation:
    """RFC 2408 section 4.2: the selected proposal and transform, numbers retained."""
    only = Proposal(proposal.number, proposal.protocol, proposal.spi, (transform,))
    return SecurityAssociation((only,), sa.doi, sa.situation)
