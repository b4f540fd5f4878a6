"""The same gateway.toml for every process: the monitor reads the file once, its children inherit a sealed copy.

With it goes what the machine said about names. A file or a name that changes between two starts of a child thus cannot
make two processes see different policies.
"""

import fcntl
import json
import os

from privsep.config import access, loader
from privsep.config.model import Gateway
from privsep.config.names import Names
from privsep.errors import OperatorError

MAX_CONFIG = 4 << 20
"""Octets; some ten thousand connections."""

_F_ADD_SEALS = 1033
_F_SEAL_ALL = 0x0001 | 0x0002 | 0x0004 | 0x0008
"""<linux/fcntl.h>: no more seals, no shrinking, no growing, no writing."""


def read_file(path: str) -> str:
    """The text of a configuration file; OperatorError with the path when it cannot be had, or trusted."""
    return _decode(access.read(path, MAX_CONFIG), path)


def _decode(data: bytes, path: str) -> str:
    if len(data) > MAX_CONFIG:
        raise OperatorError(f"{path}: longer than {MAX_CONFIG} octets")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise OperatorError(f"{path}:{line}: not UTF-8; TOML files are UTF-8") from error


def publish(text: str, names: Names) -> int:
    """A sealed descriptor of the text and of the answers it took to load it, for children to inherit."""
    fd = os.memfd_create("gateway.toml", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(json.dumps([text, names.answers]).encode())
    fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_ALL)
    return fd


def receive(fd: int, path: str) -> Gateway:
    """The configuration behind an inherited descriptor, which is closed; `path` is for messages only."""
    try:
        # the offset is shared with all who inherited it, so it is not used
        text, answers = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    finally:
        os.close(fd)
    return loader.load(text, path, Names(answers))
