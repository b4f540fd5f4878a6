"""A Quick Mode and the KEYMAT that it yields, as entries of the registry (RFC 2409 section 5.5)."""

from collections.abc import Hashable
from typing import ClassVar

from keyd import ikev1
from keyd.agreement import Agreement, Offer, Question
from keyd.ciphers import CbcChain
from keyd.groups import KeyPair
from keyd.handles import Entry, Quota, State
from keyd.ikev1 import SaKeys
from keyd.phase1 import IkeSa
from keyd.secret import Secret
from privsep.algorithms import ChildSuite
from privsep.errors import Violation
from privsep.schema.keymat import Redeemed, RedeemedOutbound
from privsep.types import Identity, Role


class Quick(Entry):
    """One Quick Mode, with the nonces and the KE secret that it uses once."""

    __slots__ = (
        "agreement",
        "chain",
        "g_qm_xy",
        "ke",
        "keymat",
        "keypair",
        "message_id",
        "ni_b",
        "nr_b",
        "offer",
        "question",
        "sa",
    )
    quota: ClassVar[Quota] = Quota(8192)

    def __init__(self, state: State, expires: float, sa: IkeSa, message_id: int, chain: CbcChain) -> None:
        super().__init__(state, expires)
        self.sa = sa
        self.message_id = message_id
        self.chain = chain
        self.offer: Offer | None = None
        """At the initiator: what message 1 says."""
        self.question: Question | None = None
        """At the responder: the same of the peer's."""
        self.agreement: Agreement | None = None
        self.keypair: KeyPair | None = None
        self.ke: bytes | None = None
        """The peer's KE; at the responder, kept until the suite names the group."""
        self.g_qm_xy: Secret | None = None
        self.ni_b = b""
        self.nr_b = b""
        self.keymat: Keymat | None = None

    def wipe(self) -> None:
        """Overwrite the secrets."""
        self.keypair = None
        if self.g_qm_xy is not None:
            self.g_qm_xy.wipe()


class Keymat(Entry):
    """KEYMAT of both SAs of a child, and for whom it was derived."""

    __slots__ = ("agreement", "connection", "identity", "inbound", "outbound", "role")
    quota: ClassVar[Quota] = Quota(8192)

    def __init__(self, state: State, expires: float, quick: Quick, role: Role, agreed: Agreement) -> None:
        super().__init__(state, expires)
        sa = quick.sa
        if sa.connection is None or sa.identity is None:
            raise Violation("keymat for nobody")
        self.connection: str = sa.connection.name
        self.identity: Identity = sa.identity
        self.role = role
        self.agreement = agreed
        self.inbound = _keys(quick, agreed.suite, agreed.spi_in)
        self.outbound = _keys(quick, agreed.suite, agreed.spi_out)

    @property
    def owner(self) -> Hashable:
        """It outlives its Quick Mode."""
        return self.connection

    def inbound_half(self) -> Redeemed:
        """What the monitor gets of it first, and nobody after."""
        agreed = self.agreement
        redeemed = Redeemed(
            connection=self.connection,
            child=agreed.child.name,
            identity=self.identity,
            role=self.role,
            suite=agreed.suite,
            mode=agreed.mode,
            encap=agreed.encap,
            spi_in=agreed.spi_in,
            spi_out=agreed.spi_out,
            cpi_in=agreed.cpi_in,
            cpi_out=agreed.cpi_out,
            local_ts=agreed.local_ts,
            remote_ts=agreed.remote_ts,
            lifetime=agreed.lifetime,
            encryption_in=bytes(self.inbound.encryption),
            integrity_in=bytes(self.inbound.integrity),
        )
        self.inbound.wipe()
        return redeemed

    def outbound_half(self) -> RedeemedOutbound:
        """What the monitor gets of it then."""
        redeemed = RedeemedOutbound(
            encryption_out=bytes(self.outbound.encryption), integrity_out=bytes(self.outbound.integrity)
        )
        self.outbound.wipe()
        return redeemed

    def wipe(self) -> None:
        """Overwrite the keys."""
        self.inbound.wipe()
        self.outbound.wipe()


def _keys(quick: Quick, suite: ChildSuite, spi: int) -> SaKeys:
    material = ikev1.keymat(
        quick.sa.suite.hash,
        quick.sa.skeyid_d,
        g_qm_xy=quick.g_qm_xy,
        protocol=suite.protocol,
        spi=spi,
        ni_b=quick.ni_b,
        nr_b=quick.nr_b,
        octets=ikev1.keymat_octets(suite),
    )
    keys = ikev1.split(suite, material)
    material.wipe()
    return keys
