"""IPComp beside ESP or AH in a phase 2 proposal (RFC 2393 section 4.1, RFC 2407 section 4.4.5, RFC 2408 section 4.2).

Proposals of one number belong together: one protects the packet, one compresses it before. The CPI stands where the
other has its SPI, in two octets.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from privsep.errors import PeerError
from privsep.iana import IpcompTransform, IpsecAttribute, NotifyType, ProtocolId
from privsep.isakmp.association import Attribute, Proposal, SecurityAssociation, Transform
from privsep.isakmp.terms import CHILD_LIFE, read_terms
from privsep.types import MAX_CPI, MIN_CPI, Cpi

CPI_OCTETS = 2
_SIZES = (CPI_OCTETS, 4)
"""Some peers put the CPI into the lower half of an SPI's four octets."""

_GROUP = int(IpsecAttribute.GROUP_DESCRIPTION)
_ENCAPSULATION = int(IpsecAttribute.ENCAPSULATION_MODE)

_Value = int | bytes | None


@dataclass(slots=True, frozen=True)
class Compression:
    """The IPComp half of a bundle, with the one transform that we know."""

    cpi: Cpi
    """The peer's: that of what we send."""
    proposal: Proposal

    def answer(self, cpi: Cpi) -> Proposal:
        """Our half of the answer: the transform unchanged, with our CPI."""
        return Proposal(self.proposal.number, ProtocolId.IPCOMP, encode_cpi(cpi), self.proposal.transforms)

    def goes_with(self, encapsulation: int, group: _Value) -> bool:
        """Whether it is for the same mode, and for no other group than what it stands beside."""
        values = read_terms(self.proposal.transforms[0].attributes, CHILD_LIFE).values
        return values.get(_ENCAPSULATION) == encapsulation and values.get(_GROUP) in (None, group)


def encode_cpi(cpi: Cpi) -> bytes:
    """As it stands in a proposal."""
    return cpi.to_bytes(CPI_OCTETS, "big")


def offer_compression(number: int, cpi: Cpi, encapsulation: int, life: tuple[Attribute, Attribute]) -> Proposal:
    """Our IPComp proposal: DEFLATE, the one algorithm that everybody has."""
    attributes = (Attribute(_ENCAPSULATION, encapsulation), *life)
    transform = Transform(1, IpcompTransform.DEFLATE, attributes)
    return Proposal(number, ProtocolId.IPCOMP, encode_cpi(cpi), (transform,))


def bundles(sa: SecurityAssociation) -> Iterator[tuple[Proposal, Compression | None]]:
    """What protects, with what compresses beside it. Bundles of any other kind, and of IPComp that we cannot agree to,
    are passed over: they cannot be taken apart (RFC 2408 section 4.2).
    """
    numbered: dict[int, list[Proposal]] = {}
    for proposal in sa.proposals:
        numbered.setdefault(proposal.number, []).append(proposal)
    for together in numbered.values():
        protecting = [each for each in together if each.protocol != ProtocolId.IPCOMP]
        compressing = [each for each in together if each.protocol == ProtocolId.IPCOMP]
        if len(protecting) != 1 or len(compressing) > 1:
            continue
        compression = _understood(compressing[0]) if compressing else None
        if compression is not None or not compressing:
            yield protecting[0], compression


def _understood(proposal: Proposal) -> Compression | None:
    cpi = int.from_bytes(proposal.spi, "big")
    if len(proposal.spi) not in _SIZES or not MIN_CPI <= cpi <= MAX_CPI:
        return None
    for transform in proposal.transforms:
        values = read_terms(transform.attributes, CHILD_LIFE).values
        if transform.transform_id == IpcompTransform.DEFLATE and values.keys() <= {_ENCAPSULATION, _GROUP}:
            only = Proposal(proposal.number, proposal.protocol, proposal.spi, (transform,))
            return Compression(Cpi(cpi), only)
    return None


def accepted_compression(
    offer: SecurityAssociation, answer: SecurityAssociation
) -> tuple[SecurityAssociation, Compression | None]:
    """The answer without its IPComp, and this, if we offered exactly that (RFC 2408 section 4.2); else PeerError.

    strongSwan 5.9 answers with the bundle and then, under the next number, its ESP again; the SPI tells that it is one.
    """
    theirs = [each for each in answer.proposals if each.protocol == ProtocolId.IPCOMP]
    if not theirs:
        return answer, None
    found = [(proposal, compression) for proposal, compression in bundles(answer) if compression is not None]
    if len(theirs) != 1 or len(theirs[0].transforms) != 1 or not found:
        raise PeerError("answer is no bundle of IPComp that we know", NotifyType.BAD_PROPOSAL_SYNTAX)
    ((protecting, compression),) = found
    rest = [each for each in answer.proposals if each.protocol != ProtocolId.IPCOMP]
    if any(replace(each, number=protecting.number) != protecting for each in rest):
        raise PeerError("answer is more than one choice", NotifyType.BAD_PROPOSAL_SYNTAX)
    ours = [_meaning(each) for each in offer.proposals if each.protocol == ProtocolId.IPCOMP]
    if _meaning(compression.proposal) not in ours:
        raise PeerError("answer is not the IPComp that we offered", NotifyType.BAD_PROPOSAL_SYNTAX)
    return SecurityAssociation((protecting,), answer.doi, answer.situation), compression


def _meaning(proposal: Proposal) -> object:
    (transform,) = proposal.transforms
    return proposal.number, transform.transform_id, read_terms(transform.attributes, CHILD_LIFE)
