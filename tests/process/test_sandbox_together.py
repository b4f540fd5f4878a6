"""Confined processes at work: what each is there for still goes, under everything that is taken from it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

WORKER, KEYD = 64711, 64712

COMMON = """
import errno, os, select, signal, socket, sys, time
import zmq
from privsep.sandbox import confine
ROOT, WORKPLACE, WORKER, KEYD = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
"""

KEYD_SIDE = (
    COMMON
    + """
import keyd.sandbox
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import dh, ec, x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

MODP = dh.DHParameterNumbers(int({prime!r}, 16), 2).parameters()

def compute():
    a, b = x25519.X25519PrivateKey.generate(), x25519.X25519PrivateKey.generate()
    assert a.exchange(b.public_key()) == b.exchange(a.public_key())
    a, b = MODP.generate_private_key(), MODP.generate_private_key()
    assert a.exchange(b.public_key()) == b.exchange(a.public_key())
    a, b = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    assert a.exchange(ec.ECDH(), b.public_key()) == b.exchange(ec.ECDH(), a.public_key())
    for algorithm in (hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()):
        mac = hmac.HMAC(b"k" * 32, algorithm)
        mac.update(b"x" * 1000)
        mac.finalize()
    sealed = Cipher(algorithms.AES(b"k" * 32), modes.CBC(b"i" * 16)).encryptor().update(b"x" * 1600)
    opened = Cipher(algorithms.AES(b"k" * 32), modes.CBC(b"i" * 16)).decryptor().update(sealed)
    assert opened == b"x" * 1600
    return [bytearray(4 << 20) for _ in range(8)]

confine.begin()
confined = keyd.sandbox.confinement(KEYD, KEYD, ROOT, frozenset())
confine.become_user(confined, WORKPLACE)
os.umask(0o117)
wire = zmq.Context().socket(zmq.PAIR)
wire.linger, wire.rcvtimeo, wire.maxmsgsize = 0, 8000, 70000
wire.bind("ipc://keyd.sock")
print("bound", flush=True)
assert wire.recv() == b"hello"
os.unlink("keyd.sock")
confine.lock_down(confined)
wire.send(b"ready")
while (request := wire.recv()) != b"end":
    compute()
    wire.send(b"answer to " + request)
wire.send(b"ended")
time.sleep(0.1)
"""
)

WORKER_SIDE = (
    COMMON
    + """
import worker.sandbox
ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ours.bind(("127.0.0.1", 0))
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.bind(("127.0.0.1", 0))
at, back = ours.getsockname(), peer.getsockname()
monitor, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
for each in (ours, peer, monitor, channel):
    each.setblocking(False)

confine.begin()
confined = worker.sandbox.confinement(WORKER, WORKER, ROOT, frozenset(), [ours.fileno()])
confine.become_user(confined, WORKPLACE)
wire = zmq.Context().socket(zmq.PAIR)
wire.linger, wire.rcvtimeo = 0, 8000
wire.setsockopt(zmq.RECONNECT_IVL, -1)
wire.connect("ipc://keyd.sock")
wire.send(b"hello")
assert wire.recv() == b"ready"
poll = select.epoll()
confine.lock_down(confined)

for fd in (ours.fileno(), channel.fileno(), wire.fd):
    poll.register(fd, select.EPOLLIN)
peer.sendto(b"datagram", at)
monitor.send(b"order")
echoed = set()
while len(echoed) < 2:
    for fd, _ in poll.poll(5):
        if fd == ours.fileno() and b"datagram" not in echoed:
            data, _, _, source = ours.recvmsg(2000, 256)
            ours.sendmsg([data], [], 0, source)
            echoed.add(data)
        elif fd == channel.fileno() and b"order" not in echoed:
            echoed.add(channel.recv(2000))
assert peer.recvfrom(2000) == (b"datagram", at)
for number in range(20):
    wire.send(b"%d" % number)
