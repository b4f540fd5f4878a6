"""The monitor's decisions: what a worker asks is judged here, what the data plane reports is passed on.

Sans-IO: messages come in by `from_worker`, go out by `to_worker`; the data plane and keyd answer with futures. The
state of one worker is an `Epoch`; what outlives workers (SAs, policies) is the `Installer`'s. A worker that asks for
what no honest one asks raises Violation, and the supervisor ends it.
"""

import dataclasses
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, TypeVar

from monitor.authorize import authorize, foresee, with_outbound
from monitor.dataplane import Adopting, Dataplane, DataplaneError, Pair, Traffic
from monitor.epoch import Epoch, WorkerBusy
from monitor.inheritance import pair_record
from monitor.installer import Installer, Leave
from monitor.journal import Journal
from monitor.sadb import Claim, Entry, Phase
from monitor.waiting import Clock, begin, run, within
from privsep.config.model import Gateway
from privsep.errors import ChannelClosed, Violation
from privsep.log import Level, Log
from privsep.rate import Sparing
from privsep.schema.install import (
    Acquire,
    Adopted,
    Allocated,
    AllocateSpi,
    Completed,
    Denial,
    Denied,
    Described,
    Down,
    Expired,
    IkeStatus,
    Installed,
    InstallInbound,
    InstallOutbound,
    MonitorReply,
    MonitorRequest,
    Moved,
    Progress,
    Remove,
    Removed,
    Stop,
    Unanswered,
    Up,
    WorkerReply,
    WorkerRequest,
)
from privsep.schema.keymat import (
    NotRedeemable,
    Question,
    Ready,
    Redeemed,
    RedeemedOutbound,
    RedeemInbound,
    RedeemOutbound,
    Redemption,
    Reply,
)
from privsep.tasks import Future
from privsep.types import Endpoint, Spi, hex_spi

STOP_SECONDS = 5.0
"""For the worker's DELETE messages at the end."""
ADOPTED_AT_ONCE, ADOPT_SECONDS = 512, 0.1
MOVE_SECONDS = 1.0
"""Between two moves of a pair: packets in another order than they were sent must not make it swing."""


R = TypeVar("R", Redeemed, RedeemedOutbound)


