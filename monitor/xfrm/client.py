"""The kernel as data plane: SAs and policies by XFRM (RFC 4301 section 4.4, RFC 4302, RFC 4303).

Policies require protection, so that without an SA there is no traffic. An inbound SA takes the place of the larval one
that ALLOCSPI made; an outbound SA is added and replaces none. The kernel answers at once, so futures come resolved.
"""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
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
from monitor.xfrm.policy import Entry, entries, is_ours
from monitor.xfrm.sa import SaId
from privsep.iana import ProtocolId
from privsep.tasks import Future
from privsep.types import Endpoint, Spi

T = TypeVar("T")

_NEW = NLM_F_CREATE | NLM_F_EXCL
"""Never in place of another. XFRM goes by the message's type, which says the same."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Ends:
    """What is kept of an installed pair: how the kernel knows its two SAs, and those of IPComp."""

    inbound: SaId
    outbound: SaId
    decompressing: SaId | None = None
    compressing: SaId | None = None

    @classmethod
    def of(cls, pair: Pair) -> "Ends":
        """Those of a pair."""
        protocol, cpis = pair.suite.protocol, pair.ipcomp
        local, remote = pair.local.address, pair.remote.address
        return cls(
            inbound=SaId(local, protocol, pair.spi_in),
            outbound=SaId(remote, protocol, pair.spi_out),
            decompressing=SaId(local, ProtocolId.IPCOMP, Spi(cpis.inbound)) if cpis is not None else None,
            compressing=SaId(remote, ProtocolId.IPCOMP, Spi(cpis.outbound)) if cpis is not None else None,
        )

    @property
    def both(self) -> tuple[SaId, SaId]:
        """Inbound, outbound."""
        return self.inbound, self.outbound

    @property
    def every(self) -> tuple[SaId, ...]:
        """With IPComp's."""
        return tuple(each for each in (*self.both, self.decompressing, self.compressing) if each is not None)


class KernelDataplane:
    """`monitor.dataplane.Dataplane` by XFRM."""

    name = "kernel"

    def __init__(self, netlink: XfrmNetlink) -> None:
        self._netlink = netlink
        self._larval: set[SaId] = set()
        self._installed: dict[SaId, Ends] = {}
        """Each pair under all its SAs."""

    # SPIs

    def allocate_spi(self, local: Endpoint, remote: Endpoint, protocol: ProtocolId) -> Spi:
        """The kernel's larval SA holds it, until it expires after net.core.xfrm_acq_expires seconds."""
        request = AllocSpi.request(0, sa.allocation(local.address, remote.address, protocol))
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

    def _place(self, entry: Entry) -> bool:
        """Whether it is new; otherwise it replaced one of ours."""
        try:
            self._netlink.do(NewPolicy.request(_NEW, entry.values, entry.attributes))
        except KernelError as error:
            if error.number != errno.EEXIST:
                raise
            present = self._netlink.ask(GetPolicy.request(0, entry.key), NewPolicy)
            if not is_ours(present):
                raise
            self._netlink.do(UpdPolicy.request(0, entry.values, entry.attributes))
            return False
        return True

    def remove_policy(self, policy: Policy) -> Future[None]:
        """All of its entries."""
        return _settled(lambda: self._remove_policy(policy))

    def _remove_policy(self, policy: Policy) -> None:
        for entry in entries(policy):
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        self._unless(errno.ENOENT, DelPolicy.request(0, entry.key))

    # pairs

    def install(self, pair: Pair) -> Future[None]:
        """The inbound SA by UPDSA, only over an SPI from `allocate_spi`; the outbound by NEWSA; both or none."""
        return _settled(lambda: self._install(pair))

    def _install(self, pair: Pair) -> None:
        ends = Ends.of(pair)
        # whichever stands: the larval SA or the one that took its place
        standing = [each for each in (ends.inbound, ends.decompressing) if each is not None]
        if not self._larval.issuperset(standing):
            raise DataplaneError("the inbound SPI is not reserved")
        self._larval.difference_update(standing)
        try:
            if pair.ipcomp is not None and ends.compressing is not None:
                self._netlink.do(UpdSa.request(0, *sa.decompressing(pair, pair.ipcomp)))
                self._netlink.do(NewSa.request(_NEW, *sa.compressing(pair, pair.ipcomp)))
                standing.append(ends.compressing)
            self._netlink.do(UpdSa.request(0, *sa.inbound(pair)))
            self._netlink.do(NewSa.request(_NEW, *sa.outbound(pair)))
        except DataplaneError:
            for each in standing:
                self._delete(each)
            raise
        self._installed.update(dict.fromkeys(ends.every, ends))

    def follow(self, pair: Pair) -> Future[None]:
        """UPDSA takes the ports over into an SA that is in use, and no secret: the keys that it wants are not used.

        Were there no such SA, none would be made.
        """
        return _settled(lambda: self._follow(pair))

    def _follow(self, pair: Pair) -> None:
        if Ends.of(pair).inbound not in self._installed:
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
        # the inbound last: as long as it has the old port the kernel goes on to report the new one
        self._netlink.do(UpdSa.request(0, *sa.outbound(pair)))
        self._netlink.do(UpdSa.request(0, *sa.inbound(pair)))

    def remove(self, pair: Pair) -> Future[None]:
        """All its SAs; harmless when they are gone."""
        return _settled(lambda: self._remove(Ends.of(pair)))

    def _remove(self, ends: Ends) -> None:
        for each in ends.every:
            self._delete(each)
        self._forget(ends)

    def _forget(self, ends: Ends) -> None:
        for each in ends.every:
            self._installed.pop(each, None)

    def _delete(self, name: SaId) -> None:
        self._unless(errno.ESRCH, DelSa.request(0, sa.key(name)))

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
        return self._netlink.ask(GetSa.request(0, sa.key(name)), Counters)

    # for `events.py`: what the kernel says about SAs

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


def _settled(action: Callable[[], T]) -> Future[T]:
    """The action's result or error, as a future."""
    future: Future[T] = Future()
    try:
        future.set_result(action())
    except DataplaneError as error:
        future.set_error(error)
    return future
