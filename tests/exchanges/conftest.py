"""Gateways in memory: the worker's engine, the real keyd, a monitor that redeems, a network that tests command.

Everything happens on one fake clock, in an order that a seed decides.
"""

import dataclasses
import heapq
import ipaddress
import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from keyd.agreement import Offer
from keyd.secret import Secret
from keyd.service import Service
from privsep import log
from privsep.algorithms import ChildSuite, IkeSuite
from privsep.config.model import Child, Connection, DataplaneChoice, Encap, Gateway, RemoteAny, Start, Users
from privsep.iana import IdType
from privsep.isakmp.association import encode_association
from privsep.log import Level
from privsep.schema import install
from privsep.schema import keyd as keyd_schema
from privsep.schema.keymat import Redeemed, RedeemedOutbound, RedeemInbound, RedeemOutbound
from privsep.types import Auth, Endpoint, Identity, Mode, TrafficSelector
from worker.effects import AskKeyd, AskMonitor, Send, TellMonitor
from worker.engine import Engine

LEFT, RIGHT = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
IKE, ESP = "aes128-sha256-curve25519", "aes256gcm16"
LATENCY = 0.01
PSK = b"a secret that both ends know"


def selectors(*texts: str) -> tuple[TrafficSelector, ...]:
    return tuple(TrafficSelector(ipaddress.ip_network(text)) for text in texts)


def child(name: str = "lan", **changes) -> Child:
    values = {
        "name": name,
        "local_ts": selectors("10.1.0.0/16"),
        "remote_ts": selectors("10.2.0.0/16"),
        "mode": Mode.TUNNEL,
        "suites": (ChildSuite.parse(ESP),),
        "lifetime": 3600,
        "start": Start.WAIT,
    }
    return Child(**(values | changes))


def connection(**changes) -> Connection:
    values = {
        "name": "paris",
        "local": LEFT,
        "remote": RIGHT,
        "local_id": Identity(IdType.FQDN, b"gw1.example.org"),
        "remote_id": Identity(IdType.FQDN, b"gw2.example.org"),
        "auth": Auth.PSK,
        "suites": (IkeSuite.parse(IKE),),
        "lifetime": 28800,
        "encap": Encap.AUTO,
        "children": (child(),),
    }
    return Connection(**(values | changes))


def mirrored(each: Connection) -> Connection:
    """The same connection as the other gateway configures it."""
    return dataclasses.replace(
        each,
        local=each.remote,
        remote=each.local,
        local_id=each.remote_id,
        remote_id=each.local_id,
        children=tuple(
            dataclasses.replace(c, local_ts=c.remote_ts, remote_ts=c.local_ts, start=Start.WAIT) for c in each.children
        ),
    )


def gateway(*connections: Connection) -> Gateway:
    return Gateway(
        listen=(),
        dataplane=DataplaneChoice.AUTO,
        users=Users(worker=(1, 1), keyd=(2, 2), userspace=(3, 3)),
        absent=frozenset(),
        connections=connections,
    )


class Psks:
    def __init__(self, psk: bytes) -> None:
        self.psk = psk

    def psk_for(self, connection: Connection) -> Secret:
        return Secret(self.psk)


class Whole:
    """Both halves of a keymat."""

    def __init__(self, inbound: Redeemed, outbound: RedeemedOutbound) -> None:
        self._inbound = inbound
        self.encryption_out, self.integrity_out = outbound.encryption_out, outbound.integrity_out

    def __getattr__(self, name: str) -> object:
        return getattr(self._inbound, name)