answers = [wire.recv() for _ in range(20)]
wire.send(b"end")
assert wire.recv() == b"ended"
print(answers[-1].decode(), flush=True)
"""
)

# RFC 3526 section 3: 2048-bit MODP, group 14
PRIME = """
FFFFFFFF FFFFFFFF C90FDAA2 2168C234 C4C6628B 80DC1CD1 29024E08 8A67CC74 020BBEA6 3B139B22 514A0879 8E3404DD
EF9519B3 CD3A431B 302B0A6D F25F1437 4FE1356D 6D51C245 E485B576 625E7EC6 F44C42E9 A637ED6B 0BFF5CB6 F406B7ED
EE386BFB 5A899FA5 AE9F2411 7C4B1FE6 49286651 ECE45B3D C2007CB8 A163BF05 98DA4836 1C55D39A 69163FA8 FD24CF5F
83655D23 DCA3AD96 1C62F356 208552BB 9ED52907 7096966D 670C354E 4ABC9804 F1746C08 CA18217C 32905E46 2E36CE3B
E39E772C 180E8603 9B2783A2 EC07A28F B5C55DF0 6F4C52C9 DE2BCBF6 95581718 3995497C EA956AE5 15D22618 98FA0510
15728E5A 8AACAA68 FFFFFFFF FFFFFFFF
"""


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, ...]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    tmp_path.chmod(0o755)
    root, workplace = tmp_path / "empty", tmp_path / "keyd"
    root.mkdir(mode=0o555)
    workplace.mkdir()
    os.chown(workplace, KEYD, WORKER)
    workplace.chmod(0o2711)
    return str(root), str(workplace), str(WORKER), str(KEYD)


def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-I", "-B", "-W", "ignore", "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={},
    )


def test_a_confined_worker_and_a_confined_keyd_do_their_work_together(places):
    """ZeroMQ both ways, UDP and SEQPACKET on one epoll, every primitive of keyd; no accept after lockdown."""
    keyd = start(KEYD_SIDE.replace("{prime!r}", repr("".join(PRIME.split()))), *places)
    assert keyd.stdout.readline() == "bound\n", keyd.communicate()[1]
    worker = start(WORKER_SIDE, *places)
    worker_output, worker_errors = worker.communicate(timeout=20)
    _, keyd_errors = keyd.communicate(timeout=20)
    assert (worker.returncode, keyd.returncode) == (0, 0), worker_errors + keyd_errors
    assert worker_output == "answer to 19\n"


MONITOR_SIDE = """
import os, signal, socket, sys, time
import monitor.sandbox
from privsep.channel import pair
from privsep.sandbox import confine
from privsep.spawn import spawn

CHILD = '''
import os, sys
import keyd.sandbox
from privsep.sandbox import confine, status
with open("/proc/self/status") as file:
    print(status.parse(file.read()).permitted, sys.flags.isolated, flush=True)
confine.begin()
confined = keyd.sandbox.confinement({keyd}, {keyd}, {root!r}, frozenset())
confine.become_user(confined, {workplace!r})
confine.lock_down(confined)
os.write(7, b"confined")
os.read(7, 9)
{deed}
'''.replace("{root!r}", repr(sys.argv[1])).replace("{workplace!r}", repr(sys.argv[2])).replace("{keyd}", sys.argv[4])

os.chdir("/")
confined = monitor.sandbox.confinement(0, 0, "/", frozenset())
confine.become_user(confined)
confine.lock_down(confined)
for deed in ("pass", "os.memfd_create('x')", "os.kill(os.getppid(), 0)"):
    ours, theirs = pair()
    # timeit is a module of the standard library that runs a statement given as an argument
    child = spawn("timeit", args=["-n1", "-r1", CHILD.replace("{deed}", deed)], fds={7: theirs.fileno()})
    theirs.close()
    said = ours.recv(100)
    if said == b"confined":
        ours.send(b"continue")
    print(said.decode(), child.reap(), flush=True)
    os.set_blocking(child.log, True)
    print(os.read(child.log, 4000).decode().splitlines()[0], flush=True)
"""


def test_a_locked_down_monitor_restarts_children_that_confine_themselves_fully(places):
    """uid 0, no_new_privs and an inherited filter: the child gets the monitor's permitted set and no more."""
    monitor = start(MONITOR_SIDE, *places)
    output, errors = monitor.communicate(timeout=30)
    assert monitor.returncode == 0, errors
    (first, facts), (second, _), (third, _) = zip(*[iter(output.splitlines())] * 2, strict=True)
    assert first == "confined 0"
    assert second == third == f"confined {-signal.SIGSYS}"
    permitted, isolated = map(int, facts.split())
    # CAP_KILL, SETGID, SETUID, SETPCAP, NET_ADMIN, IPC_LOCK, SYS_CHROOT, SYS_ADMIN
    assert permitted == sum(1 << number for number in (5, 6, 7, 8, 12, 14, 18, 21))
    assert isolated == 1


