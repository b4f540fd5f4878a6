"""The monitor's end of the channel, against an ESP process that the test plays."""

import dataclasses
import ipaddress
from dataclasses import replace

import pytest

from monitor.dataplane import DataplaneError, Events, Pair, Policy, Traffic
from monitor.userspace import client as client_module
from monitor.userspace.client import UserspaceDataplane
from privsep.algorithms import ChildSuite
from privsep.channel import Channel, pair
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
    Trapped,
)
from privsep.types import Endpoint, Mode, Spi, TrafficSelector

LOCAL, REMOTE = (Endpoint(ipaddress.ip_address(text), 4500) for text in ("192.0.2.1", "192.0.2.2"))
POLICY = Policy(
    protocol=ProtocolId.ESP,
    number=7,
    mode=Mode.TUNNEL,
    local=LOCAL,
    remote=REMOTE,
    local_ts=(TrafficSelector(ipaddress.ip_network("10.1.0.0/16")),),
    remote_ts=(TrafficSelector(ipaddress.ip_network("10.2.0.0/16")),),
)


class FakeRoutes:
    def __init__(self):
        self.led = []
        self.removed = []
        self.refuses = False

    def add(self, policy):
        if self.refuses:
            raise DataplaneError("no")
        self.led.append(policy.number)

    def remove(self, policy):
        self.led.remove(policy.number)
        self.removed.append(policy)

    def add_shunt(self, shunt):
        if self.refuses:
            raise DataplaneError("no")
        self.led.append(shunt)

    def remove_shunt(self, shunt):
        self.led.remove(shunt)


class Stage:
    """A client, and the process that it talks to."""

    def __init__(self):
        self.loop = Loop()
        self.routes = FakeRoutes()
        self.seen = []
        self.events = []
        self.lost = []
        self.client = UserspaceDataplane(
            self.loop,
            self.routes,
            Events(
                acquired=lambda number: self.events.append(("acquired", number)),
                expired=lambda spi, hard: self.events.append(("expired", spi, hard)),
                moved=lambda spi, remote: self.events.append(("moved", spi, remote)),
            ),
            self.lost.append,
        )

    def start(self):
        ours, theirs = pair()
        self.process = Channel(
            theirs,
            self.loop,
            incoming=REQUESTS,
            outgoing=REPLIES,
            handler=lambda message, sequence: self.seen.append((message, sequence)),
            on_close=lambda _: None,
        )
        self.client.connect(ours)

    def turn(self):
        """Let everything that waits arrive."""
        for _ in range(5):
            self.loop.after(0.0, self.loop.stop)
            self.loop.run()
            self.loop.after(0.001, self.loop.stop)
            self.loop.run()

    def answer(self, reply):
        """Answer the oldest request."""
        self.turn()
        message, sequence = self.seen.pop(0)
        self.process.send(reply, sequence)
        self.turn()
        return message

    def installed(self, lifetime=60):
        made = sa_pair(self.client.allocate_spi(LOCAL, REMOTE, ProtocolId.ESP), lifetime)
        future = self.client.install_inbound(made)
        self.answer(Ok())
        assert outcome(future) is None
        return made


def sa_pair(spi, lifetime=60):
    return Pair(
        policy=POLICY,
        spi_in=spi,
        spi_out=Spi(0x4242),
        suite=ChildSuite.parse("aes128gcm16"),
        encryption_in=bytes(20),
        integrity_in=b"",
        encryption_out=bytes(range(20)),
        integrity_out=b"",
        local=LOCAL,
        remote=REMOTE,
        encap=True,
        local_ts=POLICY.local_ts,
        remote_ts=POLICY.remote_ts,
        lifetime=lifetime,
        replay_window=128,
    )


def outcome(future):
    assert future.done
    waiting = future.__await__()
    with pytest.raises(StopIteration) as caught:
        next(waiting)
    return caught.value.value


def refused(future):
    assert future.done
    with pytest.raises(DataplaneError) as caught:
        next(future.__await__())
    return str(caught.value)


@pytest.fixture
def stage():
    made = Stage()
    made.start()
    return made


def test_a_policy_leads_traffic_to_the_device_before_the_process_knows_it(stage):
    future = stage.client.add_policy(POLICY)
    assert stage.routes.led == [7]
    assert not future.done
    assert stage.answer(Ok()) == AddPolicy(policy=7, local_ts=POLICY.local_ts, remote_ts=POLICY.remote_ts)
    assert outcome(future) is None


def test_a_policy_stands_even_while_no_process_runs():
    stage = Stage()
    assert outcome(stage.client.add_policy(POLICY)) is None
    assert stage.routes.led == [7]
    stage.start()
    assert isinstance(stage.answer(Ok()), AddPolicy)


