"""Who may change a configuration file: root, or whoever runs us, and nobody else, also not by way of a directory.

Whoever can write a directory can put another file in the place of the one that is there, unless the directory is
sticky, as /tmp is, where each may replace only what is his. A symbolic link is as safe as the directory that it is in.
"""

import os
import stat
from collections import deque
from collections.abc import Iterator

from privsep.config.problems import ConfigError, Problem

ROOT = 0
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
OWNER_ONLY = 0o600
MAX_LINKS = 40
"""Symbolic links on one path, as the kernel follows (path_resolution(7))."""


def read(path: str, limit: int, *, private: bool = False) -> bytes:
    """Up to `limit` octets and one. ConfigError for whatever lets others change the file, or read it if `private`."""
    # a FIFO is no configuration file, and nobody has to write into it for us to say so
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
            status = os.fstat(file.fileno())
            found = [*_of_file(status, path, private=private), *_of_directories(path)]
            octets = b"" if found else file.read(limit + 1)
    except OSError as error:
        found = [f"cannot be read ({error.strerror}); a file of root's is needed"]
    if found:
        raise ConfigError(path, [Problem(1, text) for text in found])
    return octets


def _of_file(status: os.stat_result, path: str, *, private: bool) -> Iterator[str]:
    if not stat.S_ISREG(status.st_mode):
        yield "not a regular file; a plain file would be right"
        return
    if status.st_uid not in ((ROOT,) if private else (ROOT, os.geteuid())):
        yield f"belongs to uid {status.st_uid}; root must own it: chown root {path}"
    mode = stat.S_IMODE(status.st_mode)
    if private and mode & ~OWNER_ONLY:
        yield f"has mode {mode:04o}; {OWNER_ONLY:04o} or stricter would be right: chmod 600 {path}"
    elif mode & OTHERS_WRITE:
        yield f"has mode {mode:04o}, so others can change it; {_closed(mode):04o} would be right: chmod go-w {path}"


def _of_directories(path: str) -> Iterator[str]:
    """Those in which another file could be put in its place."""
    for directory in dict.fromkeys(_way(os.path.abspath(path))):
        status = os.stat(directory)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid not in (ROOT, os.geteuid()):
            yield f"is in {directory}, where uid {status.st_uid} can replace it; root must own that directory"
        elif mode & OTHERS_WRITE and not mode & stat.S_ISVTX:
            yield (
                f"is in {directory} of mode {mode:04o}, where others can replace it; "
                f"{_closed(mode):04o} would be right: chmod go-w {directory}"
            )


def _closed(mode: int) -> int:
    return mode & ~OTHERS_WRITE


def _way(path: str) -> Iterator[str]:
    """Every directory that the kernel looks into to find this absolute path, those of symbolic links included."""
    here, rest, links = "/", deque(path.split("/")), 0
    while rest:
        part = rest.popleft()
        if part in ("", "."):
            continue
        if part == "..":
            here = os.path.dirname(here)
            continue
        yield here
        there = os.path.join(here, part)
        if not os.path.islink(there):
            here = there
            continue
        links += 1
        if links > MAX_LINKS:
            return
        target = os.readlink(there)
        rest.extendleft(reversed(target.split("/")))
        here = "/" if target.startswith("/") else here
