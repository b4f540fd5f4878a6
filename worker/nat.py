"""NAT traversal: detection (RFC 3947 section 3.2), ports (section 4), the non-ESP marker and keepalives (RFC 3948).

Of the drafts before RFC 3947 nothing is spoken; whoever knows only those gets IKE without NAT traversal.
"""

import hashlib
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

from privsep.algorithms import Hash
from privsep.isakmp.payloads import NatDiscovery
from privsep.types import Cookie, Endpoint

IKE_PORT = 500
NATT_PORT = 4500
NON_ESP_MARKER = bytes(4)
"""RFC 3948 section 2.2: where an ESP packet has its SPI, which is never zero."""
KEEPALIVE = b"\xff"
"""RFC 3948 section 2.3."""
KEEPALIVE_SECONDS = 20.0
"""RFC 3948 section 4: the default interval."""


class Nat(Enum):
    """Who is behind a NAT (RFC 3947 section 3.2)."""

    NONE = "none"
    LOCAL = "local"
    REMOTE = "remote"
    BOTH = "both"

    @property
    def local(self) -> bool:
        """Whether we are, so that we must keep the mapping alive."""
        return self in (Nat.LOCAL, Nat.BOTH)


_HASHES: dict[Hash, Callable[[bytes], Any]] = {
    Hash.SHA1: lambda data: hashlib.sha1(data, usedforsecurity=False),
    Hash.SHA2_256: hashlib.sha256,
    Hash.SHA2_384: hashlib.sha384,
    Hash.SHA2_512: hashlib.sha512,
}
# whatever the library loads on first use, it loads now: after lockdown it could not
for _hash in _HASHES.values():
    _hash(b"").digest()


def nat_d(hash_: Hash, cky_i: Cookie, cky_r: Cookie, end: Endpoint) -> NatDiscovery:
    """HASH = HASH(CKY-I | CKY-R | IP | Port), with the negotiated hash."""
    data = cky_i + cky_r + end.address.packed + end.port.to_bytes(2, "big")
    return NatDiscovery(_HASHES[hash_](data).digest())


def detect(
    hash_: Hash, cky_i: Cookie, cky_r: Cookie, local: Endpoint, remote: Endpoint, received: Iterable[NatDiscovery]
) -> Nat:
    """What the peer's NAT-D payloads tell: the first is where it sent to, the others where it may have sent from."""
    payloads = list(received)
    if len(payloads) < 2:
        # it announced NAT traversal and then does not take part
        return Nat.NONE
    we_are = payloads[0] != nat_d(hash_, cky_i, cky_r, local)
    it_is = nat_d(hash_, cky_i, cky_r, remote) not in payloads[1:]
    return {(False, False): Nat.NONE, (True, False): Nat.LOCAL, (False, True): Nat.REMOTE, (True, True): Nat.BOTH}[
        we_are, it_is
    ]
