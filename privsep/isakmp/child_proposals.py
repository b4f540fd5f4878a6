"""Phase 2 proposals: ChildSuites to SA payload and back (RFC 2407 section 4.5, RFC 2409 section 5.5, RFC 4304).

Several suites are transforms of one proposal, ESP or AH, with one SPI; IPComp may stand beside it (`compression.py`).
Our configured order decides, as in phase 1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from privsep.algorithms import ChildSuite, EspCipher, Group, Integrity
from privsep.errors import PeerError
from privsep.iana import EncapsulationMode, IpcompTransform, IpsecAttribute, LifeType, NotifyType, ProtocolId
from privsep.isakmp.association import (
    Attribute,
    Proposal,
    SecurityAssociation,
    Transform,
    encode_attributes,
    parse_attributes,
)
from privsep.isakmp.compression import Compression, accepted_compression, bundles, offer_compression
from privsep.isakmp.payloads import Notification
from privsep.isakmp.terms import (
    CHILD_LIFE,
    IKE_LIFE,
    MIN_CHILD_LIFETIME,
    Terms,
    agreed_lifetime,
    chosen,
    life_attributes,
    numbers,
    read_terms,
)
from privsep.types import Cpi, Mode, Spi

SPI_OCTETS = 4
FIRST_SPI = 256
"""RFC 4303 section 2.1 reserves what is below."""

_GROUP = int(IpsecAttribute.GROUP_DESCRIPTION)
_ENCAPSULATION = int(IpsecAttribute.ENCAPSULATION_MODE)
_INTEGRITY = int(IpsecAttribute.AUTHENTICATION_ALGORITHM)
_KEY_LENGTH = int(IpsecAttribute.KEY_LENGTH)
_ESN = int(IpsecAttribute.EXTENDED_SEQUENCE_NUMBER)
_CLASSES = frozenset({_GROUP, _ENCAPSULATION, _INTEGRITY, _KEY_LENGTH, _ESN})
_ESN_64_BIT = 1
"""RFC 4304 section 2: the one value; without the attribute sequence numbers have 32 bits."""

_Value = int | bytes | None
_CIPHERS: dict[tuple[int, _Value], EspCipher] = {
    (int(cipher.number), cipher.key_bits if cipher.variable_key else None): cipher
    for cipher in EspCipher
    if cipher.number is not None
}
_INTEGRITIES: dict[_Value, Integrity] = {int(each.number): each for each in Integrity if each.number is not None}
_GROUPS: dict[_Value, Group | None] = {int(group.number): group for group in Group} | {None: None}
_ENCAPSULATIONS = {
    (Mode.TUNNEL, False): EncapsulationMode.TUNNEL,
    (Mode.TRANSPORT, False): EncapsulationMode.TRANSPORT,
    (Mode.TUNNEL, True): EncapsulationMode.UDP_TUNNEL,
    (Mode.TRANSPORT, True): EncapsulationMode.UDP_TRANSPORT,
}


@dataclass(slots=True, frozen=True, kw_only=True)
class ChildSelection:
    """What Quick Mode agreed on. `suite.group` says whether there must be KE payloads.

    `lifetime` (seconds) and `kilobytes` are what was offered; the shorter of it and ours counts.
    """

    suite: ChildSuite
    spi: Spi
    """The peer's: our outbound SPI."""
    lifetime: int
    kilobytes: int | None
    proposal: Proposal
    transform: Transform
    compression: Compression | None

    def agreed_lifetime(self, ours: int) -> int:
        """Seconds: the shorter one of what was offered and the configured one counts (RFC 2407 section 4.5.4)."""
        return agreed_lifetime(ours, self.lifetime, MIN_CHILD_LIFETIME)

    def answer(self, spi: Spi, cpi: Cpi | None = None) -> SecurityAssociation:
        """The SA payload of message 2: the chosen transforms unchanged, with our inbound SPI and, where IPComp was
        agreed on, our CPI (RFC 2408 section 4.2).
        """
        only = Proposal(
            self.proposal.number, self.proposal.protocol, spi.to_bytes(SPI_OCTETS, "big"), (self.transform,)
        )
        if self.compression is None or cpi is None:
            return SecurityAssociation((only,))
        return SecurityAssociation((only, self.compression.answer(cpi)))


def encapsulation_mode(mode: Mode, *, udp: bool) -> EncapsulationMode:
    """The attribute's value, with UDP encapsulation (RFC 3947 section 5.1) or without."""
    return _ENCAPSULATIONS[mode, udp]


