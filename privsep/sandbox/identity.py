"""An empty root directory and another user (chroot(2), setgroups(2), setresgid(2), setresuid(2))."""

import os
import stat

from privsep.sandbox.errors import SandboxError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def enter_root(path: str, outside: str | None) -> None:
    """Make an empty directory of root's the root, and stay in the directory `outside` it, if there is one.

    Only names relative to it still resolve, until `leave_workplace`. Needs CAP_SYS_CHROOT.
    """
    facts = os.stat(path, follow_symlinks=False)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != 0 or facts.st_mode & _OTHERS_WRITE:
        raise SandboxError(f"{path} is not a directory that only root can write")
    if os.listdir(path):
        raise SandboxError(f"{path} is not empty")
    if outside is not None:
        os.chdir(outside)
    os.chroot(path)
    if outside is None:
        os.chdir("/")
    if os.listdir("/"):
        raise SandboxError("the root directory is not the empty one")


def leave_workplace() -> None:
    """Let go of the last directory that leads out of the root."""
    os.chdir("/")
    if not os.path.samefile(".", "/"):
        raise SandboxError("the working directory is outside the root directory")


def become(uid: int, gid: int) -> None:
    """Groups first: without the uid they could not be changed. Read back by the caller with all credentials."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def refuse_return() -> None:
    """Prove that root cannot be had back. For after the capabilities are gone."""
    for attempt in (os.setresuid, os.setresgid):
        try:
            attempt(-1, 0, -1)
        except PermissionError:
            continue
        raise SandboxError("root can be regained")
