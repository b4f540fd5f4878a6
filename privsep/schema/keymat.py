"""What the monitor may ask keyd: one thing. This channel is the only one on which keys ever travel."""

from dataclasses import dataclass
from typing import Annotated

from privsep.algorithms import ChildSuite
from privsep.schema.codec import Handle, Length, Name, SpiField, Table
from privsep.types import Identity, Role

Key = Annotated[bytes, Length(0, 128)]


@dataclass(slots=True, frozen=True, kw_only=True)
class Ready:
    """keyd -> monitor, once: the endpoint is bound, the worker may be started; sent as the first frame."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Redeem:
    """Hand over and wipe. Answer: Redeemed or NotRedeemable."""

    keymat: Handle


@dataclass(slots=True, frozen=True, kw_only=True, repr=False)
class Redeemed:
    """KEYMAT of one child SA pair and what it was derived for (RFC 2409 section 5.5). Has no repr: it holds keys."""

    connection: Name
    child: Name
    identity: Identity
    role: Role
    suite: ChildSuite
    spi_in: SpiField
    spi_out: SpiField
    encryption_in: Key
    integrity_in: Key
    encryption_out: Key
    integrity_out: Key


@dataclass(slots=True, frozen=True, kw_only=True)
class NotRedeemable:
    """No such keymat, or it is not verified yet, or it was redeemed before."""


Request = Redeem
Reply = Redeemed | NotRedeemable | Ready

REQUESTS: Table[Request] = Table({1: Redeem})
REPLIES: Table[Reply] = Table({1: Redeemed, 2: NotRedeemable, 3: Ready})
