"""What an earlier instance left in the kernel, after kill -9 say: adopted where the configuration still allows it.

The journal names it; this configuration must allow it, by the checks of an installation that do not concern keys and
SPIs; and the kernel must have it as it was installed. What fails the second is removed, and what is left of a pair too;
what fails the third is forgotten. Nothing that the journal does not name is touched: it is somebody else's.
"""

import dataclasses
from collections.abc import Collection, Mapping

from monitor.authorize import PASSED, READMISSION, authorize, find_child, outer_addresses
from monitor.dataplane import Adopting, DataplaneError, Pair, Policy
from monitor.journal import Journal, OptionsRecord, PairRecord, PolicyRecord, ShuntRecord
from monitor.sadb import NOBODYS, Claim, Entry, Phase, Policies, Sadb
from monitor.waiting import quietly
from privsep.config.model import DataplaneChoice, Gateway, Remote, Shunt, Users
from privsep.config.names import RemoteName
from privsep.log import Level, Log
from privsep.schema.install import Denial, InstallInbound
from privsep.schema.keymat import Redeemed
from privsep.types import HANDLE_OCTETS, Address, Endpoint, Role, Spi, hex_spi

_NOBODY = (0, 0)
_NOTHING = Gateway(
    listen=(),
    dataplane=DataplaneChoice.KERNEL,
    users=Users(worker=_NOBODY, keyd=_NOBODY, userspace=_NOBODY),
    absent=frozenset(),
    connections=(),
)
"""A configuration by which nothing is kept."""


def owners(journal: Journal) -> Mapping[int, tuple[str, str]]:
    """(connection, child) by the number of their policy."""
    return {record.number: (record.connection, record.child) for record in journal.of(PolicyRecord)}


def policy_record(connection: str, child: str, policy: Policy) -> PolicyRecord:
    """What is written of a policy."""
    return PolicyRecord(
        connection=connection,
        child=child,
        number=policy.number,
        protocol=policy.protocol,
        mode=policy.mode,
        local=policy.local,
        remote=policy.remote,
        local_ts=policy.local_ts,
        remote_ts=policy.remote_ts,
        kernel=OptionsRecord.of(policy.kernel),
        ipcomp=policy.ipcomp,
    )


def shunt_record(shunt: Shunt) -> ShuntRecord:
    """What is written of a shunt."""
    return ShuntRecord(
        name=shunt.name,
        local_ts=shunt.local_ts,
        remote_ts=shunt.remote_ts,
        action=shunt.action,
        order=shunt.order,
    )


def pair_record(redeemed: Redeemed, pair: Pair, since: float) -> PairRecord:
    """What is written of a pair."""
    return PairRecord(
        connection=redeemed.connection,
        child=redeemed.child,
        identity=redeemed.identity,
        suite=redeemed.suite,
        policy=pair.policy.number,
        kernel=OptionsRecord.of(pair.policy.kernel),
        mode=pair.policy.mode,
        spi_in=pair.spi_in,
        spi_out=pair.spi_out,
        local=pair.local,
        remote=pair.remote,
        encap=pair.encap,
        local_ts=pair.local_ts[0],
        remote_ts=pair.remote_ts[0],
        since_ms=int(since * 1000),
        lifetime=pair.lifetime,
        cpi_in=None if pair.ipcomp is None else pair.ipcomp.inbound,
        cpi_out=None if pair.ipcomp is None else pair.ipcomp.outbound,
    )


def recall(gateway: Gateway, journal: Journal) -> None:
    """Where names led when an earlier instance ran: its pairs are there, and without a name server so is the peer."""
    records: list[PolicyRecord | PairRecord] = [*journal.of(PolicyRecord), *journal.of(PairRecord)]
    for record in records:
        connection, address = gateway.connection(record.connection), record.remote.address
        if connection is not None and address not in NOBODYS.values() and _may_be_at(connection.remote, address):
            gateway.locate(connection, address)


def _may_be_at(remote: Remote, address: Address) -> bool:
    return isinstance(remote, RemoteName) and remote.version in (None, address.version)


def interfaces(journal: Journal) -> Mapping[str, int]:
    """if_id by name of the XFRM interfaces that an earlier instance had made or used."""
    options = (record.kernel for record in journal.of(PolicyRecord))
    return {each.interface: each.if_id_out for each in options if each.interface}


async def renounce(journal: Journal, kernel: Adopting, log: Log) -> None:
    """Remove all of it: nobody uses the kernel as data plane any more, whose policies would refuse the traffic."""
    inheritance = Inheritance(_NOTHING, journal, kernel, (Sadb(), Policies(_NOTHING)), log)
    await inheritance.adopt()
    await inheritance.clear(())


