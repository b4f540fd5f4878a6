"""`audit` of running daemons: it has nothing to say until one fact is weaker, made so from outside or by a fault in the
code of the sandbox; then it names that fact.
"""

import json
import sys

import pytest
from lab import run, wait_for
from startup import Interpreter

from privsep.cli import audit, main

pytestmark = pytest.mark.root

DONE, FAILED = 0, 1
IKE, ESP = "aes256-sha256-modp2048", "aes256gcm16-modp2048"
CHILDREN = {"worker", "keyd", "userspace"}
ALL = {"monitor", *CHILDREN}


@pytest.fixture
def daemon(ours):
    ours.start(IKE, ESP)
    assert set(ours.processes()) == ALL
    assert ours.cli("audit").returncode == DONE
    return ours


@pytest.fixture
def weaker(ours, monkeypatch, capsys):
    """What the command names at once, as process and fact; its exit code has to agree."""
    monkeypatch.setattr(audit, "SETTLE_SECONDS", -1.0)

    def look() -> set[tuple[str, str]]:
        code = main(["audit", "--json", "--run-dir", str(ours.run_dir)])
        processes = json.loads(capsys.readouterr().out)["processes"]
        found = {(each["name"], fact["what"]) for each in processes for fact in each["weaker"]}
        assert code == (FAILED if found else DONE)
        return found

    return look


IN_WORKER = "if 'worker' in sys.orig_argv: "
IN_USERSPACE = "if 'monitor.userspace' in sys.orig_argv: "
LIMITS = {f"{name} limit" for name in ("core", "nofile", "nproc", "fsize", "msgqueue", "as")}
FAULTS = {
    "nothing": ("", set()),
    "no limits": (
        "from privsep.sandbox import rlimits; rlimits.apply = lambda limits: None",
        {("monitor", "core limit"), ("worker", "memlock limit")} | {(who, what) for who in CHILDREN for what in LIMITS},
    ),
    "dumpable": (
        "import prctl; prctl.set_dumpable = lambda _, real=prctl.set_dumpable: real(1); prctl.get_dumpable = lambda: 0",
        {(name, "dumpable") for name in ALL},
    ),
    "no filter of its own": (
        IN_WORKER + "from privsep.sandbox import seccomp; seccomp.load = lambda syscalls: None",
        {("worker", "seccomp filters")},
    ),
    "a directory left open": (
        IN_WORKER + "held = os.open('/', os.O_RDONLY); os.dup2(held, 40); os.close(held)",
        {("worker", "descriptor 40")},
    ),
    "a uid for two": (
        # keyd's number is one below
        IN_USERSPACE + "from privsep.sandbox import confine, identity; confine._verify = lambda *_: None; "
        "identity.become = lambda u, g: (os.setgroups([]), os.setresgid(g, g, g), os.setresuid(u - 1, u - 1, u - 1))",
        {("userspace", "uid"), ("userspace", "uid shared with keyd"), ("keyd", "uid shared with userspace")},
    ),
    "a library that reads what peers send": (
        "if 'monitor' in sys.orig_argv: import zmq",
        {("monitor", "library zmq")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_sandbox_is_named(ours, weaker, monkeypatch, fault):
    code, named = FAULTS[fault]
    interpreter = Interpreter(ours.site.directory)
    interpreter.run_first(f"import os, sys\n{code}")
    monkeypatch.setattr(sys, "executable", str(interpreter.path))
    ours.start(IKE, ESP)
    # a process that still starts is weaker in more
    wait_for(lambda: weaker() == named)
    assert weaker() == named


@pytest.mark.parametrize("name", sorted(CHILDREN))
def test_a_network_that_is_no_longer_empty_is_named(daemon, weaker, name):
    inside = ("nsenter", f"--net=/proc/{daemon.processes()[name]}/ns/net", "ip", "address")
    run(*inside, "add", "127.0.0.1/8", "dev", "lo")
    assert weaker() == {(name, "empty network namespace")}
    run(*inside, "flush", "dev", "lo")
    assert weaker() == set()


def test_a_root_directory_that_is_no_longer_empty_is_named(daemon, weaker):
    way_out = daemon.run_dir / "empty/dev"
    way_out.mkdir()
    assert weaker() == {(name, "root") for name in CHILDREN}
    way_out.rmdir()
    assert weaker() == set()


def test_the_command_waits_for_what_settles_then_fails_in_words(daemon):
    (daemon.run_dir / "empty/dev").mkdir()
    done = daemon.cli("audit", check=False)
    assert done.returncode == FAILED
    assert f"keyd: root is {daemon.run_dir}/empty, designed is an empty directory\n" in done.stdout
    assert done.stdout.count("WEAKER") == len(CHILDREN)


def test_processes_that_do_not_come_back_are_missing(network, daemon):
    pids = daemon.processes()
    daemon.secrets.unlink()
    network.kill(pids["worker"])
    assert wait_for(lambda: not network.alive(pids["keyd"]))
    done = daemon.cli("audit", check=False)
    assert done.returncode == FAILED
    assert "worker is not running" in done.stdout
    # it still does its part
    assert "monitor" in daemon.processes()
