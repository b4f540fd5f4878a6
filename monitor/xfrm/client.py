"""The kernel as data plane: SAs and policies by XFRM (RFC 4301 section 4.4, RFC 4302, RFC 4303).

Policies require protection, so that without an SA there is no traffic. An inbound SA takes the place of the larval one
that ALLOCSPI made; an outbound SA is added and replaces none. The kernel answers at once, so futures come resolved.
"""

import errno
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from monitor.dataplane import DataplaneError, Pair, Policy, Traffic
from monitor.waiting import Clock, settled
from monitor.xfrm import sa
from monitor.xfrm.ends import Ends, Flow
from monitor.xfrm.messages import NEW, AllocSpi, Counters, DelSa, GetSa, NewSa, UpdSa
from monitor.xfrm.migration import migrate
from monitor.xfrm.netlink import KernelError, XfrmNetlink
from monitor.xfrm.present import PresentSa, is_as_described
from monitor.xfrm.sa import SaId
from monitor.xfrm.spd import Spd
from monitor.xfrm.structs import Way
from privsep.config.model import Shunt
from privsep.iana import ProtocolId
from privsep.loop import Timer
from privsep.tasks import Future
from privsep.types import Endpoint, Role, Spi

HOLD_SECONDS = 1.0
"""Before a new pair sends in an old one's place: for message 3 of a Quick Mode, and for a slow peer to install."""


@dataclass(slots=True, repr=False)
class _Held:
    """A pair that does not send yet, keys and all."""

    pair: Pair
    timer: Timer


@dataclass(slots=True, frozen=True)
class Later:
    """What it takes to do something later: a clock, and whom to tell that a pair ended because it failed."""

    clock: Clock
    expired: Callable[[Spi, bool], None]


