"""One exchange as its coroutine sees it: send a message, get the next acceptable one.

Retransmission, duplicates, timeouts and the end of the SA under a running exchange are dealt with here. A datagram
that is not the awaited one changes nothing: `accept` raises PeerError for it, and the waiting goes on.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from privsep.errors import PeerError
from privsep.iana import ExchangeType, HeaderFlag, ProtocolId
from privsep.isakmp.payloads import Payload, encode_chain
from privsep.log import Level
from privsep.payloads import Chain
from privsep.tasks import Future
from privsep.types import Endpoint, MessageId, Spi
from worker.codec.header import HEADER_OCTETS, Header, encode_message
from worker.context import Context
from worker.errors import Failed, TimedOut, Unsent
from worker.isakmp_sa import IkeSa
from worker.retransmit import BACK_OFF, HALF_OPEN, LINGER, LastReply
from worker.timers import Timer

MAX_INBOX = 4
"""Messages that wait while keyd looks at one; a peer has one or two on the way."""
MAX_WAITING_OCTETS = 2048
"""Of each: messages 5 and 6 of Main Mode, 2 and 3 of Quick Mode are shorter. Others come again."""

MAX_REASON = 400
"""Characters of why a message was not taken; proposals of the peer's may be named in it."""

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Received:
    """A message, where it came from and where it was sent to."""

    header: Header
    data: bytes
    local: Endpoint
    remote: Endpoint

    @property
    def body(self) -> bytes:
        """All after the header."""
        return self.data[HEADER_OCTETS:]


Accept = Callable[[Received], Awaitable[T]]