def test_of_a_policy_that_yields_the_routes_go_once_the_process_knows_the_next(stage):
    stage.client.add_policy(POLICY)
    stage.answer(Ok())
    moved = replace(POLICY, remote=LOCAL)
    assert outcome(stage.client.add_policy(moved)) is None
    assert (stage.routes.led, stage.seen) == ([POLICY.number], [])
    stage.routes.removed.clear()
    after = replace(POLICY, remote_ts=(TrafficSelector(ipaddress.ip_network("10.3.0.0/16")),))
    future = stage.client.add_policy(after)
    assert (stage.routes.led, stage.routes.removed) == ([7, 7], [])
    assert stage.answer(Ok()) == AddPolicy(policy=7, local_ts=after.local_ts, remote_ts=after.remote_ts)
    assert outcome(future) is None
    assert (stage.routes.led, stage.routes.removed) == ([7], [moved])


def test_a_policy_whose_routes_fail_is_not_added(stage):
    stage.routes.refuses = True
    assert refused(stage.client.add_policy(POLICY)) == "no"
    stage.turn()
    assert stage.seen == []


def test_removing_a_policy_keeps_its_routes_until_the_process_has_dropped_it(stage):
    stage.client.add_policy(POLICY)
    stage.answer(Ok())
    future = stage.client.remove_policy(POLICY)
    assert stage.routes.led == [7]
    assert stage.answer(Ok()) == RemovePolicy(policy=7)
    assert stage.routes.led == []
    assert outcome(future) is None


def test_spis_are_unique_random_and_not_reserved_rfc4303_2_1(stage):
    spis = [stage.client.allocate_spi(LOCAL, REMOTE, ProtocolId.ESP) for _ in range(2000)]
    assert len(set(spis)) == 2000
    assert min(spis) > 255
    assert max(spis) > 2**31


def test_a_pair_is_installed_with_its_keys_window_and_lifetime(stage):
    spi = stage.client.allocate_spi(LOCAL, REMOTE, ProtocolId.ESP)
    future = stage.client.install_inbound(sa_pair(spi, lifetime=99))
    order = stage.answer(Ok())
    assert isinstance(order, AddInbound)
    assert (order.spi_in, order.spi_out, order.policy, order.replay_window, order.lifetime_s) == (
        spi,
        0x4242,
        7,
        128,
        99,
    )
    assert order.encryption_in == bytes(20)
    assert outcome(future) is None
    future = stage.client.install_outbound(sa_pair(spi))
    order = stage.answer(Ok())
    assert isinstance(order, AddOutbound)
    assert (order.spi_in, order.encryption_out) == (spi, bytes(range(20)))
    assert outcome(future) is None


def test_a_process_that_refuses_to_send_is_heard(stage):
    made = stage.installed()
    future = stage.client.install_outbound(made)
    stage.answer(Failed())
    assert refused(future) == "the ESP process refused"


def test_requests_are_pipelined_and_answered_by_number(stage):
    futures = [
        stage.client.install_inbound(sa_pair(stage.client.allocate_spi(LOCAL, REMOTE, ProtocolId.ESP)))
        for _ in range(3)
    ]
    stage.turn()
    for (_, sequence), reply in reversed(list(zip(stage.seen, (Ok(), Failed(), Ok()), strict=True))):
        stage.process.send(reply, sequence)
    stage.turn()
    assert outcome(futures[0]) is None
    assert refused(futures[1]) == "the ESP process refused"
    assert outcome(futures[2]) is None


def test_an_spi_that_was_not_allocated_or_is_installed_is_refused(stage):
    assert "not reserved" in refused(stage.client.install_inbound(sa_pair(Spi(0x7777))))
    assert "in use" in refused(stage.client.install_inbound(stage.installed()))
    released = stage.client.allocate_spi(LOCAL, REMOTE, ProtocolId.ESP)
    stage.client.release_spi(released, LOCAL, REMOTE, ProtocolId.ESP)
    assert "not reserved" in refused(stage.client.install_inbound(sa_pair(released)))


def test_counters_come_back_or_the_pair_is_gone(stage):
    made = stage.installed()
    future = stage.client.traffic(made)
    assert stage.answer(Counters(bytes_in=1, bytes_out=2, packets_in=3, packets_out=4)) == ReadCounters(
        spi_in=made.spi_in
    )
    assert outcome(future) == Traffic(bytes_in=1, bytes_out=2, packets_in=3, packets_out=4)
    future = stage.client.traffic(made)
    stage.answer(Failed())
    assert refused(future) == "the pair is gone"


def test_removing_is_harmless_when_it_is_gone(stage):
    made = stage.installed()
    for _ in range(2):
        future = stage.client.remove(made)
        assert stage.answer(Ok()) == RemovePair(spi_in=made.spi_in)
        assert outcome(future) is None


