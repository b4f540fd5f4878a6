"""Memory that neither swap, a core file nor another process gets to see (mlockall(2), PR_SET_DUMPABLE)."""

import resource

import prctl

from privsep.config.model import Layer
from privsep.sandbox import rlimits, system
from privsep.sandbox.errors import SandboxError, missing

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4


def lock() -> None:
    """Keep every page in memory from its first use on, now and later. Needs CAP_IPC_LOCK, now and later.

    On fault: a page that was never touched has no secret, and thread stacks and arenas stay small.
    """
    try:
        system.call("mlockall", MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)
    except OSError as error:
        raise missing(Layer.MLOCK, str(error)) from error


def hide() -> None:
    """No core file, no ptrace and no /proc/PID/mem, except for CAP_SYS_PTRACE. exec and setuid undo the second half."""
    rlimits.apply({resource.RLIMIT_CORE: 0})
    prctl.set_dumpable(0)
    if prctl.get_dumpable() != 0:
        raise SandboxError("the process is still dumpable")
