"""Handles: what the worker and the monitor may do with an object of keyd, and when.

`TRANSITIONS` is the whole of it. What is not in it an honest worker never asks; asking ends the epoch (`Violation`)::

    IKE SA   initiator:  OFFERED -IkeAgree-> KEYED_I -AuthSeal-> CLAIMED -AuthOpen-> AUTHENTICATED
             responder:                      KEYED_R -AuthOpen-> PROVEN  -AuthSeal-> AUTHENTICATED
    Quick    initiator:  QUICK_OFFERED -QuickFinish-> QUICK_FINISHED -QuickAccept->  gone
             responder:  QUICK_OPENED  -QuickAnswer-> QUICK_ANSWERED -QuickConfirm-> gone
    keymat   initiator:  (QuickAccept) CONFIRMED               -RedeemInbound-> SENDABLE -RedeemOutbound-> gone
             responder:  (QuickAnswer) DERIVED -RedeemInbound-> RECEIVING -QuickConfirm-> SENDABLE, and so on
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, TypeVar

from privsep.errors import PeerError, PrivsepError, Violation
from privsep.schema import keymat
from privsep.schema.keyd import (
    AuthOpen,
    AuthSeal,
    Drop,
    IkeAgree,
    InfoOpen,
    InfoSeal,
    QuickAccept,
    QuickAnswer,
    QuickConfirm,
    QuickFinish,
    QuickOffer,
    QuickOpen,
    Refusal,
)
from privsep.shares import Shares
from privsep.types import HANDLE_OCTETS

MAX_CHILDREN = 64
"""Quick Modes in flight of one IKE SA."""
SWEEP_EVERY = 10.0
"""Seconds between two looks for what has expired; a use of something expired is noticed at once."""
UNKNOWN_MARGIN = 64
UNKNOWN_PER_HANDLE = 8
"""An honest worker knows only handles that we minted and gives each up after a few refusals; whoever asks for more
unknown ones than these two allow is guessing."""


class State(Enum):
    """States of all kinds of objects."""

    OFFERED = "IKE SA, initiator: our KE and Ni are out"
    KEYED_I = "IKE SA, initiator: SKEYID is derived, we authenticate first"
    CLAIMED = "IKE SA, initiator: our HASH_I is out"
    KEYED_R = "IKE SA, responder: SKEYID is derived, the peer authenticates first"
    PROVEN = "IKE SA, responder: HASH_I was right, a connection is selected"
    AUTHENTICATED = "IKE SA: both sides have authenticated"
    DEAD = "IKE SA: the peer's identity belongs to no connection, or its proofs were wrong too often"
    QUICK_OFFERED = "Quick Mode, initiator: message 1 is out"
    QUICK_FINISHED = "Quick Mode, initiator: HASH(2) was right"
    QUICK_OPENED = "Quick Mode, responder: HASH(1) was right"
    QUICK_ANSWERED = "Quick Mode, responder: message 2 is out"
    DERIVED = "keymat: the peer has not confirmed; the inbound half waits for the monitor"
    RECEIVING = "keymat: the monitor has the inbound half, the peer has not confirmed"
    CONFIRMED = "keymat: the peer has confirmed; both halves wait for the monitor"
    SENDABLE = "keymat: the peer has confirmed; the outbound half waits for the monitor"
    GONE = "wiped"


Operation = type[
    IkeAgree
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
    | keymat.RedeemInbound
    | keymat.RedeemOutbound
]

TRANSITIONS: dict[tuple[State, Operation], State] = {
    (State.OFFERED, IkeAgree): State.KEYED_I,
    (State.KEYED_I, AuthSeal): State.CLAIMED,
    (State.CLAIMED, AuthOpen): State.AUTHENTICATED,
    (State.KEYED_R, AuthOpen): State.PROVEN,
    (State.PROVEN, AuthSeal): State.AUTHENTICATED,
    (State.AUTHENTICATED, InfoSeal): State.AUTHENTICATED,
    (State.AUTHENTICATED, InfoOpen): State.AUTHENTICATED,
    (State.AUTHENTICATED, QuickOffer): State.AUTHENTICATED,
    (State.AUTHENTICATED, QuickOpen): State.AUTHENTICATED,
    (State.QUICK_OFFERED, QuickFinish): State.QUICK_FINISHED,
    (State.QUICK_FINISHED, QuickAccept): State.GONE,
    (State.QUICK_OPENED, QuickAnswer): State.QUICK_ANSWERED,
    (State.QUICK_ANSWERED, QuickConfirm): State.GONE,
    (State.DERIVED, keymat.RedeemInbound): State.RECEIVING,
    (State.RECEIVING, QuickConfirm): State.SENDABLE,
    (State.CONFIRMED, keymat.RedeemInbound): State.SENDABLE,
    (State.SENDABLE, keymat.RedeemOutbound): State.GONE,
}
TRANSITIONS |= {(state, Drop): State.GONE for state in State if state is not State.GONE}

REJECTIONS: dict[tuple[State, Operation], State] = {
    (State.KEYED_R, AuthOpen): State.DEAD,
    (State.CLAIMED, AuthOpen): State.DEAD,
    (State.QUICK_OFFERED, QuickFinish): State.GONE,
}
"""Where a message leads that is the peer's by its HASH, but not acceptable, and the one wrong proof too many
(`keyd/guesses.py`). Any other refusal changes nothing."""


class Refuse(PrivsepError):
    """The request is answered with Refused and has changed nothing, unless the raising operation says otherwise."""

    def __init__(self, why: Refusal, fault: PeerError | None = None) -> None:
        """`fault` is what is wrong with a message of the peer's, for the operator and the peer."""
        super().__init__(why.value)
        self.why = why
        self.fault = fault


