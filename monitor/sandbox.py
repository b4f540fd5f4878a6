"""What the monitor may do: configure the data plane, start children, answer the operator.

Its children inherit the filter and, as uid 0 under no_new_privs, at most its permitted capabilities; so both hold what
a child needs until it has confined itself. The monitor's own effective set is smaller. Sockets for IKE and ESP, the TUN
device and the directories are made before.

An unlisted call fails with ENOSYS instead of ending the process: interpreters start here, and C libraries probe for
newer calls. What only an intruder would ask for ends it.
"""

import errno
import socket
from collections.abc import Callable

import prctl

from privsep.config.model import Layer
from privsep.sandbox.confine import Confinement, Grant
from privsep.sandbox.namespaces import CLONE_NEWNET
from privsep.sandbox.policy import ASKING
from privsep.sandbox.seccomp import Rule, allow, equals, fail, kill, without

_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. (NEWTIME is a signal number to clone.)"""

EFFECTIVE = frozenset(
    {
        prctl.CAP_NET_ADMIN,  # XFRM, addresses and routes
        prctl.CAP_KILL,  # end a child, which is another user by then
    }
)

_FOR_CHILDREN = frozenset(
    {
        prctl.CAP_SETUID,  # they become their own user
        prctl.CAP_SETGID,  # and group, and drop the supplementary ones
        prctl.CAP_SETPCAP,  # they empty their bounding set and lock their securebits
        prctl.CAP_SYS_CHROOT,  # they enter their empty root
    }
)

_FOR_LAYERS = {
    Layer.NETNS: prctl.CAP_SYS_ADMIN,  # they leave the network; the filter admits only that use of unshare
    Layer.MLOCK: prctl.CAP_IPC_LOCK,  # keyd and ESP lock their memory
}

_PRCTL = (
    1,  # PR_SET_PDEATHSIG: children end with the monitor
    3,  # PR_GET_DUMPABLE: confinement, read back
    4,  # PR_SET_DUMPABLE: confinement
    15,  # PR_SET_NAME: confinement; libzmq names its threads
    21,  # PR_GET_SECCOMP: the read-back of the filter
    22,  # PR_SET_SECCOMP: libseccomp probes for it
    23,  # PR_CAPBSET_READ: confinement
    24,  # PR_CAPBSET_DROP: confinement
    27,  # PR_GET_SECUREBITS: confinement, read back
    28,  # PR_SET_SECUREBITS: confinement
    38,  # PR_SET_NO_NEW_PRIVS: confinement; libseccomp repeats it
    39,  # PR_GET_NO_NEW_PRIVS: libseccomp
)


def _each(verdict: Callable[[str], Rule], names: str) -> tuple[Rule, ...]:
    """One rule for every call."""
    return tuple(map(verdict, names.split()))


_INTERPRETER = _each(
    allow,
    "brk mmap mprotect munmap mremap madvise "  # memory; PROT_EXEC too, for shared libraries
    "futex set_robust_list set_tid_address rseq arch_prctl membarrier "  # threads and their start
    "clock_gettime clock_getres gettimeofday clock_nanosleep nanosleep time times "  # time
    "getrandom getpid getppid gettid getpgrp getpgid getsid uname sysinfo "  # who and where am I
    "getuid geteuid getgid getegid getresuid getresgid getgroups capget "  # and what may I do
    "sched_getparam sched_getscheduler sched_setscheduler "  # libzmq sets its threads' default policy anew
    "sched_getaffinity sched_yield getrlimit prlimit64 setrlimit getrusage "  # resources; only ever lowered
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait sigaltstack restart_syscall "  # signals
    "exit exit_group",  # the end
)

_FILES = _each(
    allow,
    "open openat stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd "  # find
    "read write readv writev pread64 pwrite64 lseek getdents64 fadvise64 close close_range "  # read and write
    "fcntl ioctl dup dup2 dup3 pipe pipe2 memfd_create "  # descriptors; the sealed configuration for children
    "unlink unlinkat rename mkdir chmod fchmod umask chdir fchdir fstatfs statfs ftruncate flock",  # keep
)

_EVENTS = _each(
    allow,
    "epoll_create1 epoll_ctl epoll_wait epoll_pwait poll ppoll select pselect6 "  # loops
    "eventfd2 signalfd4 timerfd_create timerfd_settime",  # what wakes them
)

_SOCKETS = _each(
    allow,
    "bind listen accept accept4 connect shutdown getsockname getpeername getsockopt setsockopt "  # control socket, zmq
    "sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg",  # netlink, channels
)

_PROCESSES = _each(
    allow,
    "vfork fork execve wait4 waitid setsid "  # start and reap children
    "kill tgkill pidfd_open pidfd_send_signal",  # end them
)

_CONFINEMENT = _each(
    allow,
    "capset setgroups setuid setgid setresuid setresgid chroot mlockall seccomp "  # become_user, lock_down
    "landlock_create_ruleset landlock_add_rule landlock_restrict_self",  # the same
)

_NEVER = _each(
    kill,
    "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise "  # other processes' memory and files
    "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register "  # rich kernel interfaces
    "mount umount2 pivot_root setns fsopen fsmount open_tree move_mount mount_setattr open_by_handle_at "  # mounts
    "init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff "  # the kernel itself
    "add_key request_key keyctl "  # keyrings
    "execveat personality iopl ioperm modify_ldt "  # code from nowhere, other ABIs
    "settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname acct quotactl syslog mknod mknodat",
)

SYSCALLS: tuple[Rule, ...] = (
    *_INTERPRETER,
    *_FILES,
    *_EVENTS,
    *_SOCKETS,
    *_PROCESSES,
    *_CONFINEMENT,
    *_NEVER,
    *(allow("prctl", equals(0, option)) for option in _PRCTL),
    allow("clone", without(0, _NEW_NAMESPACES)),  # threads and posix_spawn; clone3 hides its flags and fails
    allow("unshare", equals(0, CLONE_NEWNET)),  # children leave the network
    allow("socket", equals(0, socket.AF_UNIX)),  # keyd's and the worker's end of their channel
    allow("socket", equals(0, socket.AF_NETLINK)),  # XFRM, addresses, routes
    *ASKING,  # the resolver's
    allow("socketpair", equals(0, socket.AF_UNIX)),  # the channels of the next epoch
)


def confinement(uid: int, gid: int, root: str, absent: frozenset[Layer]) -> Confinement:
    """The monitor's; it stays root (`uid` and `gid` 0) and sees the file system (`root` "/")."""
    return Confinement(
        name="ike-monitor",
        uid=uid,
        gid=gid,
        root=None if root == "/" else root,
        layers=frozenset(),
        grant=Grant.NOTHING,
        permitted=EFFECTIVE | _FOR_CHILDREN | {_FOR_LAYERS[layer] for layer in _FOR_LAYERS.keys() - absent},
        effective=EFFECTIVE,
        rlimits={},
        syscalls=SYSCALLS,
        otherwise=fail(errno.ENOSYS),
    )
