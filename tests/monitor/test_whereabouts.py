"""A peer by name: its policies before it has an address and afterwards, and who hears of a change."""

import dataclasses
import ipaddress

import pytest

from monitor.inheritance import recall
from monitor.journal import Journal, PairRecord, PolicyRecord
from monitor.sadb import NOBODYS, fixed
from monitor.service import Service
from monitor.whereabouts import Whereabouts
from privsep.config.names import RemoteName
from privsep.errors import ChannelClosed, Violation
from privsep.schema.install import Denial, Denied, Installed, Unanswered
from privsep.schema.keymat import Known, NotRedeemable
from privsep.schema.names import MAX_LOCATED, Located, Resolved
from privsep.tasks import Future

FIRST, SECOND = ipaddress.ip_address("192.0.2.2"), ipaddress.ip_address("192.0.2.3")


class House:
    """A service whose connection `paris` has a name for its remote, a keyd and a worker that listen."""

    def __init__(self, bench, kit, journal=None, many=0, sockets=()):
        self.bench = bench
        bench.plane.calls.clear()
        named = kit.connection(remote=RemoteName("gw2.example.org", 4))
        more = [kit.connection(name=f"n{n}", remote=RemoteName("gw3.example.org", 4), children=()) for n in range(many)]
        self.gateway = dataclasses.replace(kit.gateway(), connections=(named, *more))
        self.connection = self.gateway.connections[0]
        self.heard = []
        self.answer = Known()
        self.worker_runs = True
        if journal is not None:
            recall(self.gateway, journal)
        bench.service = Service(
            self.gateway,
            bench.plane,
            bench._redeem,
            lambda message, sequence: bench.sent.append((message, sequence)),
            bench.clock,
            lambda level, code, **fields: bench.logged.append((code, fields)),
            journal,
        )
        self.whereabouts = Whereabouts(
            self.gateway,
            bench.service,
            sockets,
            None,
            self.ask_keyd,
            self.to_worker,
            lambda level, code, **fields: bench.logged.append((code, fields)),
        )

    def ask_keyd(self, question):
        self.heard.append(("keyd", question))
        future = Future()
        if isinstance(self.answer, type):
            future.set_error(self.answer)
        elif self.answer is not None:
            future.set_result(self.answer)
        self.open = future
        return future

    def to_worker(self, message, sequence):
        if not self.worker_runs:
            raise ChannelClosed
        assert sequence == 0
        self.heard.append(("worker", message))

    def placed(self):
        return [policy.remote.address for name, policy in self.bench.plane.calls if name == "add_policy"]

    def install(self, kit, remote):
        ends = {"local": kit.endpoint("192.0.2.1"), "remote": kit.endpoint(str(remote))}
        allocated = self.bench.ask(kit.allocate(**ends))
        if isinstance(allocated, Denied):
            return allocated.why
        redeemed = kit.redeemed(spi_in=allocated.spi, spi_out=allocated.spi + 1)
        assert isinstance(self.bench.install(redeemed, **ends), Installed)
        return allocated.spi


@pytest.fixture
def house(bench, kit):
    return House(bench, kit)


@pytest.fixture
def running(house):
    house.bench.start()
    house.whereabouts.epoch_began()
    return house


def resolved(address, name="paris"):
    return Resolved(located=(Located(connection=name, address=address),))


def test_before_there_is_an_address_policies_lead_to_nobody_so_that_nothing_passes_in_clear(running, kit):
    assert running.placed() == [NOBODYS[4]]
    assert running.install(kit, FIRST) is Denial.ADDRESSES
    assert running.install(kit, NOBODYS[4]) is Denial.ADDRESSES
    assert running.heard == []


def test_nobodys_addresses_are_those_that_no_host_may_have_rfc7600_rfc6666():
    assert fixed(RemoteName("x.example", 6)) == ipaddress.ip_address("100::")
    assert fixed(RemoteName("x.example", 4)) == fixed(RemoteName("x.example", None)) == NOBODYS[4]
    assert fixed(RemoteName("x.example", 4, FIRST)) == FIRST


def test_the_first_address_moves_the_policy_there_and_is_told_to_keyd_before_the_worker(running, kit):
    running.answer = None
    running.whereabouts.located(running.connection, FIRST)
    assert running.placed() == [NOBODYS[4], FIRST]
    assert running.heard == [("keyd", resolved(FIRST))]
    running.open.set_result(Known())
    assert running.heard == [("keyd", resolved(FIRST)), ("worker", resolved(FIRST))]
    assert running.install(kit, FIRST) in running.bench.service.sadb._entries


