"""What keyd may do: compute, and answer on its two channels.

It reads its secrets before it is confined, binds the ZeroMQ socket in its workplace, waits for the worker's connection
and removes the socket's name. From then on nobody can connect, so neither accept nor anything else that handles
addresses is in the filter.
"""

import resource

import cryptography.hazmat.backends.openssl.backend  # noqa: F401  cryptography imports it on first use
import prctl

from privsep.config.model import Layer
from privsep.sandbox.confine import Confinement, Grant
from privsep.sandbox.policy import EVENT_LOOP, INTERPRETER, SOFT_REFUSALS, ZEROMQ
from privsep.sandbox.seccomp import KILL, Rule

SYSCALLS: tuple[Rule, ...] = (
    *INTERPRETER,
    *EVENT_LOOP,
    *ZEROMQ,
    *SOFT_REFUSALS,
)

RLIMITS = {
    resource.RLIMIT_NOFILE: 4,  # nothing new; poll(2) accepts no more descriptors than this
    resource.RLIMIT_NPROC: 0,  # no process, no thread
    resource.RLIMIT_FSIZE: 0,  # no file grows
    resource.RLIMIT_MSGQUEUE: 0,  # no POSIX queue
    resource.RLIMIT_AS: 1 << 30,  # the handle quotas, a full queue of ZeroMQ's; it does not count parts without an end
}


def confinement(uid: int, gid: int, root: str, absent: frozenset[Layer]) -> Confinement:
    """keyd's, without the layers that the configuration names as absent on this machine."""
    layers = frozenset({Layer.NETNS, Layer.LANDLOCK, Layer.MLOCK}) - absent
    # memory that is allocated later is locked as well, whatever RLIMIT_MEMLOCK root was started with
    capabilities = frozenset({prctl.CAP_IPC_LOCK}) if Layer.MLOCK in layers else frozenset[int]()
    return Confinement(
        name="ike-keyd",
        uid=uid,
        gid=gid,
        root=root,
        layers=layers,
        grant=Grant.SOCKETS_IN_WORKPLACE,
        permitted=capabilities,
        effective=capabilities,
        rlimits=RLIMITS,
        syscalls=SYSCALLS,
        otherwise=KILL,
    )