class KernelDataplane:
    """`monitor.dataplane.Dataplane` by XFRM, and `Adopting`."""

    name = "kernel"

    def __init__(self, netlink: XfrmNetlink, later: Later | None = None, *, directed: bool = False) -> None:
        """Without `later` everything is done at once. `directed`: the kernel is told which way an SA goes, as
        `probe.knows_direction` found that it can be.
        """
        self._netlink = netlink
        self._later = later
        self._directed = directed
        self._spd = Spd(netlink)
        self._larval: set[SaId] = set()
        self._installed: dict[SaId, Ends] = {}
        """Each pair under all its SAs."""
        self._senders: dict[Flow, set[SaId]] = {}
        """Outbound SAs of each flow, there or to come."""
        self._held: dict[SaId, _Held] = {}
        """Pairs whose outbound SA is not used yet, nor there, by its name."""

    # SPIs

    def allocate_spi(self, local: Endpoint, remote: Endpoint, protocol: ProtocolId) -> Spi:
        """The kernel's larval SA holds it, until it expires after net.core.xfrm_acq_expires seconds."""
        ways = (sa.way(Way.IN),) if self._directed else ()
        request = AllocSpi.request(0, sa.allocation(local.address, remote.address, protocol), ways)
        spi = Spi(int.from_bytes(self._netlink.ask(request, Counters)["id.spi"]))
        self._larval.add(SaId(local.address, protocol, spi))
        return spi

    def release_spi(self, spi: Spi, local: Endpoint, remote: Endpoint, protocol: ProtocolId) -> None:
        """Remove the larval SA; nothing if it was installed or has expired."""
        larval = SaId(local.address, protocol, spi)
        if larval in self._larval:
            self._larval.discard(larval)
            self._delete(larval)

    # policies

    def add_policy(self, policy: Policy) -> Future[None]:
        """All of its entries or none. What an earlier instance of ours left for the same traffic is replaced."""
        return settled(lambda: self._spd.add(policy))

    def add_shunt(self, shunt: Shunt) -> Future[None]:
        """The same without protection."""
        return settled(lambda: self._spd.add(shunt))

    def remove_policy(self, policy: Policy) -> Future[None]:
        """All of its entries."""
        return settled(lambda: self._spd.remove(policy))

    def remove_shunt(self, shunt: Shunt) -> Future[None]:
        """All of its entries."""
        return settled(lambda: self._spd.remove(shunt))

    # pairs

    def install_inbound(self, pair: Pair) -> Future[None]:
        """By UPDSA, only over an SPI from `allocate_spi`."""
        return settled(lambda: self._install_inbound(pair))

    def _install_inbound(self, pair: Pair) -> None:
        ends = Ends.of(pair)
        # whichever stands: the larval SA or the one that took its place
        standing = ends.inward
        if not self._larval.issuperset(standing):
            raise DataplaneError("the inbound SPI is not reserved")
        self._larval.difference_update(standing)
        try:
            if pair.ipcomp is not None:
                self._netlink.do(UpdSa.request(0, *sa.decompressing(pair, pair.ipcomp, directed=self._directed)))
            self._netlink.do(UpdSa.request(0, *sa.inbound(pair, directed=self._directed)))
        except DataplaneError:
            self._delete_all(standing)
            raise
        self._installed.update(dict.fromkeys(ends.inward, ends))

    def install_outbound(self, pair: Pair) -> Future[None]:
        """By NEWSA."""
        return settled(lambda: self._install_outbound(pair))

    def _install_outbound(self, pair: Pair) -> None:
        ends = Ends.of(pair)
        if ends.inbound not in self._installed:
            raise DataplaneError("the pair is gone")
        # the peer takes the new SA's packets once the worker's next message has arrived; the old pair sends till then
        later = self._later if pair.role is Role.INITIATOR and ends.flow in self._senders else None
        if later is None:
            self._add_outbound(pair, ends)
        self._may_send(ends)
        if later is not None:
            held = _Held(pair, later.clock.after(HOLD_SECONDS, lambda: self._switch(held)))
            self._held[ends.outbound] = held

    def _add_outbound(self, pair: Pair, ends: Ends) -> None:
        """With what compresses for it, or neither."""
        if pair.ipcomp is not None:
            self._netlink.do(NewSa.request(NEW, *sa.compressing(pair, pair.ipcomp, directed=self._directed)))
        try:
            self._netlink.do(NewSa.request(NEW, *sa.outbound(pair, directed=self._directed)))
        except DataplaneError:
            if ends.compressing is not None:
                self._delete(ends.compressing)
            raise
        self._installed.update(dict.fromkeys(ends.outward, ends))

    def _may_send(self, ends: Ends) -> None:
        self._senders.setdefault(ends.flow, set()).add(ends.outbound)

    def _switch(self, held: _Held) -> None:
        """From the old pair to this one."""
        ends = Ends.of(held.pair)
        del self._held[ends.outbound]
        try:
            self._add_outbound(held.pair, ends)
        except DataplaneError:
            # what stands outbound is somebody else's
            self._end(ends, ends.inward)

    def _end(self, ends: Ends, names: Iterable[SaId]) -> None:
        """What is left of a pair that failed, by these names."""
        # should the kernel refuse: the lifetime ends as it would have
        with suppress(DataplaneError):
            self._delete_all(names)
        self._forget(ends)
        if self._later is not None:
            self._later.expired(ends.inbound.spi, True)

    def follow(self, pair: Pair) -> Future[None]:
        """UPDSA takes the ports over into an SA that is in use, and no secret: the keys that it wants are not used.

        Were there no such SA, none would be made. One that is held back begins with the new port.
        """
        return settled(lambda: self._follow(pair))

    def _follow(self, pair: Pair) -> None:
        ends = Ends.of(pair)
        if ends.inbound not in self._installed:
            raise DataplaneError("the pair is gone")
        suite = pair.suite
        encryption, integrity = os.urandom(suite.encryption_octets), os.urandom(suite.integrity_octets)
        pair = replace(
            pair,
            encryption_in=encryption,
            integrity_in=integrity,
            encryption_out=encryption,
            integrity_out=integrity,
        )
        held = self._held.get(ends.outbound)
        if held is not None:
            held.pair = replace(held.pair, remote=pair.remote)
        else:
            self._netlink.do(UpdSa.request(0, *sa.outbound(pair, directed=self._directed)))
        # the inbound last: as long as it has the old port the kernel goes on to report the new one
        self._netlink.do(UpdSa.request(0, *sa.inbound(pair, directed=self._directed)))

    def migrate(self, policy: Policy, pairs: tuple[Pair, ...], remote: Endpoint) -> Future[tuple[Spi, ...]]:
        """By XFRM_MSG_MIGRATE. Nothing is lost where the kernel cannot (CONFIG_XFRM_MIGRATE)."""
        return settled(lambda: self._migrate(policy, pairs, remote))

    def _migrate(self, policy: Policy, pairs: tuple[Pair, ...], remote: Endpoint) -> tuple[Spi, ...]:
        moves = [(pair, replace(pair, remote=remote)) for pair in pairs]
        if any(self._exists(name) for _, after in moves for name in Ends.of(after).outward):
            # the kernel would see it half-way, and warn as of a fault of its own
            raise DataplaneError("an SA stands where a pair would go")
        refusal: DataplaneError | None = None
        try:
            migrate(self._netlink, self._spd, policy, [after for _, after in moves])
        except DataplaneError as error:
            refusal = error
        # the kernel does not tell what it moved
        looks = [(self._as_described(before), self._as_described(after)) for before, after in moves]
        went = [self._went(*move, *look) for move, look in zip(moves, looks, strict=True)]
        if refusal is not None and not any(went):
            raise refusal
        return tuple(pair.spi_in for pair, has_gone in zip(pairs, went, strict=True) if has_gone)

    def _went(self, before: Pair, after: Pair, stayed: set[SaId], arrived: set[SaId]) -> bool:
        """Whether all went that the pair has so far. One that is torn apart ends."""
        old, new = Ends.of(before), Ends.of(after)
        names = {here: there for here, there in zip(old.every, new.every, strict=True) if here in self._installed}
        if stayed.issuperset(names):
            return False
        if not arrived.issuperset(names.values()):
            self._end(old, stayed | arrived)
            return False
        held = self._held.pop(old.outbound, None)
        if old.outbound in self._senders.get(old.flow, ()):
            self._may_send(new)
        self._forget(old)
        self._installed.update(dict.fromkeys(names.values(), new))
        if held is not None:
            held.pair = replace(held.pair, remote=after.remote)
            self._held[new.outbound] = held
        return True

    def remove(self, pair: Pair) -> Future[None]:
        """All its SAs; harmless when they are gone."""
        return settled(lambda: self._remove(Ends.of(pair)))

    def _remove(self, ends: Ends) -> None:
        self._delete_all(self._of(ends))
        self._forget(ends)

    def _of(self, ends: Ends) -> tuple[SaId, ...]:
        """SAs that were installed for this very pair. By the name of the outbound one of a half another may stand."""
        return tuple(each for each in ends.every if each in self._installed and self._installed[each].is_of(ends))

    def _forget(self, ends: Ends) -> None:
        held = self._held.get(ends.outbound)
        if held is not None and Ends.of(held.pair).is_of(ends):
            held.timer.cancel()
            del self._held[ends.outbound]
        stands = self._installed.get(ends.outbound)
        if stands is None or stands.is_of(ends):
            senders = self._senders.get(ends.flow, set())
            senders.discard(ends.outbound)
            if not senders:
                self._senders.pop(ends.flow, None)
        for each in self._of(ends):
            del self._installed[each]

    def _delete_all(self, names: Iterable[SaId]) -> None:
        for each in names:
            self._delete(each)

    def _delete(self, name: SaId) -> None:
        self._netlink.do_unless(errno.ESRCH, DelSa.request(0, sa.key(name), sa.marked(name)))

    # monitor.dataplane.Adopting

    def adopt(self, pair: Pair) -> Future[None]:
        """Its SAs are there, with these addresses, this reqid, mode, encapsulation and lifetime.

        Those inbound suffice: who made it may have ended before the pair was to send, and the peer sends already.
        """
        return settled(lambda: self._adopt(pair))

    def _adopt(self, pair: Pair) -> None:
        ends = Ends.of(pair)
        standing = self._standing(pair, ends)
        if standing not in (dict.fromkeys(ends.every, True), dict.fromkeys(ends.inward, True)):
            raise DataplaneError("the kernel does not have all SAs as they were installed")
        self._installed.update(dict.fromkeys(standing, ends))
        if ends.outbound in standing:
            self._may_send(ends)

    def discard(self, pair: Pair) -> Future[bool]:
        """Those of its SAs that are as they were installed."""
        return settled(lambda: self._discard(pair))

    def _discard(self, pair: Pair) -> bool:
        found = self._as_described(pair)
        self._delete_all(found)
        return bool(found)

    def _as_described(self, pair: Pair) -> set[SaId]:
        """Those of its SAs that are there as it has them."""
        return {name for name, as_described in self._standing(pair, Ends.of(pair)).items() if as_described}

    def _standing(self, pair: Pair, ends: Ends) -> dict[SaId, bool]:
        """Which SAs there are by the pair's names, and whether each is as it was installed."""
        sides = [(name, pair.remote, pair.local) for name in ends.inward]
        sides += [(name, pair.local, pair.remote) for name in ends.outward]
        standing = {}
        for name, source, destination in sides:
            try:
                present = self._netlink.ask(GetSa.request(0, sa.key(name), sa.marked(name)), PresentSa)
            except KernelError as error:
                if error.number != errno.ESRCH:
                    raise
                continue
            standing[name] = is_as_described(present, pair, name.protocol, source, destination)
        return standing

    def expect(self, policy: Policy) -> Future[None]:
        """What is there of it may be replaced, whatever its priority."""
        return settled(lambda: self._spd.expect(policy))

    def clear(self, rule: Policy | Shunt) -> Future[None]:
        """Of its entries those that are ours by their priority, stand for it, and that nothing has replaced."""
        return settled(lambda: self._spd.clear(rule))

    def traffic(self, pair: Pair) -> Future[Traffic]:
        """The kernel's counters of both SAs."""
        return settled(lambda: self._traffic(Ends.of(pair)))

    def _traffic(self, ends: Ends) -> Traffic:
        inbound, outbound = (self._counters(each) for each in ends.both)
        return Traffic(
            bytes_in=inbound["curlft.bytes"],
            bytes_out=outbound["curlft.bytes"],
            packets_in=inbound["curlft.packets"],
            packets_out=outbound["curlft.packets"],
        )

    def _counters(self, name: SaId) -> Counters:
        return self._netlink.ask(GetSa.request(0, sa.key(name), sa.marked(name)), Counters)

    # for `events.py`: what the kernel says about policies and SAs

    def requiring(self, reqid: int, priority: int) -> int | None:
        """The number of the policy that a packet matched; None if it is not ours."""
        return self._spd.requiring(reqid, priority)

    def owner(self, name: SaId) -> Spi | None:
        """The inbound SPI of the pair, or of the allocation, that this SA belongs to; None if it is not ours."""
        ends = self._installed.get(name)
        if ends is not None:
            return ends.inbound.spi
        # a CPI is no SPI; what it was allocated with expires in the same second
        return name.spi if name in self._larval and name.protocol is not ProtocolId.IPCOMP else None

    def ended(self, name: SaId) -> Spi | None:
        """The kernel removed this SA, so the other of its pair goes too. As `owner`. Never fails."""
        owner = self.owner(name)
        self._larval.discard(name)
        ends = self._installed.get(name)
        if ends is not None:
            # should the kernel refuse: the other's lifetime ends in the same second
            with suppress(DataplaneError):
                self._remove(ends)
            self._forget(ends)
        return owner

    def vanished(self) -> list[Spi]:
        """After events were lost: the pairs and allocations that the kernel no longer has."""
        held = {**self._installed, **dict.fromkeys(self._larval)}
        return [owner for each in held if not self._exists(each) and (owner := self.ended(each)) is not None]

    def _exists(self, name: SaId) -> bool:
        try:
            self._counters(name)
        except KernelError as error:
            return error.number != errno.ESRCH
        return True
