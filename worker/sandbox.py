"""What the worker may do: talk on the sockets and channels that it was started with. Nothing else.

It has two kinds of UDP sockets (500 and 4500, made and bound by the monitor), a SOCK_SEQPACKET to the monitor and a
connected ZeroMQ socket to keyd. The filter admits no call that makes, names or reconnects one, opens a file, starts a
process or sends a signal.
"""

import resource
from collections.abc import Iterable

from privsep.config.model import Layer
from privsep.sandbox.confine import Confinement, Grant
from privsep.sandbox.policy import EVENT_LOOP, INTERPRETER, SOFT_REFUSALS, ZEROMQ, on_packets
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
    resource.RLIMIT_MEMLOCK: 0,  # nothing locked
    resource.RLIMIT_MSGQUEUE: 0,  # no POSIX queue
    resource.RLIMIT_AS: 4 << 30,  # far above what the half-open and SA budgets need; bounds what a captured one takes
}


def confinement(uid: int, gid: int, root: str, absent: frozenset[Layer], sockets: Iterable[int] = ()) -> Confinement:
    """The worker's, with these UDP sockets, without the layers that the configuration names as absent here."""
    return Confinement(
        name="ike-worker",
        uid=uid,
        gid=gid,
        root=root,
        layers=frozenset({Layer.NETNS, Layer.LANDLOCK}) - absent,
        grant=Grant.NOTHING,
        permitted=frozenset(),
        effective=frozenset(),
        rlimits=RLIMITS,
        syscalls=(*SYSCALLS, *on_packets("recvmsg", sockets), *on_packets("sendmsg", sockets)),
        otherwise=KILL,
    )