MONITOR_ATTEMPT = """
import ctypes, os, signal, socket, sys
import monitor.sandbox
from privsep.sandbox import confine
libc = ctypes.CDLL(None, use_errno=True)
if {locked}:
    confined = monitor.sandbox.confinement(0, 0, "/", frozenset())
    confine.become_user(confined)
    confine.lock_down(confined)
{attempt}
print("done")
"""

ENDS_THE_MONITOR = {
    "ptrace": "libc.ptrace(0, 0, 0, 0)",
    "another's memory": "libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0)",
    "bpf": "libc.syscall(321, 0, 0, 0)",
    "mount": "libc.mount(0, 0, 0, 0, 0)",
    "entering a namespace": "libc.setns(0, 0)",
    "loading a module": "libc.syscall(175, 0, 0, 0)",
    "kexec": "libc.syscall(246, 0, 0, 0, 0)",
    "a keyring": "libc.syscall(250, 0, 0, 0, 0)",
    "userfaultfd": "libc.syscall(323, 0)",
    "io_uring": "libc.syscall(425, 0, 0)",
    "perf events": "libc.syscall(298, 0, 0, 0, 0, 0)",
    "a file by handle": "libc.open_by_handle_at(0, 0, 0)",
    "the x32 ABI": "libc.syscall(0x40000000 | 39)",
}

FAILS_IN_THE_MONITOR = {
    "a raw internet socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
    "a packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "a user namespace": "assert libc.unshare(0x10000000) == 0",
    "a mount namespace": "assert libc.unshare(0x20000) == 0",
    "clone into a namespace": "assert libc.syscall(56, 0x20000000 | 17, 0, 0, 0, 0) >= 0",
    "another's file": "os.chown(sys.argv[1], 1, 1)",
}

WORKS_IN_THE_MONITOR = {
    "a netlink XFRM socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 6).bind((0, 0))",
    "a unix socket": "socket.socket(socket.AF_UNIX)",
    "a socket to a name server, for the resolver, which inherits the filter": "socket.socket(type=socket.SOCK_DGRAM)",
    "reading the configuration again": "open('/etc/passwd').read(1)",
    "a late import": "import fractions",
}


def monitor_attempt(attempt: str, locked: bool, places) -> int:
    process = start(MONITOR_ATTEMPT.replace("{locked}", str(locked)).replace("{attempt}", attempt), *places)
    process.communicate(timeout=20)
    return process.returncode


@pytest.mark.parametrize("attempt", ENDS_THE_MONITOR.values(), ids=ENDS_THE_MONITOR)
def test_what_only_an_intruder_asks_for_ends_the_monitor(places, attempt):
    assert monitor_attempt(attempt, False, places) == 0, "the control comes back"
    assert monitor_attempt(attempt, True, places) == -signal.SIGSYS


@pytest.mark.parametrize("attempt", FAILS_IN_THE_MONITOR.values(), ids=FAILS_IN_THE_MONITOR)
def test_the_monitor_makes_nothing_that_it_does_not_need(places, attempt):
    assert monitor_attempt(attempt, False, places) == 0, "the control succeeds"
    assert monitor_attempt(attempt, True, places) == 1


@pytest.mark.parametrize("attempt", WORKS_IN_THE_MONITOR.values(), ids=WORKS_IN_THE_MONITOR)
def test_the_monitor_does_its_own_work(places, attempt):
    assert monitor_attempt(attempt, True, places) == 0


def test_a_killed_worker_leaves_no_core_and_ends(places, tmp_path):
    code = """
import os, sys
import worker.sandbox
from privsep.sandbox import confine
confine.begin()
confined = worker.sandbox.confinement(int(sys.argv[3]), int(sys.argv[3]), sys.argv[1], frozenset())
confine.become_user(confined)
confine.lock_down(confined)
os.abort()
"""
    process = start(code, *places)
    process.communicate(timeout=20)
    assert process.returncode in (-signal.SIGSYS, -signal.SIGABRT)
    assert not list(Path.cwd().glob("core*"))
