"""Wrong proofs of a pre-shared key: how many one IKE SA takes, and how many come from one network before it must wait.

A proof that is wrong never becomes right: a peer with another secret repeats the same octets, and one that retries has
new cookies. Whoever sends different ones under the same cookies is searching for the secret.
"""

import hashlib
import ipaddress
from collections.abc import Iterator

from privsep.types import Address, Network

MAX_WRONG = 5
"""Different wrong proofs of one IKE SA, which is dead then. A peer has one; the others forgive junk on the way."""
MAX_REMEMBERED = 8192
"""Networks whose wrong proofs are remembered, about 2 MB; the one that was silent for longest is forgotten first."""
FORGET_SECONDS = 240.0
"""In which a network's full measure is forgotten, little by little: 5 wrong proofs a minute may go on for ever."""
MAX_MEASURES = 3.0
"""A network waits for twice FORGET_SECONDS at most: a flood through a NAT does not lock its users out for hours."""
_MEASURES = {4: ((32, 20), (24, 200)), 6: ((64, 20), (48, 200))}
"""By IP version: prefixes, and how many wrong proofs from such a network fill its measure. A host has a /64 of IPv6."""


class WrongProofs:
    """Different wrong proofs of one IKE SA. A repetition is the network's or the peer's retransmission, no guess."""

    __slots__ = ("_digests",)

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def add(self, proof: bytes) -> bool:
        """Whether that one is new."""
        before = len(self._digests)
        self._digests.add(hashlib.sha256(proof).digest())
        return len(self._digests) > before

    @property
    def too_many(self) -> bool:
        """Whether the IKE SA has taken all that it takes."""
        return len(self._digests) >= MAX_WRONG


class Guesses:
    """Wrong proofs by the network they came from: a measure that fills with each and empties with time."""

    def __init__(self) -> None:
        self._measures: dict[Network, tuple[float, float]] = {}
        """How full, and when that was; the latest last."""

    def __len__(self) -> int:
        return len(self._measures)

    def add(self, remote: Address, now: float) -> None:
        """One more wrong proof."""
        for network, limit in _networks(remote):
            full = min(self._full(network, now) + 1 / limit, MAX_MEASURES)
            self._measures.pop(network, None)
            self._measures[network] = (full, now)
        while len(self._measures) > MAX_REMEMBERED:
            del self._measures[next(iter(self._measures))]

    def admits(self, remote: Address, now: float) -> bool:
        """Whether that address may begin anew."""
        return all(self._full(network, now) < 1 for network, _ in _networks(remote))

    def _full(self, network: Network, now: float) -> float:
        full, since = self._measures.get(network, (0.0, now))
        return max(0.0, full - (now - since) / FORGET_SECONDS)


def _networks(remote: Address) -> Iterator[tuple[Network, int]]:
    for prefix, limit in _MEASURES[remote.version]:
        yield ipaddress.ip_network((remote.packed, prefix), strict=False), limit
