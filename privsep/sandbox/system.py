"""System calls that Python has no function for, through ctypes; a failure is an OSError.

ctypes and the C library are loaded with this module, long before anything is locked down.
"""

import ctypes
import os

_LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
    """A function of the C library that returns -1 and sets errno."""
    result: int = getattr(_LIBC, name)(*arguments)
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def syscall(number: int, *arguments: object) -> int:
    """A system call by number. Every argument travels as a full register."""
    return call("syscall", ctypes.c_long(number), *(_register(argument) for argument in arguments))


def _register(argument: object) -> object:
    return ctypes.c_ulong(argument) if isinstance(argument, int) else argument
