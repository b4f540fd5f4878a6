"""The daemon put together: sockets, data plane, service, supervisor, operator's socket, and who inherits what.

Everything that needs more privilege than the monitor keeps is made in `Daemon.__init__`, before lockdown.
"""

import os
import random
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import assert_never

from monitor import control
from monitor.admission import admit, admitted
from monitor.commands import Commands
from monitor.dataplane import Events
from monitor.directories import Directories
from monitor.egress import restrict, table_name
from monitor.inheritance import interfaces, recall
from monitor.installer import Leave
from monitor.journal import NAME, Journal
from monitor.levels import Levels
from monitor.logpipe import LogPipe
from monitor.lookup import RESOLVER, Resolvers
from monitor.names import Names
from monitor.notify import Notifier
from monitor.plane import choose, leave_kernel
from monitor.redeemer import Redeemer
from monitor.service import Service
from monitor.sockets import Plane, open_listeners
from monitor.supervisor import State, Supervisor
from monitor.waiting import run
from monitor.whereabouts import Whereabouts
from privsep import log
from privsep.channel import Channel, pair
from privsep.config.model import Egress, Gateway, OnStop
from privsep.errors import ChannelClosed
from privsep.log import Code, Level, Record
from privsep.loop import Loop
from privsep.schema import install, keymat
from privsep.schema.install import MonitorReply, MonitorRequest, WorkerReply, WorkerRequest
from privsep.schema.levels import SetLevel
from privsep.spawn import Child, spawn
from privsep.tasks import Future
from privsep.types import Endpoint, Spi

CHANNEL_FD, CONFIG_FD, FIRST_FD = 3, 4, 5
"""Descriptor numbers of a child: its channel to us, the configuration, then what it serves."""


