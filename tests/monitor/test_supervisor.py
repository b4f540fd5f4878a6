"""The supervisor with real processes: small scripts that wait, end or crash when told to."""

import os
import signal
import subprocess
import sys

import pytest

from monitor import supervisor as supervisor_module
from monitor.supervisor import State, Supervisor, describe
from privsep.errors import OperatorError, Violation
from privsep.tasks import Future


class Process:
    """`monitor.supervisor.Running`. The script reads one line: how to end."""

    script = (
        "import os,signal,sys\n"
        "how = sys.stdin.readline().strip()\n"
        "os.kill(os.getpid(), int(how[1:])) if how.startswith('-') else sys.exit(int(how or 0))\n"
    )

    def __init__(self):
        self._popen = subprocess.Popen([sys.executable, "-I", "-S", "-c", self.script], stdin=subprocess.PIPE)
        self.pid = self._popen.pid
        self.pidfd = os.pidfd_open(self.pid)
        # reaped by the supervisor; Popen must not wait for it
        self._popen.returncode = 0

    def tell(self, how):
        self._popen.stdin.write(f"{how}\n".encode())
        self._popen.stdin.flush()

    def kill(self):
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self):
        self._popen.stdin.close()


class House:
    """Hooks and factories."""

    def __init__(self, loop, with_userspace):
        self.loop = loop
        self.happened = []
        self.logged = []
        self.made = []
        self.drained = Future()
        self.refuse = 0
        self.supervisor = Supervisor(
            loop,
            lambda level, code, **fields: self.logged.append((code, level.value, fields)),
            self,
            lambda: self._make("keyd"),
            lambda: self._make("worker"),
            (lambda: self._make("userspace")) if with_userspace else None,
        )

    def _make(self, name):
        if self.refuse and name == "worker":
            self.refuse -= 1
            raise OperatorError("no such user")
        self.happened.append(f"start {name}")
        process = Process()
        self.made.append((name, process))
        return process

    def epoch_began(self):
        self.happened.append("began")

    def epoch_ended(self):
        self.happened.append("ended")

    def drain(self):
        self.happened.append("drain")
        return self.drained

    def stopped(self):
        self.happened.append("stopped")

    def last(self, name):
        return [process for made, process in self.made if made == name][-1]

    def run_epoch(self):
        self.supervisor.start()
        self.supervisor.keyd_ready()
        return self

    def ends(self):
        return [
            (fields["process"], level, fields["how"]) for code, level, fields in self.logged if code == "process-ended"
        ]

    def restarted(self):
        """The next keyd was started and says that it is ready."""
        count = self.happened.count("start keyd")
        self.loop.until(lambda: self.happened.count("start keyd") > count)
        self.supervisor.keyd_ready()


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def make_house(loop, monkeypatch):
    monkeypatch.setattr(supervisor_module, "PAUSE_FIRST", 0.02)
    houses = []

    def make(*, with_userspace=False):
        house = House(loop, with_userspace)
        houses.append(house)
        return house

    yield make
    for house in houses:
        for _, process in house.made:
            process.close()
        if house.supervisor.state is not State.STOPPED:
            house.supervisor.stop()
            house.drained.set_result(None)
            loop.until(lambda house=house: house.supervisor.state is State.STOPPED)
        assert not [process.pid for _, process in house.made if exists(process.pid)]


@pytest.fixture
def house(make_house):
    return make_house()


def test_the_worker_starts_only_when_keyd_is_ready(house, loop):
    house.supervisor.start()
    loop.during(0.05)
    assert house.happened == ["start keyd"]
    house.supervisor.keyd_ready()
    assert house.happened == ["start keyd", "start worker", "began"]
    assert set(house.supervisor.processes()) == {"keyd", "worker"}


def test_userspace_esp_starts_before_both(make_house):
    house = make_house(with_userspace=True).run_epoch()
    assert house.happened == ["start userspace", "start keyd", "start worker", "began"]


def test_a_keyd_that_never_gets_ready_is_ended(house, loop, monkeypatch):
    monkeypatch.setattr(supervisor_module, "READY_SECONDS", 0.05)
    house.supervisor.start()
    loop.until(lambda: house.happened.count("start keyd") == 2)
    assert "keyd does not get ready" in str(house.logged)


@pytest.mark.parametrize("name", ["worker", "keyd"])
@pytest.mark.parametrize(
    ("how", "told"),
    [(3, "exit status 3"), (-signal.SIGSYS, "killed by SIGSYS"), (-signal.SIGSEGV, "killed by SIGSEGV")],
)
def test_when_either_crashes_both_end_the_log_says_how_and_a_new_pair_starts(house, loop, name, how, told):
    house.run_epoch()
    old = [process.pid for _, process in house.made]
    house.last(name).tell(how)
    house.restarted()
    assert house.happened[-2:] == ["start worker", "began"]
    assert house.happened.index("ended") > house.happened.index("began")
    other = {"worker": "keyd", "keyd": "worker"}[name]
    crashed, killed = house.ends()
    assert crashed[:2] == (name, "error")
    assert crashed[2].startswith(told)
    assert killed == (other, "info", "killed by SIGKILL")
    assert not any(map(exists, old))


def test_a_crash_that_shows_first_as_a_closed_channel_is_still_an_error(house, loop):
    house.run_epoch()
    worker = house.last("worker")
    worker.tell(-signal.SIGSYS)
    os.waitid(os.P_PIDFD, worker.pidfd, os.WEXITED | os.WNOWAIT)
    house.supervisor.end_epoch("channel to worker: the other end is gone")
    house.restarted()
    assert [end[:2] for end in house.ends() if end[2].startswith("killed by SIGSYS")] == [("worker", "error")]


