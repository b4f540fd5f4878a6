"""A captured worker reaches for what it was not given: files, programs, sockets, other processes, executable memory.

Each attempt is made three times by the same code. As shipped, the worker's filter stops it. Without any filter, what
stands behind it stops it (another user, an empty root, an empty network, limits), where something does. With nothing
confined, it succeeds, or the kernel itself answers: the attempt is a real one.
"""

import errno
import re
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from proc import open_descriptors
from world import Killed, Plan

NO_FILTER = """
import prctl
from privsep.sandbox import confine
confine.seccomp.load = lambda compiled: None
prctl.get_seccomp = lambda: True
"""
UNFILTERED = Plan().without(monitor=NO_FILTER, worker=NO_FILTER)
BARE_MONITOR = """
entry.become_user = entry.lock_down = lambda *_: None
"""
BARE_WORKER = """
import prctl

def become_user(confinement, workplace):
    # keyd admits one uid; everything else stays root's
    os.chdir(workplace)
    os.setresgid(-1, confinement.gid, 0)
    os.setresuid(-1, confinement.uid, 0)

def lock_down(confinement):
    os.setresuid(0, 0, 0)
    os.setresgid(0, 0, 0)
    prctl.set_dumpable(1)

entry.begin, entry.become_user, entry.lock_down = lambda: None, become_user, lock_down
"""
BARE = Plan().without(monitor=BARE_MONITOR, worker=BARE_WORKER)

KILLED = "killed by SIGSYS"
DONE = "succeeded"


@dataclass(frozen=True)
class Attempt:
    """Code, and what becomes of it in each world."""

    code: str
    unfiltered: str
    """What stands behind the filter."""
    bare: str = DONE
    shipped: str = KILLED


REFUSED = "EACCES"
"""Opening: libraries try it in passing, so the filter answers instead of killing."""

FILES = {
    "find the secrets": Attempt("os.stat(secrets)", "ENOENT", shipped=REFUSED),
    "open the secrets": Attempt("os.read(os.open(secrets, os.O_RDONLY), 1)", "EMFILE", shipped=REFUSED),
    "open the configuration": Attempt("os.read(call(2, config.encode(), 0), 1)", "EMFILE", shipped=REFUSED),
    "openat the secrets": Attempt("os.read(call(257, -100, secrets.encode(), 0), 1)", "EMFILE", shipped=REFUSED),
    "openat2 the secrets": Attempt(
        "how = ctypes.create_string_buffer(24)\nos.read(call(437, -100, secrets.encode(), how, 24), 1)", "EMFILE"
    ),
    "open its own memory": Attempt("os.open('/proc/self/mem', os.O_RDWR)", "EMFILE", shipped=REFUSED),
    "open keyd's memory": Attempt("os.open(f'/proc/{keyd}/mem', os.O_RDONLY)", "EMFILE", shipped=REFUSED),
    "write a file": Attempt(
        "os.write(os.open(directory + '/planted', os.O_WRONLY | os.O_CREAT), b'x')", "EMFILE", shipped=REFUSED
    ),
    "list a directory": Attempt("os.listdir(directory)", "EMFILE", shipped=REFUSED),
}

PROGRAMS = {
    "execve": Attempt("os.execv('/bin/true', ['true'])", "ENOENT", "exit status 0"),
    "execveat": Attempt(
        "words = (ctypes.c_char_p * 2)(b'true', None)\ncall(322, -100, b'/bin/true', words, 0, 0)",
        "ENOENT",
        "exit status 0",
    ),
    "memfd_create": Attempt("os.memfd_create('program')", "EMFILE"),
    "fork": Attempt("os.fork() or os._exit(0)\nos.wait()", "EAGAIN"),
    "clone": Attempt("call(56, signal.SIGCHLD, 0, 0, 0, 0) or os._exit(0)\nos.wait()", "EAGAIN"),
    "clone3": Attempt(
        "arguments = struct.pack('<11Q', 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)\n"
        "call(435, arguments, 88) or os._exit(0)\nos.wait()",
        "EAGAIN",
    ),
    "a thread": Attempt("threading.Thread(target=int).start()", "RuntimeError: can't start new thread"),
}

