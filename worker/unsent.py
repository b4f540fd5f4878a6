"""Why the kernel did not take a datagram of ours, in an operator's words (send(2), ip(7), ipv6(7))."""

import errno
import os

from privsep.types import Endpoint


def cause(error: int, local: Endpoint, remote: Endpoint) -> str:
    """What is in the way and what would be right; `error` is the errno of the call."""
    match error:
        case errno.EADDRNOTAVAIL | errno.EINVAL:
            # IPv6's word for a source that no interface has
            return f"no interface of this machine has {local.address}; `local` must be one of our addresses"
        case errno.ENETUNREACH if local.address.is_unspecified:
            return f"there is no route to {remote.address}"
        case errno.ENETUNREACH:
            # IPv4's word for both, and nobody here can ask which
            return (
                f"no interface of this machine has {local.address}, or there is no route from it to {remote.address}; "
                "`local` must be one of our addresses"
            )
        case errno.EHOSTUNREACH:
            return f"{remote.address} is not reachable: its next hop does not answer, or a route refuses it"
        case errno.EPERM:
            return f"a firewall of this machine drops what goes to {remote}"
        case errno.EACCES:
            return f"a route of this machine prohibits {remote.address}"
        case errno.ENETDOWN | errno.ENODEV | errno.ENXIO:
            return f"the interface towards {remote.address} is down"
        case errno.EMSGSIZE:
            return f"the message is longer than the way to {remote.address} takes"
        case errno.ENOBUFS | errno.ENOMEM | errno.EAGAIN:
            return "a queue of this machine is full"
        case _:
            return os.strerror(error)
