"""Landlock by itself, without the filter in front of it."""

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