class Inheritance:
    """One at each start. Futures of the kernel are resolved at once."""

    def __init__(
        self, gateway: Gateway, journal: Journal, kernel: Adopting, books: tuple[Sadb, Policies], log: Log
    ) -> None:
        self._gateway = gateway
        self._journal = journal
        self._kernel = kernel
        self._sadb, self._policies = books
        self._log = log

    async def adopt(self) -> None:
        """First of all, so that no SA of what is not allowed any more meets a new policy."""
        for record in self._journal.of(PolicyRecord):
            policy = _policy(record)
            await quietly(self._kernel.expect(policy), self._log)
            self._restore(record, policy)
        counts = dict.fromkeys(("adopted", "removed", "forgotten"), 0)
        for pair in self._journal.of(PairRecord):
            counts[await self._settle(pair)] += 1
        if any(counts.values()):
            self._log(Level.NOTICE, "earlier-pairs", **counts)

    async def clear(self, placed: Collection[Policy]) -> None:
        """Last of all: policies of the earlier instance that are not this one's, and shunts."""
        kept: set[Policy | Shunt] = {*placed, *self._gateway.shunts}
        records: list[PolicyRecord | ShuntRecord] = [*self._journal.of(PolicyRecord), *self._journal.of(ShuntRecord)]
        for record in records:
            rule = _policy(record) if isinstance(record, PolicyRecord) else _shunt(record)
            if rule not in kept and await quietly(self._kernel.clear(rule), self._log):
                self._journal.end(record)

    # policies

    def _restore(self, record: PolicyRecord, policy: Policy) -> None:
        """Of peers at changing addresses: their traffic goes protected or not at all, as before."""
        named = find_child(self._gateway, record.connection, record.child)
        if named is None:
            return
        connection, child = named
        allowed = (
            (child.mode, child.protocol, child.kernel) == (record.mode, record.protocol, policy.kernel)
            and outer_addresses(self._gateway, connection, record.local.address, record.remote.address) is PASSED
            and all(any(outer.contains(inner) for outer in child.local_ts) for inner in record.local_ts)
            and all(any(outer.contains(inner) for outer in child.remote_ts) for inner in record.remote_ts)
            # nor what is reserved, for this peer too if its address is configured now
            and not any(
                True
                for ts in record.remote_ts
                for _ in self._policies.reserved.touching(ts.network, policy.kernel.lane)
            )
        )
        if allowed:
            policy = dataclasses.replace(policy, ipcomp=policy.ipcomp and child.ipcomp)
            self._policies.restore(record.connection, record.child, policy)

    # pairs

    async def _settle(self, record: PairRecord) -> str:
        """What became of it, in a word."""
        pair = self._readmitted(record)
        try:
            if isinstance(pair, Pair):
                try:
                    await self._kernel.adopt(pair)
                except DataplaneError as error:
                    reason = str(error)
                else:
                    self._take(record, pair)
                    return "adopted"
            else:
                reason = pair
            found = await self._kernel.discard(_described(record))
        except DataplaneError as error:
            self._log(Level.WARNING, "cleanup-failed", error=error)
            return "forgotten"
        self._journal.end(record)
        if found:
            label = {"connection": record.connection, "child": record.child, "spi_in": hex_spi(record.spi_in)}
            self._log(Level.NOTICE, "not-adopted", **label, reason=reason)
        return "removed" if found else "forgotten"

    def _take(self, record: PairRecord, pair: Pair) -> None:
        entry = Entry(
            connection=record.connection,
            child=record.child,
            identity=record.identity,
            claim=Claim(record.connection, record.identity, pair.local_ts, pair.remote_ts, pair.policy.kernel.lane),
            pair=pair,
            since=record.since_ms / 1000,
            phase=Phase.INSTALLED,
        )
        # of two records of a pair that was moving the true one
        self._journal.add(record)
        self._sadb.reserve(entry)
        self._policies.record(record.connection, record.child, pair.policy)

    def _readmitted(self, record: PairRecord) -> Pair | str:
        """The pair as this configuration has it, or why it has not."""
        redeemed = Redeemed(
            connection=record.connection,
            child=record.child,
            identity=record.identity,
            role=Role.RESPONDER,
            suite=record.suite,
            mode=record.mode,
            encap=record.encap,
            spi_in=record.spi_in,
            spi_out=record.spi_out,
            cpi_in=record.cpi_in,
            cpi_out=record.cpi_out,
            local_ts=record.local_ts,
            remote_ts=record.remote_ts,
            lifetime=record.lifetime,
            encryption_in=b"",
            integrity_in=b"",
        )
        install = InstallInbound(keymat=bytes(HANDLE_OCTETS), local=record.local, remote=record.remote)
        pair = authorize(self._gateway, self._sadb, self._policies, redeemed, install, READMISSION)
        if isinstance(pair, Denial):
            return pair.value
        was = record.policy, record.kernel.options()
        if (pair.policy.number, pair.policy.kernel) != was:
            return "its policy is another now"
        policy = dataclasses.replace(pair.policy, ipcomp=record.cpis is not None)
        return dataclasses.replace(pair, policy=policy, lifetime=record.lifetime, ipcomp=record.cpis)


def _policy(record: PolicyRecord) -> Policy:
    return Policy(
        number=record.number,
        protocol=record.protocol,
        mode=record.mode,
        local=record.local,
        remote=record.remote,
        local_ts=record.local_ts,
        remote_ts=record.remote_ts,
        kernel=record.kernel.options(),
        ipcomp=record.ipcomp,
    )


def _shunt(record: ShuntRecord) -> Shunt:
    return Shunt(
        name=record.name,
        local_ts=record.local_ts,
        remote_ts=record.remote_ts,
        action=record.action,
        order=record.order,
    )


def _described(record: PairRecord) -> Pair:
    """As it was installed, whatever this configuration says."""
    return Pair(
        policy=Policy(
            number=record.policy,
            protocol=record.suite.protocol,
            mode=record.mode,
            local=Endpoint(record.local.address, 0),
            remote=Endpoint(record.remote.address, 0),
            local_ts=(record.local_ts,),
            remote_ts=(record.remote_ts,),
            kernel=record.kernel.options(),
            ipcomp=record.cpis is not None,
        ),
        spi_in=Spi(record.spi_in),
        spi_out=Spi(record.spi_out),
        suite=record.suite.without_group(),
        encryption_in=b"",
        integrity_in=b"",
        encryption_out=b"",
        integrity_out=b"",
        local=record.local,
        remote=record.remote,
        encap=record.encap,
        local_ts=(record.local_ts,),
        remote_ts=(record.remote_ts,),
        lifetime=record.lifetime,
        replay_window=0,
        ipcomp=record.cpis,
    )
