"""Landlock (landlock(7)): no file, no TCP port, no abstract socket, no signal to anybody outside.

The domain binds the thread that enters it and those that it starts. It is entered before any other thread exists, so it
binds them all.
"""

import contextlib
import ctypes
import os

from privsep.config.model import Layer
from privsep.sandbox import system
from privsep.sandbox.errors import SandboxError, missing

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH, _NET_PORT = 1, 2

_FS_RIGHTS = (
    (5, (1 << 16) - 1),  # ioctl on devices
    (3, (1 << 15) - 1),  # truncate
    (2, (1 << 14) - 1),  # link and rename to another directory
    (1, (1 << 13) - 1),  # execute, read, write, list, remove, make
)
"""All file system rights of each ABI, newest first."""
_MAKE_SOCK = 1 << 9
_REMOVE_FILE = 1 << 5
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_CONNECT_TCP = 1 << 1
_NET_SINCE = 4
_NET_RIGHTS = 0b11
"""Bind and connect TCP, from ABI 4."""
_SCOPES = 0b11
"""Abstract unix sockets and signals, from ABI 6."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_fs", ctypes.c_uint64), ("handled_net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _NetPort(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


def abi() -> int:
    """The kernel's Landlock version; `missing` if it has none."""
    try:
        return system.syscall(_CREATE_RULESET, None, 0, _VERSION)
    except OSError as error:
        raise missing(Layer.LANDLOCK, str(error)) from error


def restrict(*, sockets_in: str | None = None, readable: tuple[str, ...] = (), tcp_ports: tuple[int, ...] = ()) -> int:
    """Enter a domain that grants nothing but what is named: to make and remove sockets in one directory, to read those
    files and directories that exist, to connect to those ports. Returns the ABI. Needs no_new_privs.
    """
    version = abi()
    handled = next((rights for since, rights in _FS_RIGHTS if version >= since), 0)
    if not handled:
        raise SandboxError(f"Landlock reports version {version}")
    # an older kernel takes the longer structure as long as the rest is zero
    ruleset = _Ruleset(handled, _NET_RIGHTS if version >= _NET_SINCE else 0, _SCOPES if version >= 6 else 0)
    fd = system.syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.sizeof(ruleset), 0)
    try:
        if sockets_in is not None:
            _allow_beneath(fd, sockets_in, _MAKE_SOCK | _REMOVE_FILE)
        for path in readable:
            with contextlib.suppress(FileNotFoundError):
                _allow_beneath(fd, path, _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0))
        for port in tcp_ports if version >= _NET_SINCE else ():
            rule = _NetPort(_CONNECT_TCP, port)
            system.syscall(_ADD_RULE, fd, _NET_PORT, ctypes.byref(rule), 0)
        system.syscall(_RESTRICT_SELF, fd, 0)
    finally:
        os.close(fd)
    return version


def _allow_beneath(ruleset: int, path: str, rights: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(rights, parent)
        system.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)
