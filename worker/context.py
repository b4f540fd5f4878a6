"""What every exchange works with: time, chance, the two channels, the tables. One for each engine."""

from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Protocol, TypeVar

from privsep.config.model import Gateway
from privsep.errors import PeerError
from privsep.log import Code, Level, Log
from privsep.rate import Rate, Sparing
from privsep.schema import install, keyd
from privsep.schema.install import MonitorReply
from privsep.tasks import Future, Task
from privsep.types import Endpoint, Identity, Spi
from worker.adoptions import Adoptions
from worker.agreeing import Agreeing
from worker.child import ChildSa
from worker.demux import SaTable
from worker.effects import AskKeyd, AskMonitor, Effect, Send
from worker.errors import Failed, KeydRefused, MonitorDenied, Withdrawn
from worker.established import Established
from worker.half_open import HalfOpenTable
from worker.isakmp_sa import NOBODY, IkeSa, Peer
from worker.nat import NATT_PORT, NON_ESP_MARKER
from worker.requests import Requests
from worker.timers import Callback, Timer, Timers

NOTIFIED_PER_SECOND = 50
"""Notifications in clear that strangers may cause; each is shorter than what caused it."""

DIGEST_SECRET_OCTETS = 16

R = TypeVar("R")


class Watcher(Protocol):
    """Who decides what to do about what happens in exchanges: `worker.keeper`, `worker.control`."""

    def established(self, sa: IkeSa) -> None:
        """An IKE SA is authenticated on both sides."""

    def installed(self, child: ChildSa) -> None:
        """A child SA pair is in place."""

    def lost(self, child: ChildSa) -> None:
        """A pair is gone."""

    def worn(self, sa: IkeSa) -> None:
        """An IKE SA has not many message ids left."""

    def moved(self, sa: IkeSa) -> None:
        """The peer has another address or port now."""

    def report(self, connection: str, text: str) -> None:
        """A step, for the operators who wait for this connection."""

    def hint(self, connection: str, text: str) -> None:
        """What a stranger says, or what silence may mean: worth telling, not worth acting on."""


class Context:
    """The state that exchanges share, and the verbs by which they reach the world."""

    watcher: Watcher

    def __init__(self, gateway: Gateway, random: Callable[[int], bytes], log: Log) -> None:
        self.gateway = gateway
        self.random = random
        self.log = log
        self.now = 0.0
        self.timers = Timers()
        self.sas = SaTable()
        self.established = Established()
        self.peers: dict[str, dict[Identity, Peer]] = {}
        """By the connection's name."""
        self.children: dict[Spi, ChildSa] = {}
        """By inbound SPI."""
        self.adopted = Adoptions()
        self.serials = count(1)
        self.outbox: list[Effect] = []
        self.half_open = HalfOpenTable(lambda: self.now, self.after, random(DIGEST_SECRET_OCTETS))
        self.agreeing = Agreeing()
        self.notifications = Rate(NOTIFIED_PER_SECOND)
        self.log_rarely = Sparing(log, lambda: self.now, self.after)
        """For what strangers and peers cause."""
        self._keyd: Requests[keyd.Request, keyd.Reply] = Requests(lambda n, q: self.outbox.append(AskKeyd(n, q)))
        self._monitor: Requests[install.WorkerRequest, install.MonitorReply] = Requests(
            lambda n, q: self.outbox.append(AskMonitor(n, q))
        )
        self.keyd_answered = self._keyd.answered
        self.monitor_answered = self._monitor.answered

    # the network

    def send(self, local: Endpoint, remote: Endpoint, message: bytes) -> None:
        """An IKE message; on port 4500 behind its marker (RFC 3948 section 2.2)."""
        self.outbox.append(Send(local, remote, NON_ESP_MARKER + message if local.port == NATT_PORT else message))

    # time

    def after(self, seconds: float, callback: Callback) -> Timer:
        """Call in so many seconds."""
        return self.timers.at(self.now + seconds, callback)

    # keyd and the monitor

    async def ask(self, request: keyd.Request, kind: type[R]) -> R:
        """Keyd's answer. KeydRefused if it is a refusal."""
        reply = await self._keyd.ask(request)
        if isinstance(reply, kind):
            return reply
        if isinstance(reply, keyd.Refused):
            raise KeydRefused(reply)
        raise Failed("keyd answered something else than it was asked")

    def drop(self, handle: bytes) -> None:
        """Have keyd wipe what hangs on the handle; nobody waits for that."""
        self._keyd.ask(keyd.Drop(handle=handle))

    async def allocate(self, request: install.AllocateSpi) -> install.Allocated:
        """An inbound SPI, and a CPI where the child has IPComp. MonitorDenied if there is none."""
        reply = await self._monitor.ask(request)
        match reply:
            case install.Allocated():
                return reply
            case install.Denied():
                raise MonitorDenied(reply.why)
            case _:
                raise Failed("the monitor answered something else than it was asked")

    async def install(self, request: install.InstallInbound | install.InstallOutbound) -> None:
        """That SA in place. MonitorDenied if not."""
        reply = await self._monitor.ask(request)
        match reply:
            case install.Installed():
                return
            case install.Denied():
                raise MonitorDenied(reply.why)
            case _:
                raise Failed("the monitor answered something else than it was asked")

    def release(self, spi: Spi) -> Future[MonitorReply]:
        """Remove the pair of that inbound SPI, or give the SPI back. Whom it concerns may wait for the answer."""
        return self._monitor.ask(install.Remove(spi_in=spi))

    # the log

    def sender(self, local: Endpoint, remote: Endpoint) -> dict[str, object]:
        """Fields for the log about somebody without an SA: by name where the address is a configured peer's."""
        candidates = self.gateway.candidates(local.address, remote.address)
        names = (each.name for each in candidates if each.remote == remote.address)
        return {"connection": next(names, NOBODY), "remote": remote}

    def failed(self, code: Code, error: Failed | PeerError, label: dict[str, object]) -> None:
        """A configured tunnel that fails is a warning; what strangers cause is none, and what we gave up ourselves."""
        strange = label.get("connection", NOBODY) == NOBODY
        harmless = strange or isinstance(error, Withdrawn) or code == "notification-unsent"
        told = error.told if isinstance(error, Failed) else ""
        reason = f"there is no IKE SA, {told} says why" if told else error.reason
        self.log_rarely(Level.INFO if harmless else Level.WARNING, code, **label, reason=reason)

    # tasks

    def spawn(self, coroutine: Coroutine[Any, None, None], code: Code, label: Callable[[], dict[str, object]]) -> None:
        """Run an exchange. The one place where an error ends: whatever it is, it costs this exchange and no other."""

        def ended(error: BaseException | None) -> None:
            if error is not None:
                self._end(error, code, label)

        Task(coroutine, ended)

    def attempt(self, action: Callable[[], None], code: Code, label: Callable[[], dict[str, object]]) -> None:
        """Do something at once; an error costs what `spawn` has it cost."""
        try:
            action()
        except Exception as error:
            self._end(error, code, label)

    def _end(self, error: BaseException, code: Code, label: Callable[[], dict[str, object]]) -> None:
        match error:
            case Failed() | PeerError():
                self.failed(code, error, label())
            case Exception():
                self.log_rarely(
                    Level.ERROR, "internal-error", **label(), error=type(error).__name__, where=_where(error)
                )
            case _:
                raise error


def _where(error: Exception) -> str:
    """Function and line, without the traceback module: that would open source files, which lockdown forbids."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace is not None else "?"