def offer_child(
    suites: Iterable[ChildSuite],
    group: Group | None,
    encapsulation: EncapsulationMode,
    spi: Spi,
    lifetime: int,
    cpi: Cpi | None = None,
) -> SecurityAssociation:
    """All suites with this PFS group: every transform of a Quick Mode names the group of its KE payload (RFC 2409
    section 5.5), so suites of other groups wait for an exchange of their own. ValueError if none is left.

    With a CPI, compressed; and as the second choice the same without, for peers that know no IPComp.
    """
    life = life_attributes(lifetime, CHILD_LIFE)
    offered = [suite for suite in suites if suite.group is group]
    protocols = {suite.protocol for suite in offered}
    if len(protocols) != 1:
        raise ValueError("no suite has this group, or they are of two protocols")
    transforms = tuple(_transform(number, suite, encapsulation, life) for number, suite in enumerate(offered, 1))
    protecting = Proposal(1, protocols.pop(), spi.to_bytes(SPI_OCTETS, "big"), transforms)
    if cpi is None:
        return SecurityAssociation((protecting,))
    compressing = offer_compression(protecting.number, cpi, encapsulation, life)
    return SecurityAssociation((protecting, compressing, replace(protecting, number=protecting.number + 1)))


def _transform(
    number: int, suite: ChildSuite, encapsulation: EncapsulationMode, life: tuple[Attribute, Attribute]
) -> Transform:
    """RFC 2407 sections 4.4.3 to 4.5; ciphers with several key lengths always say theirs (RFC 3602 section 5.3).

    AH says its algorithm twice, as transform and as attribute (RFC 2407 section 4.4.3).
    """
    transform_id = _transform_id(suite)
    if suite.without_number is not None or transform_id is None:
        raise ValueError("IKEv1 has no number for this suite")
    attributes = [Attribute(_ENCAPSULATION, encapsulation)]
    if suite.cipher is not None and suite.cipher.variable_key:
        attributes.append(Attribute(_KEY_LENGTH, suite.cipher.key_bits))
    if suite.integrity is not None and suite.integrity.number is not None:
        attributes.append(Attribute(_INTEGRITY, suite.integrity.number))
    if suite.group is not None:
        attributes.append(Attribute(_GROUP, suite.group.number))
    if suite.esn:
        attributes.append(Attribute(_ESN, _ESN_64_BIT))
    return Transform(number, transform_id, (*attributes, *life))


def _transform_id(suite: ChildSuite) -> int | None:
    """ESP's is the cipher, AH's the integrity algorithm."""
    if suite.cipher is not None:
        return suite.cipher.number
    return suite.integrity.ah if suite.integrity is not None else None


def select_child(
    sa: SecurityAssociation, suites: Sequence[ChildSuite], encapsulation: EncapsulationMode, *, ipcomp: bool = False
) -> ChildSelection | None:
    """The first of our suites that the peer offers with this encapsulation, or None (NO-PROPOSAL-CHOSEN).

    With `ipcomp`, compressed where the peer offers that too. Passed over: protocols of no suite of ours, bundles
    otherwise, reserved SPIs, and transforms with anything that we do not know (they could not be answered unchanged).
    """
    plain: dict[ChildSuite, ChildSelection] = {}
    compressed: dict[ChildSuite, ChildSelection] = {}
    groups = set()
    for proposal, compression in bundles(sa):
        for transform in proposal.transforms:
            terms = read_terms(transform.attributes, CHILD_LIFE)
            groups.add(terms.values.get(_GROUP))
            if terms.values.get(_ESN, _ESN_64_BIT) != _ESN_64_BIT:
                # RFC 4304 section 3
                raise PeerError("extended sequence numbers of no known kind", NotifyType.ATTRIBUTES_NOT_SUPPORTED)
            suite = _suite(proposal, transform, terms)
            if (
                suite is not None
                and (compression is None or (ipcomp and compression.goes_with(encapsulation, terms.values.get(_GROUP))))
                and terms.values.get(_ENCAPSULATION) == encapsulation
                and _valid(proposal.spi)
            ):
                found = plain if compression is None else compressed
                found.setdefault(suite, _selection(suite, proposal, transform, terms, compression))
    if len(groups) > 1:
        raise PeerError("proposals of one Quick Mode differ in their group", NotifyType.BAD_PROPOSAL_SYNTAX)
    return next((found[suite] for suite in suites for found in (compressed, plain) if suite in found), None)