def test_events_reach_the_service_if_they_are_about_what_exists(stage):
    stage.client.add_policy(POLICY)
    stage.answer(Ok())
    made = stage.installed()
    for event in (
        Trapped(policy=7),
        Trapped(policy=8),
        PairWorn(spi_in=0x7777),
        PairWorn(spi_in=made.spi_in),
        PairExpired(spi_in=0x7777),
        PairExpired(spi_in=made.spi_in),
        PairExpired(spi_in=made.spi_in),
    ):
        stage.process.send(event)
    stage.turn()
    assert stage.events == [("acquired", 7), ("expired", made.spi_in, False), ("expired", made.spi_in, True)]


def test_a_process_that_repeats_its_reports_is_heard_once(stage, monkeypatch):
    stage.client.add_policy(POLICY)
    stage.answer(Ok())
    made = stage.installed()
    reports = (Trapped(policy=7), PairWorn(spi_in=made.spi_in))
    for event in reports * 10:
        stage.process.send(event)
    stage.turn()
    assert stage.events == [("acquired", 7), ("expired", made.spi_in, False)]
    monkeypatch.setattr(client_module, "TRAP_SECONDS", 0.0)
    for event in reports:
        stage.process.send(event)
    stage.turn()
    assert stage.events[2:] == [("acquired", 7)]


def test_a_pair_that_we_removed_does_not_expire_as_well(stage):
    made = stage.installed()
    stage.client.remove(made)
    stage.process.send(PairExpired(spi_in=made.spi_in))
    stage.turn()
    assert stage.events == []


def test_the_death_of_the_process_fails_what_is_pending_and_expires_what_was_installed(stage):
    made = stage.installed()
    pending = stage.client.install_inbound(sa_pair(stage.client.allocate_spi(LOCAL, REMOTE, ProtocolId.ESP)))
    stage.turn()
    stage.process.close("test")
    stage.turn()
    assert refused(pending) == "the ESP process is not running"
    assert stage.events == [("expired", made.spi_in, True)]
    assert stage.lost == ["the other end is gone"]
    assert refused(stage.client.traffic(made)) == "the pair is gone"
    assert outcome(stage.client.remove(made)) is None


def test_a_new_process_gets_the_policies_again(stage):
    stage.client.add_policy(POLICY)
    stage.answer(Ok())
    stage.process.close("test")
    stage.turn()
    stage.start()
    assert isinstance(stage.answer(Ok()), AddPolicy)
    assert stage.routes.led == [7]
    stage.installed()


def test_a_new_process_gets_more_policies_than_its_channel_holds_in_portions(monkeypatch):
    monkeypatch.setattr(client_module, "TOLD_AT_ONCE", 3)
    stage = Stage()
    policies = [dataclasses.replace(POLICY, number=number) for number in range(1, 9)]
    for policy in policies:
        outcome(stage.client.add_policy(policy))
    stage.start()
    stage.turn()
    assert [message.policy for message, _ in stage.seen] == [1, 2, 3]
    assert [stage.answer(Ok()).policy for _ in policies] == list(range(1, 9))
    assert stage.seen == []
    assert stage.lost == []


def test_a_new_process_knows_the_policy_before_its_pair_and_none_that_is_gone(monkeypatch):
    monkeypatch.setattr(client_module, "TOLD_AT_ONCE", 1)
    stage = Stage()
    first, gone = dataclasses.replace(POLICY, number=1), dataclasses.replace(POLICY, number=2)
    for policy in (first, gone, POLICY):
        outcome(stage.client.add_policy(policy))
    stage.start()
    stage.client.remove_policy(gone)
    stage.client.install_inbound(sa_pair(stage.client.allocate_spi(LOCAL, REMOTE, ProtocolId.ESP)))
    told = [stage.answer(Ok()) for _ in range(4)]
    assert [type(message) for message in told] == [AddPolicy, RemovePolicy, AddPolicy, AddInbound]
    assert [told[0].policy, told[2].policy] == [1, 7]
    assert stage.seen == []


@pytest.mark.parametrize(("message", "sequence"), [(Ok(), 99), (Ok(), 0), (Failed(), 0)])
def test_an_answer_to_nothing_ends_the_process(stage, message, sequence):
    stage.process.send(message, sequence)
    stage.turn()
    assert len(stage.lost) == 1
    assert "violation" in stage.lost[0]


def test_shunts_are_routes_and_nothing_to_the_process(stage):
    assert outcome(stage.client.add_shunt("a shunt")) is None
    assert stage.routes.led == ["a shunt"]
    assert outcome(stage.client.remove_shunt("a shunt")) is None
    assert stage.routes.led == []
    stage.routes.refuses = True
    with pytest.raises(DataplaneError):
        outcome(stage.client.add_shunt("a shunt"))
    stage.turn()
    assert stage.seen == []
