"""The order of confinement: `begin` first thing, `become_user` while single-threaded, `lock_down` before the first
octet of anybody else is read. Each step takes effect, is read back, or ends the process.

Between the last two a child makes its threads and its channel; by then it is the other user already, without privilege,
in its empty root, and sees only names relative to its workplace. So every thread is born confined.
"""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

import prctl

from privsep.config.model import Layer
from privsep.sandbox import capabilities, identity, landlock, memory, namespaces, rlimits, seccomp, status
from privsep.sandbox.errors import SandboxError
from privsep.sandbox.interpreter import report_unhandled, seal_interpreter, settle

SECCOMP_FILTER = 2
"""What PR_GET_SECCOMP and /proc call a process with a filter."""
MAX_STATUS = 65536
"""Octets of /proc/self/status; it has about 1500."""


class Grant(Enum):
    """What Landlock leaves."""

    NOTHING = "nothing"
    SOCKETS_IN_WORKPLACE = "sockets in the workplace"
    NAME_SERVICE = "reading how names are looked up, and asking name servers"


@dataclass(slots=True, frozen=True, kw_only=True)
class Confinement:
    """All that a process keeps. What is not named here is taken."""

    name: str
    """At most 11 characters; the process's name in /proc."""
    uid: int
    """0 only for the monitor, which stays root in name to own its files and to start its children."""
    gid: int
    root: str | None
    """An empty directory; None for the monitor, whose children need the file system, and for the resolver."""
    layers: frozenset[Layer]
    """Those that apply here, less those that the configuration names as absent."""
    grant: Grant
    permitted: frozenset[int]
    """Capabilities, also the bounding set."""
    effective: frozenset[int]
    rlimits: Mapping[int, int]
    """Beside that of core files, which nobody has."""
    syscalls: tuple[seccomp.Rule, ...]
    otherwise: int
    """What happens to a system call that no rule admits."""
    readable: tuple[str, ...] = ()
    """For Grant.NAME_SERVICE: files and directories, as far as they exist."""
    tcp_ports: tuple[int, ...] = ()
    """For Grant.NAME_SERVICE: where it may connect to."""


def begin() -> None:
    """A child's first step, before it has anything to hide: end with the monitor, leave no core."""
    report_unhandled()
    memory.hide()
    _end_with_parent(os.getppid())


def _end_with_parent(parent: int) -> None:
    prctl.set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent:
        raise SandboxError("the monitor has ended")


def become_user(confinement: Confinement, workplace: str | None = None) -> None:
    """Take every privilege and every name but those under `workplace`. Needs root and a single thread.

    After it, paths are relative to `workplace` (the directory of the channel's socket) and imports find nothing.
    `lock_down` completes it.
    """
    own_status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _read(own_status).threads != 1:
            raise SandboxError("threads run already; they would keep what this one gives up")
        _take(confinement, workplace)
        _verify(confinement, _read(own_status))
    except OSError as error:
        raise SandboxError(f"{confinement.name} cannot be confined: {error}") from error
    finally:
        os.close(own_status)


def _take(confinement: Confinement, workplace: str | None) -> None:
    parent, highest = os.getppid(), capabilities.last()
    outside, inside = (None, ".") if workplace is None else os.path.split(workplace)
    if Layer.NETNS in confinement.layers:
        namespaces.leave_network()
    if Layer.MLOCK in confinement.layers:
        memory.lock()
    if confinement.root is not None:
        identity.enter_root(confinement.root, outside)
    capabilities.limit_bounding(confinement.permitted, highest)
    if confinement.uid != 0:
        capabilities.lock_securebits()
    identity.become(confinement.uid, confinement.gid)
    capabilities.limit(confinement.permitted, confinement.effective)
    prctl.set_no_new_privs(1)
    # as the user: root without CAP_DAC_OVERRIDE may not enter another's directory
    os.chdir(inside)
    name = confinement.name
    if Layer.LANDLOCK in confinement.layers:
        # /proc does not show a Landlock domain; the name does, and the filter lets nobody change it
        name = f"{name}:L{_enter_landlock(confinement)}"
    prctl.set_name(name)
    # a change of credentials undoes it, and what follows
    memory.hide()
    if confinement.uid != 0:
        identity.refuse_return()
        _end_with_parent(parent)


def _enter_landlock(confinement: Confinement) -> int:
    match confinement.grant:
        case Grant.NOTHING:
            return landlock.restrict()
        case Grant.SOCKETS_IN_WORKPLACE:
            return landlock.restrict(sockets_in=".")
        case Grant.NAME_SERVICE:
            return landlock.restrict(readable=confinement.readable, tcp_ports=confinement.tcp_ports)
        case _:
            assert_never(confinement.grant)


def _read(own_status: int) -> status.Status:
    return status.parse(os.pread(own_status, MAX_STATUS, 0).decode())


def _verify(confinement: Confinement, actual: status.Status) -> None:
    """Compare what the kernel says with what was asked."""
    permitted = capabilities.mask(confinement.permitted)
    wanted = {
        "user": (actual.uids, (confinement.uid,) * 4),
        "group": (actual.gids, (confinement.gid,) * 4),
        "supplementary groups": (actual.groups, ()),
        "permitted capabilities": (actual.permitted, permitted),
        "effective capabilities": (actual.effective, capabilities.mask(confinement.effective)),
        "bounding set": (actual.bounding, permitted),
        # and so no ambient ones (capabilities(7))
        "inheritable capabilities": (actual.inheritable, 0),
        "no_new_privs": (actual.no_new_privs, 1),
        "locked memory": (actual.locked_kb > 0, Layer.MLOCK in confinement.layers),
    }
    for what, (has, should) in wanted.items():
        if has != should:
            raise SandboxError(f"{confinement.name}: {what} is {has}, not {should}")
    if confinement.uid != 0 and prctl.get_securebits() != capabilities.SECBITS_LOCKED:
        raise SandboxError(f"{confinement.name}: securebits are not locked")


def lock_down(confinement: Confinement) -> None:
    """The last step: no directory, no import, no resource and no system call beyond the listed ones, in any thread."""
    try:
        if confinement.root is not None:
            identity.leave_workplace()
            seal_interpreter()
        settle()
        rlimits.apply(confinement.rlimits)
        seccomp.load(seccomp.build(confinement.syscalls, confinement.otherwise))
        if prctl.get_seccomp() is not True:
            raise SandboxError("the system call filter is not in force")
    except OSError as error:
        raise SandboxError(f"{confinement.name} cannot be locked down: {error}") from error
