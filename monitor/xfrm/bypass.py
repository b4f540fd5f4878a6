"""Options of IKE's own sockets: past the policies, and ESP in UDP to the kernel.

RFC 4301 section 4.4.1: IKE needs a BYPASS entry, or a policy that covers its peer would lock it out. Per socket rather
than by address, so that nothing but IKE gets past. An IPv6 socket needs IPV6_V6ONLY: mapped IPv4 is not covered.
"""

import socket
import sys

from monitor.xfrm.messages import NewPolicy
from monitor.xfrm.structs import UDP_ENCAP_ESPINUDP, UNLIMITED, Direction
from privsep.errors import OperatorError

_POLICY_OPTIONS = {
    socket.AF_INET: (socket.IPPROTO_IP, 17),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 35),
}
"""IP_XFRM_POLICY, IPV6_XFRM_POLICY: <linux/in.h>, <linux/in6.h>."""
_UDP_ENCAP = 100
"""<linux/udp.h>"""


def bypass(sock: socket.socket) -> None:
    """Let this socket's packets pass in clear, both ways. Needs CAP_NET_ADMIN; OperatorError if refused."""
    level, option = _POLICY_OPTIONS[sock.family]
    for direction in (Direction.IN, Direction.OUT):
        policy = bytearray(NewPolicy.layout.size)
        NewPolicy.write(policy, 0, {**UNLIMITED, "sel.family": sock.family, "dir": direction})
        _set(sock, level, option, policy, "IPsec bypass of the IKE sockets", "CONFIG_XFRM and CAP_NET_ADMIN")


def udp_encap(sock: socket.socket) -> None:
    """Have the kernel take ESP out of this socket's datagrams; the rest comes to the reader (RFC 3948 section 2)."""
    encap = UDP_ENCAP_ESPINUDP.to_bytes(4, sys.byteorder)
    what = "IPv4" if sock.family == socket.AF_INET else "IPv6"
    _set(sock, socket.IPPROTO_UDP, _UDP_ENCAP, encap, f"ESP in UDP over {what}", "CONFIG_XFRM, Linux 5.8 for IPv6")


def _set(sock: socket.socket, level: int, option: int, value: bytes | bytearray, what: str, needs: str) -> None:
    try:
        sock.setsockopt(level, option, value)
    except OSError as error:
        raise OperatorError(f"{what} cannot be had: {error.strerror}; it needs {needs}") from None
