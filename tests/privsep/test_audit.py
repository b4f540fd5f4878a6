"""The audit against live processes, started as the daemon starts its own: the designed one passes, and each fact of
the design that is weakened, alone, is named.

A stand-in for each kind of process is isolated, confined and holds sockets as the real one does; then it waits.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from namespace import own_network
from startup import Interpreter

from privsep import procfs, spawn
from privsep.audit import Kind, judge
from privsep.channel import pair
from privsep.config.model import Layer, Users
from privsep.procfs import AuditError, inspect
from privsep.sandbox import status

pytestmark = pytest.mark.root

USERS = Users(worker=(64721, 64721), keyd=(64722, 64722), userspace=(64723, 64723))
MODULES = {Kind.MONITOR: "monitor", Kind.WORKER: "worker", Kind.KEYD: "keyd", Kind.USERSPACE: "monitor.userspace"}
ARGUMENTS = {
    Kind.MONITOR: "--config gateway.toml --secrets secrets.toml --run-dir /run/x",
    Kind.WORKER: "--channel 3 --config-fd 4 --config gateway.toml --workplace /w --root /run/x --udp 5 6",
    Kind.KEYD: "--channel 3 --config-fd 4 --config gateway.toml --secrets secrets.toml --workplace /w --root /run/x",
    Kind.USERSPACE: "--channel 3 --tun 4 --uid 1 --gid 1 --root /run/x --udp 5 --raw 6",
}
CHILDREN = (Kind.WORKER, Kind.KEYD, Kind.USERSPACE)

CODE = """
import dataclasses, importlib, os, resource, socket, threading
import prctl
from privsep.config.model import Layer
from privsep.sandbox import capabilities, confine, identity, memory, namespaces, seccomp, status, system
make = importlib.import_module(MODULE + ".sandbox").confinement
confined = make(USER, USER, ROOT, frozenset(map(Layer, ABSENT)))

def keep(field, *capabilities):
    global confined
    confined = dataclasses.replace(confined, **{{field: getattr(confined, field) | set(capabilities)}})

def limit(name, value):
    global confined
    number = getattr(resource, "RLIMIT_" + name)
    confined = dataclasses.replace(confined, rlimits={{**confined.rlimits, number: value}})

def become(*uids, groups=(), gids=(USER,) * 3):
    identity.become = lambda *_: (os.setgroups(groups), os.setresgid(*gids), os.setresuid(*uids))
    skip(identity, "refuse_return")

def skip(module, step, answer=None):
    setattr(module, step, lambda *_: answer)
    confine._verify = lambda *_: None  # it would end the process

def idle(number):
    for _ in range(number):
        threading.Thread(target=threading.Event().wait, daemon=True).start()

def opened(*kind, bind=None):
    held = socket.socket(*kind)
    if bind is not None:
        held.bind(bind)
    return held.detach()

{before}
if MODULE != "monitor":
    confine.begin()
