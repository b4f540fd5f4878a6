"""A gateway's configuration, a data plane that only records, a clock that moves when told, a service on all three."""

import heapq
import ipaddress
from dataclasses import replace
from itertools import count

import pytest

from monitor.dataplane import DataplaneError, Traffic
from monitor.sadb import Allocation
from monitor.service import Service
from privsep.algorithms import ChildSuite, IkeSuite
from privsep.config.model import (
    Child,
    Connection,
    DataplaneChoice,
    Encap,
    Gateway,
    RemoteAny,
    Start,
    Users,
)
from privsep.iana import IdType, ProtocolId
from privsep.loop import Loop, Timer
from privsep.schema.install import AllocateSpi, Installed, InstallInbound, InstallOutbound
from privsep.schema.keymat import Redeemed, RedeemedOutbound
from privsep.tasks import Future
from privsep.types import Auth, Endpoint, Identity, Mode, Role, TrafficSelector

LOCAL = ipaddress.ip_address("192.0.2.1")
REMOTE = ipaddress.ip_address("192.0.2.2")
KEY = b"K" * 36


def selectors(*texts):
    return tuple(TrafficSelector(ipaddress.ip_network(text)) for text in texts)


def identity(name):
    return Identity(IdType.FQDN, name.encode())


def make_child(**changes):
    values = {
        "name": "lan",
        "local_ts": selectors("10.1.0.0/16"),
        "remote_ts": selectors("10.2.0.0/16"),
        "mode": Mode.TUNNEL,
        "suites": (ChildSuite.parse("aes256gcm16-modp2048"), ChildSuite.parse("aes256-sha256")),
        "lifetime": 3600,
        "start": Start.UP,
    }
    return Child(**(values | changes))


def make_connection(**changes):
    values = {
        "name": "paris",
        "local": LOCAL,
        "remote": REMOTE,
        "local_id": identity("gw1.example.org"),
        "remote_id": identity("gw2.example.org"),
        "auth": Auth.PSK,
        "suites": (IkeSuite.parse("aes256-sha256-modp2048"),),
        "lifetime": 28800,
        "encap": Encap.AUTO,
        "children": (make_child(),),
    }
    return Connection(**(values | changes))


def make_gateway():
    both = {"local_ts": selectors("10.1.0.0/16", "fd01::/32"), "remote_ts": selectors("10.2.0.0/16", "fd02::/32")}
    return Gateway(
        listen=(),
        dataplane=DataplaneChoice.AUTO,
        users=Users(worker=(1001, 1001), keyd=(1002, 1002), userspace=(1003, 1003)),
        absent=frozenset(),
        connections=(
            make_connection(children=(make_child(), make_child(name="dmz"), make_child(name="both", **both))),
            make_connection(
                name="host",
                children=(
                    make_child(
                        name="box",
                        mode=Mode.TRANSPORT,
                        local_ts=selectors("192.0.2.0/24"),
                        remote_ts=selectors("192.0.2.0/24"),
                    ),
                ),
            ),
            make_connection(
                name="road",
                local=None,
                remote=RemoteAny(),
                remote_id=None,
                children=(make_child(remote_ts=selectors("10.2.0.0/16", "10.4.0.0/16")),),
            ),
            make_connection(name="bare", encap=Encap.OFF),
            make_connection(name="wrapped", encap=Encap.FORCE),
        ),
    )


def make_redeemed(**changes):
    values = {
        "connection": "paris",
        "child": "lan",
        "identity": identity("gw2.example.org"),
        "role": Role.INITIATOR,
        "suite": ChildSuite.parse("aes256gcm16-modp2048"),
        "mode": Mode.TRANSPORT if changes.get("connection") == "host" else Mode.TUNNEL,
        "encap": False,
        "spi_in": 0x1000,
        "spi_out": 0x2000,
        "cpi_in": None,
        "cpi_out": None,
        "local_ts": selectors("10.1.0.0/16")[0],
        "remote_ts": selectors("10.2.0.0/16")[0],
        "lifetime": 3600,
        "encryption_in": KEY,
        "integrity_in": b"",
    }
    return Redeemed(**(values | changes))