@dataclass(slots=True, frozen=True, eq=False)
class Quota:
    """How many entries there may be, in all and of one owner. For one more another one goes (`privsep/shares.py`)."""

    total: int | None = None
    each: int | None = None


class Entry:
    """An object that a handle names. Kinds are subclasses; `quota` bounds how many of a kind there are."""

    __slots__ = ("children", "counted", "expires", "handle", "parent", "state")
    quota: ClassVar[Quota]

    def __init__(self, state: State, expires: float) -> None:
        self.handle = b""
        self.state = state
        self.expires = expires
        self.parent: Entry | None = None
        self.children: list[Entry] = []
        self.counted: tuple[Shares[Entry], ...] = ()
        """Where the registry counts it."""

    @property
    def owner(self) -> Hashable:
        """Whose share of the quota it takes."""
        return None if self.parent is None else self.parent.owner

    def quotas(self) -> Iterable[tuple[Quota, Hashable]]:
        """All quotas that it counts under, with the owner there."""
        return ((self.quota, self.owner),)

    def wipe(self) -> None:
        """Overwrite the secrets."""

    def admits(self, operation: Operation) -> bool:
        """Whether its state does, by TRANSITIONS."""
        return (self.state, operation) in TRANSITIONS

    def advance(self, operation: Operation) -> None:
        """Move on as TRANSITIONS says; Violation where it says nothing."""
        following = TRANSITIONS.get((self.state, operation))
        if following is None:
            raise Violation(f"{operation.__name__} in state {self.state.name}")
        self.state = following


E = TypeVar("E", bound=Entry)


class Registry:
    """All objects by handle. Handles are random, so that none can be guessed, and typed: each kind has its methods."""

    def __init__(self, clock: Callable[[], float], random: Callable[[int], bytes]) -> None:
        self._clock = clock
        self._random = random
        self._entries: dict[bytes, Entry] = {}
        self._shares: dict[Quota, Shares[Entry]] = {}
        self._unknown_allowed = UNKNOWN_MARGIN
        self._next_sweep = clock() + SWEEP_EVERY

    def __len__(self) -> int:
        return len(self._entries)

    @staticmethod
    def room(parent: Entry) -> None:
        """Refuse(QUOTA) unless the parent may have one more child; asked before the work that makes one."""
        if len(parent.children) >= MAX_CHILDREN:
            raise Refuse(Refusal.QUOTA)

    def mint(self, entry: E, parent: Entry | None = None) -> E:
        """Give the entry a handle; it ends with its parent at the latest. Another one may have to go for it."""
        entry.handle = self._random(HANDLE_OCTETS)
        if entry.handle in self._entries:
            raise Violation("the random source repeats itself")
        self._entries[entry.handle] = entry
        self._unknown_allowed += UNKNOWN_PER_HANDLE
        if parent is not None:
            entry.parent = parent
            parent.children.append(entry)
        self.count(entry)
        return entry

    def count(self, entry: Entry) -> None:
        """Count it under the quotas that are its by now, which depend on its state."""
        self._uncount(entry)
        for quota, owner in entry.quotas():
            shares = self._shares.setdefault(quota, Shares(quota.total, quota.each))
            if not shares.has_room(owner):
                self.sweep()
            gone = shares.enter(entry, owner)
            entry.counted = (*entry.counted, shares)
            if gone is not None:
                self.drop(gone)

    @staticmethod
    def _uncount(entry: Entry) -> None:
        for shares in entry.counted:
            shares.leave(entry)
        entry.counted = ()

    def find(self, handle: bytes, kind: type[E], operation: Operation) -> E:
        """The entry, if it is of that kind and its state admits the operation.

        An unknown handle is a refusal, as things expire here while the worker asks; an entry of another kind or state
        is a Violation.
        """
        entry = self.get(handle)
        if entry is None:
            raise Refuse(Refusal.UNKNOWN_HANDLE)
        if not isinstance(entry, kind):
            raise Violation(f"{operation.__name__} with a handle of another kind")
        if not entry.admits(operation):
            raise Violation(f"{operation.__name__} in state {entry.state.name}")
        if entry.expires <= self._clock():
            self.drop(entry)
            raise Refuse(Refusal.EXPIRED)
        for shares in entry.counted:
            shares.use(entry)
        return entry

    def get(self, handle: bytes) -> Entry | None:
        """Whatever has that handle; Violation for the one miss too many."""
        entry = self._entries.get(handle)
        if entry is None:
            self._unknown_allowed -= 1
            if self._unknown_allowed < 0:
                raise Violation("handles are being guessed")
        return entry

    def reject(self, entry: Entry, operation: Operation, why: Refusal, fault: PeerError | None = None) -> Refuse:
        """Move on as REJECTIONS says; returns what to raise."""
        entry.state = REJECTIONS[entry.state, operation]
        if entry.state is State.GONE:
            self.drop(entry)
        return Refuse(why, fault)

    def drop(self, entry: Entry) -> None:
        """Wipe the entry and everything below it."""
        for child in tuple(entry.children):
            self.drop(child)
        self.detach(entry)
        self._uncount(entry)
        self._entries.pop(entry.handle, None)
        entry.state = State.GONE
        entry.wipe()

    def detach(self, entry: Entry) -> None:
        """Let the entry outlive its parent: keymat that waits for the monitor does."""
        if entry.parent is not None:
            entry.parent.children.remove(entry)
            entry.parent = None

    def sweep(self) -> bool:
        """Drop what has expired, at most every SWEEP_EVERY seconds; whether anything was."""
        now = self._clock()
        if now < self._next_sweep:
            return False
        self._next_sweep = now + SWEEP_EVERY
        expired = [entry for entry in self._entries.values() if entry.expires <= now]
        for entry in expired:
            self.drop(entry)
        return bool(expired)
