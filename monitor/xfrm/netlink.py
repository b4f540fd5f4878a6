"""Questions to the kernel's XFRM and its answers (RFC 3549 section 2.3.2.1; <linux/netlink.h>).

The socket is pyroute2's, its asyncio loop is not: XFRM answers before `send` returns, so a loop would only cost 100 µs
a request, three descriptors, and queues in which keys stay behind.
"""

import errno
import logging
import socket
import struct
from typing import TypeVar

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, SOL_NETLINK
from pyroute2.netlink.nlsocket import AsyncNetlinkSocket

from monitor.dataplane import DataplaneError
from monitor.xfrm.messages import Message, Refusal
from privsep.errors import OperatorError

NETLINK_XFRM = 6
ANSWER_SECONDS = 2.0
"""The kernel answers at once; a cipher's module may have to be loaded first."""
MAX_ANSWER = 16384
"""The longest is an SA with its keys, some 2000 octets."""
MAX_STALE = 64
"""Answers to questions that timed out before, skipped until ours comes."""

_NETLINK_CAP_ACK = 10
"""Without it the kernel's refusal of a NEWSA echoes the whole request, keys included."""
_HEADER = struct.Struct("=IHHIIi")
"""struct nlmsghdr, and of the answer NLMSG_ERROR also the errno."""

M = TypeVar("M", bound=Message)

# pyroute2 logs messages at DEBUG and values that do not pack at ERROR, which may be keys
logging.getLogger("pyroute2").setLevel(logging.CRITICAL + 1)


class KernelError(DataplaneError):
    """The kernel refused; `number` is its errno."""

    def __init__(self, what: str, number: int, detail: str = "") -> None:
        name = errno.errorcode.get(number, str(number))
        super().__init__(f"{what}: {name}" + (f" ({detail})" if detail else ""))
        self.number = number


def open_socket(groups: int = 0) -> socket.socket:
    """A socket bound to these multicast groups. Needs CAP_NET_ADMIN in the network namespace."""
    try:
        sock: socket.socket = AsyncNetlinkSocket(family=NETLINK_XFRM, ext_ack=True).setup_socket()
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
            raise OperatorError("the kernel lacks XFRM's netlink (CONFIG_XFRM_USER)") from None
        raise
    sock.setsockopt(SOL_NETLINK, _NETLINK_CAP_ACK, 1)
    sock.bind((0, groups))
    return sock


class XfrmNetlink:
    """One socket, one request at a time. It belongs to the network namespace in which this was made."""

    def __init__(self) -> None:
        self._socket = open_socket()
        self._socket.settimeout(ANSWER_SECONDS)
        self._sequence = 0
        self._buffer = bytearray(MAX_ANSWER)

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def do(self, message: Message) -> None:
        """Have the kernel carry it out; KernelError if it refuses. The message is wiped in any case."""
        message["header"]["flags"] |= NLM_F_REQUEST | NLM_F_ACK
        _, kind = self._exchange(message)
        if kind != NLMSG_ERROR:
            raise _unexpected(message, kind)

    def do_unless(self, harmless: int, message: Message) -> None:
        """The same, but the kernel may refuse with that errno."""
        try:
            self.do(message)
        except KernelError as error:
            if error.number != harmless:
                raise

    def ask(self, message: Message, answer: type[M]) -> M:
        """Have the kernel answer with a message of this class."""
        message["header"]["flags"] |= NLM_F_REQUEST
        try:
            length, kind = self._exchange(message)
            if kind != answer.kind:
                raise _unexpected(message, kind)
            found = answer(self._buffer[:length])
            found.decode()
            found.wipe()
            return found
        finally:
            # a GETSA is answered with keys
            self._buffer[:] = bytes(MAX_ANSWER)

    def _exchange(self, message: Message) -> tuple[int, int]:
        """Length and type of the answer, which then stands in the buffer. NLMSG_ERROR with errno 0 is the ACK."""
        what = message.kind.name
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        try:
            self._socket.send(message.data)
            for _ in range(MAX_STALE):
                octets, (sender, _) = self._socket.recvfrom_into(self._buffer)
                if sender != 0 or octets < _HEADER.size:
                    continue
                length, kind, _, sequence, _, code = _HEADER.unpack_from(self._buffer)
                if sequence != self._sequence:
                    continue
                if length > octets:
                    raise DataplaneError(f"{what}: the kernel's answer is cut off")
                if kind == NLMSG_ERROR and code:
                    raise KernelError(what, -code, self._detail(length))
                return length, kind
        except OSError as error:
            raise KernelError(what, error.errno or errno.ETIMEDOUT) from None
        finally:
            message.wipe()
        raise DataplaneError(f"{what}: the kernel does not answer")

    def _detail(self, length: int) -> str:
        """The kernel's own words, if it gave any."""
        answer = Refusal(self._buffer[:length])
        answer.decode()
        return str(answer.get_attr("NLMSGERR_ATTR_MSG", ""))


def _unexpected(message: Message, kind: int) -> DataplaneError:
    return DataplaneError(f"{message.kind.name}: the kernel answered with message type {kind}")
