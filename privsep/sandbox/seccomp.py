"""System call filters (seccomp(2)) by libseccomp: what no rule admits ends the process, in every thread.

Arguments are compared in all 64 bits. A call by another ABI's numbers (i386, x32) ends the process too.
"""

import ctypes.util
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from privsep.sandbox.errors import SandboxError

_WORD = 2**64 - 1


def _load() -> Any:
    """Import pyseccomp without a search: it asks ldconfig or a compiler, and a process of ours runs neither."""
    search = ctypes.util.find_library
    ctypes.util.find_library = {"seccomp": "libseccomp.so.2"}.get  # type: ignore[assignment]
    try:
        return importlib.import_module("pyseccomp")
    finally:
        ctypes.util.find_library = search


_LIB = _load()

ALLOW: int = _LIB.ALLOW
KILL: int = _LIB.KILL_PROCESS


def fail(error: int) -> int:
    """The action that lets a call fail with that errno."""
    return int(_LIB.ERRNO(error))


@dataclass(slots=True, frozen=True)
class Argument:
    """A condition: argument number `index`, masked, has this value."""

    index: int
    mask: int
    value: int


def equals(index: int, value: int) -> Argument:
    """The argument is exactly that."""
    return Argument(index, _WORD, value)


def only(index: int, bits: int) -> Argument:
    """The argument has no bits but those. No enum, whose complement has only the bits that it knows."""
    return Argument(index, _WORD & ~bits, 0)


def without(index: int, bits: int) -> Argument:
    """The argument has none of those bits."""
    return Argument(index, bits, 0)


@dataclass(slots=True, frozen=True)
class Rule:
    """What happens to a call whose arguments meet all conditions. Several rules for one call are alternatives."""

    syscall: str
    action: int
    arguments: tuple[Argument, ...] = ()


def allow(syscall: str, *arguments: Argument) -> Rule:
    """Admit the call."""
    return Rule(syscall, ALLOW, arguments)


def refuse(syscall: str, error: int) -> Rule:
    """Let the call fail with that errno, because libraries try it and take no for an answer."""
    return Rule(syscall, fail(error))


def kill(syscall: str) -> Rule:
    """End the process, where the default is milder."""
    return Rule(syscall, KILL)


def build(rules: Iterable[Rule], otherwise: int) -> Any:
    """The compiled filter; SandboxError if libseccomp does not know a call or refuses a rule."""
    try:
        syscalls = _LIB.SyscallFilter(otherwise)
        syscalls.set_attr(_LIB.Attr.ACT_BADARCH, KILL)
        syscalls.set_attr(_LIB.Attr.CTL_TSYNC, 1)
    except OSError as error:
        raise SandboxError(f"libseccomp: {error}") from error
    for rule in rules:
        number = _LIB.resolve_syscall(_LIB.Arch.NATIVE, rule.syscall)
        # other negative numbers stand for calls that this architecture does not have; those rules do nothing
        if number == -1:
            raise SandboxError(f"libseccomp does not know the system call {rule.syscall}")
        conditions = (_LIB.Arg(each.index, _LIB.MASKED_EQ, each.mask, each.value) for each in rule.arguments)
        try:
            syscalls.add_rule(rule.action, number, *conditions)
        except OSError as error:
            raise SandboxError(f"libseccomp refuses the rule for {rule.syscall}: {error}") from error
    return syscalls


def load(syscalls: Any) -> None:
    """Put the filter on every thread. It needs no_new_privs and cannot be taken off."""
    try:
        syscalls.load()
    except OSError as error:
        raise SandboxError(f"the system call filter cannot be loaded: {error}") from error