class Exchange:
    """The place in an IKE SA where messages of one message id go."""

    __slots__ = (
        "_aborted",
        "_fault",
        "_inbox",
        "_last",
        "_timer",
        "_told",
        "_unsent",
        "_waiting",
        "began",
        "context",
        "hint",
        "kind",
        "message_id",
        "ours",
        "proposals",
        "protocol",
        "sa",
        "selectors",
        "subject",
        "suspicion",
        "theirs",
    )

    def __init__(
        self,
        context: Context,
        sa: IkeSa,
        kind: ExchangeType,
        message_id: MessageId,
        first: bytes = b"",
        subject: str = "",
    ) -> None:
        """`first` is the peer's message that began it; `subject` the child it is about."""
        self.context = context
        self.began = context.now
        self.sa = sa
        self.kind = kind
        self.message_id = message_id
        self.subject = subject
        self.ours: Spi | None = None
        self.theirs: Spi | None = None
        self.protocol = ProtocolId.ESP
        """SPIs of a pair in the making, as far as the other end knows ours and we know its, and what they are of."""
        self.hint = ""
        """What somebody told or something showed about why this will fail."""
        self.suspicion = ""
        """What silence means here, and an encrypted notification that we cannot read."""
        self._fault = ""
        """Why the last message that came was not taken."""
        self.proposals = self.selectors = ""
        """What we have offered, for people."""
        self._inbox: list[Received] = []
        self._last = LastReply()
        self._last.accepted(first)
        self._waiting: Future[Received | None] | None = None
        self._timer: Timer | None = None
        self._aborted: Callable[[], Failed] | None = None
        """Makes what ended it; see `Future`."""
        self._unsent = ""
        """Why the last transmission did not leave this machine."""
        self._told = ""
        sa.exchanges[message_id] = self

    # what the coroutine does

    async def ask(self, message: bytes, accept: Accept[T], what: str, suspicion: str = "") -> T:
        """Send and repeat until `accept` takes an answer. TimedOut when none comes."""
        self.suspicion = suspicion
        return await self._converse(message, accept, BACK_OFF, what)

    async def answer(self, message: bytes, accept: Accept[T], what: str) -> T:
        """Send once, and again for each duplicate of what it answers, until `accept` takes the next message."""
        return await self._converse(message, accept, HALF_OPEN, what)

    async def expect(self, received: Received, accept: Accept[T], what: str) -> T:
        """Until `accept` takes a message, this one or a later one. What they answer was sent before."""
        self._inbox.append(received)
        return await self._converse(b"", accept, HALF_OPEN, what)

    async def _converse(self, message: bytes, accept: Accept[T], waits: Iterable[float], what: str) -> T:
        self._fault = ""
        for number, wait in enumerate(waits):
            if number and not self._unsent:
                self.report(f"   no answer to {what} yet, sending it again" + self._because(self.suspicion))
            if message:
                self.transmit(message)
            deadline = self.context.now + wait
            while (received := await self._next(deadline)) is not None:
                before = self.hint
                try:
                    value = await accept(received)
                except PeerError as error:
                    self.context.log_rarely(Level.DEBUG, "message-ignored", **self.sa.label, reason=error.reason)
                    if self.hint == before and received.remote == self.sa.remote:
                        self._found(
                            f"{self.sa.remote.address} answers {what} unacceptably: {error.reason[:MAX_REASON]}"
                        )
                    continue
                self._last.accepted(received.data)
                return value
        if self._unsent:
            raise Unsent(f"cannot send {what}: {self._unsent}")
        silent = f"{self.sa.remote.address} does not answer {what}"
        raise TimedOut((self._fault or silent) + self._because(self.hint or self.suspicion))

    def _found(self, fault: str) -> None:
        """Remember and tell what is wrong with an answer. It may be a stranger's or a late one: nothing ends by it."""
        if self._fault != fault:
            self._fault = fault
            self.report(f"   {fault}")

    @staticmethod
    def _because(reason: str) -> str:
        return f"; {reason}" if reason else ""

    async def _next(self, deadline: float) -> Received | None:
        """The next message, or None when it is time to do something else."""
        self.check()
        if self.context.now >= deadline:
            return None
        if self._inbox:
            return self._inbox.pop(0)
        waiting: Future[Received | None] = Future()
        self._waiting = waiting
        self._timer = self.context.timers.at(deadline, self._wake)
        received = await waiting
        self._timer.cancel()
        return received

    def _wake(self) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.set_result(None)

    def check(self) -> None:
        """Failed if the SA was closed or the exchange given up while we were asking somebody."""
        if self._aborted is not None:
            raise self._aborted()

    def transmit(self, message: bytes) -> None:
        """Send; a duplicate of the last accepted message is answered with this from now on."""
        self.check()
        self._unsent = ""
        self._last.sent(message, self.context.now)
        self.context.send(self.sa.local, self.sa.remote, message)

    def message(self, payloads: Iterable[Payload]) -> bytes:
        """A message in clear."""
        return self._encode(encode_chain(payloads), HeaderFlag.NONE)

    def sealed(self, first: int, ciphertext: bytes) -> bytes:
        """A message that keyd encrypted."""
        return self._encode((first, ciphertext), HeaderFlag.ENCRYPTION)

    def _encode(self, chain: Chain, flags: HeaderFlag) -> bytes:
        sa = self.sa
        return encode_message(
            cky_i=sa.cky_i,
            cky_r=sa.cky_r,
            exchange=self.kind,
            flags=flags,
            message_id=self.message_id,
            first=chain[0],
            body=chain[1],
        )

    def report(self, text: str) -> None:
        """A step, for the operator who waits for it."""
        if self.sa.connection is not None:
            self.context.watcher.report(self.sa.connection.name, text)

    def suspect(self, text: str) -> None:
        """Remember and tell what is probably wrong. It may be a stranger's lie: nothing ends by it."""
        if text and self.hint != text:
            self.hint = text
            if self.sa.connection is not None:
                self.context.watcher.hint(self.sa.connection.name, text)

    # what happens to it

    def unsent(self, why: str) -> None:
        """The last transmission is lost here already. Another may get out: a route may come, an address be moved."""
        self._unsent = why
        if why != self._told:
            self._told = why
            self.context.log_rarely(Level.WARNING, "cannot-send", **self.sa.label, reason=why)
            if self.sa.connection is not None:
                self.context.watcher.hint(self.sa.connection.name, f"cannot send: {why}")

    def deliver(self, received: Received) -> None:
        """A message for it."""
        if self._last.answers(received.data):
            reply = self._last.again(self.context.now)
            if reply:
                self.context.send(self.sa.local, self.sa.remote, reply)
        elif self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.set_result(received)
        elif len(self._inbox) < MAX_INBOX and len(received.data) <= MAX_WAITING_OCTETS:
            self._inbox.append(received)

    def abort(self, why: Callable[[], Failed]) -> None:
        """End it where it waits for the peer; where it waits for keyd or the monitor, once their answer is there.

        So no request is ever forgotten, and what its answer brings can be given back.
        """
        self._aborted = self._aborted or why
        if self._timer is not None:
            self._timer.cancel()
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.set_error(self._aborted)

    def linger(self) -> None:
        """Done; our last message may have to be repeated for a while."""
        self.ours = self.theirs = None
        self._inbox.clear()
        if self._aborted is not None:
            return
        self._timer = self.context.after(LINGER, self.close)

    def close(self) -> None:
        """Leave the SA."""
        if self._timer is not None:
            self._timer.cancel()
        self._inbox.clear()
        if self.sa.exchanges.get(self.message_id) is self:
            del self.sa.exchanges[self.message_id]