class Daemon:
    """One for the life of the monitor. Implements `monitor.supervisor.Hooks`."""

    def __init__(
        self,
        gateway: Gateway,
        directories: Directories,
        control_socket: socket.socket,
        *,
        handed_over: int,
        config: str,
        secrets: str,
        level: Level | None,
    ) -> None:
        """`handed_over` is the descriptor of the configuration, `config` its name; keyd alone reads `secrets`.

        `level` of the log is the command line's, where it has one.
        """
        self.loop = Loop()
        self._gateway = gateway
        self._config = config
        self._secrets = os.path.abspath(secrets)
        self._directories = directories
        self._directories.prepare(gateway.users)
        self._notifier = Notifier.from_environment()
        self._config_fd = handed_over
        self._log_pipes: dict[str, LogPipe] = {}
        self._worker: Channel[WorkerRequest | WorkerReply, MonitorRequest | MonitorReply] | None = None
        self._keyd: Channel[keymat.Reply, keymat.Request] | None = None
        self._redeemer: Redeemer | None = None
        self._levels = Levels(self._tell_level)
        if level is not None:
            self._levels.set(level)

        self._plane = choose(
            gateway, self.loop, Events(acquired=self._acquired, expired=self._expired, moved=self._moved), self._lost
        )
        kind = Plane.USERSPACE if self._plane.userspace is not None else Plane.KERNEL
        self._listeners = open_listeners(gateway.listen, kind, gateway.users.worker[0])
        admit(self._listeners.ike + self._listeners.natt, admitted(gateway))
        # in force while it is open, so until this process ends
        self._egress = restrict(gateway) if gateway.egress is Egress.RESTRICTED else None
        kernel = self._plane.kernel
        path = self._directories.run_dir / NAME
        if kernel is None and path.exists():
            leave_kernel(Journal(path, self.loop, log.event), log.event)
            path.unlink()
        journal = Journal(None if kernel is None else path, self.loop, self._log_event)
        recall(gateway, journal)
        self._interfaces_before = interfaces(journal)
        self._service = Service(
            gateway, self._plane.dataplane, self._ask_keyd, self._to_worker, self.loop, self._log_event, journal, kernel
        )
        self._supervisor = Supervisor(
            self.loop,
            self._log_event,
            self,
            self._start_keyd,
            self._start_worker,
            self._start_userspace if self._plane.userspace is not None else None,
        )
        self._whereabouts = Whereabouts(
            gateway,
            self._service,
            self._listeners.ike + self._listeners.natt,
            self._egress,
            self._ask_keyd,
            self._to_worker,
            self._log_event,
        )
        resolvers = Resolvers(gateway.users, gateway.absent, self.loop, partial(self._child_says, RESOLVER))
        self._names = Names(
            gateway, self.loop, self._log_event, resolvers.ask, random.random, self._whereabouts.located
        )
        self._service.unanswered = self._names.hasten
        self._commands = Commands(
            self._service, self.loop, self._plane.reason, self._processes, self._set_level, self._names.missing
        )
        self._control = control.Control(control_socket, self.loop, self._commands.serve, self._log_event)
        self._signals = self._catch_signals()
        self._placed = False
        """Whether every configured policy is."""

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; 0 for a clean end."""
        self._log_event(Level.NOTICE, "dataplane", kind=self._plane.dataplane.name, why=self._plane.reason)
        if self._egress is not None:
            self._log_event(Level.NOTICE, "egress-restricted", table=table_name(self._gateway.users.worker[0]))
        self._supervisor.start()
        run(self._place_policies())
        self._names.start()
        self.loop.run()
        return 1 if self._supervisor.failed else 0

    async def _place_policies(self) -> None:
        """A policy that cannot be placed ends the daemon: it would mean clear text."""
        if await self._service.start():
            self._plane.settle(self._interfaces_before)
            self._placed = True
            self._ready_if_so()

    def _ready_if_so(self) -> None:
        """Whoever waits for us may count on both: what is to be protected is, and peers are answered."""
        if self._placed and self._service.has_worker:
            self._notifier.ready()

    # monitor.supervisor.Hooks

    def epoch_began(self) -> None:
        """Keyd and the worker run."""
        self._service.epoch_began()
        self._levels.tell_all()
        self._whereabouts.epoch_began()
        self._ready_if_so()

    def epoch_ended(self) -> None:
        """Their channels are of no use any more."""
        self._service.epoch_ended()
        for channel in (self._worker, self._keyd):
            if channel is not None:
                channel.close("the epoch is over")
        if self._redeemer is not None:
            self._redeemer.close()
        self._worker = self._keyd = self._redeemer = None

    def drain(self) -> Future[None]:
        """DELETE to the peers, SAs removed. Traffic is refused until the next start, unless it is to pass."""
        self._notifier.stopping()
        self._names.stop()
        return self._service.stop(self._leave())

    def _leave(self) -> Leave:
        """A daemon that fails was not told to stop, and leaves its traffic refused whatever the configuration says."""
        if self._supervisor.failed:
            return Leave.POLICIES
        match self._gateway.on_stop:
            case OnStop.BLOCK:
                return Leave.POLICIES
            case OnStop.REMOVE:
                return Leave.NOTHING
            case never:
                assert_never(never)

    def stopped(self) -> None:
        """No child is left."""
        self._control.close()
        if self._leave() is Leave.NOTHING:
            # an XFRM interface that goes would take the routes into it along, and their traffic elsewhere
            self._plane.close()
        for pipe in self._log_pipes.values():
            pipe.close()
        self.loop.stop()

    # children

    def _start_keyd(self) -> Child:
        ours, theirs = pair()
        arguments = [
            *("--channel", str(CHANNEL_FD), "--config-fd", str(CONFIG_FD), "--config", self._config),
            *("--secrets", self._secrets, "--workplace", str(self._directories.meeting)),
            *("--root", str(self._directories.root)),
        ]
        child = self._spawn("keyd", "keyd", arguments, {CHANNEL_FD: theirs.fileno(), CONFIG_FD: self._config_fd})
        theirs.close()
        self._redeemer = Redeemer(self._to_keyd, self._keyd_ready)
        self._keyd = Channel(
            ours,
            self.loop,
            keymat.REPLIES,
            keymat.REQUESTS,
            self._supervisor.guarded(self._redeemer.handle),
            self._channel_closed("keyd"),
        )
        return child

    def _keyd_ready(self, ready: keymat.Ready) -> None:
        self._service.keyd_ready(ready)
        self._supervisor.keyd_ready()

    def _start_worker(self) -> Child:
        ours, theirs = pair()
        sockets = self._listeners.ike + self._listeners.natt
        fds = {number: sock.fileno() for number, sock in enumerate(sockets, FIRST_FD)}
        arguments = [
            *("--channel", str(CHANNEL_FD), "--config-fd", str(CONFIG_FD), "--config", self._config),
            *("--workplace", str(self._directories.meeting), "--root", str(self._directories.root)),
            *("--udp", *map(str, fds)),
        ]
        inherited = {CHANNEL_FD: theirs.fileno(), CONFIG_FD: self._config_fd, **fds}
        child = self._spawn("worker", "worker", arguments, inherited)
        theirs.close()
        self._worker = Channel(
            ours,
            self.loop,
            install.FROM_WORKER,
            install.FROM_MONITOR,
            self._supervisor.guarded(self._service.from_worker),
            self._channel_closed("worker"),
        )
        return child

    def _start_userspace(self) -> Child:
        userspace = self._plane.userspace
        if userspace is None:
            raise RuntimeError("the kernel carries ESP")
        ours, theirs = pair()
        raw, udp = self._listeners.esp_raw, self._listeners.esp_udp
        tun_fd = FIRST_FD - 1
        udp_fds = {number: sock.fileno() for number, sock in enumerate(udp, FIRST_FD)}
        raw_fds = {number: sock.fileno() for number, sock in enumerate(raw, FIRST_FD + len(udp))}
        uid, gid = self._gateway.users.userspace
        arguments = [
            *("--channel", str(CHANNEL_FD), "--tun", str(tun_fd), "--uid", str(uid), "--gid", str(gid)),
            *("--root", str(self._directories.root)),
            *(("--udp", *map(str, udp_fds)) if udp_fds else ()),
            *(("--raw", *map(str, raw_fds)) if raw_fds else ()),
            *(("--absent", *sorted(layer.value for layer in self._gateway.absent)) if self._gateway.absent else ()),
        ]
        inherited = {CHANNEL_FD: theirs.fileno(), tun_fd: userspace.tun, **udp_fds, **raw_fds}
        child = self._spawn("monitor.userspace", "userspace", arguments, inherited)
        theirs.close()
        userspace.dataplane.connect(ours)
        return child

    def _spawn(self, module: str, name: str, arguments: list[str], fds: dict[int, int]) -> Child:
        child = spawn(module, args=arguments, fds=fds)
        earlier = self._log_pipes.pop(name, None)
        if earlier is not None:
            earlier.close()
        self._log_pipes[name] = LogPipe(child.log, self.loop, name, partial(self._child_says, name))
        return child

    def _processes(self) -> dict[str, int]:
        return {"monitor": os.getpid(), **self._supervisor.processes()}

    # channels

    def _channel_closed(self, name: str) -> Callable[[str], None]:
        return lambda reason: self._supervisor.end_epoch(f"channel to {name}: {reason}")

    def _to_worker(self, message: MonitorRequest | MonitorReply, sequence: int) -> None:
        if self._worker is None:
            raise ChannelClosed
        self._worker.send(message, sequence)

    def _tell_level(self, message: SetLevel) -> None:
        for channel in (self._worker, self._keyd):
            # one whose end is on the way to the supervisor is not told
            with suppress(ChannelClosed):
                if channel is not None:
                    channel.send(message)

    def _set_level(self, level: Level, connection: str) -> bool:
        done = self._levels.set(level, connection)
        if done:
            self._log_event(Level.NOTICE, "level-set", to=level.value, about=connection or "all")
        return done

    def _to_keyd(self, request: keymat.Question, sequence: int) -> None:
        if self._keyd is None:
            raise ChannelClosed
        self._keyd.send(request, sequence)

    def _ask_keyd(self, request: keymat.Question) -> Future[keymat.Reply]:
        if self._redeemer is None:
            future: Future[keymat.Reply] = Future()
            future.set_error(ChannelClosed)
            return future
        return self._redeemer.ask(request)

    # events

    def _acquired(self, policy: int) -> None:
        self._service.acquired(policy)

    def _expired(self, spi: Spi, hard: bool) -> None:
        self._service.expired(spi, hard)

    def _moved(self, spi: Spi, remote: Endpoint) -> None:
        self._service.moved(spi, remote)

    def _lost(self, reason: str) -> None:
        if self._supervisor.state not in (State.STOPPING, State.FINISHING, State.STOPPED):
            self._log_event(Level.ERROR, "dataplane-lost", reason=reason)
        # one that violated the protocol need not end by itself
        self._supervisor.end_userspace()

    def _log_event(self, level: Level, code: Code, **fields: object) -> None:
        log.event(level, code, **fields)
        self._commands.log(level, code, **fields)

    def _child_says(self, name: str, line: str, record: Record | None) -> None:
        """What is no event is an interpreter's or a library's last word: it is always shown."""
        level = Level.WARNING if record is None else record.level
        if record is None or log.shown(level, record.fields.get("connection")):
            log.write(level, line)
        if record is not None:
            self._commands.follow(name, record)

    def _catch_signals(self) -> tuple[socket.socket, socket.socket]:
        """Signals become octets on a socket of the loop; a handler that does nothing keeps the default action away."""
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        # inherited as ignored, it would have the kernel reap our children
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        # `privsep-ike run` has them wait until there is somebody who ends cleanly
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))

        def readable() -> None:
            numbers = reader.recv(64)
            if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                self._supervisor.stop()
            elif signal.SIGHUP in numbers:
                self._log_event(Level.WARNING, "reload-unsupported", instead="restart the daemon")

        self.loop.on_readable(reader.fileno(), readable)
        return reader, writer
