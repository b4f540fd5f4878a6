"""The resolver keeps what looking a name up takes, and nothing else; each attempt works without the confinement."""

import pytest

pytestmark = pytest.mark.root

CONFINE = """
from monitor.resolver import sandbox as resolver
it = resolver.confinement(USER, USER, frozenset())
open("/tmp/pike-resolver-test", "w").close()
os.chmod("/tmp/pike-resolver-test", 0o666)
listener = socket.create_server(("127.0.0.1", 0))
reachable = listener.getsockname()
confine.begin()
{confine}
"""
CONFINED = "confine.become_user(it)\nconfine.lock_down(it)\n"
"""As the resolver does it."""
ALONE = "os.setgid(USER)\nos.setuid(USER)\n"
"""Only another user."""

ATTEMPTS = {
    "read a file that everybody may read": ("open('/etc/passwd').read()", "EACCES"),
    "list a directory": ("os.listdir('/')", "EACCES"),
    "write to a file that everybody may write": ("os.close(os.open('/tmp/pike-resolver-test', os.O_WRONLY))", "EACCES"),
    "make a file": ("os.close(os.open('/tmp/pike-resolver-test2', os.O_CREAT | os.O_WRONLY))", "EACCES"),
    "start a program": ("os._exit(0) if os.fork() == 0 else os.wait()", "ENOSYS"),
    "signal itself": ("os.kill(os.getpid(), 0)", "ENOSYS"),
    "listen": ("socket.create_server(('127.0.0.1', 0))", "EACCES"),
    "connect to a service that is no name server": ("socket.create_connection(reachable)", "EACCES"),
    "have memory that can be executed": (
        "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)", "ENOSYS",
    ),
    "look into another process": ("os.open('/proc/1/status', os.O_RDONLY)", "EACCES"),
    "leave the namespace": ("system.call('unshare', 0x10000000)", "ENOSYS"),
}  # fmt: skip


def outcome(sandbox, confine, attempt) -> str:
    code = f"""
try:
    {attempt}
    print("done")
except OSError as error:
    print(errno.errorcode.get(error.errno, error))
"""
    return sandbox.output(CONFINE.format(confine=confine) + code)


@pytest.mark.parametrize("what", ATTEMPTS)
def test_it_cannot(sandbox, what):
    attempt, refused = ATTEMPTS[what]
    assert outcome(sandbox, CONFINED, attempt) == refused
    assert outcome(sandbox, ALONE, attempt) == "done"


def test_it_cannot_become_another_program(sandbox):
    attempt = "call(59, 0, 0, 0); raise OSError(ctypes.get_errno(), '')"
    assert outcome(sandbox, CONFINED, attempt) == "ENOSYS"
    assert outcome(sandbox, ALONE, attempt) == "EFAULT"


@pytest.mark.parametrize(
    ("family", "kind"), [("AF_INET", "SOCK_RAW"), ("AF_INET6", "SOCK_RAW"), ("AF_PACKET", "SOCK_RAW")]
)
def test_it_makes_no_raw_socket(sandbox, family, kind):
    assert outcome(sandbox, CONFINED, f"socket.socket(socket.{family}, socket.{kind}, 255)") == "ENOSYS"


def test_it_looks_names_up(sandbox):
    ask = "from monitor.resolver.ask import look_up\n"
    code = ask + CONFINE.format(confine=CONFINED) + "print(look_up('localhost', 4), look_up('no-such.invalid', 0).why)"
    first, _, second = sandbox.output(code).partition(") ")
    assert "127.0.0.1" in first
    assert second
