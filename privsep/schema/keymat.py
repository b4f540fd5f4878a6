"""What the monitor may ask keyd: keys, once, and to log more or less. Keys travel on no other channel."""

from dataclasses import dataclass
from typing import Annotated

from privsep.algorithms import ChildSuite
from privsep.schema.codec import U32, CpiField, Handle, Length, Name, SpiField, Table
from privsep.schema.levels import SetLevel
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
class Redeem:
    """Hand over and wipe. Answer: Redeemed or NotRedeemable."""

    keymat: Handle


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class Redeemed:
    """KEYMAT of one child SA pair, and all that the peer agreed to when it was derived (RFC 2409 section 5.5).

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
    encryption_out: Key
    integrity_out: Key


@dataclass(slots=True, frozen=True, kw_only=True)
class NotRedeemable:
    """No such keymat, or it is not verified yet, or it was redeemed before."""


Request = Redeem | SetLevel
Reply = Redeemed | NotRedeemable | Ready

REQUESTS: Table[Request] = Table({1: Redeem, 2: SetLevel})
REPLIES: Table[Reply] = Table({1: Redeemed, 2: NotRedeemable, 3: Ready})
