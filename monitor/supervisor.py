"""Starting, watching, restarting and ending the children. Knows processes, not what they do or how they are confined.

keyd and the worker are one epoch: when either ends, the other is ended too and a new pair is started, after a pause
that doubles while epochs are short. Installed SAs stay with the data plane all the while. The userspace ESP process
holds the SAs themselves, so its end is the daemon's::

    IDLE --start--> STARTING --keyd's Ready--> RUNNING
                     ^    |                       |   a child ended, or did what none may do
         BACKING_OFF-+    +-------> ENDING <------+   the pair is killed and reaped
              ^------------------------+
    any --stop--> STOPPING --drained--> FINISHING --pair reaped, then userspace ESP--> STOPPED

Processes are known by pidfd (pidfd_open(2)): a number that was reused can be neither waited for nor killed.
"""

import os
import signal
from collections.abc import Callable
from enum import Enum
from typing import Protocol, TypeVar

from monitor.waiting import run, within
from privsep.errors import OperatorError, Violation
from privsep.log import Level, Log
from privsep.loop import Loop, Timer
from privsep.tasks import Future

PAUSE_FIRST = 0.2
PAUSE_MOST = 30.0
HEALTHY_SECONDS = 60.0
"""An epoch that lived so long starts the back-off anew."""
READY_SECONDS = 60.0
"""For keyd to load its configuration and credentials; a busy machine, or an emulated one, needed more than 15."""
DRAIN_SECONDS = 10.0
"""For the clean stop: DELETE to peers, SAs and policies removed."""
USERSPACE = "userspace"

M = TypeVar("M")


class Running(Protocol):
    """A child that was started; `privsep.spawn.Child` is one."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def pidfd(self) -> int:
        """Readable once it has ended."""

    def kill(self) -> None:
        """SIGKILL by pidfd. It holds nothing that it could save."""


class State(Enum):
    """Where the supervisor stands; the module's diagram has the transitions."""

    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    BACKING_OFF = "backing off"
    STOPPING = "stopping"
    FINISHING = "finishing"
    STOPPED = "stopped"


class Hooks(Protocol):
    """What the daemon does at the supervisor's moments."""

    def epoch_began(self) -> None:
        """Both children run."""

    def epoch_ended(self) -> None:
        """The epoch is over: its channels are to be closed, though its processes may still be dying.

        Harmless when repeated, and when the epoch did not get as far as `epoch_began`.
        """

    def drain(self) -> Future[None]:
        """Stop cleanly while the children still run."""

    def stopped(self) -> None:
        """No child is left."""


