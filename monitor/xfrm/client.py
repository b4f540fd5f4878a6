"""The kernel as data plane: SAs and policies by XFRM (RFC 4301 section 4.4, RFC 4302, RFC 4303).

Policies require protection, so that without an SA there is no traffic. An inbound SA takes the place of the larval one
that ALLOCSPI made; an outbound SA is added and replaces none. The kernel answers at once, so futures come resolved.
"""

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL

from monitor.dataplane import DataplaneError, Pair, Policy, Traffic
from monitor.xfrm import sa
from monitor.xfrm.messages import (
    AllocSpi,
    Counters,
    DelPolicy,
    DelSa,
    GetPolicy,
    GetSa,
    Message,
    NewPolicy,
    NewSa,
    UpdPolicy,
    UpdSa,
)
from monitor.xfrm.netlink import KernelError, XfrmNetlink
from monitor.xfrm.policy import Entry, entries, has_our_priority, is_ours, is_same
from monitor.xfrm.sa import SaId
from monitor.xfrm.structs import Way
from privsep.iana import ProtocolId
from privsep.tasks import Future
from privsep.types import Endpoint, Spi

T = TypeVar("T")

_NEW = NLM_F_CREATE | NLM_F_EXCL
"""Never in place of another. XFRM goes by the message's type, which says the same."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Ends:
    """What is kept of an installed pair: how the kernel knows its two SAs."""

    inbound: SaId
    outbound: SaId

    @classmethod
    def of(cls, pair: Pair) -> "Ends":
        """Those of a pair."""
        protocol = pair.suite.protocol
        return cls(
            inbound=SaId(pair.local.address, protocol, pair.spi_in),
            outbound=SaId(pair.remote.address, protocol, pair.spi_out, pair.policy.kernel.lane.mark_out),
        )

    @property
    def both(self) -> tuple[SaId, SaId]:
        """Inbound, outbound."""
        return self.inbound, self.outbound


class KernelDataplane:
    """`monitor.dataplane.Dataplane` by XFRM."""

    name = "kernel"

    def __init__(self, netlink: XfrmNetlink, *, directed: bool = False) -> None:
        """`directed`: the kernel is told which way an SA goes, as `probe.knows_direction` found that it can be."""
        self._netlink = netlink
        self._directed = directed
        self._requiring: dict[int, Policy] = {}
        """Policies in place, by reqid."""
        self._larval: set[SaId] = set()
        self._installed: dict[SaId, Ends] = {}
        """Each pair under both its SAs."""

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
        return _settled(lambda: self._add_policy(policy))

    def _add_policy(self, policy: Policy) -> None:
        added: list[Entry] = []
        try:
            for entry in entries(policy):
                if self._place(entry):
                    added.append(entry)
        except DataplaneError:
            for entry in added:
                self._drop(entry)
            raise
        self._requiring[policy.reqid] = policy

    def _place(self, entry: Entry) -> bool:
        """Whether it is new; otherwise it replaced one of ours."""
        try:
            self._netlink.do(NewPolicy.request(_NEW, entry.values, entry.attributes))
        except KernelError as error:
            if error.number != errno.EEXIST:
                raise
            present = self._netlink.ask(GetPolicy.request(0, entry.key, entry.lane), NewPolicy)
            if not is_ours(present) and not is_same(present, entry):
                raise
            self._netlink.do(UpdPolicy.request(0, entry.values, entry.attributes))
            return False
        return True

    def remove_policy(self, policy: Policy) -> Future[None]:
        """All of its entries."""
        return _settled(lambda: self._remove_policy(policy))

    def _remove_policy(self, policy: Policy) -> None:
        self._requiring.pop(policy.reqid, None)
        for entry in entries(policy):
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        self._unless(errno.ENOENT, DelPolicy.request(0, entry.key, entry.lane))

    # pairs

    def install(self, pair: Pair) -> Future[None]:
        """The inbound SA by UPDSA, only over an SPI from `allocate_spi`; the outbound by NEWSA; both or none."""
        return _settled(lambda: self._install(pair))

    def _install(self, pair: Pair) -> None:
        ends = Ends.of(pair)
        if ends.inbound not in self._larval:
            raise DataplaneError("the inbound SPI is not reserved")
        self._larval.discard(ends.inbound)
        try:
            self._netlink.do(UpdSa.request(0, *sa.inbound(pair, directed=self._directed)))
            self._netlink.do(NewSa.request(_NEW, *sa.outbound(pair, directed=self._directed)))
        except DataplaneError:
            # whichever stands: the larval SA or the one that took its place
            self._delete(ends.inbound)
            raise
        self._installed.update(dict.fromkeys(ends.both, ends))

    def remove(self, pair: Pair) -> Future[None]:
        """Both SAs; harmless when they are gone."""
        return _settled(lambda: self._remove(Ends.of(pair)))

    def _remove(self, ends: Ends) -> None:
        for each in ends.both:
            self._delete(each)
        self._forget(ends)

    def _forget(self, ends: Ends) -> None:
        for each in ends.both:
            self._installed.pop(each, None)

    def _delete(self, name: SaId) -> None:
        self._unless(errno.ESRCH, DelSa.request(0, sa.key(name), sa.marked(name)))

    def _unless(self, harmless: int, message: Message) -> None:
        try:
            self._netlink.do(message)
        except KernelError as error:
            if error.number != harmless:
                raise

    def traffic(self, pair: Pair) -> Future[Traffic]:
        """The kernel's counters of both SAs."""
        return _settled(lambda: self._traffic(Ends.of(pair)))

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
        policy = self._requiring.get(reqid)
        if policy is None or not (has_our_priority(priority) or priority == policy.kernel.priority):
            return None
        return policy.number

    def owner(self, name: SaId) -> Spi | None:
        """The inbound SPI of the pair, or of the allocation, that this SA belongs to; None if it is not ours."""
        ends = self._installed.get(name)
        if ends is not None:
            return ends.inbound.spi
        return name.spi if name in self._larval else None

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


def _settled(action: Callable[[], T]) -> Future[T]:
    """The action's result or error, as a future."""
    future: Future[T] = Future()
    try:
        future.set_result(action())
    except DataplaneError as error:
        future.set_error(error)
    return future