def accepted_child(offer: SecurityAssociation, answer: SecurityAssociation) -> ChildSelection:
    """What the responder chose of our offer; PeerError if it is not one of our transforms, unmodified.

    Its SPI must be valid and not ours: with equal SPIs both directions would share KEYMAT (RFC 2409 section 5.5).
    """
    protecting, compression = accepted_compression(offer, answer)
    proposal, transform, terms = chosen(offer, protecting, CHILD_LIFE)
    suite = _suite(proposal, transform, terms)
    if suite is None:
        raise PeerError("answer is not what we offered", NotifyType.BAD_PROPOSAL_SYNTAX)
    if not _valid(proposal.spi) or proposal.spi == offer.proposals[0].spi:
        raise PeerError("SPI is reserved, of wrong length, or ours", NotifyType.INVALID_SPI)
    return _selection(suite, proposal, transform, terms, compression)


def _selection(
    suite: ChildSuite, proposal: Proposal, transform: Transform, terms: Terms, compression: Compression | None
) -> ChildSelection:
    return ChildSelection(
        suite=suite,
        spi=Spi(int.from_bytes(proposal.spi, "big")),
        lifetime=terms.seconds,
        kilobytes=terms.kilobytes,
        proposal=proposal,
        transform=transform,
        compression=compression,
    )


def _valid(spi: bytes) -> bool:
    return len(spi) == SPI_OCTETS and int.from_bytes(spi, "big") >= FIRST_SPI


def _suite(proposal: Proposal, transform: Transform, terms: Terms) -> ChildSuite | None:
    """The suite that a transform means, if it means nothing else besides."""
    values = terms.values
    group, authentication, key_length = values.get(_GROUP), values.get(_INTEGRITY), values.get(_KEY_LENGTH)
    integrity = _INTEGRITIES.get(authentication)
    if (
        not values.keys() <= _CLASSES
        or group not in _GROUPS
        or (authentication is not None and integrity is None)
        or values.get(_ESN, _ESN_64_BIT) != _ESN_64_BIT
    ):
        return None
    esn = _ESN in values
    match proposal.protocol:
        case ProtocolId.ESP:
            cipher = _CIPHERS.get((transform.transform_id, key_length))
            # a combined-mode cipher takes no integrity algorithm, every other one needs it
            if cipher is None or (cipher.icv != 0) != (integrity is None):
                return None
            return ChildSuite(ProtocolId.ESP, cipher, integrity, _GROUPS[group], esn=esn)
        case ProtocolId.AH:
            if integrity is None or integrity.ah != transform.transform_id or key_length is not None:
                return None
            return ChildSuite(ProtocolId.AH, None, integrity, _GROUPS[group], esn=esn)
        case _:
            return None


def describe_child(sa: SecurityAssociation) -> tuple[str, ...]:
    """Each transform as the keyword an operator would configure, or its numbers, with its encapsulation."""
    return tuple(_describe(proposal, transform) for proposal in sa.proposals for transform in proposal.transforms)


def _describe(proposal: Proposal, transform: Transform) -> str:
    try:
        terms = read_terms(transform.attributes, CHILD_LIFE)
    except PeerError as error:
        return error.reason
    get = terms.values.get
    suite = _suite(proposal, transform, terms)
    if proposal.protocol == ProtocolId.IPCOMP:
        known = (each.name for each in IpcompTransform if each == transform.transform_id)
        what = f"IPComp {next(known, transform.transform_id)}"
    elif suite is None:
        what = numbers(
            protocol=proposal.protocol,
            transform=transform.transform_id,
            bits=get(_KEY_LENGTH),
            integrity=get(_INTEGRITY),
            group=get(_GROUP),
            esn=get(_ESN),
        )
    else:
        what = suite.described
    mode = get(_ENCAPSULATION)
    return f"{what} {numbers(mode=next((each.name for each in EncapsulationMode if each == mode), mode))}"


def responder_lifetime(protocol: ProtocolId, spi: Spi, seconds: int) -> Notification:
    """RESPONDER-LIFETIME: our SA ends earlier than the peer offered (RFC 2407 sections 4.5.4 and 4.6.3.1)."""
    return Notification(
        protocol=protocol,
        type=NotifyType.RESPONDER_LIFETIME,
        spi=spi.to_bytes(SPI_OCTETS, "big"),
        data=encode_attributes(life_attributes(seconds, CHILD_LIFE)),
    )


def notified_lifetime(notification: Notification) -> int | None:
    """Seconds that a peer's RESPONDER-LIFETIME gives, for an IPsec or an ISAKMP SA; None if it gives none."""
    life = IKE_LIFE if notification.protocol == ProtocolId.ISAKMP else CHILD_LIFE
    return read_terms(parse_attributes(notification.data), life).lifetimes.get(LifeType.SECONDS) or None
