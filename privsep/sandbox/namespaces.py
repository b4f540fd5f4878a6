"""A network namespace of one's own, with nothing in it but a loopback interface that is down (network_namespaces(7)).

Inherited sockets stay in the namespace where they were made; new ones would reach nobody. AF_UNIX sockets with a path
are found by inode and work across.
"""

import os

from privsep.config.model import Layer
from privsep.sandbox import system
from privsep.sandbox.errors import SandboxError, missing

CLONE_NEWNET = 0x40000000
_OURS = "/proc/thread-self/ns/net"


def leave_network() -> None:
    """Move this (single-threaded) process into a new, empty network namespace. Needs CAP_SYS_ADMIN."""
    before = os.readlink(_OURS)
    try:
        system.call("unshare", CLONE_NEWNET)
    except OSError as error:
        raise missing(Layer.NETNS, str(error)) from error
    if os.readlink(_OURS) == before:
        raise SandboxError("the network namespace did not change")
