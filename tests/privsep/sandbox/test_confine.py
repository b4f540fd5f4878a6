"""Privileges, names and layers: taken, read back, or fatal."""

import json
import os
import signal

import pytest

from privsep.sandbox import system

SHOW = """
import dataclasses, json
shown = os.open("/proc/self/status", os.O_RDONLY)
def show():
    print(json.dumps(dataclasses.asdict(status.parse(os.pread(shown, 65536, 0).decode()))))
"""

CAP_IPC_LOCK = 14

pytestmark = pytest.mark.root


def test_the_worker_keeps_nothing(sandbox):
    actual = json.loads(sandbox.output(SHOW + "os.setgroups([4, 7])\nbecome('worker', WORKPLACE)\nshow()"))
    user = json.loads(sandbox.output("print(USER)"))
    assert actual["uids"] == actual["gids"] == [user] * 4
    assert actual["groups"] == []
    for kind in ("permitted", "effective", "inheritable", "ambient", "bounding"):
        assert actual[kind] == 0, kind
    assert actual["no_new_privs"] == 1
    assert actual["name"].startswith("ike-worker:L")


@pytest.mark.parametrize("process", ["keyd", "esp"])
def test_processes_with_keys_keep_their_memory_locked_and_only_that_capability(sandbox, process):
    before, after = map(
        json.loads,
        sandbox.output(
            SHOW + f"become({process!r})\nshow()\nx = bytearray(32 << 20)\nx[::4096] = b'x' * 8192\nshow()"
        ).splitlines(),
    )
    assert before["permitted"] == before["effective"] == before["bounding"] == 1 << CAP_IPC_LOCK
    assert before["inheritable"] == before["ambient"] == 0
    assert after["locked_kb"] - before["locked_kb"] >= 32 << 10, "memory that is allocated later is locked too"


def test_control_root_with_all_capabilities_is_what_a_child_starts_as(sandbox):
    actual = json.loads(sandbox.output(SHOW + "show()"))
    assert actual["uids"] == [0] * 4
    assert actual["permitted"].bit_count() > 10
    assert actual["locked_kb"] == 0


def test_root_cannot_be_had_back_and_securebits_are_locked(sandbox):
    assert (
        sandbox.output(
            """
become("keyd")
print(prctl.get_securebits() == capabilities.SECBITS_LOCKED)
for attempt in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.chroot("."),
                lambda: capabilities.limit(frozenset({prctl.CAP_SETUID}), frozenset())):
    try:
        attempt()
        print("succeeded")
    except PermissionError:
        print("refused")
"""
        ).split()
        == ["True"] + ["refused"] * 4
    )


def test_only_relative_names_of_the_workplace_resolve_until_lockdown(sandbox):
    sandbox.workplace.joinpath("keyd.sock").touch()
    printed = sandbox.output(
        """
become("worker", WORKPLACE)
print(os.stat("keyd.sock").st_size)
print(os.path.exists("/etc"), os.path.exists(WORKPLACE))
lock("worker")
"""
    ).split()
    assert printed == ["0", "False", "False"]


def test_who_has_no_workplace_is_in_the_empty_root_at_once(sandbox):
    assert sandbox.output("become('esp')\nprint(os.stat('.').st_ino == os.stat('/').st_ino)") == "True"


def test_after_lockdown_the_working_directory_is_the_empty_root(sandbox):
    printed = sandbox.output(
        """
from privsep.sandbox import identity
become("worker", WORKPLACE)
print(os.stat(".").st_ino == os.stat("/").st_ino)
identity.leave_workplace()
print(os.stat(".").st_ino == os.stat("/").st_ino, os.path.samefile("..", "/"))
"""
    ).split()
    assert printed == ["False", "True", "True"]


def test_confinement_with_a_second_thread_running_is_refused(sandbox):
    result = sandbox.run("threading.Thread(target=time.sleep, args=(1,), daemon=True).start()\nbecome('worker')")
    assert result.returncode == 1
    assert "threads run already" in result.stderr


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        ("open(ROOT + '/file', 'w')", "is not empty"),
        ("os.rmdir(ROOT); os.mknod(ROOT, 0o444)", "only root can write"),
        ("os.chmod(ROOT, 0o777)", "only root can write"),
        ("os.chown(ROOT, USER, USER)", "only root can write"),
        ("os.rmdir(ROOT)", "No such file"),
        ("os.setresuid(USER, USER, USER)", "cannot be"),
    ],
)
def test_a_step_that_cannot_be_applied_is_fatal(sandbox, spoil, complaint):
    result = sandbox.run(f"{spoil}\nconfine_as('worker')\nprint('confined')")
    assert result.returncode == 1
    assert complaint in result.stderr
    assert result.stdout == ""


