"""System calls that every confined child of ours lives on, in groups; each line says who makes the call.

What a process needs beyond them stands in its own `sandbox.py`. None opens, creates, connects, executes or signals.
"""

import errno
import mmap
import socket
from collections.abc import Iterable

from privsep.sandbox.seccomp import Argument, Rule, allow, equals, only, refuse

PR_GET_SECCOMP = 21
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_MAP_FIXED, _MAP_NORESERVE, _MAP_STACK = 0x10, 0x4000, 0x20000
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_STACK | _MAP_FIXED
_MREMAP_MAYMOVE = 1
_MADV_DONTNEED, _MADV_FREE = 4, 8
_FUTEX_WAIT, _FUTEX_WAKE, _FUTEX_CMP_REQUEUE, _FUTEX_WAIT_BITSET = 0, 1, 4, 9
_FUTEX_PRIVATE, _FUTEX_CLOCK_REALTIME = 128, 256

_SOCKET_KIND = 0xF
"""Of the type that socket(2) is given; the other bits are flags."""

_FUTEX = tuple(
    allow("futex", equals(1, operation | private | clock))  # locks of CPython, glibc and libzmq; no PI, no robust ones
    for operation in (_FUTEX_WAIT, _FUTEX_WAKE, _FUTEX_CMP_REQUEUE, _FUTEX_WAIT_BITSET)
    for private in (0, _FUTEX_PRIVATE)
    for clock in ((0, _FUTEX_CLOCK_REALTIME) if operation == _FUTEX_WAIT_BITSET else (0,))
)

HARMLESS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
"""Flags of what is sent and received: our sockets never wait, and Python has SIGPIPE ignored. We use none, but another
release of libzmq may. What is out of band, on the error queue or only looked at is nobody's."""

INTERPRETER: tuple[Rule, ...] = (
    allow("brk"),  # malloc grows and trims the heap
    allow("mmap", only(2, _READ_WRITE), only(3, _ANONYMOUS)),  # malloc and obmalloc; never code, never a file
    allow("mprotect", only(2, _READ_WRITE)),  # malloc's arenas grow that way; never code
    allow("munmap"),  # malloc gives back
    allow("mremap", only(3, _MREMAP_MAYMOVE)),  # realloc of large blocks
    allow("madvise", equals(2, _MADV_DONTNEED)),  # malloc gives pages back
    allow("madvise", equals(2, _MADV_FREE)),  # the same, lazily
    *_FUTEX,
    allow("clock_gettime"),  # clocks, where the vDSO cannot serve them
    allow("gettimeofday"),  # the same, of older libraries
    allow("clock_nanosleep"),  # time.sleep
    allow("getrandom"),  # os.urandom, hash seeds, OpenSSL's generator
    allow("getpid"),  # libzmq and OpenSSL look for forks
    allow("sched_getaffinity"),  # malloc counts processors before it makes an arena
    allow("sched_yield"),  # spinning locks of libzmq and of Rust
    allow("rt_sigreturn"),  # return from a signal handler
    allow("rt_sigprocmask"),  # glibc around thread ends and abort
    allow("rt_sigaction"),  # the interpreter's end restores handlers
    allow("restart_syscall"),  # the kernel itself, after a stop
    allow("prctl", equals(0, PR_GET_SECCOMP)),  # the read-back of this filter
    allow("write"),  # the log pipe, eventfds
    allow("read"),  # eventfds, inherited descriptors
    allow("close"),  # a channel that ended
    allow("exit"),  # threads of libzmq
    allow("exit_group"),  # the end
)

EVENT_LOOP: tuple[Rule, ...] = (
    allow("epoll_wait"),  # Loop.run, libzmq's threads
    allow("epoll_pwait"),  # the same, where glibc or the architecture prefers it
    allow("epoll_ctl"),  # Loop.on_readable and on_writable, libzmq's threads
    allow("recvfrom", only(3, HARMLESS)),  # sockets: recv and recvfrom
    allow("sendto", only(3, HARMLESS)),  # sockets: send and sendto
)


def on_packets(call: str, sockets: Iterable[int]) -> tuple[Rule, ...]:
    """`sendmsg` or `recvmsg`: in the header of a message UDP and raw sockets tell which of our addresses is meant.

    No filter sees that header, and on a unix socket it carries descriptors (SCM_RIGHTS). So the call is for these
    sockets alone. A number that was closed is nobody else's later, as nothing in the filters makes a descriptor.
    """
    return tuple(allow(call, equals(0, number), only(2, HARMLESS)) for number in sockets)


ZEROMQ: tuple[Rule, ...] = (
    allow("poll"),  # an application thread waits for its mailbox
    allow("ppoll"),  # the same
)
"""For a socket that is connected before lockdown: reconnecting and accepting are not in it."""

ASKING: tuple[Rule, ...] = tuple(
    allow("socket", equals(0, family), Argument(1, _SOCKET_KIND, kind))  # UDP and TCP of either version; nothing raw
    for family in (socket.AF_INET, socket.AF_INET6)
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
)
"""Name servers. The resolver's, and so the monitor's, whose filter its children inherit."""

SOFT_REFUSALS: tuple[Rule, ...] = (
    refuse("open", errno.EACCES),  # libraries look for files and do without
    refuse("openat", errno.EACCES),  # the same
    refuse("stat", errno.EACCES),  # the same
    refuse("lstat", errno.EACCES),  # the same
    refuse("fstat", errno.EACCES),  # the same
    refuse("newfstatat", errno.EACCES),  # the same
    refuse("statx", errno.EACCES),  # the same
    refuse("access", errno.EACCES),  # the same
    refuse("faccessat", errno.EACCES),  # the same
    refuse("faccessat2", errno.EACCES),  # the same
    refuse("readlink", errno.EACCES),  # the same
    refuse("readlinkat", errno.EACCES),  # the same
    refuse("getcwd", errno.EACCES),  # the same
    refuse("unlink", errno.EACCES),  # libzmq removes its socket's name at the end
    refuse("ioctl", errno.ENOTTY),  # is a stream a terminal?
    refuse("lseek", errno.ESPIPE),  # where is a stream?
    refuse("getsockname", errno.EACCES),  # a socket's repr, which a socket left open at the end gets
    refuse("getpeername", errno.EACCES),  # the same
    refuse("sysinfo", errno.EACCES),  # how much memory is there?
    refuse("sigaltstack", errno.EACCES),  # the interpreter's end; threads of Rust
)
"""Tried by the C library, CPython, libzmq or OpenSSL in passing; refused with an errno that they live with."""
