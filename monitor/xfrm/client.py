"""The kernel as data plane: SAs and policies by XFRM (RFC 4301 section 4.4, RFC 4303).

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
from monitor.xfrm.policy import Entry, entries, is_ours
from privsep.iana import ProtocolId
from privsep.tasks import Future
from privsep.types import Address, Endpoint, Spi

T = TypeVar("T")

_NEW = NLM_F_CREATE | NLM_F_EXCL
"""Never in place of another. XFRM goes by the message's type, which says the same."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Ends:
    """What is kept of an installed pair: the kernel's keys of its two SAs."""

    local: Address
    spi_in: Spi
    remote: Address
    spi_out: Spi

    @classmethod
    def of(cls, pair: Pair) -> "Ends":
        """Those of a pair."""
        return cls(local=pair.local.address, spi_in=pair.spi_in, remote=pair.remote.address, spi_out=pair.spi_out)

    @property
    def keys(self) -> tuple[tuple[Address, Spi], tuple[Address, Spi]]:
        """(destination, SPI), inbound and outbound."""
        return (self.local, self.spi_in), (self.remote, self.spi_out)


class KernelDataplane:
    """`monitor.dataplane.Dataplane` by XFRM."""

    name = "kernel"

    def __init__(self, netlink: XfrmNetlink) -> None:
        self._netlink = netlink
        self._larval: set[tuple[Address, Spi]] = set()
        self._installed: dict[tuple[Address, Spi], Ends] = {}
        """Each pair under both its keys."""

    # SPIs

    def allocate_spi(self, local: Endpoint, remote: Endpoint) -> Spi:
        """The kernel's larval SA holds it, until it expires after net.core.xfrm_acq_expires seconds."""
        answer = self._netlink.ask(AllocSpi.request(0, sa.allocation(local.address, remote.address)), Counters)
        spi = Spi(int.from_bytes(answer["id.spi"]))
        self._larval.add((local.address, spi))
        return spi

    def release_spi(self, spi: Spi, local: Endpoint, remote: Endpoint) -> None:
        """Remove the larval SA; nothing if it was installed or has expired."""
        if (local.address, spi) in self._larval:
            self._larval.discard((local.address, spi))
            self._delete(local.address, spi)

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
        inbound, _ = ends.keys
        if pair.suite.protocol is not ProtocolId.ESP:
            raise DataplaneError("only ESP is carried")
        if inbound not in self._larval:
            raise DataplaneError("the inbound SPI is not reserved")
        self._larval.discard(inbound)
        try:
            self._netlink.do(UpdSa.request(0, *sa.inbound(pair)))
            self._netlink.do(NewSa.request(_NEW, *sa.outbound(pair)))
        except DataplaneError:
            # whichever stands: the larval SA or the one that took its place
            self._delete(*inbound)
            raise
        self._installed.update(dict.fromkeys(ends.keys, ends))

    def remove(self, pair: Pair) -> Future[None]:
        """Both SAs; harmless when they are gone."""
        return _settled(lambda: self._remove(Ends.of(pair)))

    def _remove(self, ends: Ends) -> None:
        for key in ends.keys:
            self._delete(*key)
        self._forget(ends)

    def _forget(self, ends: Ends) -> None:
        for key in ends.keys:
            self._installed.pop(key, None)

    def _delete(self, address: Address, spi: Spi) -> None:
        self._unless(errno.ESRCH, DelSa.request(0, sa.key(address, spi)))

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
        inbound, outbound = (self._counters(*key) for key in ends.keys)
        return Traffic(
            bytes_in=inbound["curlft.bytes"],
            bytes_out=outbound["curlft.bytes"],
            packets_in=inbound["curlft.packets"],
            packets_out=outbound["curlft.packets"],
        )

    def _counters(self, address: Address, spi: Spi) -> Counters:
        return self._netlink.ask(GetSa.request(0, sa.key(address, spi)), Counters)

    # for `events.py`: what the kernel says about SAs

    def owner(self, address: Address, spi: Spi) -> Spi | None:
        """The inbound SPI of the pair, or of the allocation, that this SA belongs to; None if it is not ours."""
        ends = self._installed.get((address, spi))
        if ends is not None:
            return ends.spi_in
        return spi if (address, spi) in self._larval else None

    def ended(self, address: Address, spi: Spi) -> Spi | None:
        """The kernel removed this SA, so the other of its pair goes too. As `owner`. Never fails."""
        owner = self.owner(address, spi)
        self._larval.discard((address, spi))
        ends = self._installed.get((address, spi))
        if ends is not None:
            # should the kernel refuse: the other's lifetime ends in the same second
            with suppress(DataplaneError):
                self._remove(ends)
            self._forget(ends)
        return owner

    def vanished(self) -> list[Spi]:
        """After events were lost: the pairs and allocations that the kernel no longer has."""
        held = {**self._installed, **dict.fromkeys(self._larval)}
        return [owner for key in held if not self._exists(*key) and (owner := self.ended(*key)) is not None]

    def _exists(self, address: Address, spi: Spi) -> bool:
        try:
            self._counters(address, spi)
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