confine.become_user(confined)
{between}
confine.lock_down(confined)
os.write(3, b"ready")
os.read(3, 1)
os._exit(0)
"""


class Starter:
    """Starts stand-ins, and ends them in the end."""

    def __init__(self, directory: Path, processes: contextlib.ExitStack) -> None:
        self._processes = processes
        self._root = directory / "empty"
        self._root.mkdir(mode=0o555)
        self._interpreter = Interpreter(directory)

    def start(self, kind: Kind, *, before="", between="", absent=(), sockets=(), user=None, spawned=None) -> int:
        """Its pid, once it is confined. `spawned` is posix_spawn(3), changed."""
        monitor = kind is Kind.MONITOR
        user = user if user is not None else 0 if monitor else getattr(USERS, kind.value)[0]
        names = {"MODULE": MODULES[kind], "USER": user, "ROOT": "/" if monitor else str(self._root), "ABSENT": absent}
        header = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        self._interpreter.run_first(header + CODE.format(before=before, between=between))
        ours, theirs = pair()
        fds = {3: theirs.fileno()} | {number: each.fileno() for number, each in enumerate(sockets, 5)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", str(self._interpreter.path))
            if spawned is not None:
                patch.setattr(os, "posix_spawn", functools.partial(spawned, os.posix_spawn))
            child = spawn.spawn(MODULES[kind], args=ARGUMENTS[kind].split(), fds=fds)
        theirs.close()
        for end in (lambda: os.close(child.log), lambda: os.close(child.pidfd), child.reap, ours.close):
            self._processes.callback(end)
        ours.settimeout(30)
        said = ours.recv(100)
        assert said == b"ready", os.read(child.log, 1 << 16).decode()
        return child.pid

    def facts(self, kind: Kind, **changes):
        return inspect(self.start(kind, **changes), os.getpid())


@pytest.fixture
def stand_in(tmp_path):
    with own_network(), contextlib.ExitStack() as processes:
        yield Starter(tmp_path, processes)


@pytest.fixture
def bound():
    """Makes sockets to be inherited: UDP by port, raw ones by protocol."""
    with contextlib.ExitStack() as opened:

        def make(udp=(), raw=()) -> list[socket.socket]:
            wanted = [(socket.SOCK_DGRAM, 0, port) for port in udp] + [
                (socket.SOCK_RAW, protocol, 0) for protocol in raw
            ]
            sockets = []
            for kind, protocol, port in wanted:
                sockets.append(opened.enter_context(socket.socket(socket.AF_INET, kind, protocol)))
                sockets[-1].bind(("127.77.0.1", port))
            return sockets

        yield make


SERVED = {Kind.WORKER: {"udp": (500, 4500)}, Kind.USERSPACE: {"udp": (4500,), "raw": (50,)}}


def beside(kind: Kind) -> dict:
    """What the tests start is their child: to it, this process is the monitor."""
    return {} if kind is Kind.MONITOR else {Kind.MONITOR: inspect(os.getpid(), os.getpid())}


def weak(kind: Kind, facts, *, absent=frozenset(), others=None, users=USERS) -> set[str]:
    return {each.what for each in judge(kind, facts, users, absent, beside(kind) if others is None else others)}


@pytest.mark.parametrize("kind", Kind)
def test_a_process_as_designed_has_no_weakness(stand_in, bound, kind):
    facts = stand_in.facts(kind, sockets=bound(**SERVED.get(kind, {})))
    assert judge(kind, facts, USERS, frozenset(), beside(kind)) == ()


def test_facts_and_findings_go_into_json(stand_in):
    facts = stand_in.facts(Kind.WORKER)
    findings = judge(Kind.KEYD, facts, USERS, frozenset(), {})
    assert findings
    assert '"landlock"' in json.dumps([dataclasses.asdict(facts), *map(dataclasses.asdict, findings)])


def test_an_unconfined_process_is_weak_in_everything(stand_in):
    nothing = "for step in ('begin', 'become_user', 'lock_down'): skip(confine, step)"
    assert weak(Kind.KEYD, stand_in.facts(Kind.KEYD, before=nothing)) >= {
        "uid", "gid", "uid shared with monitor", "no_new_privs", "seccomp mode", "seccomp filters",
        "permitted capabilities", "effective capabilities", "bounding capabilities", "dumpable", "root",
        "Landlock (reported)", "empty network namespace", "locked memory, KB",
        "nofile limit", "nproc limit", "fsize limit", "msgqueue limit", "as limit",
    }  # fmt: skip


UNFILTERED = "skip(seccomp, 'load'); skip(prctl, 'get_seccomp', True)"
CORE = "memory.hide = lambda: prctl.set_dumpable(0); resource.setrlimit(resource.RLIMIT_CORE, (1, 1))"
LIMITS = {"NOFILE": 5, "NPROC": 1, "FSIZE": 1, "MSGQUEUE": 1, "AS": 8 << 30}
ROOTS = {
    "another": "identity.enter_root = lambda path, outside: os.chdir('/')",
    "left open": "identity.enter_root = lambda path, outside: (os.chdir('/'), os.chroot(path))",
}
IN_TURN = [
    # what is found, in whom, and what was done before, or else between, the two halves of the confinement
    ("uid", CHILDREN, "become(USER, USER, USER + 9)", ""),
    ("uid + uid shared with monitor", CHILDREN, "become(USER, USER, 0)", ""),
    ("gid", CHILDREN, "become(USER, USER, USER, gids=(USER, USER, 0))", ""),
    ("supplementary groups", CHILDREN, "become(USER, USER, USER, groups=[4])", ""),
    ("permitted capabilities + bounding capabilities", Kind, "keep('permitted', prctl.CAP_NET_RAW)", ""),
    ("effective capabilities", [Kind.MONITOR], "keep('effective', prctl.CAP_SYS_ADMIN)", ""),
    ("bounding capabilities", Kind, "skip(capabilities, 'limit_bounding')", ""),
    ("inheritable capabilities", [Kind.KEYD, Kind.USERSPACE], "", "prctl.cap_inheritable.ipc_lock = True"),
    (
        "inheritable capabilities + ambient capabilities", [Kind.MONITOR], "",
        # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE
        "prctl.cap_inheritable.kill = True; system.call('prctl', 47, 2, prctl.CAP_KILL, 0, 0)",
    ),
    # alone it cannot be: loading a filter sets it, and Landlock needs it
    ("no_new_privs + seccomp mode + seccomp filters", CHILDREN, f"skip(prctl, 'set_no_new_privs'); {UNFILTERED}; "
     "confine.landlock.restrict = lambda **_: 1", ""),
    ("seccomp mode + seccomp filters", CHILDREN, UNFILTERED, ""),
    ("seccomp mode", [Kind.MONITOR], UNFILTERED, ""),
    ("dumpable", Kind, "", "prctl.set_dumpable(1)"),
    ("core limit", [Kind.KEYD], CORE, ""),
    ("core limit", [Kind.MONITOR], f"confined = dataclasses.replace(confined, rlimits={{}}); {CORE}", ""),
    *((f"{name.lower()} limit", CHILDREN, f"limit({name!r}, {value})", "") for name, value in LIMITS.items()),
    ("memlock limit", [Kind.WORKER], "limit('MEMLOCK', 1)", ""),
    ("locked memory, KB", [Kind.KEYD, Kind.USERSPACE], "skip(memory, 'lock')", ""),
    *(("root", CHILDREN, f"skip(identity, 'leave_workplace'); {entered}", "") for entered in ROOTS.values()),
    ("threads", [Kind.MONITOR, Kind.USERSPACE], "", "idle(1)"),
    ("threads", [Kind.WORKER, Kind.KEYD], "", "idle(3)"),
    ("library zmq", [Kind.MONITOR, Kind.USERSPACE], "import zmq", ""),
    ("library cryptography", [Kind.MONITOR, Kind.WORKER], "import cryptography.hazmat.backends.openssl.backend", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "kind", "before", "between"),
    [
        pytest.param(names, kind, before, between, id=f"{names}: {kind.value}")
        for names, kinds, before, between in IN_TURN
        for kind in kinds
    ],
)
def test_each_fact_that_is_weaker_is_named_alone(stand_in, names, kind, before, between):
    assert weak(kind, stand_in.facts(kind, before=before, between=between)) == set(names.split(" + "))


NAMES = {
    Layer.LANDLOCK: "Landlock (reported)",
    Layer.NETNS: "empty network namespace",
    Layer.MLOCK: "locked memory, KB",
}


@pytest.mark.parametrize("layer", Layer)
@pytest.mark.parametrize("kind", [Kind.KEYD, Kind.USERSPACE])
def test_a_layer_is_missed_unless_the_configuration_names_it(stand_in, kind, layer):
    facts = stand_in.facts(kind, absent=(layer.value,))
    assert NAMES[layer] in weak(kind, facts)
    assert weak(kind, facts, absent=frozenset({layer})) == set()


HELD = {
    "a directory": "os.open('/', os.O_RDONLY)",
    "a file": "os.open('/etc/passwd', os.O_RDONLY)",
    "a device": "os.open('/dev/zero', os.O_RDONLY)",
    "a nameless file": "os.memfd_create('x')",
    "another process": "os.pidfd_open(os.getppid())",
    "a listening TCP socket": "socket.create_server(('127.77.0.2', 0)).detach()",
    "an idle TCP socket": "opened(socket.AF_INET6, socket.SOCK_STREAM)",
    "UDP port 53": "opened(socket.AF_INET, socket.SOCK_DGRAM, bind=('127.77.0.2', 53))",
    "a UDP socket without a port": "opened(socket.AF_INET, socket.SOCK_DGRAM)",
    "a netlink socket": "opened(socket.AF_NETLINK, socket.SOCK_RAW, 6)",
    "a packet socket": "opened(socket.AF_PACKET, socket.SOCK_RAW)",
    "a raw ICMP socket": "opened(socket.AF_INET, socket.SOCK_RAW, 1)",
    "a socket to the hypervisor": "opened(socket.AF_VSOCK, socket.SOCK_STREAM)",
    "port 500 of another network":
        "(namespaces.leave_network(), opened(socket.AF_INET, socket.SOCK_DGRAM, bind=('0.0.0.0', 500)))[1]",
}  # fmt: skip


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
@pytest.mark.parametrize("kind", CHILDREN)
def test_a_descriptor_that_the_design_does_not_have_is_named(stand_in, kind, held):
    facts = stand_in.facts(kind, before=f"held = {held}; os.dup2(held, 40); os.close(held)")
    assert weak(kind, facts) == {"descriptor 40"}


@pytest.mark.parametrize(("kind", "port"), [(Kind.KEYD, 500), (Kind.KEYD, 4500), (Kind.USERSPACE, 500)])
def test_a_socket_that_belongs_to_another_process_is_named(stand_in, bound, kind, port):
    assert weak(kind, stand_in.facts(kind, sockets=bound(udp=[port]))) == {"descriptor 5"}


def test_raw_esp_is_not_the_workers(stand_in, bound):
    assert weak(Kind.WORKER, stand_in.facts(Kind.WORKER, sockets=bound(raw=[50]))) == {"descriptor 5"}


@pytest.mark.parametrize(("kind", "most"), [(Kind.WORKER, 2), (Kind.KEYD, 3), (Kind.USERSPACE, 1)])
def test_one_channel_too_many_is_counted(stand_in, kind, most):
    # one is the channel to the monitor
    more = "kept = [opened(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range({})]"
    assert weak(kind, stand_in.facts(kind, before=more.format(most - 1))) == set()
    assert weak(kind, stand_in.facts(kind, before=more.format(most))) == {"number of unix descriptors"}


SPAWNED = {
    "environment, octets": lambda real, path, words, _, **options: real(path, words, {"LD_PRELOAD": ""}, **options),
    "session": lambda real, *how, setsid, **options: real(*how, **options),
    "command line": lambda real, path, words, *how, **options: real(path, [*words, "--secret=x"], *how, **options),
    # isolation
    "command line ": lambda real, path, words, *how, **options: real(path, [words[0], *words[2:]], *how, **options),
}


@pytest.mark.parametrize("kind", CHILDREN)
@pytest.mark.parametrize("what", SPAWNED)
def test_a_child_that_is_started_otherwise_is_named(stand_in, kind, what):
    assert weak(kind, stand_in.facts(kind, spawned=SPAWNED[what])) == {what.strip()}


def test_words_of_a_command_line_go_no_further(stand_in):
    how = lambda real, path, words, *how, **options: real(path, [*words, "--psk=hunter2", "hunter2"], *how, **options)  # noqa: E731
    facts = stand_in.facts(Kind.WORKER, spawned=how)
    findings = judge(Kind.WORKER, facts, USERS, frozenset(), {})
    assert [each.what for each in findings] == ["command line"]
    assert "hunter2" not in f"{facts} {findings}"


def test_processes_that_share_a_uid_are_named(stand_in):
    keyd, worker = stand_in.facts(Kind.KEYD), stand_in.facts(Kind.WORKER)
    clash = stand_in.facts(Kind.WORKER, user=USERS.keyd[0])
    assert weak(Kind.WORKER, worker, others={Kind.KEYD: keyd}) == set()
    assert weak(Kind.WORKER, clash, others={Kind.KEYD: keyd}) == {"uid", "gid", "uid shared with keyd"}
    # even if the configuration says so
    users = dataclasses.replace(USERS, worker=USERS.keyd)
    assert weak(Kind.WORKER, clash, others={Kind.KEYD: keyd}, users=users) == {"uid shared with keyd"}


def test_two_in_one_empty_network_are_named(stand_in):
    """They could meet there, by names of the abstract kind."""
    keyd = stand_in.start(Kind.KEYD)
    same = "namespaces.leave_network = lambda: (system.call('setns', there, namespaces.CLONE_NEWNET), os.close(there))"
    facts = stand_in.facts(Kind.WORKER, before=f"there = os.pidfd_open({keyd}); {same}")
    assert facts.empty_network
    others = {Kind.KEYD: inspect(keyd, os.getpid())}
    assert weak(Kind.WORKER, facts, others=others) == {"empty network namespace"}


def test_a_process_that_the_monitor_did_not_start_is_named(stand_in):
    monitor = dataclasses.replace(stand_in.facts(Kind.MONITOR), credentials=beside(Kind.KEYD)[Kind.MONITOR].credentials)
    assert weak(Kind.KEYD, stand_in.facts(Kind.KEYD), others={Kind.MONITOR: monitor}) == {"parent"}


def test_a_child_with_only_the_filter_that_it_inherits_is_named(stand_in):
    """The mode of seccomp alone would not tell."""
    inherited = "import monitor.sandbox; confine.lock_down(monitor.sandbox.confinement(0, 0, '/', frozenset()))\n"
    monitor = {Kind.MONITOR: dataclasses.replace(stand_in.facts(Kind.MONITOR), pid=os.getpid())}
    own = stand_in.facts(Kind.USERSPACE, before=inherited)
    assert weak(Kind.USERSPACE, own, others=monitor) == set()
    none = stand_in.facts(Kind.USERSPACE, before=inherited + UNFILTERED)
    assert weak(Kind.USERSPACE, none, others=monitor) == {"seccomp filters"}


def test_a_kernel_that_does_not_count_filters_is_believed_the_mode(stand_in):
    """Linux 5.9 began to."""
    text = Path("/proc/self/status").read_text()
    assert status.parse(text).filters is not None
    assert status.parse(text.replace("Seccomp_filters", "Other")).filters is None
    facts = stand_in.facts(Kind.KEYD)
    uncounted = dataclasses.replace(facts, credentials=(dataclasses.replace(facts.credentials[0], filters=None),))
    assert weak(Kind.KEYD, uncounted) == set()


def test_a_single_thread_that_kept_more_is_found(stand_in):
    """Capabilities and filters belong to threads."""
    unseen = "idle(1); confine._read = lambda fd: SimpleNamespace(threads=1)"
    facts = stand_in.facts(Kind.WORKER, before=f"from types import SimpleNamespace; {unseen}; {UNFILTERED}")
    assert len(facts.credentials) == 2
    assert weak(Kind.WORKER, facts) >= {"bounding capabilities", "no_new_privs"}


GONE = 2**22 + 1
"""No process or thread has it: the kernel's own limit (proc(5), pid_max) is below."""


