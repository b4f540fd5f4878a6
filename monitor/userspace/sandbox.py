"""What the userspace ESP process may do: move packets between the TUN device and the sockets that it was started with.

It holds traffic keys, so its memory is locked as keyd's is.
"""

import resource
from collections.abc import Iterable

import cryptography.hazmat.backends.openssl.backend  # noqa: F401  cryptography imports it on first use
import prctl

from privsep.config.model import Layer
from privsep.sandbox.confine import Confinement, Grant
from privsep.sandbox.policy import EVENT_LOOP, INTERPRETER, SOFT_REFUSALS, on_packets
from privsep.sandbox.seccomp import KILL, Rule

SYSCALLS: tuple[Rule, ...] = (
    # read and write in it also serve the TUN device
    *INTERPRETER,
    *EVENT_LOOP,
    *SOFT_REFUSALS,
)

RLIMITS = {
    resource.RLIMIT_NOFILE: 4,  # nothing new
    resource.RLIMIT_NPROC: 0,  # no process, no thread
    resource.RLIMIT_FSIZE: 0,  # no file grows
    resource.RLIMIT_MSGQUEUE: 0,  # no POSIX queue
    resource.RLIMIT_AS: 4 << 30,  # far above what its SAs need; also bounds what CAP_IPC_LOCK may lock
}


def confinement(uid: int, gid: int, root: str, absent: frozenset[Layer], sockets: Iterable[int] = ()) -> Confinement:
    """The ESP process's, with these UDP and raw sockets, without the layers that the configuration names as absent."""
    layers = frozenset({Layer.NETNS, Layer.LANDLOCK, Layer.MLOCK}) - absent
    # memory that is allocated later is locked as well, whatever RLIMIT_MEMLOCK root was started with
    capabilities = frozenset({prctl.CAP_IPC_LOCK}) if Layer.MLOCK in layers else frozenset[int]()
    return Confinement(
        name="ike-esp",
        uid=uid,
        gid=gid,
        root=root,
        layers=layers,
        grant=Grant.NOTHING,
        permitted=capabilities,
        effective=capabilities,
        rlimits=RLIMITS,
        syscalls=(*SYSCALLS, *on_packets("sendmsg", sockets)),
        otherwise=KILL,
    )
