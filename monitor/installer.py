"""What is ours in the data plane: put there, changed, removed, taken over from an earlier instance.

Keeps three books in step: the table (sadb.py), the journal for a successor (journal.py) and the data plane itself. What
the data plane has, the other two know of; decisions are made elsewhere (service.py, authorize.py).
"""

import dataclasses
from collections.abc import Callable, Iterable
from enum import Enum

from monitor.dataplane import Adopting, Dataplane, DataplaneError, Pair, Policy
from monitor.inheritance import Inheritance, owners, policy_record, shunt_record
from monitor.journal import Journal, PairRecord, PolicyRecord
from monitor.sadb import Allocation, Entry, Phase, Policies, Sadb
from monitor.waiting import quietly
from privsep.config.model import Child, Connection, Gateway
from privsep.iana import ProtocolId
from privsep.log import Level, Log
from privsep.types import Cpi, Endpoint, Spi

MAX_MIGRATED = 4
"""Pairs of a policy that go with their peer: two while it renews one. What has more is negotiated anew."""


class Leave(Enum):
    """What the end of the daemon leaves behind."""

    NOTHING = "nothing"
    POLICIES = "policies"
    """Policies and shunts, so that no traffic passes in clear that has not before, and no exception from a policy ends
    before it: who administers the machine through one stays in. The journal tells the next start of them."""