SILENT = {
    "user": (
        "worker",
        "identity.refuse_return = lambda: None\n"
        "identity.become = lambda uid, gid: (os.setgroups([]), os.setresgid(gid, gid, gid))",
    ),
    "group": (
        "worker",
        "identity.refuse_return = lambda: None\n"
        "identity.become = lambda uid, gid: (os.setgroups([]), os.setresuid(uid, uid, uid))",
    ),
    "supplementary groups": (
        "worker",
        "os.setgroups([7])\n"
        "identity.become = lambda uid, gid: (os.setresgid(gid, gid, gid), os.setresuid(uid, uid, uid))",
    ),
    "permitted capabilities": ("worker", "capabilities.limit = lambda permitted, effective: limit({10}, set())"),
    "effective capabilities": ("keyd", "capabilities.limit = lambda permitted, effective: limit(permitted, set())"),
    "bounding set": ("worker", "capabilities.limit_bounding = lambda keep, highest: None"),
    "inheritable capabilities": (
        "keyd",
        "def inherit(permitted, effective):\n"
        "    low = struct.pack('=3I', 1 << 14, 1 << 14, 1 << 14)\n"
        "    system.call('capset', struct.pack('=Ii', 0x20080522, 0), low + bytes(12))\n"
        "capabilities.limit = inherit",
    ),
    "no_new_privs": ("worker", "without = {Layer.LANDLOCK}\nprctl.set_no_new_privs = lambda value: None"),
    "locked memory": ("keyd", "memory.lock = lambda: None"),
    "securebits are not locked": ("worker", "capabilities.lock_securebits = lambda: None"),
    "root can be regained": ("worker", "identity.become = lambda uid, gid: os.setresuid(uid, uid, 0)"),
    "still dumpable": ("monitor", "prctl.set_dumpable = lambda value: 0"),
    "filter is not in force": ("worker", "seccomp.load = lambda compiled: None"),
    "the empty one": ("worker", "os.chroot = lambda path: None"),
    "outside the root directory": ("worker", "os.chdir = lambda path: None"),
    "cannot be locked down": ("worker", "identity.leave_workplace = lambda: os.stat('/nonexistent')"),
    "namespace did not change": ("worker", "system.call = lambda name, *arguments: 0"),
    "did not take effect": ("worker", "resource.setrlimit = lambda kind, limits: None"),
}


