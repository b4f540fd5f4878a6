"""The monitor's decisions: what a worker asks is judged here, what the data plane reports is passed on.

Sans-IO: messages come in by `from_worker`, go out by `to_worker`; the data plane and keyd answer with futures. The
state of one worker is an `Epoch`; what outlives workers (SAs, policies) stands in `sadb.py`. A worker that asks for
what no honest one asks raises Violation, and the supervisor ends it.
"""

import dataclasses
from collections.abc import Callable, Iterable
from enum import Enum
from itertools import count
from typing import Any

from monitor.authorize import PASSED, authorize, find_child, outer_addresses
from monitor.dataplane import Adopting, Dataplane, DataplaneError, Pair, Policy, Traffic
from monitor.epoch import Epoch, WorkerBusy
from monitor.inheritance import Inheritance, owners, pair_record, policy_record, shunt_record
from monitor.journal import Journal, PairRecord
from monitor.sadb import MAX_INSTALLED_PER_CONNECTION, Allocation, Claim, Entry, Phase, Policies, Sadb
from monitor.waiting import Clock, Log, begin, run, within
from privsep.config.model import Gateway
from privsep.errors import ChannelClosed, Violation
from privsep.iana import ProtocolId
from privsep.log import Level
from privsep.rate import Rate
from privsep.schema.install import (
    Acquire,
    Adopted,
    Allocated,
    AllocateSpi,
    Completed,
    Denial,
    Denied,
    Describe,
    Described,
    Down,
    Expired,
    IkeStatus,
    Install,
    Installed,
    MonitorReply,
    MonitorRequest,
    Moved,
    Progress,
    Remove,
    Removed,
    Stop,
    Up,
    WorkerReply,
    WorkerRequest,
)
from privsep.schema.keymat import NotRedeemable, Ready, Redeem, Redeemed, Reply
from privsep.tasks import Future
from privsep.types import Cpi, Endpoint, Spi

MAX_PAGES = 4096
"""Pages of one description."""
MAX_DESCRIBED = 2 * MAX_INSTALLED_PER_CONNECTION
"""IKE SAs and pairs of one description, together: a connection at its quota with one of each for every peer. The rest
is not shown, but what is installed always is. One takes 1.5 KB on its way to the operator."""
STOP_SECONDS = 5.0
"""For the worker's DELETE messages at the end."""
ADOPTED_AT_ONCE = 512
ADOPT_SECONDS = 0.1
MOVE_SECONDS = 1.0
"""Between two moves of a pair: packets in another order than they were sent must not make it swing."""
LOGGED_PER_SECOND = 20
"""Denials and acquires that are logged; the rest is counted. A captured worker must not drown the log."""


class Leave(Enum):
    """What a stop leaves behind."""

    NOTHING = "nothing"
    POLICIES = "policies"
    """Nobody is left to protect their traffic, and nobody asked for it to pass in the clear."""


