"""What a child gets, and what it does not."""

import json
import os
import resource
import signal

import pytest

from privsep.channel import pair
from privsep.spawn import spawn

# a module of the standard library that runs a statement given as an argument
RUN = ("timeit", "-n1", "-r1")

TELL = """
import ctypes, json, os, signal, sys
with open("/proc/self/environ") as file:
    environment = file.read()
fds = {}
for name in os.listdir("/proc/self/fd"):
    try:
        fds[name] = os.readlink("/proc/self/fd/" + name)
    except OSError:
        pass
with open("/proc/self/status") as file:
    masks = {line.split(":")[0]: int(line.split(":")[1], 16) for line in file if line.startswith(("SigBlk", "SigIgn"))}
told = dict(fds=fds, environment=environment, blocked=masks["SigBlk"], ignored=masks["SigIgn"], session=os.getsid(0),
            pid=os.getpid(), isolated=sys.flags.isolated, bytecode=sys.flags.dont_write_bytecode)
os.write(7, json.dumps(told).encode())
"""

PYTHON_IGNORES = (1 << signal.SIGPIPE - 1) | (1 << signal.SIGXFSZ - 1)


def run(code: str, fds: dict[int, int]):
    module, *options = RUN
    return spawn(module, args=[*options, code], fds=fds)


def finish(child) -> tuple[int, str]:
    code = child.reap()
    os.set_blocking(child.log, True)
    text = b""
    while part := os.read(child.log, 65536):
        text += part
    os.close(child.log)
    os.close(child.pidfd)
    return code, text.decode()


@pytest.fixture
def told():
    """A child's account of itself, started by a parent with a blocked and an ignored signal and a leaked descriptor."""
    ours, theirs = pair()
    leaked = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    ignored = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    os.environ["SBX_SECRET"] = "not for children"
    try:
        child = run(TELL, {7: theirs.fileno(), 9: theirs.fileno()})
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        signal.signal(signal.SIGUSR1, ignored)
        os.close(leaked)
        del os.environ["SBX_SECRET"]
    theirs.close()
    account = json.loads(ours.recv(65536))
    code, log = finish(child)
    assert code == 0, log
    account["child"] = child
    return account


def test_the_child_has_exactly_the_listed_descriptors_under_the_listed_numbers(told):
    assert set(told["fds"]) == {"0", "1", "2", "7", "9"}
    assert told["fds"]["0"] == "/dev/null"
    assert told["fds"]["1"] == told["fds"]["2"]
    assert told["fds"]["1"].startswith("pipe:")
    assert told["fds"]["7"] == told["fds"]["9"]


def test_the_child_has_no_environment_and_an_isolated_interpreter(told):
    assert told["environment"] == ""
    assert told["isolated"] == told["bytecode"] == 1


def test_the_child_leads_its_own_session_and_inherits_no_signal_state(told):
    assert told["session"] == told["pid"] == told["child"].pid
    assert told["blocked"] == 0
    # the interpreter itself ignores two
    assert told["ignored"] & (1 << signal.SIGUSR1 - 1) == 0
    assert told["ignored"] & PYTHON_IGNORES == PYTHON_IGNORES


def test_numbers_may_cross_those_of_the_parent():
    first, second = os.pipe(), os.pipe()
    low, high = sorted((first[1], second[1]))
    assert low > 2
    child = run(f"import os; os.write({low}, b'to high'); os.write({high}, b'to low')", {low: high, high: low})
    for fd in (first[1], second[1]):
        os.close(fd)
    assert finish(child)[0] == 0
    said = {write: os.read(read, 10) for read, write in (first, second)}
    assert said == {high: b"to high", low: b"to low"}
    for fd in (first[0], second[0]):
        os.close(fd)


def test_what_the_child_prints_comes_by_the_log_pipe():
    child = run("import sys; print('out'); print('err', file=sys.stderr)", {})
    code, log = finish(child)
    assert code == 0
    assert log.startswith("err\nout\n")


def test_a_child_that_talks_without_end_is_not_waited_for():
    child = run("import os\nwhile True: os.write(2, b'x' * 4096)", {})
    assert child.reap() != 0, "its write failed with EAGAIN instead of blocking"
    os.set_blocking(child.log, True)
    assert len(os.read(child.log, 1 << 20)) == 1 << 16
    os.close(child.log)
    os.close(child.pidfd)


def test_kill_and_reap():
    child = run("import time; time.sleep(30)", {})
    child.kill()
    assert finish(child)[0] == -signal.SIGKILL
    again = run("pass", {})
    again.reap()
    again.kill()


def test_a_child_number_out_of_range_is_refused():
    with pytest.raises(ValueError, match="range"):
        spawn("timeit", fds={2: 2})
    with pytest.raises(ValueError, match="range"):
        spawn("timeit", fds={4096: 2})


def test_a_failure_to_start_leaves_no_descriptor(monkeypatch):
    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("sys.executable", "/nonexistent")
    with pytest.raises(FileNotFoundError):
        run("pass", {})
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_child_sees_the_limits_of_the_parent_only():
    child = run("import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))", {})
    assert str(resource.getrlimit(resource.RLIMIT_NOFILE)) in finish(child)[1]