def make_outbound(**changes):
    return RedeemedOutbound(**({"encryption_out": KEY[::-1], "integrity_out": b""} | changes))


def make_install(**changes):
    values = {
        "keymat": bytes(16),
        "local": Endpoint(LOCAL, 500),
        "remote": Endpoint(REMOTE, 500),
    }
    return InstallInbound(**(values | changes))


def make_allocate(connection="paris", child="lan", **changes):
    """What an honest worker asks for."""
    values = {
        "connection": connection,
        "child": child,
        "identity": identity("gw2.example.org"),
        "local": Endpoint(LOCAL, 500),
        "remote": Endpoint(REMOTE, 500),
        "local_ts": selectors("10.1.0.0/16")[0],
        "remote_ts": selectors("10.2.0.0/16")[0],
    }
    if connection == "host":
        values |= {"local_ts": TrafficSelector.of_host(LOCAL), "remote_ts": TrafficSelector.of_host(REMOTE)}
    if connection == "road":
        values |= {"identity": identity("wanderer.example.org"), "remote_ts": selectors("10.4.0.0/16")[0]}
    return AllocateSpi(**(values | changes))


def make_allocation(spi=0x1000):
    return Allocation(
        spi=spi,
        connection="paris",
        child="lan",
        protocol=ProtocolId.ESP,
        local=Endpoint(LOCAL, 500),
        remote=Endpoint(REMOTE, 500),
    )


def said(changes):
    """By the worker, and by keyd. A selector may be the one of a tuple."""
    named = {key: value for key, value in changes.items() if key in ("keymat", "local", "remote")}
    agreed = {key: value for key, value in changes.items() if key not in named}
    for side in agreed.keys() & {"local_ts", "remote_ts"}:
        if isinstance(agreed[side], tuple):
            (agreed[side],) = agreed[side]
    return named, agreed


class FakeClock:
    """Time stands still but for `advance`."""

    def __init__(self):
        self.time = 1000.0
        self._timers = []
        self._order = count()

    def now(self):
        return self.time

    def after(self, seconds, callback):
        timer = Timer(self.time + seconds, callback)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    def advance(self, seconds):
        end = self.time + seconds
        while self._timers and self._timers[0][0] <= end:
            self.time, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()
        self.time = end


class FakeDataplane:
    """Records every call. With `held` set, futures stay open in `waiting`; names in `failing` are refused."""

    name = "fake"

    def __init__(self):
        self.calls = []
        self.failing = set()
        self.held = False
        self.waiting = []
        self.next_spi = 0x1000
        self.protocols = {}
        self.migrates = True

    def _call(self, name, value=None, result=None):
        self.calls.append((name, value))
        future = Future()
        if self.held:
            self.waiting.append(future)
        elif name in self.failing:
            future.set_error(lambda: DataplaneError("refused"))
        else:
            future.set_result(result)
        return future

    def allocate_spi(self, local, remote, protocol):
        if "allocate_spi" in self.failing:
            raise DataplaneError("no SPI")
        if protocol is ProtocolId.IPCOMP and "allocate_cpi" in self.failing:
            raise DataplaneError("no CPI")
        spi, self.next_spi = self.next_spi, self.next_spi + 1
        self.calls.append(("allocate_spi", spi))
        self.protocols[spi] = protocol
        return spi

    def release_spi(self, spi, local, remote, protocol):
        assert self.protocols[spi] is protocol
        if "release_spi" in self.failing:
            raise DataplaneError("refused")
        self.calls.append(("release_spi", spi))

    def add_policy(self, policy):
        return self._call("add_policy", policy)

    def remove_policy(self, policy):
        return self._call("remove_policy", policy)

    def add_shunt(self, shunt):
        return self._call("add_shunt", shunt)

    def remove_shunt(self, shunt):
        return self._call("remove_shunt", shunt)

    def install_inbound(self, pair):
        return self._call("install_inbound", pair)

    def install_outbound(self, pair):
        return self._call("install_outbound", pair)

    def remove(self, pair):
        return self._call("remove", pair.spi_in)

    def follow(self, pair):
        return self._call("follow", pair)

    def migrate(self, policy, pairs, remote):
        return self._call("migrate", (policy, pairs, remote), tuple(pair.spi_in for pair in pairs if self.migrates))

    def traffic(self, pair):
        return self._call("traffic", pair.spi_in, Traffic(bytes_in=84, bytes_out=168, packets_in=1, packets_out=2))

    def names(self):
        return [name for name, _ in self.calls]


