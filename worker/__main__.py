"""The worker's process: inherited sockets, two channels, one engine. Started by the monitor only.

It becomes nobody before it connects to keyd, and is locked down before it reads the first octet from the network.
"""

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import assert_never

from privsep import log
from privsep.channel import Channel
from privsep.config import handover
from privsep.errors import GONE
from privsep.log import Level, event
from privsep.loop import Loop, Timer
from privsep.rate import Counted
from privsep.rpc import ENDPOINT, Peer, Wire, run_in_batches
from privsep.sandbox.confine import become_user, begin, lock_down
from privsep.schema import install, keyd
from privsep.schema.install import MonitorReply, MonitorRequest, WorkerReply, WorkerRequest
from privsep.types import Endpoint
from worker import sandbox
from worker.effects import AskKeyd, AskMonitor, Send, TellMonitor
from worker.engine import Engine
from worker.intake import SERVED_AT_ONCE, Intake, Stray
from worker.sockets import Sockets

KEYD_SECONDS = 10.0
"""For the handshake with keyd, which listens already when we are started."""


def main() -> int:
    """Serve until a channel ends; the exit status is 1 when keyd is lost."""
    parser = argparse.ArgumentParser("worker")
    parser.add_argument("--channel", type=int, required=True, help="SOCK_SEQPACKET to the monitor")
    parser.add_argument("--config-fd", type=int, required=True)
    parser.add_argument("--config", required=True, help="name for messages; the content comes by --config-fd")
    parser.add_argument("--workplace", required=True, help="the directory where keyd is found")
    parser.add_argument("--root", required=True)
    parser.add_argument("--udp", type=int, nargs="+", required=True)
    arguments = parser.parse_args()

    begin()
    run_in_batches()
    gateway = handover.receive(arguments.config_fd, arguments.config)
    log.configure(*gateway.levels, most=log.FOLLOWED)
    uid, gid = gateway.users.worker
    confinement = sandbox.confinement(uid, gid, arguments.root, gateway.absent, arguments.udp)
    become_user(confinement, arguments.workplace)

    wire = Wire()
    wire.connect(ENDPOINT)
    if not wire.await_handshake(KEYD_SECONDS):
        event(Level.ERROR, "keyd-absent")
        return 1
    loop = Loop()
    shell = Shell(Engine(gateway, os.urandom, now=loop.now()), loop)
    shell.attach(wire, socket.socket(fileno=arguments.channel), tuple(arguments.udp))
    lock_down(confinement)
    loop.run()
    return shell.status


class Shell:
    """Carries what happens to the engine, and out what it wants done."""

    def __init__(self, engine: Engine, loop: Loop) -> None:
        self._engine = engine
        self._loop = loop
        self._intake = Intake(loop.now())
        self._dropped = Counted(0, loop.now, loop.after, _tell_overload)
        self._timer: Timer | None = None
        """For the engine."""
        self._strangers: Timer | None = None
        """For the round in which strangers may be served again."""
        self.status = 0

    def attach(self, wire: Wire, monitor: socket.socket, udp: tuple[int, ...]) -> None:
        """Put the engine's surroundings on the loop; nothing is read before the loop runs."""
        loop = self._loop
        self._monitor: Channel[MonitorRequest | MonitorReply, WorkerRequest | WorkerReply] = Channel(
            monitor, loop, install.FROM_MONITOR, install.FROM_WORKER, self._from_monitor, self._end
        )
        self._keyd: Peer[keyd.Reply, keyd.Request] = Peer(
            wire, loop, keyd.REPLIES, keyd.REQUESTS, self._from_keyd, self._end
        )
        self._sockets = Sockets(udp, loop, self._received)
        loop.before_poll(self._round)

    def _received(self, data: bytes, local: Endpoint, remote: Endpoint) -> None:
        if self._engine.knows(data, local):
            self._engine.datagram(data, local, remote, self._loop.now())
        elif not self._intake.put(Stray(data, local, remote)):
            self._dropped.admit()

    def _serve_strangers(self) -> None:
        """Some of those who wait, as long as their share of our time lasts."""
        intake, now = self._intake, self._loop.now()
        # what a busy machine does meanwhile is not what strangers cost us
        began = time.thread_time()
        for _ in range(SERVED_AT_ONCE):
            if not intake.ready(now):
                return
            stray = intake.take()
            self._engine.datagram(stray.data, stray.local, stray.remote, now)
            self._carry_out()
            ended = time.thread_time()
            intake.spend(ended - began)
            began = ended

    def _from_keyd(self, reply: keyd.Reply, sequence: int) -> None:
        self._engine.keyd_reply(sequence, reply, self._loop.now())

    def _from_monitor(self, message: MonitorRequest | MonitorReply, sequence: int) -> None:
        self._engine.monitor_message(message, sequence, self._loop.now())

    def _round(self) -> bool:
        """Once a round: take keyd's answers, carry out what the engine wants, know when to wake it."""
        self._keyd.pump()
        self._carry_out()
        self._serve_strangers()
        self._timer = self._timed(self._timer, self._engine.next_deadline(), self._wake)
        if self._intake.ready(self._loop.now()):
            return True
        self._strangers = self._timed(self._strangers, self._intake.ready_at(), _nothing)
        return self._keyd.unread

    def _carry_out(self) -> None:
        for effect in self._engine.take_effects():
            match effect:
                case Send():
                    error = self._sockets.send(effect.data, effect.local, effect.remote)
                    if error:
                        self._engine.unsent(effect, error, self._loop.now())
                case AskKeyd():
                    self._keyd.send(effect.request, effect.sequence)
                case AskMonitor() | TellMonitor():
                    self._monitor.send(effect.message, effect.sequence)
                case _:
                    assert_never(effect)

    def _timed(self, timer: Timer | None, deadline: float | None, callback: Callable[[], None]) -> Timer | None:
        """That timer, or another one in its place where it is for another time."""
        if timer is not None:
            if timer.when == deadline and timer.callback is not None:
                return timer
            timer.cancel()
        return self._loop.at(deadline, callback) if deadline is not None else None

    def _wake(self) -> None:
        self._timer = None
        self._engine.tick(self._loop.now())

    def _end(self, reason: str) -> None:
        """A channel is lost: without it there is nothing to do, and the monitor starts the pair anew."""
        # at a clean stop keyd may be ended a moment before us
        event(Level.INFO if reason == GONE else Level.ERROR, "channel-lost", reason=reason)
        self.status = 1
        self._loop.stop()


def _nothing() -> None:
    """The round itself is what is due."""


def _tell_overload(datagrams: int) -> None:
    event(Level.WARNING, "overloaded", dropped=datagrams)


if __name__ == "__main__":
    sys.exit(main())