def test_another_address_moves_a_policy_at_once_only_where_nothing_is_installed_under_it(running, kit):
    """Its peer follows by the next pair, which keyd proves; a name server's word alone moves no traffic."""
    running.whereabouts.located(running.connection, FIRST)
    running.whereabouts.located(running.connection, SECOND)
    assert running.placed() == [NOBODYS[4], FIRST, SECOND]
    running.install(kit, SECOND)
    running.whereabouts.located(running.connection, FIRST)
    assert running.placed() == [NOBODYS[4], FIRST, SECOND]
    assert running.install(kit, SECOND) is Denial.ADDRESSES
    spi = running.install(kit, FIRST)
    assert running.placed() == [NOBODYS[4], FIRST, SECOND, FIRST]
    assert running.bench.service.sadb.entry(spi).pair.policy.remote.address == FIRST
    # the number stays, so that it is the same policy to the kernel
    assert len({policy.number for name, policy in running.bench.plane.calls if name == "add_policy"}) == 1


def test_a_new_pair_of_processes_is_told_all_there_is(running):
    running.whereabouts.located(running.connection, FIRST)
    running.heard.clear()
    running.whereabouts.epoch_began()
    assert running.heard == [("keyd", resolved(FIRST)), ("worker", resolved(FIRST))]


def test_many_are_told_in_portions_that_fit_into_a_frame(bench, kit):
    house = House(bench, kit, many=MAX_LOCATED + 1)
    for connection in house.gateway.connections[1:]:
        house.gateway.locate(connection, FIRST)
    house.whereabouts.epoch_began()
    assert [len(message.located) for who, message in house.heard if who == "worker"] == [MAX_LOCATED, 1]


def test_processes_that_end_meanwhile_are_told_by_their_successors_start(running):
    running.answer = ChannelClosed
    running.whereabouts.located(running.connection, FIRST)
    assert [who for who, _ in running.heard] == ["keyd"]
    running.answer, running.worker_runs = Known(), False
    running.whereabouts.located(running.connection, SECOND)
    assert [who for who, _ in running.heard] == ["keyd", "keyd"]
    assert running.connection.remote.address == SECOND


def test_a_keyd_that_answers_something_else_violates_the_protocol(running):
    running.answer = None
    running.whereabouts.located(running.connection, FIRST)
    with pytest.raises(Violation):
        running.open.set_result(NotRedeemable())


def test_a_policy_that_cannot_be_moved_refuses_its_traffic_as_before(running):
    running.bench.plane.failing.add("add_policy")
    running.whereabouts.located(running.connection, FIRST)
    assert [fields["connection"] for code, fields in running.bench.logged if code == "place-failed"] == ["paris"]
    assert [who for who, _ in running.heard] == ["keyd", "worker"]


@pytest.mark.parametrize("kind", [PolicyRecord, PairRecord])
def test_where_a_name_led_before_a_crash_is_known_after_it(bench, kit, tmp_path, kind):
    """No name server has to answer before the kernel's SAs are adopted."""
    path, quiet = tmp_path / "journal", lambda level, code, **fields: None
    before = House(bench, kit, Journal(path, bench.clock, quiet))
    bench.start()
    before.whereabouts.located(before.connection, FIRST)
    if kind is PairRecord:
        before.install(kit, FIRST)
    journal = Journal(path, bench.clock, quiet)
    assert bool(journal.of(kind))
    bench.sent.clear()
    after = House(bench, kit, journal)
    assert after.connection.remote.address == FIRST


def test_where_nobody_was_is_not_recalled(bench, kit, tmp_path):
    path, quiet = tmp_path / "journal", lambda level, code, **fields: None
    House(bench, kit, Journal(path, bench.clock, quiet))
    bench.start()
    journal = Journal(path, bench.clock, quiet)
    assert [record.remote.address for record in journal.of(PolicyRecord)] == [NOBODYS[4]]
    assert House(bench, kit, journal).connection.remote.address is None


def test_a_captured_worker_s_remarks_reach_who_paces_them(running):
    told = []
    running.bench.service.unanswered = told.append
    for name in ("paris", "nobody"):
        running.bench.service.from_worker(Unanswered(connection=name), 0)
    assert told == ["paris", "nobody"]