def test_the_pause_doubles_up_to_its_cap_and_shrinks_after_health(house, loop, monkeypatch):
    monkeypatch.setattr(supervisor_module, "PAUSE_MOST", 0.06)
    house.run_epoch()
    for _ in range(4):
        house.supervisor.end_epoch("test")
        house.restarted()
    monkeypatch.setattr(supervisor_module, "HEALTHY_SECONDS", 0.0)
    house.supervisor.end_epoch("test")
    house.restarted()
    pauses = [fields["after_s"] for code, _, fields in house.logged if code == "restart"]
    assert pauses == [0.02, 0.04, 0.06, 0.06, 0.02]


def test_a_violation_in_a_handler_ends_the_epoch(house, loop):
    house.run_epoch()

    def handler(message, sequence):
        raise Violation("asked for the moon")

    house.supervisor.guarded(handler)(None, 1)
    assert "violation: asked for the moon" in str(house.logged)
    house.restarted()


def test_a_worker_that_cannot_be_started_is_tried_again(house, loop):
    house.refuse = 2
    house.supervisor.start()
    house.supervisor.keyd_ready()
    house.restarted()
    assert "began" not in house.happened
    house.restarted()
    assert house.happened[-1] == "began"
    assert str(house.logged).count("worker cannot be started: no such user") == 2


def test_a_keyd_that_is_ready_too_late_starts_nothing(house, loop):
    house.run_epoch()
    house.supervisor.end_epoch("test")
    house.supervisor.keyd_ready()
    assert house.happened.count("start worker") == 1


def test_a_stop_drains_then_ends_the_pair_then_userspace_esp(make_house, loop):
    house = make_house(with_userspace=True).run_epoch()
    house.supervisor.stop()
    house.supervisor.stop()
    loop.during(0.05)
    assert house.happened[-1] == "drain"
    assert all(exists(process.pid) for _, process in house.made)
    house.drained.set_result(None)
    loop.until(lambda: house.happened[-1] == "stopped")
    assert [name for name, _, _ in house.ends()][-1] == "userspace"
    assert house.happened.count("drain") == 1
    assert not house.supervisor.failed


def test_a_drain_that_hangs_is_given_up(house, loop, monkeypatch):
    monkeypatch.setattr(supervisor_module, "DRAIN_SECONDS", 0.05)
    house.run_epoch()
    house.supervisor.stop()
    loop.until(lambda: house.happened[-1] == "stopped")


def test_nothing_is_restarted_while_draining(house, loop):
    house.run_epoch()
    house.supervisor.stop()
    house.last("worker").tell(1)
    loop.until(lambda: len(house.ends()) == 2)
    loop.during(0.1)
    assert house.happened.count("start keyd") == 1
    house.drained.set_result(None)
    loop.until(lambda: house.happened[-1] == "stopped")


def test_closing_channels_while_draining_does_not_end_the_epoch_once_more(house, loop):
    house.run_epoch()
    house.supervisor.stop()
    for _ in range(3):
        house.supervisor.end_epoch("channel")
    assert [code for code, _, _ in house.logged].count("epoch-ends") == 1


def test_a_stop_during_the_pause_starts_nothing_more(house, loop, monkeypatch):
    monkeypatch.setattr(supervisor_module, "PAUSE_FIRST", 30.0)
    house = House(loop, with_userspace=False).run_epoch()
    house.supervisor.end_epoch("test")
    loop.until(lambda: house.supervisor.state is State.BACKING_OFF)
    house.supervisor.stop()
    house.drained.set_result(None)
    loop.until(lambda: house.happened[-1] == "stopped")
    assert house.happened.count("start keyd") == 1
    for _, process in house.made:
        process.close()


def test_the_end_of_userspace_esp_ends_the_daemon_as_failed(make_house, loop):
    house = make_house(with_userspace=True).run_epoch()
    house.last("userspace").tell(-signal.SIGSYS)
    loop.until(lambda: "drain" in house.happened)
    house.drained.set_result(None)
    loop.until(lambda: house.happened[-1] == "stopped")
    assert house.supervisor.failed


def test_a_userspace_esp_that_does_not_end_by_itself_is_ended_and_the_daemon_with_it(make_house, loop):
    house = make_house(with_userspace=True).run_epoch()
    house.supervisor.end_userspace()
    loop.until(lambda: "drain" in house.happened)
    house.drained.set_result(None)
    loop.until(lambda: house.happened[-1] == "stopped")
    assert house.supervisor.failed
    house.supervisor.end_userspace()
    assert house.happened[-1] == "stopped"


def test_only_its_own_children_are_killed_and_all_of_them_are_reaped(house, loop):
    bystander = Process()
    house.run_epoch()
    house.supervisor.end_epoch("test")
    house.restarted()
    assert exists(bystander.pid)
    bystander.kill()
    os.waitid(os.P_PIDFD, bystander.pidfd, os.WEXITED)
    os.close(bystander.pidfd)
    bystander.close()


def test_an_unknown_signal_is_told_by_number():
    class End:
        si_code, si_status = os.CLD_KILLED, 99

    assert describe(End()) == "killed by signal 99"
    End.si_code, End.si_status = os.CLD_DUMPED, signal.SIGSEGV
    assert describe(End()) == "killed by SIGSEGV, core dumped"