class FakeMonitor:
    """Allocates SPIs, installs by redeeming from its keyd, and tracks what is installed."""

    def __init__(self, site: "Site") -> None:
        self.site = site
        self.allocated: dict[int, install.AllocateSpi] = {}
        self.cpis: dict[int, int | None] = {}
        """What was allocated with an SPI."""
        self.receiving: dict[int, tuple[Redeemed, install.InstallInbound]] = {}
        """Pairs of which only the inbound SA is in place."""
        self.pairs: dict[int, tuple[Whole, install.InstallInbound]] = {}
        self.moments: list[tuple[float, str]] = []
        """When an SA was put in place."""
        self.removed: list[int] = []
        self.deny_early: install.Denial | None = None
        self.deny: install.Denial | None = None
        self.deny_outbound: install.Denial | None = None
        self.progress: list[str] = []
        self.completed: dict[int, install.Completed] = {}
        self.described: dict[int, install.Described] = {}
        self.unanswered: list[str] = []

    def answer(self, request: install.WorkerRequest) -> install.MonitorReply:
        match request:
            case install.AllocateSpi():
                if self.deny_early is not None:
                    return install.Denied(why=self.deny_early)
                spi = self.site.world.rng.randrange(256, 2**32)
                self.allocated[spi] = request
                child = self.site.config.connection(request.connection).child(request.child)
                cpi = self.site.world.rng.randrange(256, 61440) if child.ipcomp else None
                self.cpis[spi] = cpi
                return install.Allocated(spi=spi, cpi=cpi)
            case install.InstallInbound():
                redeemed = self.site.keyd.redeem(RedeemInbound(keymat=request.keymat))
                if not isinstance(redeemed, Redeemed):
                    return install.Denied(why=install.Denial.KEYMAT)
                if self.deny is not None:
                    return install.Denied(why=self.deny)
                if redeemed.spi_in not in self.allocated:
                    return install.Denied(why=install.Denial.SPI)
                del self.allocated[redeemed.spi_in]
                self.receiving[redeemed.spi_in] = (redeemed, request)
                self.moments.append((self.site.world.now, "receives"))
                return install.Installed(spi_in=redeemed.spi_in)
            case install.InstallOutbound():
                if request.spi_in not in self.receiving:
                    return install.Denied(why=install.Denial.UNKNOWN_SA)
                redeemed, asked = self.receiving[request.spi_in]
                outbound = self.site.keyd.redeem(RedeemOutbound(keymat=asked.keymat))
                if not isinstance(outbound, RedeemedOutbound):
                    return install.Denied(why=install.Denial.KEYMAT)
                if self.deny_outbound is not None:
                    return install.Denied(why=self.deny_outbound)
                del self.receiving[request.spi_in]
                self.pairs[request.spi_in] = (Whole(redeemed, outbound), asked)
                self.moments.append((self.site.world.now, "sends"))
                return install.Installed(spi_in=request.spi_in)
            case install.Remove():
                books = (self.allocated, self.receiving, self.pairs)
                known = bool(sum(book.pop(request.spi_in, None) is not None for book in books))
                self.removed.append(request.spi_in)
                return install.Removed() if known else install.Denied(why=install.Denial.UNKNOWN_SA)
        raise AssertionError(request)

    def tell(self, message, sequence: int) -> None:
        match message:
            case install.Progress():
                self.progress.append(message.text)
            case install.Completed():
                self.completed[sequence] = message
            case install.Described():
                self.described[sequence] = message
            case install.Unanswered():
                self.unanswered.append(message.connection)
            case _:
                raise AssertionError(message)