class Service:
    """One for the life of the daemon. `redeem` and `to_worker` reach the present epoch's processes."""

    def __init__(
        self,
        gateway: Gateway,
        dataplane: Dataplane,
        redeem: Callable[[Redeem], Future[Reply]],
        to_worker: Callable[[MonitorRequest | MonitorReply, int], None],
        clock: Clock,
        log: Log,
        journal: Journal | None = None,
        kernel: Adopting | None = None,
    ) -> None:
        """`kernel` is the data plane, if it is one that outlives us; `journal` tells what it has from before."""
        self.gateway = gateway
        self.dataplane = dataplane
        self.sadb = Sadb()
        self._journal = journal or Journal(None, clock, log)
        self._policies = Policies(gateway, owners(self._journal))
        self._inheritance: Inheritance | None = None
        if kernel is not None:
            self._inheritance = Inheritance(gateway, self._journal, kernel, (self.sadb, self._policies), log)
        self._placed: dict[int, Policy] = {}
        self._redeem = redeem
        self._to_worker = to_worker
        self._clock = clock
        self._log = log
        self._epoch: Epoch | None = None
        self._order_numbers = count(1)
        self._rate = Rate(LOGGED_PER_SECOND)
        self._stopping = False
        self._handlers: dict[type[Any], Callable[[Epoch, Any, int], None]] = {
            AllocateSpi: self._on_allocate,
            Install: self._on_install,
            Remove: self._on_remove,
            Progress: Epoch.progressed,
            Completed: Epoch.answered,
            Described: Epoch.answered,
        }

    # the daemon's life

    def start(self) -> Future[None]:
        """Policies of all peers with a configured address: from here on traffic goes protected or not at all.

        What an earlier instance left is adopted before and cleared away after.
        """
        return begin(self._start())

    async def _start(self) -> None:
        if self._journal.problem is not None:
            self._log(Level.WARNING, "journal-ignored", reason=self._journal.problem)
        if self._inheritance is not None:
            await self._inheritance.adopt()
        # an adopted pair sends by the policy that it was installed with, compressed or not
        entries = sorted(self.sadb.entries(), key=lambda entry: entry.since)
        adopted = {entry.pair.policy.number: entry.pair.policy for entry in entries}
        for policy in self._policies.all():
            await self._place(adopted.get(policy.number, policy))
        for shunt in self.gateway.shunts:
            self._journal.add(shunt_record(shunt))
            await self.dataplane.add_shunt(shunt)
        if self._inheritance is not None:
            await self._inheritance.clear(self._placed.values())

    async def _place(self, policy: Policy) -> None:
        """Written down first: a policy that nobody knows of would refuse its traffic for ever."""
        earlier, owner = self._placed.get(policy.number), self._policies.owner(policy.number)
        if policy == earlier or owner is None:
            return
        self._journal.add(policy_record(*owner, policy))
        await self.dataplane.add_policy(policy)
        self._placed[policy.number] = policy
        if earlier is not None:
            self._journal.end(policy_record(*owner, earlier))

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
                spi_in=pair.spi_in,
                spi_out=pair.spi_out,
                local=pair.local,
                remote=pair.remote,
                left_s=max(0, int(entry.since + pair.lifetime - self._clock.now())),
            )
        )

    def epoch_ended(self) -> None:
        """The worker is gone: SPIs that it did not use are released, whoever waits for it is told."""
        epoch, self._epoch = self._epoch, None
        for allocation in self.sadb.allocations():
            self._release(allocation)
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
        self._stopping = True
        if self._epoch is not None:
            try:
                await within(self._clock, STOP_SECONDS, self._epoch.ask(Stop(), Completed))
            except (TimeoutError, ChannelClosed, WorkerBusy):
                self._log(Level.WARNING, "stop-unanswered")
            self.epoch_ended()
        clean = True
        for entry in self.sadb.entries():
            if await self._quietly(self.dataplane.remove(entry.pair)):
                self._forget(entry)
            else:
                clean = False
        if leave is Leave.POLICIES:
            return
        for policy in self._placed.values():
            clean &= await self._quietly(self.dataplane.remove_policy(policy))
        for shunt in self.gateway.shunts:
            clean &= await self._quietly(self.dataplane.remove_shunt(shunt))
        if clean:
            self._journal.remove()

    async def _quietly(self, future: Future[None]) -> bool:
        """Whether it succeeded."""
        try:
            await future
        except DataplaneError as error:
            self._log(Level.WARNING, "cleanup-failed", error=error)
            return False
        return True

    def _forget(self, entry: Entry) -> None:
        self.sadb.forget(entry)
        self._journal.end_pair(entry.pair.spi_in)

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
        named = find_child(self.gateway, message.connection, message.child)
        if named is None:
            return Denial.NO_SUCH_CHILD
        verdict = outer_addresses(self.gateway, named[0], message.local.address, message.remote.address)
        if verdict is not PASSED:
            return verdict
        if self._stopping or not self.sadb.may_allocate(message.connection):
            return Denial.QUOTA
        try:
            spi = self.dataplane.allocate_spi(message.local, message.remote, named[1].protocol)
        except DataplaneError:
            return Denial.DATAPLANE
        allocation = Allocation(
            spi=spi,
            connection=message.connection,
            child=message.child,
            protocol=named[1].protocol,
            local=message.local,
            remote=message.remote,
        )
        if self.sadb.allocation(spi) is not None or self.sadb.entry(spi) is not None:
            # the kernel's SPIs are unique for each address only; ours for all
            self._release(allocation)
            return Denial.DATAPLANE
        if named[1].ipcomp:
            try:
                cpi = self.dataplane.allocate_spi(message.local, message.remote, ProtocolId.IPCOMP)
            except DataplaneError:
                self._release(allocation)
                return Denial.DATAPLANE
            allocation = dataclasses.replace(allocation, cpi=Cpi(cpi))
        self.sadb.allocate(allocation)
        return Allocated(spi=spi, cpi=allocation.cpi)

    def _release(self, allocation: Allocation) -> None:
        if self.sadb.allocation(allocation.spi) is allocation:
            self.sadb.release(allocation.spi)
        self._give_back(allocation, allocation.spi, allocation.protocol)
        self._give_back_cpi(allocation)

    def _give_back_cpi(self, allocation: Allocation) -> None:
        if allocation.cpi is not None:
            self._give_back(allocation, Spi(allocation.cpi), ProtocolId.IPCOMP)

    def _give_back(self, allocation: Allocation, spi: Spi, protocol: ProtocolId) -> None:
        try:
            self.dataplane.release_spi(spi, allocation.local, allocation.remote, protocol)
        except DataplaneError as error:
            self._log(Level.WARNING, "cleanup-failed", error=error)

    def _on_install(self, epoch: Epoch, message: Install, sequence: int) -> None:
        epoch.opened(sequence)
        run(self._install(epoch, message, sequence))

    async def _install(self, epoch: Epoch, message: Install, sequence: int) -> None:
        try:
            redeemed = await self._redeem(Redeem(keymat=message.keymat))
        except ChannelClosed:
            return
        if epoch is not self._epoch:
            return
        match redeemed:
            case Ready():
                raise Violation("keyd answers a redemption with something else")
            case NotRedeemable():
                self._denied(Denial.KEYMAT, remote=message.remote)
                self._answer(epoch, sequence, Denied(why=Denial.KEYMAT))
            case Redeemed():
                denial = await self._judge_and_install(redeemed, message)
                if denial is not None:
                    self._denied(
                        denial,
                        connection=redeemed.connection,
                        child=redeemed.child,
                        remote=message.remote,
                        identity=redeemed.identity,
                    )
                    self._answer(epoch, sequence, Denied(why=denial))
                    return
                self._answer(epoch, sequence, Installed(spi_in=redeemed.spi_in))
                entry = self.sadb.entry(Spi(redeemed.spi_in))
                if epoch is not self._epoch and self._epoch is not None and entry is not None:
                    self._tell_adopted(entry)

    async def _judge_and_install(self, redeemed: Redeemed, message: Install) -> Denial | None:
        """None when both SAs are in place; else nothing is, and this is why."""
        verdict = authorize(self.gateway, self.sadb, self._policies, redeemed, message)
        if isinstance(verdict, Denial):
            return verdict
        pair, policy = verdict, verdict.policy
        entry = Entry(
            connection=redeemed.connection,
            child=redeemed.child,
            claim=Claim(redeemed.identity, message.local_ts, message.remote_ts, policy.kernel.lane),
            pair=_without_keys(pair),
            since=self._clock.now(),
        )
        allocation = self.sadb.allocation(pair.spi_in)
        self.sadb.reserve(entry)
        self._policies.record(redeemed.connection, redeemed.child, policy)
        try:
            await self._place(policy)
            if self._stopping:
                raise DataplaneError("the daemon is stopping")
            # first, so that nothing is installed that a successor would not find
            self._journal.add(pair_record(redeemed, pair, entry.since))
            await self.dataplane.install(pair)
        except DataplaneError as error:
            self._log(Level.ERROR, "install-failed", connection=redeemed.connection, error=error)
            self._forget(entry)
            if allocation is not None:
                self._release(allocation)
            return Denial.DATAPLANE
        if allocation is not None and pair.ipcomp is None:
            self._give_back_cpi(allocation)
        entry.phase = Phase.INSTALLED
        self._log(Level.NOTICE, "installed", **_describe(entry), identity=redeemed.identity, suite=pair.suite.described)
        return None

    def _on_remove(self, epoch: Epoch, message: Remove, sequence: int) -> None:
        epoch.opened(sequence)
        spi = Spi(message.spi_in)
        allocation, entry = self.sadb.allocation(spi), self.sadb.entry(spi)
        if allocation is not None:
            self._release(allocation)
            self._answer(epoch, sequence, Removed())
        elif entry is not None and entry.phase is Phase.INSTALLED:
            entry.phase = Phase.REMOVING
            run(self._remove(epoch, entry, sequence))
        else:
            self._answer(epoch, sequence, Denied(why=Denial.UNKNOWN_SA))

    async def _remove(self, epoch: Epoch, entry: Entry, sequence: int) -> None:
        """Both SAs of the pair go, its policy stays: deleting never means clear text (RFC 4301 section 5.1)."""
        try:
            await self.dataplane.remove(entry.pair)
        except DataplaneError as error:
            entry.phase = Phase.INSTALLED
            self._log(Level.ERROR, "remove-failed", **_describe(entry), error=error)
            self._answer(epoch, sequence, Denied(why=Denial.DATAPLANE))
            return
        self._forget(entry)
        self._log(Level.NOTICE, "removed", **_describe(entry))
        self._answer(epoch, sequence, Removed())

    def _denied(self, why: Denial, **fields: object) -> None:
        self._log_rarely(Level.WARNING, "denied", reason=why.name.lower(), **fields)

    def _log_rarely(self, level: Level, code: str, **fields: object) -> None:
        """For what a captured worker or a busy network repeats at will."""
        if self._rate.admit(self._clock.now()):
            self._log(level, code, **fields, **({"unlogged": self._rate.take_refused()} if self._rate.refused else {}))

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
        return within(self._clock, seconds, begin(self._describe_all(self._clock.now() + seconds)))

    async def _describe_all(self, deadline: float) -> tuple[IkeStatus, ...]:
        epoch = self._present()
        found: list[IkeStatus] = []
        cursor = described = 0
        for _ in range(MAX_PAGES):
            page = await epoch.ask(Describe(cursor=cursor), Described)
            for sa in page.ike_sas:
                described += 1 + len(sa.children)
                if described > MAX_DESCRIBED:
                    return tuple(found)
                found.append(sa)
            cursor = page.cursor
            # nobody waits any more for what comes late
            if cursor == 0 or self._clock.now() >= deadline:
                break
        return tuple(found)

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
        owner = self._policies.owner(number)
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
            self._forget(entry)
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

    def _rewrite(self, wrong: PairRecord | None, right: PairRecord | None) -> None:
        if right is not None:
            self._journal.add(right)
        if wrong is not None:
            self._journal.end(wrong)

    async def _follow(self, entry: Entry, remote: Endpoint) -> None:
        pair = dataclasses.replace(entry.pair, remote=remote)
        # written down twice until one is true: a successor takes that which the kernel has
        earlier = self._journal.pair(pair.spi_in)
        later = dataclasses.replace(earlier, remote=remote) if earlier is not None else None
        self._rewrite(None, later)
        try:
            await self.dataplane.follow(pair)
        except DataplaneError as error:
            self._rewrite(later, earlier)
            self._log_rarely(Level.WARNING, "move-failed", **_describe(entry), error=error)
            return
        self._rewrite(earlier, later)
        entry.pair = pair
        self._log_rarely(Level.NOTICE, "moved", **_describe(entry))
        if self._epoch is not None:
            self._send(Moved(spi_in=pair.spi_in, remote=remote))


def _describe(entry: Entry) -> dict[str, object]:
    return {
        "connection": entry.connection,
        "child": entry.child,
        "remote": entry.pair.remote,
        "spi_in": f"0x{entry.pair.spi_in:08x}",
        "spi_out": f"0x{entry.pair.spi_out:08x}",
    }


def _without_keys(pair: Pair) -> Pair:
    """What the table keeps: keys are forgotten as soon as the data plane has them."""
    return dataclasses.replace(pair, encryption_in=b"", integrity_in=b"", encryption_out=b"", integrity_out=b"")
