"""The monitor's end of the ESP process: a data plane like the kernel's, over a channel.

When the process dies its SAs die with it, since only it had the keys' use; the policies' routes stay, so traffic waits
and is not sent in the clear. The client tells the service at once and gives a new process the policies again.
"""

import secrets
import socket
from collections.abc import Callable

from monitor.dataplane import DataplaneError, Events, Pair, Policy, Traffic
from monitor.routes import Routes
from monitor.waiting import settled
from privsep.channel import Channel
from privsep.config.model import Shunt
from privsep.iana import ProtocolId
from privsep.loop import Loop
from privsep.schema.esp import (
    REPLIES,
    REQUESTS,
    AddInbound,
    AddOutbound,
    AddPolicy,
    Counters,
    Failed,
    Ok,
    PairExpired,
    PairWorn,
    ReadCounters,
    RemovePair,
    RemovePolicy,
    Reply,
    Request,
    Trapped,
)
from privsep.tasks import Future, handed_over
from privsep.types import Endpoint, Spi

MAX_SPIS = 65536
"""Inbound SPIs reserved or installed. The service has quotas of its own; this keeps the search for a free one short."""
TRAP_SECONDS = 0.5
"""Between two reports of one policy; an honest process leaves twice that."""
TOLD_AT_ONCE = 64
"""Policies that a new process is told of before it answers: of thousands more than its channel holds."""
_FIRST_SPI, _LAST_SPI = 256, 2**32 - 1
"""RFC 4303 section 2.1 reserves 0 to 255."""

_Answered = Callable[[Reply | None], None]