class Service:
    """One for the life of the daemon. `ask_keyd` and `to_worker` reach the present epoch's processes."""

    def __init__(
        self,
        gateway: Gateway,
        dataplane: Dataplane,
        ask_keyd: Callable[[Question], Future[Reply]],
        to_worker: Callable[[MonitorRequest | MonitorReply, int], None],
        clock: Clock,
        log: Log,
        journal: Journal | None = None,
        kernel: Adopting | None = None,
    ) -> None:
        """`kernel` is the data plane, if it is one that outlives us; `journal` tells what it has from before."""
        self.gateway = gateway
        self.dataplane = dataplane
        self.installer = Installer(
            gateway, dataplane, log, journal or Journal(None, clock, log), kernel, self._tell_moved
        )
        self.sadb = self.installer.sadb
        self._ask_keyd = ask_keyd
        self._to_worker = to_worker
        self._clock = clock
        self._log = log
        self._epoch: Epoch | None = None
        self.unanswered: Callable[[str], None] = lambda connection: None  # whose peer is not where its name leads
        self._order_numbers = count(1)
        self._log_rarely = Sparing(log, clock.now, clock.after)
        """For what a captured worker or a busy network repeats at will."""
        self._handlers: dict[type[Any], Callable[[Epoch, Any, int], None]] = {
            AllocateSpi: self._on_allocate,
            InstallInbound: self._on_install_inbound,
            InstallOutbound: self._on_install_outbound,
            Remove: self._on_remove,
            Unanswered: lambda _, remark, __: self.unanswered(remark.connection),
            Progress: Epoch.progressed,
            Completed: Epoch.answered,
            Described: Epoch.answered,
        }

    # the daemon's life

    def start(self) -> Future[bool]:
        """Adopt what an earlier instance left, place what is configured; False if we end before. DataplaneError."""
        return begin(self.installer.start())

    def keyd_ready(self, ready: Ready) -> None:
        """A new keyd has read the secrets. Violation if it tells of them what cannot be."""
        self.sadb.claimants.learn(self.gateway, ready.same_secret)

    def epoch_began(self) -> None:
        """A new worker runs: tell it what is installed."""
        self._epoch = Epoch(self._send)
        self._adopt(self._epoch, self.sadb.entries())

    def _adopt(self, epoch: Epoch, entries: tuple[Entry, ...]) -> None:
        """In portions, so that a worker that reads while it starts never finds its channel full."""
        if epoch is not self._epoch:
            return
        for entry in entries[:ADOPTED_AT_ONCE]:
            if entry.phase is Phase.INSTALLED and self.sadb.entry(entry.pair.spi_in) is entry:
                self._tell_adopted(entry)
        rest = entries[ADOPTED_AT_ONCE:]
        if rest:
            self._clock.after(ADOPT_SECONDS, lambda: self._adopt(epoch, rest))

    def _tell_adopted(self, entry: Entry) -> None:
        pair = entry.pair
        self._send(
            Adopted(
                connection=entry.connection,
                child=entry.child,
                identity=entry.identity,
                spi_in=pair.spi_in,
                spi_out=pair.spi_out,
                local=pair.local,
                remote=pair.remote,
                left_s=max(0, int(entry.since + pair.lifetime - self._clock.now())),
            )
        )

    def epoch_ended(self) -> None:
        """The worker is gone: SPIs that it did not use and halves of pairs are released, whoever waits is told."""
        epoch, self._epoch = self._epoch, None
        for allocation in self.sadb.allocations():
            self.installer.release(allocation)
        for entry in self.sadb.entries():
            run(self.installer.withdraw(entry))
        if epoch is not None:
            epoch.end()

    @property
    def has_worker(self) -> bool:
        """Whether a worker runs."""
        return self._epoch is not None

    def stop(self, leave: Leave = Leave.NOTHING) -> Future[None]:
        """Let the worker say DELETE, then remove all that is ours and nothing else. Never fails."""
        return begin(self._stop(leave))

    async def _stop(self, leave: Leave) -> None:
        self.installer.closed = True
        if self._epoch is not None:
            try:
                await within(self._clock, STOP_SECONDS, self._epoch.ask(Stop(), Completed))
            except (TimeoutError, ChannelClosed, WorkerBusy):
                self._log(Level.WARNING, "stop-unanswered")
            self.epoch_ended()
        await self.installer.clear(leave)

    # from the worker

    def from_worker(self, message: WorkerRequest | WorkerReply, sequence: int) -> None:
        """A message of the present worker. Violation if an honest one would not have sent it."""
        if self._epoch is not None:
            self._handlers[type(message)](self._epoch, message, sequence)

    def _answer(self, epoch: Epoch, sequence: int, message: MonitorReply) -> None:
        if epoch is self._epoch:
            epoch.closed(sequence)
            self._send(message, sequence)

    def _send(self, message: MonitorRequest | MonitorReply, sequence: int = 0) -> None:
        try:
            self._to_worker(message, sequence)
        except ChannelClosed:
            # its end is on the way to the supervisor
            return

    def _on_allocate(self, epoch: Epoch, message: AllocateSpi, sequence: int) -> None:
        epoch.opened(sequence)
        answer = self._allocate(message)
        if isinstance(answer, Denial):
            self._denied(answer, connection=message.connection, child=message.child, remote=message.remote)
            self._answer(epoch, sequence, Denied(why=answer))
        else:
            self._answer(epoch, sequence, answer)

    def _allocate(self, message: AllocateSpi) -> Allocated | Denial:
        plan = foresee(self.gateway, self.sadb, self.installer.policies, message)
        if isinstance(plan, Denial):
            return plan
        if self.installer.closed or not self.sadb.may_allocate(message.connection):
            return Denial.QUOTA
        try:
            allocation = self.installer.allocate(plan.connection, plan.child, message.local, message.remote)
        except DataplaneError:
            return Denial.DATAPLANE
        return Allocated(spi=allocation.spi, cpi=allocation.cpi)

    def _on_install_inbound(self, epoch: Epoch, message: InstallInbound, sequence: int) -> None:
        epoch.opened(sequence)
        run(self._install_inbound(epoch, message, sequence))

    async def _install_inbound(self, epoch: Epoch, message: InstallInbound, sequence: int) -> None:
        redeemed = await self._redeemed(epoch, RedeemInbound(keymat=message.keymat), Redeemed)
        if redeemed is None:
            return
        if isinstance(redeemed, Denial):
            self._denied(redeemed, remote=message.remote)
            self._answer(epoch, sequence, Denied(why=redeemed))
            return
        entry = await self._judge_and_install(redeemed, message)
        if isinstance(entry, Denial):
            self._denied(
                entry,
                connection=redeemed.connection,
                child=redeemed.child,
                remote=message.remote,
                identity=redeemed.identity,
            )
            self._answer(epoch, sequence, Denied(why=entry))
            return
        self._answer(epoch, sequence, Installed(spi_in=redeemed.spi_in))
        if epoch is not self._epoch:
            await self.installer.withdraw(entry)

    async def _redeemed(self, epoch: Epoch, request: Redemption, kind: type[R]) -> R | Denial | None:
        """That half of the keymat, or why there is none; None where the epoch has ended, and nobody waits."""
        try:
            reply = await self._ask_keyd(request)
        except ChannelClosed:
            return None
        if epoch is not self._epoch:
            return None
        if isinstance(reply, kind):
            return reply
        if isinstance(reply, NotRedeemable):
            return Denial.KEYMAT
        raise Violation("keyd answers a redemption with something else")

    async def _judge_and_install(self, redeemed: Redeemed, message: InstallInbound) -> Entry | Denial:
        """The pair, which receives; or nothing of it is in place, and this is why."""
        pair = authorize(self.gateway, self.sadb, self.installer.policies, redeemed, message)
        if isinstance(pair, Denial):
            return pair
        entry = Entry(
            connection=redeemed.connection,
            child=redeemed.child,
            identity=redeemed.identity,
            claim=Claim(redeemed.connection, redeemed.identity, pair.local_ts, pair.remote_ts, pair.policy.kernel.lane),
            pair=_without_keys(pair),
            since=self._clock.now(),
            keymat=message.keymat,
        )
        try:
            await self.installer.install_inbound(entry, pair, pair_record(redeemed, pair, entry.since))
        except DataplaneError as error:
            self._log(Level.ERROR, "install-failed", connection=redeemed.connection, error=error)
            return Denial.DATAPLANE
        return entry

    def _on_install_outbound(self, epoch: Epoch, message: InstallOutbound, sequence: int) -> None:
        epoch.opened(sequence)
        entry = self.sadb.entry(Spi(message.spi_in))
        if entry is None or entry.phase is not Phase.RECEIVING or not entry.keymat:
            self._answer(epoch, sequence, Denied(why=Denial.UNKNOWN_SA))
            return
        # asked for once at a time
        keymat, entry.keymat = entry.keymat, b""
        run(self._install_outbound(epoch, entry, keymat, sequence))

    async def _install_outbound(self, epoch: Epoch, entry: Entry, keymat: bytes, sequence: int) -> None:
        redeemed = await self._redeemed(epoch, RedeemOutbound(keymat=keymat), RedeemedOutbound)
        if redeemed is None:
            return
        denial = await self._send_by(entry, redeemed)
        if denial is Denial.KEYMAT:
            entry.keymat = keymat
        if denial is not None:
            self._denied(denial, **_describe(entry), identity=entry.identity)
            self._answer(epoch, sequence, Denied(why=denial))
            return
        self._log(
            Level.NOTICE, "installed", **_describe(entry), identity=entry.identity, suite=entry.pair.suite.described
        )
        self._answer(epoch, sequence, Installed(spi_in=entry.pair.spi_in))
        if epoch is not self._epoch and self._epoch is not None and self.sadb.entry(entry.pair.spi_in) is entry:
            self._tell_adopted(entry)

    async def _send_by(self, entry: Entry, redeemed: RedeemedOutbound | Denial) -> Denial | None:
        """None when the outbound SA is in place too; else why it is not."""
        if isinstance(redeemed, Denial):
            return redeemed
        if self.sadb.entry(entry.pair.spi_in) is not entry or entry.phase is not Phase.RECEIVING:
            # it ended meanwhile
            return Denial.UNKNOWN_SA
        pair = with_outbound(entry.pair, redeemed)
        if isinstance(pair, Denial):
            return pair
        try:
            await self.installer.install_outbound(entry, pair)
        except DataplaneError as error:
            self._log(Level.ERROR, "install-failed", connection=entry.connection, error=error)
            return Denial.DATAPLANE
        return None

    def _on_remove(self, epoch: Epoch, message: Remove, sequence: int) -> None:
        epoch.opened(sequence)
        spi = Spi(message.spi_in)
        allocation, entry = self.sadb.allocation(spi), self.sadb.entry(spi)
        if allocation is not None:
            self.installer.release(allocation)
            self._answer(epoch, sequence, Removed())
        elif entry is not None and entry.phase in (Phase.RECEIVING, Phase.INSTALLED):
            run(self._remove(epoch, entry, sequence))
        else:
            self._answer(epoch, sequence, Denied(why=Denial.UNKNOWN_SA))

    async def _remove(self, epoch: Epoch, entry: Entry, sequence: int) -> None:
        try:
            await self.installer.remove(entry)
        except DataplaneError as error:
            self._log_rarely(Level.ERROR, "remove-failed", **_describe(entry), error=error)
            self._answer(epoch, sequence, Denied(why=Denial.DATAPLANE))
            return
        self._log(Level.NOTICE, "removed", **_describe(entry))
        self._answer(epoch, sequence, Removed())

    def _denied(self, why: Denial, **fields: object) -> None:
        self._log_rarely(Level.WARNING, "denied", reason=why.name.lower(), **fields)

    # to the worker

    def up(self, connection: str, child: str, progress: Callable[[str], None]) -> Future[Completed]:
        """Order a negotiation. ChannelClosed when there is no worker or it ends before it is done."""
        order = next(self._order_numbers)
        return begin(self._order(Up(order=order, connection=connection, child=child), progress))

    def down(self, connection: str, child: str, progress: Callable[[str], None]) -> Future[Completed]:
        """Order a deletion. ChannelClosed when there is no worker or it ends before it is done."""
        order = next(self._order_numbers)
        return begin(self._order(Down(order=order, connection=connection, child=child), progress))

    async def _order(self, message: Up | Down, progress: Callable[[str], None]) -> Completed:
        return await self._present().order(message, progress)

    def _present(self) -> Epoch:
        if self._epoch is None:
            raise ChannelClosed
        return self._epoch

    def describe(self, seconds: float) -> Future[tuple[IkeStatus, ...]]:
        """The IKE SAs, as the worker tells. TimeoutError when that takes longer."""
        return within(self._clock, seconds, begin(self._describe(self._clock.now() + seconds)))

    async def _describe(self, deadline: float) -> tuple[IkeStatus, ...]:
        return await self._present().describe(self._clock, deadline)

    def traffic(self, spis: Iterable[Spi]) -> Future[dict[Spi, Traffic]]:
        """Counters of those pairs that the data plane still has."""
        return begin(self._traffic(tuple(spis)))

    async def _traffic(self, spis: tuple[Spi, ...]) -> dict[Spi, Traffic]:
        counted: dict[Spi, Traffic] = {}
        for spi in spis:
            entry = self.sadb.entry(spi)
            if entry is None or entry.phase is not Phase.INSTALLED:
                continue
            try:
                counted[spi] = await self.dataplane.traffic(entry.pair)
            except DataplaneError:
                # it ended in between; the table follows with the event
                continue
        return counted

    # from the data plane

    def acquired(self, number: int) -> None:
        """A packet matched a policy and found no SA."""
        owner = self.installer.policies.owner(number)
        if owner is not None and self._epoch is not None:
            self._log_rarely(Level.INFO, "acquire", connection=owner[0], child=owner[1])
            self._send(Acquire(connection=owner[0], child=owner[1]))

    def expired(self, spi: Spi, hard: bool) -> None:
        """A lifetime ended; after a hard one the pair is gone."""
        entry = self.sadb.entry(spi)
        if entry is None:
            if hard:
                self.sadb.release(spi)
            return
        if hard:
            self.installer.forget(entry)
        self._log(Level.NOTICE if hard else Level.INFO, "expired" if hard else "expires", **_describe(entry))
        if self._epoch is not None:
            self._send(Expired(spi_in=spi, hard=hard))

    def moved(self, spi: Spi, remote: Endpoint) -> None:
        """ESP in UDP that verified came from elsewhere: a NAT gave the peer another port (RFC 3948 section 3).

        The address stays: whoever relays a packet shall not redirect the traffic. A peer at another address is believed
        when it says something in IKE, and then everything is negotiated anew.
        """
        entry = self.sadb.entry(spi)
        if entry is None or entry.phase is not Phase.INSTALLED or not entry.pair.encap or remote.port == 0:
            return
        if remote.address != entry.pair.remote.address:
            self._log_rarely(Level.INFO, "move-ignored", **_describe(entry), source=remote)
        elif remote != entry.pair.remote and self._clock.now() - entry.moved >= MOVE_SECONDS:
            entry.moved = self._clock.now()
            run(self._follow(entry, remote))

    async def _follow(self, entry: Entry, remote: Endpoint) -> None:
        try:
            await self.installer.follow(entry, remote)
        except DataplaneError as error:
            self._log_rarely(Level.WARNING, "move-failed", **_describe(entry), error=error)

    def _tell_moved(self, entry: Entry) -> None:
        self._log_rarely(Level.NOTICE, "moved", **_describe(entry))
        if self._epoch is not None:
            self._send(Moved(spi_in=entry.pair.spi_in, remote=entry.pair.remote))


def _describe(entry: Entry) -> dict[str, object]:
    return {
        "connection": entry.connection,
        "child": entry.child,
        "remote": entry.pair.remote,
        "spi_in": hex_spi(entry.pair.spi_in),
        "spi_out": hex_spi(entry.pair.spi_out),
    }


def _without_keys(pair: Pair) -> Pair:
    """What the table keeps: keys are forgotten as soon as the data plane has them."""
    return dataclasses.replace(pair, encryption_in=b"", integrity_in=b"", encryption_out=b"", integrity_out=b"")
