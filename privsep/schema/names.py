"""Where the hosts are that a configuration names: what the resolver says, and what the monitor passes on of it.

The resolver says one thing before it ends. The monitor judges it and tells keyd first, then the worker, so that keyd
knows of an address before the worker can ask about it.
"""

from dataclasses import dataclass
from typing import Annotated

from privsep.schema.codec import Length, Name, Table, Text
from privsep.types import Address

MAX_ADDRESSES = 16
"""Of one host."""
MAX_LOCATED = 128
"""In one message."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Found:
    """Addresses in the order in which the C library prefers them (RFC 6724)."""

    addresses: Annotated[tuple[Address, ...], Length(1, MAX_ADDRESSES)]


@dataclass(slots=True, frozen=True, kw_only=True)
class NotFound:
    """There is none, or nobody who knows answers."""

    why: Text


Answer = Found | NotFound

ANSWERS: Table[Answer] = Table({1: Found, 2: NotFound})


@dataclass(slots=True, frozen=True, kw_only=True)
class Located:
    """The address of the name that is this connection's `remote`."""

    connection: Name
    address: Address


@dataclass(slots=True, frozen=True, kw_only=True)
class Resolved:
    """monitor -> keyd, which answers `keymat.Known`; then monitor -> worker, which answers nothing."""

    located: Annotated[tuple[Located, ...], Length(1, MAX_LOCATED)]
