"""Capability sets, the bounding set and securebits (capabilities(7)).

python-prctl names the capabilities; the sets go to the kernel as whole words, so that a capability which is newer than
that library goes as well.
"""

import struct
from pathlib import Path

import prctl

from privsep.sandbox import system

_LAST = Path("/proc/sys/kernel/cap_last_cap")
_PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 24, 28
_VERSION_3 = 0x20080522
_WORD = 2**32 - 1

SECBITS_LOCKED = (
    prctl.SECBIT_NOROOT  # uid 0 gains nothing at exec
    | prctl.SECBIT_NOROOT_LOCKED
    | prctl.SECBIT_NO_SETUID_FIXUP  # changing the uid changes no set: what stays is set by name
    | prctl.SECBIT_NO_SETUID_FIXUP_LOCKED
    | prctl.SECBIT_KEEP_CAPS_LOCKED  # and keep-caps is off for ever
    | 1 << 6  # SECBIT_NO_CAP_AMBIENT_RAISE, which python-prctl does not name
    | 1 << 7  # and its lock
)


def mask(capabilities: frozenset[int]) -> int:
    """The bit mask that /proc prints."""
    return sum(1 << number for number in capabilities)


def last() -> int:
    """The highest capability that the kernel knows."""
    return int(_LAST.read_text())


def limit_bounding(keep: frozenset[int], highest: int) -> None:
    """Drop all others from the bounding set. Needs CAP_SETPCAP."""
    for number in range(highest + 1):
        if number not in keep:
            system.call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)


def lock_securebits() -> None:
    """Root is a number like any other from now on, here and in everything executed. Needs CAP_SETPCAP."""
    system.call("prctl", _PR_SET_SECUREBITS, SECBITS_LOCKED, 0, 0, 0)


def limit(permitted: frozenset[int], effective: frozenset[int]) -> None:
    """Set all sets in one call: what is not named is gone; nothing is inheritable, so nothing is ambient."""
    sets = (mask(effective), mask(permitted), 0)
    low = struct.pack("=3I", *(each & _WORD for each in sets))
    high = struct.pack("=3I", *(each >> 32 for each in sets))
    system.call("capset", struct.pack("=Ii", _VERSION_3, 0), low + high)
