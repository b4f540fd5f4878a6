"""Landlock by itself, without the filter in front of it."""

import ctypes
import os

import pytest

from privsep.sandbox import landlock
from privsep.sandbox.errors import SandboxError

pytestmark = pytest.mark.root

TRY = """
import tempfile
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0sbx-landlock-" + str(os.getpid()))
listener.listen()
name = listener.getsockname()
parent = os.getpid()
if os.fork() != 0:
    os.wait()
    sys.exit(0)

def outcome(what):
    try:
        what()
        return "yes"
    except PermissionError:
        return "no"

prctl.set_no_new_privs(1)
{restrict}
print(
    outcome(lambda: open("/etc/passwd")),
    outcome(lambda: os.listdir("/")),
    outcome(lambda: open(WORKPLACE + "/new", "w")),
    outcome(lambda: socket.socket(socket.AF_UNIX).bind(WORKPLACE + "/keyd.sock")),
    outcome(lambda: socket.socket().bind(("127.0.0.1", 0))),
    outcome(lambda: socket.socket(socket.AF_UNIX).connect(name)),
    outcome(lambda: os.kill(parent, 0)),
    flush=True,
)
os._exit(0)
"""


@pytest.fixture
def version(sandbox) -> int:
    try:
        return landlock.abi()
    except SandboxError:
        pytest.skip("the kernel has no Landlock")


def test_control_without_it_everything_works(sandbox):
    assert sandbox.output(TRY.replace("{restrict}", "")) == "yes yes yes yes yes yes yes"


def test_it_leaves_no_file_no_port_no_abstract_socket_no_signal(sandbox, version):
    if version < 6:
        pytest.skip(f"Landlock version {version} has no scopes")
    printed = sandbox.output(TRY.replace("{restrict}", "landlock.restrict(sockets_in=None)"))
    assert printed == "no no no no no no no"


def test_keyd_may_make_its_socket_in_the_workplace_and_nothing_else(sandbox, version):
    if version < 6:
        pytest.skip(f"Landlock version {version} has no scopes")
    printed = sandbox.output(TRY.replace("{restrict}", "landlock.restrict(sockets_in=WORKPLACE)"))
    assert printed == "no no no yes no no no"


def test_threads_that_start_later_are_in_the_domain(sandbox, version):
    """Before version 8 a domain binds the calling thread only; that is why it is entered before others exist."""
    code = """
def look():
    try:
        open("/etc/passwd")
        print("read")
    except PermissionError:
        print("refused")
prctl.set_no_new_privs(1)
landlock.restrict(sockets_in=None)
thread = threading.Thread(target=look)
thread.start()
thread.join()
"""
    assert sandbox.output(code) == "refused"


def test_no_descriptor_is_left_over(sandbox, version):
    code = """
seen = os.open("/proc/self/fd", os.O_RDONLY)
before = os.listdir(seen)
prctl.set_no_new_privs(1)
landlock.restrict(sockets_in=WORKPLACE)
print(len(os.listdir(seen)) - len(before))
"""
    assert sandbox.output(code) == "0"


@pytest.mark.parametrize(
    ("version", "bits", "network", "scopes"),
    [(1, 13, 0, 0), (2, 14, 0, 0), (3, 15, 0, 0), (4, 15, 3, 0), (5, 16, 3, 0), (6, 16, 3, 3), (99, 16, 3, 3)],
)
def test_each_version_is_asked_for_all_that_it_has_and_no_more(monkeypatch, version, bits, network, scopes):
    """An older kernel refuses bits that it does not know."""
    asked = []

    def syscall(number, ruleset, *_):
        if number == 444 and ruleset is None:
            return version
        if number == 444:
            asked.append(ctypes.cast(ruleset, ctypes.POINTER(ctypes.c_uint64))[:3])
        return os.open("/dev/null", os.O_RDONLY) if number == 444 else 0

    monkeypatch.setattr("privsep.sandbox.system.syscall", syscall)
    assert landlock.restrict(sockets_in=None) == version
    assert asked == [[(1 << bits) - 1, network, scopes]]


def test_a_version_that_has_no_rights_is_refused(monkeypatch):
    monkeypatch.setattr("privsep.sandbox.system.syscall", lambda *_: 0)
    with pytest.raises(SandboxError, match="version 0"):
        landlock.restrict(sockets_in=None)
