"""What waits for message 3 of Main Mode: a record of some hundred octets, without an exchange, a task or a timer.

A first message costs a stranger nothing and its source may be forged. Only message 3 brings our cookie back and so
proves an address (RFC 2408 section 2.5.3). What a first message makes is therefore small, and what it says is kept
once for all that say the same. The budget counts octets, since strangers choose how much they send, and it is as wide
as a flood is in several round trips: the oldest yield, and a real peer needs its record for one round trip only.

Records are kept in generations, each a part of the budget or of the time. What is too old or too much goes with its
whole generation, at no cost for each record.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NewType

from privsep.algorithms import IkeSuite
from privsep.config.model import Connection
from privsep.iana import NotifyType
from privsep.types import Cookie, Endpoint
from worker.retransmit import HALF_OPEN, Resends

LIFETIME = HALF_OPEN[0]
"""Seconds; the last record of a generation is kept for so long, its first one a little longer."""
GENERATION_SECONDS = 10.0
PARTS = 8
"""Generations that a budget is divided into; so an eighth of it goes at once."""

ORDINARY_OCTETS = 12 << 20
"""Some 40,000 records of peers that offer alike: a flood of 5,000 a second needs seven seconds to push one out."""
LARGE_SAI_B = 2048
"""Octets; fifty transforms have fewer. Offers beyond have a budget of their own, lest they push out ordinary ones."""
LARGE_OCTETS = 4 << 20
RECORD_OCTETS = 300
"""Of a record with its places in the tables and the addresses in it (measured: tests/exchanges/test_floods.py)."""
VERDICT_OCTETS = 400
"""Of a verdict with its place in the table, besides SAi_b and the answer."""

_DIGEST_OCTETS = 16
_COOKIE_OCTETS = 8


Key = NewType("Key", bytes)
"""Digest of what a verdict depends on: a message without its sender's cookie, the connections of its addresses."""


@dataclass(slots=True, frozen=True, kw_only=True, eq=False)
class Offer:
    """An acceptable first message, all but its cookie, and what follows from it."""

    key: Key
    connection: Connection
    suite: IkeSuite
    lifetime: int
    """Seconds, as offered."""
    sai_b: bytes
    """Body of the SA payload, for keyd (RFC 2409 section 5)."""
    nat_traversal: bool
    knows_dpd: bool
    answer: tuple[int, bytes]
    """The payloads of message 2: the first one's type, and all octets."""

    @property
    def octets(self) -> int:
        """What its table has to count."""
        return VERDICT_OCTETS + len(self.sai_b) + len(self.answer[1])


@dataclass(slots=True, frozen=True, eq=False)
class Unacceptable:
    """A first message that is refused, and why."""

    reason: str
    notify: NotifyType | None

    @property
    def octets(self) -> int:
        """What its table has to count."""
        return VERDICT_OCTETS + len(self.reason)


Verdict = Offer | Unacceptable


class HalfOpen(Resends):
    """A first message that was answered.

    Octets, numbers and what is shared, nothing else: of floats and tuples the interpreter keeps some that are free,
    and a few of them, spread over what a flood has left, would keep all of its memory.
    """

    __slots__ = ("cky_r", "local", "offer", "whose")

    def __init__(self, whose: bytes, cky_r: Cookie, local: Endpoint, offer: Offer) -> None:
        """`whose` is what `whose` gives of its cookie and its sender."""
        super().__init__()
        self.whose = whose
        self.cky_r = cky_r
        self.local = local
        self.offer = offer

    @property
    def cky_i(self) -> Cookie:
        """The initiator's cookie."""
        return Cookie(self.whose[:_COOKIE_OCTETS])


def whose(cky_i: Cookie, remote: Endpoint) -> bytes:
    """Who began an exchange: its cookie and its end, as octets, which take less room than objects."""
    return cky_i + remote.address.packed + remote.port.to_bytes(2, "big")


class _Generation:
    """What came in about the same time."""

    __slots__ = ("began", "by_cky_r", "by_whose", "octets", "verdicts")

    def __init__(self, began: float) -> None:
        self.began = began
        self.octets = 0
        self.by_cky_r: dict[Cookie, HalfOpen] = {}
        self.by_whose: dict[bytes, HalfOpen] = {}
        self.verdicts: dict[Key, Verdict] = {}


