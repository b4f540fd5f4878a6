"""What a transform's attributes say: one value a class, and lifetimes by unit.

RFC 2409 appendix A and RFC 2407 section 4.5 number the classes differently and treat them alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from privsep.errors import PeerError
from privsep.iana import IkeAttribute, IpsecAttribute, LifeType, NotifyType
from privsep.isakmp.association import Attribute, Proposal, SecurityAssociation, Transform

MAX_DURATION_OCTETS = 8
"""Durations that do not fit are absurd; the longest in use are of four octets."""
DEFAULT_LIFETIME = 28800
"""Seconds, "if unspecified" (RFC 2407 section 4.5)."""

MIN_IKE_LIFETIME = 300
MIN_CHILD_LIFETIME = 60
"""Seconds. A peer that offers less, or tells less as responder, has us renew once in that time, at most, and may do so
itself as often as it likes. An IKE SA costs more than a child SA."""

LifeClasses = tuple[int, int]
IKE_LIFE: LifeClasses = (int(IkeAttribute.LIFE_TYPE), int(IkeAttribute.LIFE_DURATION))
CHILD_LIFE: LifeClasses = (int(IpsecAttribute.SA_LIFE_TYPE), int(IpsecAttribute.SA_LIFE_DURATION))


@dataclass(slots=True, frozen=True)
class Terms:
    """Attributes of one transform without their order and encoding. Equal terms are the same offer."""

    values: dict[int, int | bytes]
    lifetimes: dict[int, int]
    """Duration by unit (LifeType)."""

    @property
    def seconds(self) -> int:
        """The lifetime in seconds; zero says nothing either."""
        return self.lifetimes.get(LifeType.SECONDS) or DEFAULT_LIFETIME

    @property
    def kilobytes(self) -> int | None:
        """The lifetime in kilobytes, if there is one."""
        return self.lifetimes.get(LifeType.KILOBYTES) or None


def read_terms(attributes: Sequence[Attribute], life: LifeClasses) -> Terms:
    """RFC 2407 section 4.5.2: repeated classes must agree, and a duration follows its life type."""
    life_type, life_duration = life
    values: dict[int, int | bytes] = {}
    lifetimes: dict[int, int] = {}
    unit: int | None = None
    for attribute in attributes:
        kind, value = attribute.type, attribute.value
        if kind == life_type and isinstance(value, int):
            unit = value
        elif kind == life_duration:
            if unit is None:
                raise PeerError("life duration without a life type", NotifyType.ATTRIBUTES_NOT_SUPPORTED)
            if isinstance(value, bytes) and len(value) > MAX_DURATION_OCTETS:
                raise PeerError("life duration is absurd", NotifyType.ATTRIBUTES_NOT_SUPPORTED)
            duration = attribute.number
            if lifetimes.setdefault(unit, duration) != duration:
                raise PeerError("conflicting life durations", NotifyType.ATTRIBUTES_NOT_SUPPORTED)
            unit = None
        elif values.setdefault(kind, value) != value:
            raise PeerError("conflicting attributes", NotifyType.ATTRIBUTES_NOT_SUPPORTED)
    return Terms(values, lifetimes)


def agreed_lifetime(ours: int, theirs: int, least: int) -> int:
    """Seconds: the shorter of both (RFC 2407 section 4.5.4), where a peer's wish for less than `least` is not heard."""
    return min(ours, max(theirs, least))


def life_attributes(seconds: int, life: LifeClasses) -> tuple[Attribute, Attribute]:
    """A lifetime of ours; four octets, the form that every peer parses."""
    life_type, life_duration = life
    return Attribute(life_type, LifeType.SECONDS), Attribute(life_duration, seconds.to_bytes(4, "big"))


def chosen(
    offer: SecurityAssociation, answer: SecurityAssociation, life: LifeClasses
) -> tuple[Proposal, Transform, Terms]:
    """The answer's one proposal, one transform and its terms, if we offered exactly that.

    RFC 2408 section 4.2: the initiator MUST verify that the answer matches one of the proposals sent. RFC 2409 section
    5: an answer with attributes changed, added or deleted MUST be rejected; their encoding may differ (appendix A).
    """
    if len(answer.proposals) != 1 or len(answer.proposals[0].transforms) != 1:
        raise PeerError("answer is not one proposal with one transform", NotifyType.BAD_PROPOSAL_SYNTAX)
    proposal = answer.proposals[0]
    transform = proposal.transforms[0]
    terms = read_terms(transform.attributes, life)
    for ours in offer.proposals:
        if ours.protocol == proposal.protocol and any(
            each.transform_id == transform.transform_id and read_terms(each.attributes, life) == terms
            for each in ours.transforms
        ):
            return proposal, transform, terms
    raise PeerError("answer is not what we offered", NotifyType.BAD_PROPOSAL_SYNTAX)


def numbers(**named: int | bytes | str | None) -> str:
    """Numbers that no table of ours knows, for a log: ``cipher 8 bits 128``. Octets show as their length only."""
    return " ".join(
        f"{name} {f'of {len(value)} octets' if isinstance(value, bytes) else value}"
        for name, value in named.items()
        if value is not None
    )
