"""The worker's protocol core: datagrams, answers and time go in, effects come out. No I/O, no clock, no key.

Exchanges are coroutines in `worker/ikev1/`, each message one `await`. Here is decided to which of them a message goes
(RFC 2408 section 5.2), and how many may run.
"""

from collections.abc import Callable

from privsep.config.model import Gateway
from privsep.errors import PeerError
from privsep.iana import ExchangeType, NotifyType
from privsep.log import Level, Log, event, set_level
from privsep.schema import keyd
from privsep.schema.install import (
    Acquire,
    Adopted,
    Describe,
    Down,
    Expired,
    MonitorReply,
    MonitorRequest,
    Moved,
    Stop,
    Up,
)
from privsep.schema.levels import SetLevel
from privsep.schema.names import Resolved
from privsep.types import Endpoint, Spi, hex_spi
from worker import unspoken
from worker.child import ChildSa
from worker.codec.header import ZERO_COOKIE, parse_header
from worker.context import Context
from worker.control import Control
from worker.effects import Effect, Send
from worker.establish import Establisher
from worker.exchange import Exchange, Received
from worker.half_open import whose
from worker.ikev1 import first_message, informational, main_mode, quick_responder
from worker.isakmp_sa import IkeSa, IkeState
from worker.keeper import Keeper
from worker.moving import comes_from_peer, followed, keep_alive
from worker.nat import NATT_PORT, NON_ESP_MARKER
from worker.renewal import Renewal
from worker.unsent import cause

MAX_OPENING = 16
"""First messages of one peer that wait for keyd's verdict; the rest must be sent again."""
MAX_ANSWERING = 32
"""Quick Modes of one peer at once; keyd has room for twice as many, ours included."""