class Site:
    """One gateway."""

    def __init__(self, world: "World", name: str, config: Gateway, psk: bytes = PSK) -> None:
        self.world = world
        self.name = name
        self.config = config
        self.log: list[tuple[Level, str, dict]] = []
        self.errors: list[dict] = []
        self.keyd = Service(config, Psks(psk), lambda: world.now, world.rng.randbytes)
        self.monitor = FakeMonitor(self)
        self.engine = Engine(config, world.rng.randbytes, self._logged, world.now)
        self.orders = itertools.count(1)
        self.keyd_delay = 0.0
        self.keyd_requests: list[keyd_schema.Request] = []
        self.sent: list[Send] = []

    def _logged(self, level: Level, code: str, **fields: object) -> None:
        self.log.append((level, code, fields))
        if code == "internal-error":
            self.errors.append(fields)

    def logged(self, code: str) -> list[dict]:
        return [fields for _, each, fields in self.log if each == code]

    def carry_out(self) -> None:
        """What the engine wants done. keyd answers later, as it does in life."""
        for effect in self.engine.take_effects():
            match effect:
                case Send():
                    self.sent.append(effect)
                    error = self.world.refuses(self, effect)
                    if error:
                        self.engine.unsent(effect, error, self.world.now)
                    else:
                        self.world.transmit(self, effect)
                case AskKeyd():
                    frame = keyd_schema.REQUESTS.encode(effect.request, effect.sequence)
                    request, sequence = keyd_schema.REQUESTS.decode(frame)
                    self.keyd_requests.append(request)
                    reply = self.keyd.handle(request)
                    self.world.later(self.keyd_delay, lambda r=reply, s=sequence: self._keyd_answers(r, s))
                case AskMonitor():
                    install.FROM_WORKER.encode(effect.message, effect.sequence)
                    reply = self.monitor.answer(effect.message)
                    self.world.later(
                        0.0, lambda r=reply, s=effect.sequence: self.engine.monitor_message(r, s, self.world.now)
                    )
                case TellMonitor():
                    install.FROM_WORKER.encode(effect.message, effect.sequence)
                    self.monitor.tell(effect.message, effect.sequence)

    def _keyd_answers(self, reply: keyd_schema.Reply, sequence: int) -> None:
        self.engine.keyd_reply(sequence, reply, self.world.now)

    def order(self, message: object) -> int:
        sequence = next(self.orders)
        self.engine.monitor_message(message, sequence, self.world.now)
        self.carry_out()
        return sequence

    def up(self, name: str = "paris", child: str = "") -> int:
        return self.order(install.Up(order=1, connection=name, child=child))

    def down(self, name: str = "paris", child: str = "") -> int:
        return self.order(install.Down(order=2, connection=name, child=child))

    def event(self, message: object) -> None:
        self.engine.monitor_message(message, 0, self.world.now)
        self.carry_out()

    def outcome(self, sequence: int) -> install.Completed | None:
        return self.monitor.completed.get(sequence)

    def status(self) -> list[install.IkeStatus]:
        found, cursor = [], 0
        while True:
            sequence = self.order(install.Describe(cursor=cursor))
            page = self.monitor.described[sequence]
            found += page.ike_sas
            cursor = page.cursor
            if not cursor:
                return found

    def established(self) -> list[install.IkeStatus]:
        return [sa for sa in self.status() if sa.state == "established"]

    @property
    def pairs(self) -> dict[int, tuple[Whole, install.InstallInbound]]:
        return self.monitor.pairs


Fate = Callable[[Site, Send], list[float]]
"""Delays of the copies of a datagram that arrive; none: it is lost."""