class Bench:
    """A service, its surroundings, and short words for what a worker and keyd do to it."""

    def __init__(self):
        self.gateway = make_gateway()
        self.plane = FakeDataplane()
        self.clock = FakeClock()
        self.sent = []
        self.logged = []
        self.redemptions = []
        self.keyd_answers = []
        self.sequence = 0
        self.service = Service(
            self.gateway,
            self.plane,
            self._redeem,
            lambda message, sequence: self.sent.append((message, sequence)),
            self.clock,
            lambda level, code, **fields: self.logged.append((code, fields)),
        )

    def _redeem(self, request):
        future = Future()
        self.redemptions.append(future)
        if self.keyd_answers:
            future.set_result(self.keyd_answers.pop(0))
        return future

    def start(self):
        self.service.start()
        self.service.epoch_began()
        return self

    def ask(self, message):
        """Send as the worker; the answer, None if it is not there yet."""
        self.sequence += 1
        self.service.from_worker(message, self.sequence)
        answers = [answer for answer, sequence in self.sent if sequence == self.sequence]
        return answers[-1] if answers else None

    def install(self, redeemed=None, **changes):
        """Both halves, one after the other. Of `changes` the worker says where the ends are, and keyd all the rest."""
        redeemed = redeemed if redeemed is not None else make_redeemed()
        named, agreed = said(changes)
        if "cpi_out" in agreed:
            agreed["cpi_in"] = self.service.sadb.allocation(redeemed.spi_in).cpi
        outbound = make_outbound(
            **{key: agreed.pop(key) for key in ("encryption_out", "integrity_out") if key in agreed}
        )
        self.keyd_answers.append(replace(redeemed, **agreed) if agreed else redeemed)
        answer = self.ask(make_install(**named))
        return self.install_outbound(answer.spi_in, outbound) if isinstance(answer, Installed) else answer

    def install_outbound(self, spi, outbound=None):
        """The other half of a pair that receives."""
        self.keyd_answers.append(outbound or make_outbound())
        return self.ask(InstallOutbound(spi_in=spi))

    def codes(self):
        return [code for code, _ in self.logged]


class Kit:
    """The makers, by attribute."""

    local, remote, key = LOCAL, REMOTE, KEY
    selectors = staticmethod(selectors)
    identity = staticmethod(identity)
    child = staticmethod(make_child)
    connection = staticmethod(make_connection)
    gateway = staticmethod(make_gateway)
    redeemed = staticmethod(make_redeemed)
    outbound = staticmethod(make_outbound)
    install = staticmethod(make_install)
    allocate = staticmethod(make_allocate)
    allocation = staticmethod(make_allocation)
    replace = staticmethod(replace)
    said = staticmethod(said)
    endpoint = staticmethod(lambda address, port=500: Endpoint(ipaddress.ip_address(address), port))


@pytest.fixture
def kit():
    return Kit


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def bench():
    return Bench().start()


@pytest.fixture
def cold_bench():
    """Before `start`."""
    return Bench()


class DrivenLoop(Loop):
    """The real loop, run until a condition holds."""

    def until(self, condition, seconds=5.0):
        deadline = self.now() + seconds

        def check():
            if condition() or self.now() > deadline:
                self.stop()
            else:
                self.after(0.005, check)

        self.after(0, check)
        self.run()
        assert condition(), "did not happen in time"

    def during(self, seconds):
        self.after(seconds, self.stop)
        self.run()


@pytest.fixture
def loop():
    return DrivenLoop()