class Engine:
    """One worker. After each verb, `take_effects`; call `tick` when `next_deadline` has come."""

    def __init__(self, gateway: Gateway, random: Callable[[int], bytes], log: Log = event, now: float = 0.0) -> None:
        """`random(n)` gives n octets that nobody can foretell; `now` is seconds of a monotonic clock, as everywhere."""
        self._context = context = Context(gateway, random, log)
        context.now = now
        context.watcher = self
        establisher = Establisher(context)
        self._renewal = Renewal(context, establisher)
        self._keeper = Keeper(context, establisher, self._renewal)
        self._control = Control(context, self._keeper, self._renewal)
        # with the first tick, which brings the time
        context.timers.at(context.now, self._keeper.start)

    # verbs

    def datagram(self, data: bytes, local: Endpoint, remote: Endpoint, now: float) -> None:
        """A datagram arrived on one of our ports. Never raises."""
        self._context.now = now
        if local.port == NATT_PORT:
            if not data.startswith(NON_ESP_MARKER):
                # a keepalive, or ESP that nobody here can read (RFC 3948 sections 2.1 and 2.3)
                return
            data = data[len(NON_ESP_MARKER) :]
        try:
            self._dispatch(Received(parse_header(data), data, local, remote))
        except PeerError as error:
            if error.notify is NotifyType.INVALID_MAJOR_VERSION:
                unspoken.refuse_version_2(self._context, data, local, remote)
            self._context.log_rarely(Level.DEBUG, "datagram-dropped", remote=remote, reason=error.reason)

    def knows(self, data: bytes, local: Endpoint) -> bool:
        """Whether a datagram carries a cookie of ours, which a stranger's first does not; by its header alone."""
        start = len(NON_ESP_MARKER) if local.port == NATT_PORT else 0
        cookies = data[start : start + 16]
        return self._context.sas.find(cookies) is not None or self._context.half_open.gave(cookies[8:])

    def unsent(self, datagram: Send, error: int, now: float) -> None:
        """The kernel did not take a datagram, for the reason that `error`, an errno, stands for. Never raises."""
        context = self._context
        context.now = now
        why = cause(error, datagram.local, datagram.remote)
        data = datagram.data.removeprefix(NON_ESP_MARKER) if datagram.local.port == NATT_PORT else datagram.data
        exchange = self._exchange_of(data)
        if exchange is not None:
            exchange.unsent(why)
        else:
            context.log_rarely(Level.DEBUG, "send-failed", remote=datagram.remote, reason=why)

    def _exchange_of(self, data: bytes) -> Exchange | None:
        """The one that a message of ours belongs to. Replies to strangers, Informational and keepalives have none."""
        try:
            header = parse_header(data)
        except PeerError:
            return None
        sa = self._context.sas.find(data[:16])
        return sa.exchanges.get(header.message_id) if sa is not None else None

    def keyd_reply(self, sequence: int, reply: keyd.Reply, now: float) -> None:
        """Keyd answers `AskKeyd`."""
        self._context.now = now
        self._context.keyd_answered(sequence, reply)

    def monitor_message(self, message: MonitorRequest | MonitorReply, sequence: int, now: float) -> None:
        """The monitor answers `AskMonitor`, or orders or tells something itself."""
        self._context.now = now
        match message:
            case Up():
                self._control.up(message, sequence)
            case Down():
                self._control.down(message, sequence)
            case Describe():
                self._control.describe(message, sequence)
            case Stop():
                self._control.stop(message, sequence)
            case Acquire():
                self._keeper.acquire(message.connection, message.child)
            case Expired():
                self._keeper.expired(Spi(message.spi_in), hard=message.hard)
            case Adopted():
                self._keeper.adopt(message)
            case Resolved():
                self._keeper.located(message.located)
            case Moved():
                followed(self._context, Spi(message.spi_in), message.remote)
                self._keeper.moved(Spi(message.spi_in), message.remote)
            case SetLevel():
                set_level(message.level, message.connection)
            case _:
                self._context.monitor_answered(sequence, message)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._context.now = now
        self._context.timers.run(now)

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        return self._context.timers.next_deadline()

    def take_effects(self) -> list[Effect]:
        """What is to be done, in this order; each once."""
        effects, self._context.outbox = self._context.outbox, []
        return effects

    @property
    def has_effects(self) -> bool:
        """Whether there is something to take."""
        return bool(self._context.outbox)

    # messages

    def _dispatch(self, received: Received) -> None:
        sa = self._context.sas.find(received.data[:16])
        what = unspoken.wanted(received)
        if what:
            unspoken.refuse(self._context, sa, received, what)
            return
        match received.header.exchange:
            case ExchangeType.MAIN_MODE:
                self._main_mode(sa, received)
            case ExchangeType.QUICK_MODE:
                self._quick_mode(_established(sa, received), received)
            case ExchangeType.INFORMATIONAL:
                self._informational(sa, received)
            case _:
                raise PeerError("exchange type is not supported", NotifyType.UNSUPPORTED_EXCHANGE_TYPE)

    def _main_mode(self, sa: IkeSa | None, received: Received) -> None:
        context, header = self._context, received.header

        def label() -> dict[str, object]:
            return context.sender(received.local, received.remote)

        if header.cky_r == ZERO_COOKIE:
            if sa is not None:
                raise PeerError("our own first message comes back")
            context.attempt(lambda: first_message.answer(context, received), "main-mode-failed", label)
            return
        if sa is None:
            record = context.half_open.find(header.cky_r, whose(header.cky_i, received.remote))
            if record is None:
                raise PeerError("no such exchange")
            context.agreeing.check(record.offer.suite.group, received.remote.address)
            context.spawn(main_mode.respond(context, record, received), "main-mode-failed", label)
            return
        exchange = sa.exchanges.get(main_mode.PHASE_1)
        if exchange is None:
            raise PeerError("no such exchange")
        exchange.deliver(received)

    def _quick_mode(self, sa: IkeSa, received: Received) -> None:
        exchange = sa.exchanges.get(received.header.message_id)
        if exchange is not None and exchange.kind is ExchangeType.QUICK_MODE:
            exchange.deliver(received)
        elif sa.opening >= MAX_OPENING or sa.answering >= MAX_ANSWERING:
            raise PeerError("too many exchanges at once")
        else:
            self._context.spawn(
                quick_responder.respond(self._context, sa, received), "quick-mode-failed", lambda: sa.label
            )

    def _informational(self, sa: IkeSa | None, received: Received) -> None:
        if sa is None or not comes_from_peer(sa, received):
            raise PeerError("notification about nothing of ours")
        if not received.header.encrypted:
            informational.receive_in_clear(self._context, sa, received)
        elif sa.state is IkeState.NEGOTIATING:
            # it may be about our identity or key; we cannot read it before the peer has proved its own
            for exchange in sa.exchanges.values():
                exchange.suspect(exchange.suspicion)
        elif sa.opening >= MAX_OPENING:
            raise PeerError("too many exchanges at once")
        else:
            self._context.spawn(
                informational.receive(self._context, sa, received), "informational-failed", lambda: sa.label
            )

    # worker.context.Watcher

    def established(self, sa: IkeSa) -> None:
        """An IKE SA is authenticated on both sides."""
        earlier = sa.peer.ike_sas[-2:-1] if sa.peer is not None else []
        for each in earlier:
            replaced = f"{each.cky_i.hex()}:{each.cky_r.hex()}"
            self._context.log(Level.NOTICE, "ike-rekeyed", **sa.label, replaces=replaced)
        self._renewal.watch_ike(sa)
        keep_alive(self._context, sa)

    def installed(self, child: ChildSa) -> None:
        """A child SA pair is in place."""
        earlier = [each for each in child.peer.children.values() if each is not child and each.serves(child.flow)]
        for each in earlier[-1:]:
            self._context.log(Level.NOTICE, "child-rekeyed", **child.label, replaces=hex_spi(each.spi_in))
        self._renewal.watch_child(child)
        self._renewal.retire_earlier(child)
        self._keeper.installed(child)

    def lost(self, child: ChildSa) -> None:
        """A pair is gone."""
        self._keeper.lost(child)

    def worn(self, sa: IkeSa) -> None:
        """An IKE SA has not many message ids left."""
        self._context.after(0.0, lambda: self._renewal.renew_ike(sa))

    def moved(self, sa: IkeSa) -> None:
        """The peer has another address or port now. What its message says comes first: it may delete."""
        self._context.after(0.0, lambda: self._renewal.moved(sa))

    def report(self, connection: str, text: str) -> None:
        """A step, for the operators who wait for this connection."""
        self._control.report(connection, text)

    def hint(self, connection: str, text: str) -> None:
        """What a stranger says, or what silence may mean."""
        self._control.hint(connection, text)


def _established(sa: IkeSa | None, received: Received) -> IkeSa:
    """RFC 2409 section 5.5: without an IKE SA there is no phase 2."""
    if sa is None or sa.state is not IkeState.ESTABLISHED or not comes_from_peer(sa, received):
        raise PeerError("no such IKE SA")
    return sa