class Installer:
    """One for the life of the daemon."""

    def __init__(
        self,
        gateway: Gateway,
        dataplane: Dataplane,
        log: Log,
        journal: Journal,
        kernel: Adopting | None,
        moved: Callable[[Entry], None],
    ) -> None:
        """`kernel` is the data plane, if it is one that outlives us; `journal` tells what it has from before.

        `moved` hears of each pair whose peer is somewhere else now.
        """
        self.sadb = Sadb()
        self.policies = Policies(gateway, owners(journal))
        self.dataplane = dataplane
        self.closed = False
        """Nothing new is installed any more."""
        self._shunts = gateway.shunts
        self._journal = journal
        self._log = log
        self._moved = moved
        self._placed: dict[int, Policy] = {}
        self._records: dict[int, PolicyRecord] = {}
        """What the journal says of these."""
        self._inheritance: Inheritance | None = None
        if kernel is not None:
            self._inheritance = Inheritance(gateway, journal, kernel, (self.sadb, self.policies), log)

    async def start(self) -> bool:
        """Policies of all peers with a configured address: from here on traffic goes protected or not at all.

        What an earlier instance left is adopted before and cleared away after. False if the daemon ends meanwhile.
        """
        if self._journal.problem is not None:
            self._log(Level.WARNING, "journal-ignored", reason=self._journal.problem)
        if self._inheritance is not None:
            await self._inheritance.adopt()
        # an adopted pair sends by the policy that it was installed with, compressed or not
        entries = sorted(self.sadb.entries(), key=lambda entry: entry.since)
        adopted = {entry.pair.policy.number: entry.pair.policy for entry in entries}
        # peers at changing addresses may come meanwhile, with policies of their own or in the place of earlier ones
        for owner, policy in tuple(self.policies.all()):
            if self.closed:
                return False
            if policy.number not in self._placed:
                await self._place(owner, adopted.get(policy.number, policy))
        for shunt in self._shunts:
            self._journal.add(shunt_record(shunt))
            await self.dataplane.add_shunt(shunt)
        if self._inheritance is not None:
            await self._inheritance.clear(self._placed.values())
        self.policies.give_back(owners(self._journal))
        return True

    async def clear(self, leave: Leave) -> None:
        """At the end of the daemon: removes all that is ours and nothing else. Never fails."""
        clean = True
        for entry in self.sadb.entries():
            if await quietly(self.dataplane.remove(entry.pair), self._log):
                self.forget(entry)
            else:
                clean = False
        if leave is Leave.POLICIES:
            return
        while self._placed:
            _, policy = self._placed.popitem()
            clean &= await quietly(self.dataplane.remove_policy(policy), self._log)
        for shunt in self._shunts:
            clean &= await quietly(self.dataplane.remove_shunt(shunt), self._log)
        if clean:
            self._journal.remove()

    async def locate(self, connection: Connection) -> None:
        """The connection's name has another address now: its policies lead there. DataplaneError.

        But for those under which there are pairs: they follow with the peer's next pair, which proves that it is there.
        """
        for owner, policy in self.policies.locate(connection):
            if not self.closed and not self.sadb.under(policy.number):
                await self._place(owner, policy)

    async def _place(self, owner: tuple[str, str], policy: Policy) -> None:
        """Written down first: a policy that nobody knows of would refuse its traffic for ever.

        What had its number goes: the same child's policy elsewhere, or one that yields, perhaps another's.
        """
        record, earlier = policy_record(*owner, policy), self._records.get(policy.number)
        if record == earlier:
            return
        self._journal.add(record)
        await self.dataplane.add_policy(policy)
        self._placed[policy.number] = policy
        self._records[policy.number] = record
        if earlier is not None:
            self._journal.end(earlier)

    def _stands_elsewhere(self, owner: tuple[str, str], policy: Policy) -> bool:
        """Whether that policy is in place, be it for another address of the peer's or with other compression."""
        there = self._placed.get(policy.number)
        if there is None:
            return False
        same = dataclasses.replace(policy, local=there.local, remote=there.remote, ipcomp=there.ipcomp)
        return self._records.get(policy.number) == policy_record(*owner, same)

    # SPIs

    def allocate(self, connection: Connection, child: Child, local: Endpoint, remote: Endpoint) -> Allocation:
        """An inbound SPI, and a CPI where the child compresses. DataplaneError if there is none."""
        spi = self.dataplane.allocate_spi(local, remote, child.protocol)
        allocation = Allocation(
            spi=spi, connection=connection.name, child=child.name, protocol=child.protocol, local=local, remote=remote
        )
        if self.sadb.allocation(spi) is not None or self.sadb.entry(spi) is not None:
            # the kernel's SPIs are unique for each address only; ours for all
            self.release(allocation)
            raise DataplaneError("an SPI that is taken")
        if child.ipcomp:
            try:
                cpi = self.dataplane.allocate_spi(local, remote, ProtocolId.IPCOMP)
            except DataplaneError:
                self.release(allocation)
                raise
            allocation = dataclasses.replace(allocation, cpi=Cpi(cpi))
        self.sadb.allocate(allocation)
        return allocation

    def release(self, allocation: Allocation) -> None:
        """Nothing was installed with it."""
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

    # pairs

    async def install_inbound(self, entry: Entry, pair: Pair, record: PairRecord) -> None:
        """What receives, and a policy that lets it in. DataplaneError, and nothing of the pair is left, if that fails.

        `pair` is the entry's, with its keys, which nobody has any more when this is done. A policy that is in place
        stays as it is, elsewhere or otherwise compressed: it sends by another pair until the peer has confirmed this.
        """
        allocation = self.sadb.allocation(pair.spi_in)
        self.sadb.reserve(entry)
        self.policies.record(entry.connection, entry.child, pair.policy)
        try:
            if not self._stands_elsewhere((entry.connection, entry.child), pair.policy):
                await self._place((entry.connection, entry.child), pair.policy)
            if self.closed:
                raise DataplaneError("the daemon is stopping")
            # first, so that nothing is installed that a successor would not find
            self._journal.add(record)
            await self.dataplane.install_inbound(pair)
        except DataplaneError:
            self.forget(entry)
            if allocation is not None:
                self.release(allocation)
            raise
        if allocation is not None and pair.ipcomp is None:
            self._give_back_cpi(allocation)
        entry.phase = Phase.RECEIVING

    async def install_outbound(self, entry: Entry, pair: Pair) -> None:
        """What sends: the policy goes where the peer is now. DataplaneError, and the pair is gone, if that fails."""
        entry.phase = Phase.INSTALLING
        try:
            await self._migrate(entry)
            await self._place((entry.connection, entry.child), pair.policy)
            if self.closed:
                raise DataplaneError("the daemon is stopping")
            if not self._stands(entry):
                raise DataplaneError("it ended meanwhile")
            await self.dataplane.install_outbound(pair)
        except DataplaneError:
            entry.phase = Phase.RECEIVING
            await self.withdraw(entry)
            raise
        entry.phase = Phase.INSTALLED

    async def withdraw(self, entry: Entry) -> None:
        """A pair that only receives goes: nothing will become of it. What cannot be removed ends with its lifetime."""
        if not self._stands(entry) or entry.phase is not Phase.RECEIVING:
            return
        try:
            await self.remove(entry)
        except DataplaneError as error:
            self._log(Level.WARNING, "cleanup-failed", error=error)

    async def remove(self, entry: Entry) -> None:
        """Both SAs go, their policy stays: deleting never means clear text (RFC 4301 section 5.1). DataplaneError."""
        before, entry.phase = entry.phase, Phase.REMOVING
        try:
            await self.dataplane.remove(entry.pair)
        except DataplaneError:
            entry.phase = before
            raise
        self.forget(entry)

    def forget(self, entry: Entry) -> None:
        """The data plane has the pair no more. Harmless when it was forgotten before, and another has its SPI."""
        if self._stands(entry):
            self.sadb.forget(entry)
            self._journal.end_pair(entry.pair.spi_in)
            if not self.sadb.under(entry.pair.policy.number):
                self.policies.rest(entry.pair.policy.number, entry.identity)

    # peers that move

    async def follow(self, entry: Entry, remote: Endpoint) -> None:
        """The pair's peer has another port. DataplaneError, and nothing has changed."""
        records = self._write_twice(entry, remote)
        try:
            await self.dataplane.follow(dataclasses.replace(entry.pair, remote=remote))
            self._change(entry, remote)
        finally:
            self._settle(entry, records)

    async def _migrate(self, entry: Entry) -> None:
        """A peer's new pair is elsewhere than its policy: those that are there go with it, until it uses the new one.

        keyd proved that it is the same peer, and it agreed to the new pair: nothing is sent there but what is its own.
        """
        earlier = self._placed.get(entry.pair.policy.number)
        if earlier is None or earlier.remote == entry.pair.policy.remote:
            return
        behind, remote = self._behind(earlier, entry), entry.pair.remote
        if not behind:
            return
        records = [self._write_twice(each, remote) for each in behind]
        try:
            went = await self.dataplane.migrate(earlier, tuple(each.pair for each in behind), remote)
            for each in behind:
                if each.pair.spi_in in went:
                    self._change(each, remote)
        except DataplaneError as error:
            self._log(Level.INFO, "not-migrated", connection=entry.connection, child=entry.child, error=error)
        finally:
            for each, written in zip(behind, records, strict=True):
                self._settle(each, written)

    def _behind(self, earlier: Policy, entry: Entry) -> tuple[Entry, ...]:
        """Those that the policy has at its addresses. All or none: the kernel takes whichever it finds."""
        remote = entry.pair.remote
        behind = [
            each for each in self.sadb.under(earlier.number) if each.pair.remote.address == earlier.remote.address
        ]
        able = len(behind) <= MAX_MIGRATED and all(
            each.phase is Phase.INSTALLED
            and each.claim == entry.claim
            and each.pair.local.address == earlier.local.address == entry.pair.local.address
            and each.pair.encap == entry.pair.encap
            and (each.pair.ipcomp is not None) == earlier.ipcomp
            and self.sadb.has_room_for(dataclasses.replace(each.pair, remote=remote))
            for each in behind
        )
        return tuple(behind) if able else ()

    def _change(self, entry: Entry, remote: Endpoint) -> None:
        if self._stands(entry):
            self.sadb.change(entry, dataclasses.replace(entry.pair, remote=remote))
            self._moved(entry)

    def _stands(self, entry: Entry) -> bool:
        """Whether the pair has not ended meanwhile."""
        return self.sadb.entry(entry.pair.spi_in) is entry

    def _write_twice(self, entry: Entry, remote: Endpoint) -> tuple[PairRecord, PairRecord]:
        """Until one is true: a successor takes that which the kernel has."""
        earlier = self._journal.pair(entry.pair.spi_in)
        later = dataclasses.replace(earlier, remote=remote)
        self._journal.add(later)
        return earlier, later

    def _settle(self, entry: Entry, records: Iterable[PairRecord]) -> None:
        """The one that is true stays, if the pair does."""
        for record in records:
            if self._stands(entry) and record.remote == entry.pair.remote:
                self._journal.add(record)
            else:
                self._journal.end(record)