SOCKETS = {
    "a socket of family INET": Attempt("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "EMFILE"),
    "a socket of family INET6": Attempt("socket.socket(socket.AF_INET6, socket.SOCK_STREAM)", "EMFILE"),
    "a raw socket": Attempt("socket.socket(socket.AF_INET, socket.SOCK_RAW, 50)", "EPERM"),
    "a socket of family UNIX": Attempt("socket.socket(socket.AF_UNIX)", "EMFILE"),
    "a socket of family NETLINK, XFRM": Attempt("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 6)", "EMFILE"),
    "a socket of family NETLINK, ROUTE": Attempt("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)", "EMFILE"),
    "a socket of family PACKET": Attempt("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "EPERM"),
    "a pair of sockets": Attempt("socket.socketpair()", "EMFILE"),
    "connect": Attempt("udp().connect((peer, 9))\nudp().connect((peer, 500))\ncall(42, fd(), bytes(16), 16)", DONE),
    "bind": Attempt("udp().bind(('0.0.0.0', 0))", "EINVAL", "EINVAL"),
    "io_uring": Attempt("call(425, 4, ctypes.create_string_buffer(120))", "ENOMEM"),
}

PROCESSES = {
    "ptrace keyd": Attempt("trace(keyd)", "EPERM"),
    "ptrace the monitor": Attempt("trace(monitor)", "EPERM"),
    "read keyd's memory": Attempt(
        "target = ctypes.create_string_buffer(16)\n"
        "ours = struct.pack('<2Q', ctypes.addressof(target), 16)\ntheirs = struct.pack('<2Q', address, 16)\n"
        "call(310, keyd, ours, 1, theirs, 1, 0)",
        "EPERM",
    ),
    "take keyd's descriptor": Attempt("call(438, call(434, keyd, 0), 3, 0)", "EMFILE"),
    "signal keyd": Attempt("os.kill(keyd, signal.SIGCONT)", "EPERM"),
    "signal the monitor": Attempt("os.kill(monitor, signal.SIGCONT)", "EPERM"),
}

SURROUNDINGS = {
    "a user namespace": Attempt("call(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0) or os._exit(0)\nos.wait()", "EPERM"),
    "a network namespace": Attempt("call(272, 0x40000000)", "EPERM"),
    "enter a namespace": Attempt("call(308, fd(), 0)", "EINVAL", "EINVAL"),
    "mount": Attempt("call(165, b'none', directory.encode(), b'tmpfs', 0, 0)", "ENOENT"),
    "chroot": Attempt("call(161, b'/')", "EPERM"),
}

MEMORY = {
    "executable memory": Attempt("mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)", DONE),
    "executable memory, high bits set": Attempt("call(9, 0, 4096, 5 | 1 << 32, 0x22, 2**64 - 1, 0)", DONE),
    "make memory executable": Attempt("call(10, page(), 4096, 5)", DONE),
    "make memory executable, high bits set": Attempt("call(10, page(), 4096, 5 | 1 << 32)", "EINVAL", "EINVAL"),
    "a system call of x32": Attempt("call(0x40000000 | 39)", "ENOSYS", "ENOSYS"),
    "a system call of i386": Attempt("result = DONE if gadget(20) == os.getpid() else 'no pid'", DONE),
}

OPTIONS = {
    "let UDP take ESP": Attempt("udp().setsockopt(17, 100, 2)\nudp().setsockopt(17, 100, 0)", DONE),
    "a policy of its own": Attempt("udp().setsockopt(socket.IPPROTO_IP, 17, bytes(8))", "EPERM", "EINVAL"),
    "a mark of its own": Attempt("udp().setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)", "EPERM"),
    "share its port": Attempt("udp().setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)", DONE),
}


def out_of_band() -> str:
    """What this kernel says to an octet out of band on a unix stream: it may lack CONFIG_AF_UNIX_OOB."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            ours.send(b"x", socket.MSG_OOB)
        except OSError as error:
            return errno.errorcode[error.errno]
    return DONE


CHANNELS = {
    "an octet out of band to keyd": Attempt(
        "call(44, stream, b'x', 1, socket.MSG_OOB, 0, 0)", out_of_band(), out_of_band()
    ),
    "a descriptor for the monitor": Attempt(
        "number = 2**41\n"
        "frame = install.FROM_WORKER.encode(install.Remove(spi_in=4711), number)\n"
        "rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack('i', 0))]\n"
        "me.shell._monitor._sock.sendmsg([frame], rights)\nme.wait(number, me._turn)",
        DONE,
    ),
    "a descriptor from keyd": Attempt("call(47, stream, ctypes.create_string_buffer(56), 0)", "EAGAIN", "EAGAIN"),
    "a look at what keyd has sent": Attempt(
        "call(45, stream, ctypes.create_string_buffer(9), 9, socket.MSG_PEEK, 0, 0)", "EAGAIN", "EAGAIN"
    ),
}

ATTEMPTS = FILES | PROGRAMS | SOCKETS | PROCESSES | SURROUNDINGS | MEMORY | OPTIONS | CHANNELS

ANYWHERE = """
DONE = "succeeded"

def trace(pid):
    call(101, 16, pid, 0, 0)
    # let it go on, or the whole daemon stands still
    os.waitpid(pid, 1 << 30)
    call(101, 17, pid, 0, 0)

def page():
    global kept
    kept = mmap.mmap(-1, 4096)
    return ctypes.addressof(ctypes.c_char.from_buffer(kept))
"""
"""What the attempts call, in whichever process."""
PREPARED = (
    ANYWHERE
    + """

def udp():
    sockets = me.shell._sockets
    return next(iter([*sockets._by_local.values(), *sockets._wildcards.values()]))

def fd():
    return udp().fileno()

"""
)


HIGHEST_INHERITED = 8
"""Of the worker's descriptors: the monitor's channel, and UDP 500 and 4500 of both IP versions."""


def facts(world) -> dict[str, object]:
    """What an attacker may know: names of files, numbers of processes, an address in keyd that is mapped."""
    keyd = world.pid("keyd")
    heap = next(line for line in Path(f"/proc/{keyd}/maps").read_text().splitlines() if "[heap]" in line)
    planted = world.victim.site.directory / "place"
    planted.mkdir(exist_ok=True)
    return {
        "keyd": keyd,
        "monitor": world.pid("monitor"),
        "address": int(heap.split("-")[0], 16),
        "secrets": str(world.victim.secrets),
        "config": str(world.victim.config),
        "directory": str(planted),
        "peer": world.honest.site.outer,
        "stream": min(
            number
            for number, target in open_descriptors(world.pid("worker")).items()
            if target.startswith("socket:") and number > HIGHEST_INHERITED
        ),
    }


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_captured_worker_cannot(worlds, record, name):
    attempt = ATTEMPTS[name]
    outcomes = {}
    for label, plan in (("shipped", Plan()), ("unfiltered", UNFILTERED), ("bare", BARE)):
        world = worlds(plan)
        mark = world.mark()
        outcomes[label] = outcome = world.attempt(PREPARED + attempt.code, **facts(world))
        if outcome == KILLED:
            assert world.logged(mark, rf'^error process-ended process=worker pid=\d+ how="{KILLED}"$')
        if label != "bare":
            assert world.bystander_works()
    assert outcomes == {"shipped": attempt.shipped, "unfiltered": attempt.unfiltered, "bare": attempt.bare}
    behind = "" if attempt.unfiltered == DONE else f", behind it {attempt.unfiltered}"
    record(f"system call filter ({attempt.shipped}){behind}", f"unconfined: {attempt.bare}")


IN_ZEROMQS_THREAD = """
# ZeroMQ's thread has a message's octets freed by a function of the sender's choice, once they are on the wire
frame = ops.REQUESTS.encode(ops.Drop(handle=bytes(16)), 2**41)
octets = ctypes.create_string_buffer(frame, len(frame))
message, free = ctypes.create_string_buffer(64), ctypes.cast(libc.umask, ctypes.c_void_p)
libzmq.zmq_msg_init_data(message, octets, ctypes.c_size_t(len(frame)), free, None)
libzmq.zmq_msg_send(message, ctypes.c_void_p(me.shell._keyd._sock.underlying), 1)
result = any(libc.umask(0) == ctypes.addressof(octets) & 0o777 or time.sleep(0.01) for _ in range(1000))
"""


def test_a_forbidden_call_from_zeromqs_thread_ends_the_whole_process_at_once(worlds, record):
    shipped = worlds(Plan())
    with pytest.raises(Killed) as ended:
        shipped.attack(IN_ZEROMQS_THREAD)
    assert ended.value.how == KILLED
    # the process would hang if its thread alone had been killed with the interpreter's lock
    assert ended.value.seconds < 0.5
    shipped.recover()
    assert shipped.bystander_works()
    assert worlds(UNFILTERED).attack(IN_ZEROMQS_THREAD) is True
    record("system call filter on every thread (TSYNC), for the whole process", "unfiltered: the call takes effect")


def kinds(pid: int) -> "Counter[str]":
    """How many descriptors of each kind a process has, as the kernel names them."""
    return Counter(re.sub(r":\[(\d+)?(\w*)\]?", r" \2", target).strip() for target in open_descriptors(pid).values())


LEFT_OPEN = """
import os
import fcntl
# above the numbers that children use
before, secrets = os.posix_spawn, fcntl.fcntl(os.open({secrets!r}, os.O_RDONLY), fcntl.F_DUPFD, 900)

def posix_spawn(path, argv, env, *, file_actions, **more):
    actions = [action for action in file_actions if action[0] != os.POSIX_SPAWN_CLOSE]
    actions.append((os.POSIX_SPAWN_DUP2, secrets, 77))
    return before(path, argv, {{"HOME": "/root"}}, file_actions=actions, **more)

os.posix_spawn = posix_spawn
"""


def test_it_inherits_exactly_the_listed_descriptors_and_an_empty_environment(worlds, record):
    world = worlds(Plan())
    pid = world.pid("worker")
    assert kinds(pid) == {
        "/dev/null": 1,  # standard input
        "pipe": 2,  # standard output and error: the log
        "socket": 6,  # the monitor, UDP 500 and 4500 of both IP versions, keyd
        "anon_inode eventpoll": 3,  # our loop, ZeroMQ's two threads
        "anon_inode eventfd": 6,  # ZeroMQ's mailboxes
    }
    inherited = {number for number in open_descriptors(pid) if number <= 3 or number in range(5, 9)}
    assert inherited == {0, 1, 2, 3, 5, 6, 7, 8}
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    assert world.attack("result = [name for name in os.environ if name != 'LC_CTYPE']") == []

    careless = worlds(Plan().without(monitor=LEFT_OPEN.format(secrets=str(world.victim.secrets))))
    pid = careless.pid("worker")
    assert open_descriptors(pid)[77] == str(world.victim.secrets)
    assert Path(f"/proc/{pid}/environ").read_bytes() == b"HOME=/root\0"
    assert careless.attack("result = 'secret' in os.read(77, 99).decode()") is True
    record("fork and exec with listed descriptors", "a careless start: the secrets are read from what was left open")
