"""What the monitor may ask keyd: keymat, one half after the other, and to note where names lead and what to log.

Keys travel on no other channel. As responder the inbound half is to be had as soon as KEYMAT is derived, so that its SA
stands when message 2 leaves; the outbound half once HASH(3) has proved that the peer is alive and has our nonce (RFC
2409 section 5.5).
"""

from dataclasses import dataclass
from typing import Annotated

from privsep.algorithms import ChildSuite
from privsep.schema.codec import U32, CpiField, Handle, Length, Name, SpiField, Table
from privsep.schema.levels import SetLevel
from privsep.schema.names import Resolved
from privsep.types import Identity, Mode, Role, TrafficSelector

Places = Annotated[bytes, Length(0, 32768)]
"""Numbers of two octets each, for more connections than the loader takes."""
Key = Annotated[bytes, Length(0, 128)]


@dataclass(slots=True, frozen=True, kw_only=True)
class Ready:
    """keyd -> monitor, once: the endpoint is bound, the worker may be started; sent as the first frame."""

    same_secret: Places
    """Of each connection, in the order of the configuration: the place of the first one that has the same secret."""


@dataclass(slots=True, frozen=True, kw_only=True)
class RedeemInbound:
    """Hand over what receives, and wipe it. Answer: Redeemed or NotRedeemable."""

    keymat: Handle


@dataclass(slots=True, frozen=True, kw_only=True)
class RedeemOutbound:
    """Hand over what sends, after the other half, and wipe it. Answer: RedeemedOutbound or NotRedeemable."""

    keymat: Handle


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class Redeemed:
    """KEYMAT of a child's inbound SA, and all that the peer agreed to when it was derived (RFC 2409 section 5.5).

    Has no repr: it holds keys.
    """

    connection: Name
    child: Name
    identity: Identity
    role: Role
    suite: ChildSuite
    mode: Mode
    encap: bool
    """UDP encapsulation (RFC 3947 section 5.1)."""
    spi_in: SpiField
    spi_out: SpiField
    cpi_in: CpiField | None
    cpi_out: CpiField | None
    """Both where IPComp was agreed on, else neither."""
    local_ts: TrafficSelector | None
    remote_ts: TrafficSelector | None
    """None where the peer named none: the outer address then (RFC 2409 section 5.5)."""
    lifetime: U32
    """Seconds: the shortest of all that were named."""
    encryption_in: Key
    integrity_in: Key


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class RedeemedOutbound:
    """KEYMAT of the outbound SA. Has no repr: it holds keys."""

    encryption_out: Key
    integrity_out: Key


@dataclass(slots=True, frozen=True, kw_only=True)
class NotRedeemable:
    """No such keymat, or that half is not verified yet, or it was redeemed before."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Known:
    """The answer to `Resolved`: from now on these addresses count."""


Redemption = RedeemInbound | RedeemOutbound
Question = Redemption | Resolved
"""What wants an answer."""
Request = Question | SetLevel
Reply = Redeemed | RedeemedOutbound | NotRedeemable | Ready | Known

REQUESTS: Table[Request] = Table({1: RedeemInbound, 2: SetLevel, 3: RedeemOutbound, 4: Resolved})
REPLIES: Table[Reply] = Table({1: Redeemed, 2: NotRedeemable, 3: Ready, 4: RedeemedOutbound, 5: Known})