def test_a_process_that_is_gone_is_an_error():
    with pytest.raises(AuditError, match="cannot be inspected"):
        inspect(GONE, os.getpid())


def listed_first(monkeypatch, directory, name):
    """Each listing of that directory begins with a name that nothing has any more when it is read."""
    listing, names = Path.iterdir, os.listdir
    there = lambda path: str(path).endswith(f"/{directory}")  # noqa: E731
    more = lambda path: [path / name] if there(path) else []  # noqa: E731
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([*more(path), *listing(path)]))
    monkeypatch.setattr(os, "listdir", lambda path: [*([name] if there(path) else []), *names(path)])


@pytest.mark.parametrize("directory", ["task", "fd"])
def test_a_thread_that_ended_or_a_descriptor_that_was_closed_after_the_listing_is_left_out(
    stand_in, monkeypatch, directory
):
    pid = stand_in.start(Kind.KEYD)
    before = inspect(pid, os.getpid())
    listed_first(monkeypatch, directory, str(GONE))
    assert inspect(pid, os.getpid()) == before


def test_a_process_whose_threads_come_and_go_is_inspected_each_time(stand_in):
    churning = """
def churn():
    while True:
        each = threading.Thread(target=int)
        each.start()
        each.join()
threading.Thread(target=churn, daemon=True).start()
"""
    # neither limits nor a filter, which admit no thread
    pid = stand_in.start(Kind.WORKER, before="confine.lock_down = lambda _: None", between=churning)
    for _ in range(300):
        assert inspect(pid, os.getpid()).credentials


@pytest.mark.parametrize("denied", [PermissionError(errno.EACCES, "x"), PermissionError(errno.EPERM, "x")])
def test_what_is_forbidden_is_not_taken_for_gone(stand_in, monkeypatch, denied):
    pid, reading = stand_in.start(Kind.KEYD), Path.read_text

    def read_text(path, *how):
        if "/task/" in str(path):
            raise denied
        return reading(path, *how)

    monkeypatch.setattr(Path, "read_text", read_text)
    with pytest.raises(AuditError, match="cannot be inspected"):
        inspect(pid, os.getpid())


def test_a_process_that_ends_while_it_is_looked_at_is_an_error_and_not_one_without_libraries(stand_in, monkeypatch):
    pid = stand_in.start(Kind.KEYD)
    assert inspect(pid, os.getpid()).libraries
    looking = procfs._libraries

    def end_first(_):
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        # what there was is still a zombie's
        return looking((Path("/proc") / str(pid) / "maps").read_text())

    monkeypatch.setattr(procfs, "_libraries", end_first)
    with pytest.raises(AuditError, match="cannot be inspected"):
        inspect(pid, os.getpid())
