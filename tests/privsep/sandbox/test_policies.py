"""What each process keeps, word for word: a line that somebody adds or takes away in its policy is seen here."""

import errno
import signal

import prctl
import pytest

import keyd.sandbox
import monitor.sandbox
import monitor.userspace.sandbox
import worker.sandbox
from privsep.config.model import Layer
from privsep.sandbox import seccomp

pytestmark = pytest.mark.root

CHILDREN = {"worker": worker.sandbox, "keyd": keyd.sandbox, "esp": monitor.userspace.sandbox}

QUIETLY = """
open openat stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd unlink
getsockname getpeername sysinfo sigaltstack
"""
SOFT = {**dict.fromkeys(QUIETLY.split(), errno.EACCES), "ioctl": errno.ENOTTY, "lseek": errno.ESPIPE}
"""What libraries try in passing, and how it is refused."""

MONITOR_SOFT = {
    "a raw internet socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)",
    "a raw internet socket of the other family": "socket.socket(socket.AF_INET6, socket.SOCK_RAW, 255)",
    "a packet socket": "socket.socket(socket.AF_PACKET)",
    "another family's socket pair": "call(53, 2, 1, 0, 0)",
    "a thread in another namespace": "call(56, 0x7E020000, 0, 0, 0, 0)",
    "another mount namespace": "call(272, 0x00020000)",
    "a call of prctl that nobody needs": "call(157, 13, 0, 0, 0, 0)",
    "clone3": "call(435, 0, 0)",
    "changing an owner": "call(92, 0, 0, 0)",
}
MONITOR_FATAL = """
ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise bpf perf_event_open userfaultfd
io_uring_setup io_uring_enter io_uring_register mount umount2 pivot_root setns fsopen fsmount open_tree move_mount
mount_setattr open_by_handle_at init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff
add_key request_key keyctl execveat personality iopl ioperm modify_ldt settimeofday clock_settime clock_adjtime adjtimex
sethostname setdomainname acct quotactl syslog mknod mknodat
"""

LIMITS = {
    "worker": {
        "open files": 4,
        "processes": 0,
        "file size": 0,
        "msgqueue size": 0,
        "core file size": 0,
        "locked memory": 0,
        "address space": 4 << 30,
    },
    "keyd": {
        "open files": 4,
        "processes": 0,
        "file size": 0,
        "msgqueue size": 0,
        "core file size": 0,
        "address space": 1 << 30,
    },
    "esp": {
        "open files": 4,
        "processes": 0,
        "file size": 0,
        "msgqueue size": 0,
        "core file size": 0,
        "address space": 4 << 30,
    },
    "monitor": {"core file size": 0},
}
AS_MONITOR = "confine.become_user(policy('monitor'))\nconfine.lock_down(policy('monitor'))\n"


def confined(process):
    return AS_MONITOR if process == "monitor" else f"confine_as({process!r})\n"


@pytest.mark.parametrize("process", CHILDREN)
def test_what_libraries_try_in_passing_is_refused_as_they_expect(sandbox, process):
    numbers = {name: seccomp._LIB.resolve_syscall(seccomp._LIB.Arch.NATIVE, name) for name in SOFT}
    code = f"""
for name, number in {numbers!r}.items():
    ctypes.set_errno(0)
    if call(number, 2**64 - 1, 0, 0, 0, 0) == -1:
        print(name, errno.errorcode[ctypes.get_errno()])
"""
    wanted = {f"{name} {errno.errorcode[number]}" for name, number in SOFT.items()}
    assert set(sandbox.output(f"confine_as({process!r})\n{code}").splitlines()) == wanted
    assert not wanted & set(sandbox.output(code).splitlines()), "without a filter each comes back with something else"


@pytest.mark.parametrize("process", LIMITS)
def test_limits_hold_for_good(sandbox, process):
    code = "limits = os.open('/proc/self/limits', os.O_RDONLY)\n" + confined(process)
    lines = sandbox.output(code + "print(os.read(limits, 65536).decode())").splitlines()
    actual = {line[4:26].strip(): line[26:].split()[:2] for line in lines}
    for name, value in LIMITS[process].items():
        assert actual[name] == [str(value)] * 2, name


def test_layers_and_capabilities_are_these():
    for name, module in CHILDREN.items():
        for absent in (frozenset(), *map(frozenset, ((layer,) for layer in Layer))):
            policy = module.confinement(1, 1, "/empty", absent)
            layers = {Layer.NETNS, Layer.LANDLOCK} | ({Layer.MLOCK} if name != "worker" else set())
            assert policy.layers == layers - absent
            locks = Layer.MLOCK in policy.layers
            assert policy.permitted == policy.effective == ({prctl.CAP_IPC_LOCK} if locks else set())
            assert policy.otherwise == seccomp.KILL


def test_the_monitor_has_two_capabilities_and_holds_what_its_children_need_to_lose_theirs():
    children = {prctl.CAP_SETUID, prctl.CAP_SETGID, prctl.CAP_SETPCAP, prctl.CAP_SYS_CHROOT}
    for absent, layers in (
        (set(), {prctl.CAP_SYS_ADMIN, prctl.CAP_IPC_LOCK}),
        ({Layer.NETNS}, {prctl.CAP_IPC_LOCK}),
        ({Layer.MLOCK, Layer.LANDLOCK}, {prctl.CAP_SYS_ADMIN}),
    ):
        policy = monitor.sandbox.confinement(0, 0, "/", frozenset(absent))
        assert policy.effective == {prctl.CAP_NET_ADMIN, prctl.CAP_KILL}
        assert policy.permitted == policy.effective | children | layers
        assert policy.root is None
    assert monitor.sandbox.confinement(0, 0, "/empty", frozenset()).root == "/empty"


@pytest.mark.parametrize("what", MONITOR_SOFT)
def test_what_the_monitor_never_needs_fails_as_if_the_kernel_had_it_not(sandbox, what):
    code = f"""
ctypes.set_errno(0)
try:
    failed = {MONITOR_SOFT[what]}
    if failed == 0 and os.getpid() != parent:
        os._exit(0)
    print(errno.errorcode.get(ctypes.get_errno()))
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    assert sandbox.output(f"parent = os.getpid()\n{AS_MONITOR}{code}") == "ENOSYS"
    assert sandbox.output(f"parent = os.getpid()\n{code}") != "ENOSYS", "this kernel has it"


def test_what_only_an_intruder_asks_of_the_monitor_ends_it(sandbox):
    numbers = {name: seccomp._LIB.resolve_syscall(seccomp._LIB.Arch.NATIVE, name) for name in MONITOR_FATAL.split()}
    code = f"""
for name, number in {numbers!r}.items():
    if os.fork() == 0:
        call(number, 2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1)
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert min(numbers.values()) >= 0
    assert sandbox.output(AS_MONITOR + code).splitlines() == [f"{name} {-signal.SIGSYS}" for name in numbers]