@pytest.mark.parametrize("what", SILENT)
def test_a_step_that_silently_does_not_take_effect_is_fatal(sandbox, what):
    process, spoil = SILENT[what]
    result = sandbox.run(
        f"""
import struct
from privsep.sandbox import identity
limit, without = capabilities.limit, set()
{spoil}
confined = policy({process!r}, frozenset(without))
confine.become_user(confined)
confine.lock_down(confined)
print("confined")
"""
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert what in result.stderr


def test_no_descriptor_is_left_over(sandbox):
    lowest = "lowest = os.dup(0)\nos.close(lowest)\n"
    assert sandbox.output(f"{lowest}become('worker')\nprint(os.dup(0) - lowest)") == "0"


def test_arguments_of_system_calls_are_full_registers():
    assert system._register(1 << 40).value == 1 << 40
    assert system._register(None) is None


def test_who_begins_is_hidden_before_it_has_anything_to_hide(sandbox):
    show = "print(prctl.get_dumpable(), resource.getrlimit(resource.RLIMIT_CORE)[1])"
    assert sandbox.output(f"confine.begin()\n{show}") == "False 0"


def test_a_parent_that_has_ended_already_is_noticed(sandbox):
    result = sandbox.run("confine._end_with_parent(os.getppid() + 1)\nprint('goes on')")
    assert (result.returncode, result.stdout) == (1, "")
    assert "the monitor has ended" in result.stderr


BIND = """
try:
    socket.socket(socket.AF_UNIX).bind("here.sock")
    print("bound")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize(("process", "outcome"), [("worker", "EACCES"), ("keyd", "bound")])
def test_landlock_lets_keyd_alone_make_its_socket(sandbox, process, outcome):
    """The directory is the user's own: without the domain both may."""
    assert sandbox.output(f"become({process!r}, WORKPLACE)\n{BIND}") == outcome
    without = f"confine.become_user(policy({process!r}, frozenset({{Layer.LANDLOCK}})), WORKPLACE)"
    assert (
        sandbox.output(f"try:\n    os.unlink(WORKPLACE + '/here.sock')\nexcept OSError:\n    pass\n{without}\n{BIND}")
        == "bound"
    )


NO_LAYER = {
    "netns": "c = frozenset(range(41)) - {21, 24}; capabilities.limit(c, c)",
    "mlock": "c = frozenset(range(41)) - {14, 24}; capabilities.limit(c, c)",
    "landlock": "prctl.set_no_new_privs(1); seccomp.load(seccomp.build("
    "[seccomp.refuse('landlock_create_ruleset', errno.ENOSYS)], seccomp.ALLOW))",
}


@pytest.mark.parametrize("layer", NO_LAYER)
def test_a_missing_layer_is_fatal_unless_the_configuration_names_it(sandbox, layer):
    code = f"""
{NO_LAYER[layer]}
confined = policy("keyd", frozenset({{}}))
confine.become_user(confined)
confine.lock_down(confined)
print("confined")
"""
    refused = sandbox.run(code.replace("{}", ""))
    assert refused.returncode == 1
    assert f'absent = ["{layer}"]' in refused.stderr
    accepted = code.replace("frozenset({})", f"frozenset({{Layer('{layer}')}})")
    if layer == "mlock":
        accepted = accepted.replace(" - {14, 24}", " - {24}")
    assert sandbox.output(accepted) == "confined"


@pytest.mark.parametrize("confined", ["confine_as('worker')", "confine.begin()"])
def test_a_child_ends_with_its_parent(sandbox, confined):
    """From its first step on. PR_SET_PDEATHSIG is lost when credentials change; it is set again after."""
    printed = sandbox.output(
        """
inner = os.fork()
if inner == 0:
    middle = os.getpid()
    ready, write = os.pipe()
    leaf = os.fork()
    if leaf == 0:
        CONFINED
        os.write(write, b"x")
        time.sleep(30)
    os.read(ready, 1)
    print(leaf, flush=True)
    os._exit(0)
os.waitpid(inner, 0)
""".replace("CONFINED", confined)
    )
    for _ in range(1000):
        if not _runs(int(printed)):
            return
        signal.sigtimedwait([], 0.02)
    os.kill(int(printed), signal.SIGKILL)
    pytest.fail("the child outlived its parent")


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_no_core_and_no_tracing(sandbox):
    assert sandbox.output("become('keyd')\nprint(prctl.get_dumpable(), resource.getrlimit(resource.RLIMIT_CORE))") == (
        "False (0, 0)"
    )
    assert sandbox.output("print(prctl.get_dumpable())") == "True"


def test_the_network_namespace_is_empty(sandbox):
    code = "{}\nprint([name for _, name in socket.if_nameindex()])\n"
    code += (
        "try:\n    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))\n    print('reached')\n"
    )
    code += "except OSError as error:\n    print(errno.errorcode[error.errno])"
    assert sandbox.output(code.format("")).endswith("reached")
    assert sandbox.output(code.format("become('keyd')")).endswith("ENETUNREACH")


def test_the_limits_forbid_processes_and_descriptors_even_without_a_filter(sandbox):
    printed = sandbox.output(
        """
from privsep.sandbox import rlimits
become("worker")
rlimits.apply(policy("worker").rlimits)
for attempt in (os.fork, lambda: [os.dup(0) for _ in range(5)]):
    try:
        attempt()
        print("succeeded")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    ).split()
    assert printed == ["EAGAIN", "EMFILE"]


def test_a_limit_only_ever_shrinks(sandbox):
    printed = sandbox.output(
        """
from privsep.sandbox import rlimits
for seconds in (4096, 5000, 4000):
    rlimits.apply({resource.RLIMIT_CPU: seconds})
    print(*resource.getrlimit(resource.RLIMIT_CPU))
"""
    )
    assert printed.split() == ["4096"] * 4 + ["4000"] * 2