class World:
    """Clock, network, and two gateways or more."""

    def __init__(self, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.sites: dict[object, Site] = {}
        self.fate: Fate = lambda site, send: [LATENCY]
        self.refuses: Callable[[Site, Send], int] = lambda site, send: 0
        """The errno with which a machine does not even let it out."""
        self.rewrite: Callable[[Send], tuple[Endpoint, Endpoint]] = lambda send: (send.local, send.remote)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def add(self, name: str, config: Gateway, *addresses: object, psk: bytes = PSK) -> Site:
        site = Site(self, name, config, psk)
        for address in addresses:
            self.sites[address] = site
        return site

    def later(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), action))

    def transmit(self, site: Site, send: Send) -> None:
        source, target = self.rewrite(send)
        receiver = self.sites.get(target.address)
        if receiver is None:
            return
        for delay in self.fate(site, send):
            self.later(delay, lambda: receiver.engine.datagram(send.data, target, source, self.now))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass; whether the condition came true."""
        end = self.now + seconds
        while not until():
            for site in self.all_sites():
                site.carry_out()
            deadlines = [
                (deadline, site) for site in self.all_sites() if (deadline := site.engine.next_deadline()) is not None
            ]
            next_timer = min((deadline for deadline, _ in deadlines), default=float("inf"))
            next_event = self._queue[0][0] if self._queue else float("inf")
            if min(next_timer, next_event) > end:
                self.now = end
                return until()
            if next_event <= next_timer:
                self.now = max(self.now, next_event)
                heapq.heappop(self._queue)[2]()
            else:
                self.now = max(self.now, next_timer)
                for deadline, site in deadlines:
                    if deadline <= self.now:
                        site.engine.tick(self.now)
            for site in self.all_sites():
                site.carry_out()
        return True

    def all_sites(self) -> list[Site]:
        return list(dict.fromkeys(self.sites.values()))


class Pair(World):
    """Two gateways of one connection."""

    def __init__(
        self,
        ours: Connection | None = None,
        theirs: Connection | None = None,
        *,
        seed: int = 1,
        psks: tuple[bytes, bytes] = (PSK, PSK),
    ) -> None:
        super().__init__(seed)
        ours = ours or connection()
        theirs = theirs or mirrored(ours)
        self.left = self.add("left", gateway(ours), ours.local or LEFT, psk=psks[0])
        self.right = self.add("right", gateway(theirs), theirs.local or RIGHT, psk=psks[1])

    def up(self, seconds: float = 120.0) -> install.Completed:
        sequence = self.left.up()
        assert self.run(seconds, lambda: self.left.outcome(sequence) is not None)
        self.run(1.0)
        return self.left.outcome(sequence)

    def mirror(self) -> int:
        """How many pairs are installed on both sides with the same keys; fails where the keys differ."""
        count = 0
        for redeemed, asked in self.left.pairs.values():
            found = self.right.pairs.get(redeemed.spi_out)
            if found is None:
                continue
            other, others = found
            assert (redeemed.spi_in, redeemed.spi_out) == (other.spi_out, other.spi_in)
            assert (redeemed.encryption_in, redeemed.integrity_in) == (other.encryption_out, other.integrity_out)
            assert (redeemed.encryption_out, redeemed.integrity_out) == (other.encryption_in, other.integrity_in)
            inbound = redeemed.encryption_in + redeemed.integrity_in
            assert inbound != redeemed.encryption_out + redeemed.integrity_out
            assert redeemed.suite == other.suite
            assert effective(redeemed, asked) == effective(other, others)[::-1]
            assert (redeemed.encap, redeemed.mode, redeemed.lifetime) == (other.encap, other.mode, other.lifetime)
            assert (redeemed.cpi_in, redeemed.cpi_out) == (other.cpi_out, other.cpi_in)
            count += 1
        return count

    def settled(self) -> None:
        """Nothing of ours went wrong and nothing is left over."""
        self.run(2.0)
        for site in (self.left, self.right):
            assert site.errors == []
            assert site.monitor.allocated == site.monitor.receiving == {}


def restart(world: Pair, name: str) -> None:
    """The gateway comes back without its memory."""
    old: Site = getattr(world, name)
    addresses = [address for address, site in world.sites.items() if site is old]
    setattr(world, name, world.add(name, old.config, *addresses))


def effective(redeemed: Whole, asked: install.InstallInbound) -> tuple[TrafficSelector, TrafficSelector]:
    """Our selector and the peer's; an absent one means the outer address (RFC 2409 section 5.5)."""
    return (
        redeemed.local_ts or TrafficSelector.of_host(asked.local.address),
        redeemed.remote_ts or TrafficSelector.of_host(asked.remote.address),
    )


def without_client_ids(site: Site) -> None:
    """A keyd that leaves IDci and IDcr away."""
    handle = site.keyd.handle

    def handling(request: keyd_schema.Request) -> keyd_schema.Reply:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Offer, "payloads", lambda self, _: (encode_association(self.sa), []))
            return handle(request)

    site.keyd.handle = handling


@pytest.fixture
def debugging():
    """Events of the level debug are worth their budget."""
    log.set_level(Level.DEBUG)
    yield
    log.set_level(Level.INFO)


@pytest.fixture(scope="session")
def make():
    """Everything that tests build worlds with."""
    return SimpleNamespace(
        World=World,
        Send=Send,
        Endpoint=Endpoint,
        Pair=Pair,
        child=child,
        connection=connection,
        mirrored=mirrored,
        gateway=gateway,
        selectors=selectors,
        LEFT=LEFT,
        RIGHT=RIGHT,
        LATENCY=LATENCY,
        effective=effective,
        RemoteAny=RemoteAny,
        restart=restart,
        without_client_ids=without_client_ids,
        address=ipaddress.ip_address,
    )
