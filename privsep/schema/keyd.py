"""What the worker may ask keyd, and what keyd answers: the whole of it.

No operation returns a key, a prf output or a signature over octets of the caller's choosing. Phase 2 plaintext is
handed out only after its HASH was verified. Messages of Quick Mode are made in keyd whole (RFC 2409 section 5.5) from
values that it checks: what the peer agrees to and what KEYMAT is derived for cannot differ.

Main Mode (RFC 2409 section 5.4), where `seal`/`open` of the authentication messages obey the order of the role::

    initiator: IkeOffer -> IkeAgree -> AuthSeal -> AuthOpen
    responder: IkeAnswer            -> AuthOpen -> AuthSeal

Quick Mode, one handle for each message id::

    initiator: QuickOffer -> QuickFinish -> QuickAccept
    responder: QuickOpen  -> QuickAnswer -> QuickConfirm
"""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from privsep.algorithms import ChildSuite, Group, IkeSuite
from privsep.iana import NotifyType
from privsep.schema.codec import (
    U8,
    U32,
    Blob,
    CookieField,
    CpiField,
    Handle,
    Length,
    Name,
    NonceField,
    PublicValue,
    SpiField,
    Table,
    Text,
    Unsealed,
)
from privsep.types import Address, Identity, TrafficSelector

Originals = Annotated[tuple[Address, ...], Length(0, 2)]
"""None, or NAT-OAi and NAT-OAr (RFC 3947 section 5.2). keyd sees no address, so they are the worker's word."""


class Refusal(Enum):
    """Why keyd says no with nobody at fault in our house. A request out of order gets no answer: keyd ends."""

    NO_CONNECTION = "no connection is configured for these addresses with this proposal"
    NO_PSK = "no pre-shared key is configured for this peer"
    BAD_PUBLIC_VALUE = "the peer's public value is not in the group"
    AUTHENTICATION_FAILED = "the peer's message does not decrypt or its HASH is wrong"
    WRONG_TOO_OFTEN = "its messages do not decrypt, again and again: somebody guesses the pre-shared key"
    HELD_OFF = "too many wrong proofs of a pre-shared key came from that network a moment ago"
    UNKNOWN_IDENTITY = "the peer proved an identity that no connection accepts"
    BAD_HASH = "the message does not decrypt or its HASH is wrong"
    BAD_MESSAGE = "the message is the peer's by its HASH, but what it says cannot be accepted"
    REUSED_MESSAGE_ID = "the message id was used before"
    BAD_PROPOSAL = "the suite is not among the connection's proposals, or not among the peer's"
    BAD_SELECTORS = "the selectors are not inside the child's"
    EXPIRED = "the IKE SA is past its lifetime"
    WORN_OUT = "the IKE SA has used up its message ids"
    QUOTA = "too many exchanges are open"
    UNKNOWN_HANDLE = "the handle is not known any more"


@dataclass(slots=True, frozen=True, kw_only=True)
class IkeOffer:
    """Main Mode initiator, after message 2 chose the suite: make our KE and Ni. Answer: IkeKeys."""

    connection: Name
    suite: IkeSuite
    cky_i: CookieField
    cky_r: CookieField
    sai_b: Blob
    local: Address
    remote: Address


@dataclass(slots=True, frozen=True, kw_only=True)
class IkeAgree:
    """Main Mode initiator, message 4: the peer's KE and Nr; derives SKEYID (RFC 2409 section 5). Answer: Done."""

    ike: Handle
    ke: PublicValue
    nonce: NonceField


@dataclass(slots=True, frozen=True, kw_only=True)
class IkeAnswer:
    """Main Mode responder, message 3: the peer's KE and Ni; makes ours, derives SKEYID. Answer: IkeKeys.

    keyd takes the most specific connection of the address pair whose proposals hold the suite; its PSK is used.
    """

    suite: IkeSuite
    cky_i: CookieField
    cky_r: CookieField
    sai_b: Blob
    local: Address
    remote: Address
    ke: PublicValue
    nonce: NonceField


@dataclass(slots=True, frozen=True, kw_only=True)
class AuthSeal:
    """Our identity and HASH, sealed: keyd composes both, then appends the chain `payloads`. Answer: Sealed."""

    ike: Handle
    next_payload: U8
    """Type of the first payload of `payloads`; 0 with an empty chain."""
    payloads: Unsealed


@dataclass(slots=True, frozen=True, kw_only=True)
class AuthOpen:
    """The peer's identity and HASH: decrypted, verified, the connection selected. Answer: Authenticated."""

    ike: Handle
    ciphertext: Blob


@dataclass(slots=True, frozen=True, kw_only=True)
class InfoSeal:
    """An Informational message under a new message id (RFC 2409 section 5.7): keyd adds HASH(1). Answer: SealedNew."""

    ike: Handle
    next_payload: U8
    payloads: Unsealed


@dataclass(slots=True, frozen=True, kw_only=True)
class InfoOpen:
    """The peer's Informational message. Answer: Opened, the payloads after HASH(1)."""

    ike: Handle
    message_id: U32
    ciphertext: Blob


@dataclass(slots=True, frozen=True, kw_only=True)
class QuickOffer:
    """Quick Mode message 1: HASH(1), SA, Ni [, KE], IDci, IDcr [, NAT-OAi, NAT-OAr]. Answer: QuickOffered.

    keyd composes all of it. SA holds the child's suites of that group, with this SPI.
    """

    ike: Handle
    child: Name
    group: Group | None
    encap: bool
    """UDP encapsulation (RFC 3947 section 5.1)."""
    spi_in: SpiField
    cpi_in: CpiField | None
    """Offers IPComp too (RFC 3173); only where the child has it."""
    local_ts: TrafficSelector
    remote_ts: TrafficSelector
    originals: Originals