class Supervisor:
    """One for the life of the daemon."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        hooks: Hooks,
        start_keyd: Callable[[], Running],
        start_worker: Callable[[], Running],
        start_userspace: Callable[[], Running] | None = None,
    ) -> None:
        self._loop = loop
        self._log = log
        self._hooks = hooks
        self._start_keyd = start_keyd
        self._start_worker = start_worker
        self._start_userspace = start_userspace
        self._children: dict[str, Running] = {}
        self._killed: set[str] = set()
        self._pause = PAUSE_FIRST
        self._began = 0.0
        self._timer: Timer | None = None
        self.state = State.IDLE
        self.failed = False
        """Whether the daemon ends for another reason than an order to."""

    def processes(self) -> dict[str, int]:
        """Name and pid of each child that runs."""
        return {name: child.pid for name, child in self._children.items()}

    def start(self) -> None:
        """The userspace ESP process, if there is one, then the first epoch."""
        if self._start_userspace is not None:
            self._watch("userspace", self._start_userspace())
        self._start_epoch()

    def _start_epoch(self) -> None:
        self.state = State.STARTING
        self._began = self._loop.now()
        self._timer = self._loop.after(READY_SECONDS, lambda: self.end_epoch("keyd does not get ready"))
        self._launch("keyd", self._start_keyd)

    def keyd_ready(self) -> None:
        """Its endpoint is bound: the worker may connect."""
        if self.state is not State.STARTING:
            return
        self._cancel_timer()
        if self._launch("worker", self._start_worker):
            self.state = State.RUNNING
            self._log(Level.NOTICE, "epoch-began", **self.processes())
            self._hooks.epoch_began()

    def _launch(self, name: str, start: Callable[[], Running]) -> bool:
        """Whether it was started; else the epoch ends."""
        try:
            child = start()
        except (OSError, OperatorError) as error:
            self.end_epoch(f"{name} cannot be started: {error}")
            return False
        self._watch(name, child)
        return True

    def guarded(self, handler: Callable[[M, int], None]) -> Callable[[M, int], None]:
        """The handler of a child's messages, with a Violation ending the epoch."""

        def handle(message: M, sequence: int) -> None:
            try:
                handler(message, sequence)
            except Violation as violation:
                self.end_epoch(f"violation: {violation}")

        return handle

    def end_epoch(self, reason: str) -> None:
        """End both children: one did what no honest one does, or its channel is gone. A new pair follows.

        Nothing when they are being ended already, as closing their channels will report.
        """
        if self.state in (State.STARTING, State.RUNNING) or (self.state is State.STOPPING and self._unkilled()):
            self._log(Level.ERROR, "epoch-ends", reason=reason)
            self._end_epoch()

    def _end_epoch(self) -> None:
        if self.state is not State.STOPPING:
            self._cancel_timer()
            self.state = State.ENDING
        self._kill(*self._pair())
        self._hooks.epoch_ended()
        self._settle()

    def end_userspace(self) -> None:
        """Its channel is gone, so nobody knows what it does: it ends, and with it the daemon."""
        if USERSPACE in self._children:
            self._kill(USERSPACE)

    def stop(self) -> None:
        """Drain, then end the pair, then the userspace ESP process, then call `stopped`."""
        if self.state not in (State.STOPPING, State.FINISHING, State.STOPPED):
            self._cancel_timer()
            self.state = State.STOPPING
            run(self._drain())

    async def _drain(self) -> None:
        try:
            await within(self._loop, DRAIN_SECONDS, self._hooks.drain())
        except TimeoutError:
            self._log(Level.WARNING, "drain-timed-out")
        self.state = State.FINISHING
        self._kill(*self._pair())
        self._hooks.epoch_ended()
        self._settle()

    def _pair(self) -> list[str]:
        return [name for name in self._children if name != USERSPACE]

    def _unkilled(self) -> list[str]:
        return [name for name in self._pair() if name not in self._killed]

    def _kill(self, *names: str) -> None:
        for name in names:
            self._killed.add(name)
            self._children[name].kill()

    def _watch(self, name: str, child: Running) -> None:
        self._children[name] = child
        self._loop.on_readable(child.pidfd, lambda: self._ended(name))

    def _ended(self, name: str) -> None:
        child = self._children.pop(name)
        self._loop.on_readable(child.pidfd, None)
        end = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        os.close(child.pidfd)
        killed = name in self._killed
        self._killed.discard(name)
        # a crash may show first as a closed channel, for which it is killed once more
        wanted = killed and (name != USERSPACE or self.state is State.FINISHING)
        level = Level.INFO if wanted and _expected(end, self.state) else Level.ERROR
        self._log(level, "process-ended", process=name, pid=child.pid, how=describe(end))
        if name == USERSPACE:
            if self.state is not State.FINISHING:
                self.failed = True
                self.stop()
        elif not killed:
            self._end_epoch()
        self._settle()

    def _settle(self) -> None:
        """The next step, once those that have to end first have ended."""
        if self._pair():
            return
        if self.state is State.ENDING:
            self._back_off()
        elif self.state is State.FINISHING and self._children:
            self._kill(USERSPACE)
        elif self.state is State.FINISHING:
            self.state = State.STOPPED
            self._hooks.stopped()

    def _back_off(self) -> None:
        if self._loop.now() - self._began >= HEALTHY_SECONDS:
            self._pause = PAUSE_FIRST
        self.state = State.BACKING_OFF
        self._log(Level.NOTICE, "restart", after_s=self._pause)
        self._timer = self._loop.after(self._pause, self._start_epoch)
        self._pause = min(2 * self._pause, PAUSE_MOST)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _expected(end: os.waitid_result | None, state: State) -> bool:
    """Whether a process that we ended ended by that; at a clean stop it may also have seen its neighbour end before."""
    if end is None:
        return False
    return end.si_status == signal.SIGKILL or (end.si_code == os.CLD_EXITED and state is State.FINISHING)


def describe(end: os.waitid_result | None) -> str:
    """How a process ended, in one phrase."""
    if end is None:
        return "unknown"
    if end.si_code == os.CLD_EXITED:
        return f"exit status {end.si_status}"
    try:
        name = signal.Signals(end.si_status).name
    except ValueError:
        name = f"signal {end.si_status}"
    return f"killed by {name}" + (", core dumped" if end.si_code == os.CLD_DUMPED else "")