class _Share:
    """Generations within a budget, the oldest first."""

    def __init__(self, octets: int) -> None:
        self._limit = octets
        self.generations: deque[_Generation] = deque()

    @property
    def octets(self) -> int:
        """Of all generations."""
        return sum(generation.octets for generation in self.generations)

    def room(self, octets: int, now: float) -> _Generation:
        """The generation to add so many octets to. The oldest goes where they are too many."""
        newest = self.generations[-1] if self.generations else None
        if newest is None or newest.octets >= self._limit // PARTS or now >= newest.began + GENERATION_SECONDS:
            newest = _Generation(now)
            self.generations.append(newest)
        newest.octets += octets
        while self.octets > self._limit and len(self.generations) > 1:
            self.generations.popleft()
        return newest

    def expire(self, now: float) -> None:
        """Drop what is too old."""
        while self.generations and self.generations[0].began + GENERATION_SECONDS + LIFETIME <= now:
            self.generations.popleft()


class HalfOpenTable:
    """All records, and the verdicts about first messages of late."""

    def __init__(
        self, now: Callable[[], float], after: Callable[[float, Callable[[], None]], object], secret: bytes
    ) -> None:
        """`secret` keeps anybody from choosing messages whose digests are equal."""
        self._now = now
        self._after = after
        self._secret = secret
        self._ordinary = _Share(ORDINARY_OCTETS)
        self._large = _Share(LARGE_OCTETS)
        self._expiring = False

    def __len__(self) -> int:
        return sum(len(generation.by_cky_r) for generation in self._generations())

    @property
    def octets(self) -> int:
        """What all of it takes."""
        return self._ordinary.octets + self._large.octets

    def key(self, first: bytes, candidates: tuple[Connection, ...]) -> Key:
        """Of a first message from addresses that these connections describe."""
        digest = hashlib.blake2b(first[_COOKIE_OCTETS:], digest_size=_DIGEST_OCTETS, key=self._secret)
        for connection in candidates:
            digest.update(f"{len(connection.name)}:{connection.name}".encode())
        return Key(digest.digest())

    def verdict(self, key: Key) -> Verdict | None:
        """What was found about an equal message, if that is still known."""
        for generation in self._generations():
            found = generation.verdicts.get(key)
            if found is not None:
                return found
        return None

    def remember(self, key: Key, verdict: Verdict) -> None:
        """For the next equal message."""
        self._room(verdict, verdict.octets).verdicts[key] = verdict

    def add(self, record: HalfOpen) -> None:
        """A first message is answered."""
        record.begin(self._now())
        generation = self._room(record.offer, RECORD_OCTETS)
        if record.offer.key not in generation.verdicts:
            # it is older than the generation, and lives as long now
            generation.verdicts[record.offer.key] = record.offer
            generation.octets += record.offer.octets
        generation.by_cky_r[record.cky_r] = record
        generation.by_whose[record.whose] = record

    def begun(self, whose: bytes) -> HalfOpen | None:
        """The record that an earlier copy of a first message has made."""
        for generation in self._generations():
            found = generation.by_whose.get(whose)
            if found is not None:
                return found
        return None

    def find(self, cky_r: Cookie, whose: bytes) -> HalfOpen | None:
        """RFC 2408 section 2.5.3: the record of our cookie, if it comes back from where it was sent to."""
        for generation in self._generations():
            found = generation.by_cky_r.get(cky_r)
            if found is not None:
                return found if found.whose == whose else None
        return None

    def gave(self, cky_r: bytes) -> bool:
        """Whether that is a cookie which somebody got from us and has not brought back."""
        return any(cky_r in generation.by_cky_r for generation in self._generations())

    def remove(self, record: HalfOpen) -> None:
        """It is more than half open now. Its octets count until its generation goes."""
        for generation in self._generations():
            if generation.by_cky_r.get(record.cky_r) is record:
                del generation.by_cky_r[record.cky_r], generation.by_whose[record.whose]

    def _generations(self) -> Iterator[_Generation]:
        """Newest first: most of what is looked for is there."""
        return chain(reversed(self._ordinary.generations), reversed(self._large.generations))

    def _room(self, verdict: Verdict, octets: int) -> _Generation:
        if not self._expiring:
            self._expiring = True
            self._after(GENERATION_SECONDS, self._expire)
        large = isinstance(verdict, Offer) and len(verdict.sai_b) > LARGE_SAI_B
        return (self._large if large else self._ordinary).room(octets, self._now())

    def _expire(self) -> None:
        for share in (self._ordinary, self._large):
            share.expire(self._now())
        self._expiring = any(share.generations for share in (self._ordinary, self._large))
        if self._expiring:
            self._after(GENERATION_SECONDS, self._expire)