@dataclass(slots=True, frozen=True, kw_only=True)
class QuickFinish:
    """Quick Mode message 2 at the initiator: HASH(2) verified, all of it read. Answer: QuickAgreed."""

    quick: Handle
    ciphertext: Blob


@dataclass(slots=True, frozen=True, kw_only=True)
class QuickAccept:
    """Quick Mode message 3: KEYMAT for what was agreed, and HASH(3). Answer: QuickKeyed; `keymat` is redeemable."""

    quick: Handle


@dataclass(slots=True, frozen=True, kw_only=True)
class QuickOpen:
    """Quick Mode message 1 at the responder: HASH(1) verified, SA, Ni, KE and IDs kept. Answer: QuickOpened."""

    ike: Handle
    message_id: U32
    ciphertext: Blob


@dataclass(slots=True, frozen=True, kw_only=True)
class QuickAnswer:
    """Quick Mode message 2: HASH(2), SA, Nr [, KE] [, IDci, IDcr] [, RESPONDER-LIFETIME] [, NAT-OAi, NAT-OAr].

    keyd composes all of it, from the peer's message 1 and these choices; KEYMAT derived. Answer: QuickKeyed; not yet
    redeemable.
    """

    quick: Handle
    child: Name
    suite: ChildSuite
    encap: bool
    """UDP encapsulation (RFC 3947 section 5.1)."""
    spi_in: SpiField
    cpi_in: CpiField | None
    """For IPComp where the peer offers it too; only where the child has it."""
    originals: Originals


@dataclass(slots=True, frozen=True, kw_only=True)
class QuickConfirm:
    """Quick Mode message 3 at the responder: HASH(3) verified, `keymat` becomes redeemable. Answer: Done."""

    quick: Handle
    ciphertext: Blob


@dataclass(slots=True, frozen=True, kw_only=True)
class Drop:
    """Wipe a handle and all that hangs on it, except keymat that waits for the monitor. Answer: Done."""

    handle: Handle


@dataclass(slots=True, frozen=True, kw_only=True)
class Done:
    """The request took effect."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Refused:
    """The request did not take effect."""

    why: Refusal
    detail: Text = ""
    """For the operator, where a message of the peer's is at fault."""
    notify: NotifyType | None = None
    """For that peer (RFC 2408 section 3.14.1)."""


@dataclass(slots=True, frozen=True, kw_only=True)
class IkeKeys:
    """A new IKE SA in the making, our public value and our nonce."""

    ike: Handle
    ke: PublicValue
    nonce: NonceField


@dataclass(slots=True, frozen=True, kw_only=True)
class Sealed:
    """An encrypted body; the first payload in it is the one the operation names (ID for AuthSeal, HASH else)."""

    ciphertext: Blob


@dataclass(slots=True, frozen=True, kw_only=True)
class SealedNew:
    """An encrypted body under a message id that keyd chose."""

    message_id: U32
    ciphertext: Blob


@dataclass(slots=True, frozen=True, kw_only=True)
class Authenticated:
    """The peer proved `identity`; `connection` is the most specific one that accepts it."""

    connection: Name
    identity: Identity
    next_payload: U8
    payloads: Blob
    """The chain after ID and HASH."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Opened:
    """Verified plaintext: the chain after the HASH payload."""

    next_payload: U8
    payloads: Blob


@dataclass(slots=True, frozen=True, kw_only=True)
class QuickOffered:
    """A Quick Mode that we began, with message 1."""

    quick: Handle
    message_id: U32
    ciphertext: Blob


@dataclass(slots=True, frozen=True, kw_only=True)
class QuickOpened:
    """A Quick Mode that the peer began, with the chain after HASH(1)."""

    quick: Handle
    next_payload: U8
    payloads: Blob


@dataclass(slots=True, frozen=True, kw_only=True)
class QuickAgreed:
    """What the peer chose of our offer, for our selectors, and the chain after HASH(2)."""

    suite: ChildSuite
    spi_out: SpiField
    cpi_out: CpiField | None
    """Where IPComp was agreed on."""
    lifetime: U32
    """Seconds: the shortest of all that were named."""
    next_payload: U8
    payloads: Blob


@dataclass(slots=True, frozen=True, kw_only=True)
class QuickKeyed:
    """KEYMAT waits in keyd under `keymat` for the monitor; `ciphertext` is the message to send."""

    keymat: Handle
    ciphertext: Blob


Request = (
    IkeOffer
    | IkeAgree
    | IkeAnswer
    | AuthSeal
    | AuthOpen
    | InfoSeal
    | InfoOpen
    | QuickOffer
    | QuickFinish
    | QuickAccept
    | QuickOpen
    | QuickAnswer
    | QuickConfirm
    | Drop
)
Reply = (
    Done
    | Refused
    | IkeKeys
    | Sealed
    | SealedNew
    | Authenticated
    | Opened
    | QuickOffered
    | QuickAgreed
    | QuickOpened
    | QuickKeyed
)

REQUESTS: Table[Request] = Table(
    {
        1: IkeOffer,
        2: IkeAgree,
        3: IkeAnswer,
        4: AuthSeal,
        5: AuthOpen,
        6: InfoSeal,
        7: InfoOpen,
        8: QuickOffer,
        9: QuickFinish,
        10: QuickAccept,
        11: QuickOpen,
        12: QuickAnswer,
        13: QuickConfirm,
        14: Drop,
    }
)
REPLIES: Table[Reply] = Table(
    {
        1: Done,
        2: Refused,
        3: IkeKeys,
        4: Sealed,
        5: SealedNew,
        6: Authenticated,
        7: Opened,
        8: QuickOffered,
        9: QuickOpened,
        10: QuickKeyed,
        11: QuickAgreed,
    }
)