class UserspaceDataplane:
    """`monitor.dataplane.Dataplane` by the ESP process.

    `lost(reason)` is called when the process is gone; whoever starts processes starts another and calls `connect`.
    """

    name = "userspace"

    def __init__(self, loop: Loop, routes: Routes, events: Events, lost: Callable[[str], None]) -> None:
        self._loop = loop
        self._routes = routes
        self._events = events
        self._lost = lost
        self._channel: Channel[Reply, Request] | None = None
        self._sequence = 0
        self._pending: dict[int, _Answered] = {}
        self._policies: dict[int, Policy] = {}
        self._untold: dict[int, Policy] = {}
        """Those that the present process has still to be told of."""
        self._spis: set[Spi] = set()
        self._installed: set[Spi] = set()
        self._worn: set[Spi] = set()
        self._trapped: dict[int, float] = {}

    def connect(self, sock: socket.socket) -> None:
        """A new ESP process listens at the other end: give it the policies."""
        self._channel = Channel(
            sock, self._loop, incoming=REPLIES, outgoing=REQUESTS, handler=self._message, on_close=self._closed
        )
        self._untold = dict(self._policies)
        for _ in range(TOLD_AT_ONCE):
            self._tell_next(None)

    def _tell_next(self, _: Reply | None) -> None:
        """One policy more, after the answer to an earlier one.

        A process that refuses a policy has no SA for it either: its traffic is dropped, and that is logged there.
        """
        if self._channel is not None and self._untold:
            self._tell(next(iter(self._untold)), self._tell_next)

    def _tell(self, number: int, answered: _Answered) -> None:
        policy = self._untold.pop(number, None)
        if policy is not None:
            self._ask(_add_policy(policy), answered)

    # monitor.dataplane.Dataplane

    def allocate_spi(self, local: Endpoint, remote: Endpoint, protocol: ProtocolId) -> Spi:
        """Random, so that nobody can tell what was allocated before; unique in this process."""
        if protocol is ProtocolId.IPCOMP:
            raise DataplaneError("the ESP process does not compress")
        if len(self._spis) >= MAX_SPIS:
            raise DataplaneError("too many SPIs are in use")
        while (spi := Spi(_FIRST_SPI + secrets.randbelow(_LAST_SPI - _FIRST_SPI + 1))) in self._spis:
            pass
        self._spis.add(spi)
        return spi

    def release_spi(self, spi: Spi, local: Endpoint, remote: Endpoint, protocol: ProtocolId) -> None:
        """Forget a reserved SPI."""
        if spi not in self._installed:
            self._spis.discard(spi)

    def add_policy(self, policy: Policy) -> Future[None]:
        """Routes first: they block the clear path even while no process runs."""
        future: Future[None] = Future()
        earlier = self._policies.get(policy.number)
        if earlier is not None and _add_policy(earlier) == _add_policy(policy):
            # a peer that moved: neither routes nor the process know outer addresses
            self._policies[policy.number] = policy
            future.set_result(None)
            return future
        try:
            self._routes.add(policy)
        except DataplaneError as error:
            future.set_error(handed_over(error))
            return future
        self._policies[policy.number] = policy

        def answered(reply: Reply | None) -> None:
            if earlier is not None:
                self._routes.remove(earlier)
            _resolve(future, reply, absent_is_fine=True)

        self._ask(_add_policy(policy), answered)
        return future

    def remove_policy(self, policy: Policy) -> Future[None]:
        """The process first: until the routes go, traffic is dropped."""
        future: Future[None] = Future()
        known = self._policies.pop(policy.number, None)
        self._untold.pop(policy.number, None)
        self._trapped.pop(policy.number, None)

        def answered(reply: Reply | None) -> None:
            if known is not None:
                self._routes.remove(known)
            _resolve(future, reply, absent_is_fine=True)

        self._ask(RemovePolicy(policy=policy.number), answered)
        return future

    def add_shunt(self, shunt: Shunt) -> Future[None]:
        """Routes only: its packets never come to the process."""
        return settled(lambda: self._routes.add_shunt(shunt))

    def remove_shunt(self, shunt: Shunt) -> Future[None]:
        """Its routes."""
        return settled(lambda: self._routes.remove_shunt(shunt))

    def install_inbound(self, pair: Pair) -> Future[None]:
        """The SPI must be one that `allocate_spi` gave; the process refuses an outbound SPI that is in use."""
        future: Future[None] = Future()
        if pair.spi_in not in self._spis or pair.spi_in in self._installed:
            future.set_error(lambda: DataplaneError("the inbound SPI is not reserved, or in use"))
            return future

        def answered(reply: Reply | None) -> None:
            if isinstance(reply, Ok):
                self._installed.add(pair.spi_in)
            _resolve(future, reply)

        self._tell(pair.policy.number, _ignore)
        self._ask(_add_inbound(pair), answered)
        return future

    def install_outbound(self, pair: Pair) -> Future[None]:
        """It sends from now on."""
        future: Future[None] = Future()
        order = AddOutbound(spi_in=pair.spi_in, encryption_out=pair.encryption_out, integrity_out=pair.integrity_out)
        self._ask(order, lambda reply: _resolve(future, reply))
        return future

    def remove(self, pair: Pair) -> Future[None]:
        """Both SAs and the SPI."""
        future: Future[None] = Future()
        self._forget(pair.spi_in)
        self._ask(RemovePair(spi_in=pair.spi_in), lambda reply: _resolve(future, reply, absent_is_fine=True))
        return future

    def follow(self, pair: Pair) -> Future[None]:
        """The process sees where packets come from and follows by itself; it reports nothing."""
        return settled(lambda: None)

    def migrate(self, policy: Policy, pairs: tuple[Pair, ...], remote: Endpoint) -> Future[tuple[Spi, ...]]:
        """None goes: the process sends by the newest pair at once, and takes what still comes by older ones."""
        return settled(tuple)

    def traffic(self, pair: Pair) -> Future[Traffic]:
        """What the process counted."""
        future: Future[Traffic] = Future()

        def answered(reply: Reply | None) -> None:
            if isinstance(reply, Counters):
                future.set_result(
                    Traffic(
                        bytes_in=reply.bytes_in,
                        bytes_out=reply.bytes_out,
                        packets_in=reply.packets_in,
                        packets_out=reply.packets_out,
                    )
                )
            else:
                future.set_error(lambda: DataplaneError("the pair is gone"))

        self._ask(ReadCounters(spi_in=pair.spi_in), answered)
        return future

    # the channel

    def _ask(self, request: Request, answered: _Answered) -> None:
        """Send; `answered` gets the reply, or None when there is no process (any more) to give one."""
        if self._channel is None:
            answered(None)
            return
        self._sequence += 1
        self._pending[self._sequence] = answered
        self._channel.send(request, self._sequence)

    def _message(self, message: Reply, sequence: int) -> None:
        if sequence:
            answered = self._pending.pop(sequence, None)
            if answered is None:
                self._close("violation: an answer to nothing")
            else:
                answered(message)
            return
        match message:
            case Trapped():
                self._acquired(message.policy)
            case PairWorn():
                self._wears(Spi(message.spi_in))
            case PairExpired():
                self._expired(Spi(message.spi_in))
            case Ok() | Failed() | Counters():
                self._close("violation: an answer without a question")

    def _close(self, reason: str) -> None:
        if self._channel is not None:
            self._channel.close(reason)

    def _closed(self, reason: str) -> None:
        self._channel = None
        pending, self._pending = self._pending, {}
        for answered in pending.values():
            answered(None)
        for spi in tuple(self._installed):
            self._expired(spi)
        self._lost(reason)

    def _acquired(self, policy: int) -> None:
        now = self._loop.now()
        if policy in self._policies and now - self._trapped.get(policy, -TRAP_SECONDS) >= TRAP_SECONDS:
            self._trapped[policy] = now
            self._events.acquired(policy)

    def _wears(self, spi: Spi) -> None:
        if spi in self._installed and spi not in self._worn:
            self._worn.add(spi)
            self._events.expired(spi, False)

    def _expired(self, spi: Spi) -> None:
        if spi in self._installed:
            self._forget(spi)
            self._events.expired(spi, True)

    def _forget(self, spi: Spi) -> None:
        self._installed.discard(spi)
        self._worn.discard(spi)
        self._spis.discard(spi)


def _resolve(future: Future[None], reply: Reply | None, *, absent_is_fine: bool = False) -> None:
    """Ok is success and nothing else is, but for orders that a missing process has carried out by missing."""
    if isinstance(reply, Ok) or (reply is None and absent_is_fine):
        future.set_result(None)
    elif reply is None:
        future.set_error(lambda: DataplaneError("the ESP process is not running"))
    else:
        future.set_error(lambda: DataplaneError("the ESP process refused"))


def _ignore(_: Reply | None) -> None:
    """The answer to what is asked next tells."""


def _add_policy(policy: Policy) -> AddPolicy:
    return AddPolicy(policy=policy.number, local_ts=policy.local_ts, remote_ts=policy.remote_ts)


def _add_inbound(pair: Pair) -> AddInbound:
    return AddInbound(
        spi_in=pair.spi_in,
        spi_out=pair.spi_out,
        suite=pair.suite,
        mode=pair.policy.mode,
        policy=pair.policy.number,
        encryption_in=pair.encryption_in,
        integrity_in=pair.integrity_in,
        local=pair.local,
        remote=pair.remote,
        encap=pair.encap,
        local_ts=pair.local_ts,
        remote_ts=pair.remote_ts,
        replay_window=pair.replay_window,
        lifetime_s=pair.lifetime,
    )
