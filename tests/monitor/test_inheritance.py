"""A successor of a killed daemon: what it adopts, what it removes, what it forgets, what it does not touch."""

import dataclasses
import ipaddress

import pytest

from monitor.dataplane import Cpis, DataplaneError
from monitor.inheritance import owners
from monitor.installer import Leave
from monitor.journal import Journal, PairRecord, PolicyRecord, ShuntRecord
from monitor.sadb import Phase, Policies
from monitor.service import Service
from privsep.algorithms import ChildSuite
from privsep.config.lanes import KernelOptions
from privsep.config.model import Action, Encap, Order, Shunt
from privsep.iana import ProtocolId
from privsep.schema.install import Adopted, Denial, Denied, Installed, Remove
from privsep.tasks import Future, handed_over
from privsep.types import Mode


class Kernel:
    """Pairs by inbound SPI that outlive any daemon, each with how many of its SAs are left; and leftover policies."""

    def __init__(self):
        self.pairs = {}
        self.discarded = []
        self.described = []
        self.ports = {}
        """Of the peers of pairs in UDP."""
        self.expected = []
        self.cleared = []
        self.failing = False

    def _answer(self, action):
        future = Future()
        if self.failing:
            future.set_error(lambda: DataplaneError("refused"))
        else:
            try:
                future.set_result(action())
            except DataplaneError as error:
                future.set_error(handed_over(error))
        return future

    def adopt(self, pair):
        def action():
            self.described.append(pair)
            if self.pairs.get(pair.spi_in) != 2 or self._elsewhere(pair):
                raise DataplaneError("not both")

        return self._answer(action)

    def discard(self, pair):
        def action():
            self.described.append(pair)
            self.discarded.append(pair.spi_in)
            return not self._elsewhere(pair) and self.pairs.pop(pair.spi_in, 0) > 0

        return self._answer(action)

    def _elsewhere(self, pair):
        return self.ports.get(pair.spi_in, pair.remote.port) != pair.remote.port

    def expect(self, policy):
        return self._answer(lambda: self.expected.append(policy))

    def clear(self, rule):
        named = rule if isinstance(rule, Shunt) else (rule.number, rule.local_ts, rule.remote_ts)
        return self._answer(lambda: self.cleared.append(named))


@pytest.fixture
def kernel():
    return Kernel()


@pytest.fixture
def life(bench, kit, kernel, tmp_path):
    """One daemon after another over the same kernel and journal; each is killed when the next begins."""

    class Life:
        path = tmp_path / "journal"

        def begin(self, gateway=None):
            bench.gateway = gateway or bench.gateway
            self.log = []
            note = lambda level, code, **fields: self.log.append((code, fields))  # noqa: E731
            journal = Journal(self.path, bench.clock, note)
            bench.sent.clear()
            bench.service = Service(
                bench.gateway,
                bench.plane,
                bench._redeem,
                lambda message, sequence: bench.sent.append((message, sequence)),
                bench.clock,
                note,
                journal,
                kernel,
            )
            bench.start()
            return bench.service

        def install(
            self,
            connection="paris",
            child="lan",
            remote="192.0.2.2",
            local_ts="10.1.0.0/16",
            remote_ts="10.2.0.0/16",
            asked=None,
            **changes,
        ):
            """A pair of the present daemon; its inbound SPI. `asked`: what else the worker says."""
            ends = {"local": kit.endpoint("192.0.2.1"), "remote": kit.endpoint(remote)}
            traffic = {"local_ts": kit.selectors(local_ts)[0], "remote_ts": kit.selectors(remote_ts)[0]}
            who = {"identity": changes.get("identity", kit.redeemed().identity)}
            if asked and "remote_ts" in asked:
                traffic = {side: asked[side][0] for side in traffic}
            spi = bench.ask(kit.allocate(connection, child, **traffic, **ends, **who)).spi
            values = {"spi_in": spi, "spi_out": spi + 0x10000} | changes
            redeemed = kit.redeemed(connection=connection, child=child, **values)
            answer = bench.install(redeemed, **(traffic | ends | (asked or {})))
            assert answer == Installed(spi_in=spi)
            kernel.pairs[spi] = 2
            return spi

        def adopted(self):
            return [message for message, _ in bench.sent if isinstance(message, Adopted)]

        def reasons(self):
            return [fields["reason"] for code, fields in self.log if code == "not-adopted"]

        def written(self, kind=PairRecord):
            return Journal(self.path, bench.clock, lambda level, code, **fields: None).of(kind)

    life = Life()
    life.begin()
    return life


def changed(gateway, connection="paris", child="lan", **changes):
    """The gateway with one child changed."""

    def edit(each):
        if each.name != connection:
            return each
        children = tuple(dataclasses.replace(c, **changes) if c.name == child else c for c in each.children)
        return dataclasses.replace(each, children=children)

    return dataclasses.replace(gateway, connections=tuple(map(edit, gateway.connections)))


def reconnected(gateway, connection="paris", **changes):
    """The gateway with one connection changed."""
    connections = (dataclasses.replace(c, **changes) if c.name == connection else c for c in gateway.connections)
    return dataclasses.replace(gateway, connections=tuple(connections))


def test_the_successor_of_a_killed_daemon_adopts_its_pairs_and_tells_the_worker_what_is_left(bench, life, kernel):
    spi = life.install()
    bench.clock.advance(600)
    service = life.begin()
    entry = service.sadb.entry(spi)
    assert (entry.connection, entry.child, entry.phase) == ("paris", "lan", Phase.INSTALLED)
    assert entry.pair.lifetime - (bench.clock.now() - entry.since) == pytest.approx(3000, abs=1)
    assert entry.pair.encryption_in == b""
    (told,) = life.adopted()
    assert (told.spi_in, told.spi_out) == (spi, spi + 0x10000)
    assert told.left_s == pytest.approx(3000, abs=1)
    assert kernel.discarded == kernel.cleared == []
    assert "remove" not in bench.plane.names()


def test_adopted_pairs_count_for_quotas_claims_and_outbound_spis(bench, life, kit):
    spi = life.install("road", remote="198.51.100.9", remote_ts="10.4.0.0/16")
    service = life.begin()
    assert service.sadb.has_outbound(kit.endpoint("198.51.100.9").address, kit.redeemed().suite.protocol, spi + 0x10000)
    wish = kit.allocate("road", remote=kit.endpoint("198.51.100.7"), identity=kit.identity("other"))
    assert bench.ask(wish) == Denied(why=Denial.OVERLAP)


def test_an_adopted_pair_lives_on_like_any_other(bench, life, kernel):
    spi = life.install()
    service = life.begin()
    service.expired(spi, False)
    service.expired(spi, True)
    assert service.sadb.entries() == ()
    assert life.written() == ()


def test_successors_of_successors_still_know_it(bench, life):
    spi = life.install()
    for _ in range(3):
        life.begin()
    assert [each.spi_in for each in life.adopted()] == [spi]


REFUSALS = {
    "identity": lambda kit, g: reconnected(g, remote_id=kit.identity("somebody else")),
    "proposals": lambda kit, g: changed(g, suites=(ChildSuite.parse("aes128gcm16-modp2048"),)),
    "proposals without a group": lambda kit, g: changed(g, suites=(ChildSuite.parse("aes256gcm16"),)),
    "selectors": lambda kit, g: changed(g, remote_ts=kit.selectors("10.2.4.0/24")),
    "outer addresses": lambda kit, g: reconnected(g, local=kit.endpoint("192.0.2.3").address),
    "UDP encapsulation": lambda kit, g: reconnected(g, encap=Encap.FORCE),
    "mode": lambda kit, g: changed(g, "host", "box", mode=Mode.TUNNEL),
    "policy": lambda kit, g: changed(g, kernel=KernelOptions(priority=7)),
    "no such connection or child": lambda kit, g: reconnected(g, name="berlin"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_what_the_configuration_no_longer_allows_is_removed_from_the_kernel(bench, life, kernel, kit, why):
    if why == "mode":
        spi = life.install("host", "box", local_ts="192.0.2.1/32", remote_ts="192.0.2.2/32")
    else:
        spi = life.install()
    service = life.begin(REFUSALS[why](kit, bench.gateway))
    assert service.sadb.entry(spi) is None
    assert life.adopted() == []
    assert kernel.discarded == [spi]
    assert kernel.pairs == {}
    assert life.written() == ()
    assert why.split(" by ")[0].split(" without ")[0] in life.reasons()[0]


@pytest.mark.parametrize("left", [0, 1])
def test_half_a_pair_is_removed_and_a_lost_one_forgotten(life, kernel, left):
    spi = life.install()
    kernel.pairs[spi] = left
    service = life.begin()
    assert service.sadb.entries() == ()
    assert kernel.discarded == [spi]
    assert life.written() == ()
    named = {"connection": "paris", "child": "lan", "spi_in": f"0x{spi:08x}", "reason": "not both"}
    assert [fields for code, fields in life.log if code == "not-adopted"] == [named] * left
    assert ("earlier-pairs", {"adopted": 0, "removed": left, "forgotten": 1 - left}) in life.log


ROAD = {"remote": "198.51.100.9", "remote_ts": "10.4.9.0/24"}
RESTORED = {
    "nothing changed": lambda kit, g: g,
    "more is configured": lambda kit, g: changed(g, "road", remote_ts=kit.selectors("10.0.0.0/8")),
    "a network that has its address": lambda kit, g: reconnected(
        g, "road", remote=ipaddress.ip_network("198.51.100.0/24")
    ),
}
NOT_RESTORED = {
    "its address is configured": lambda kit, g: reconnected(g, "road", remote=kit.endpoint("198.51.100.9").address),
    "another network": lambda kit, g: reconnected(g, "road", remote=ipaddress.ip_network("203.0.113.0/24")),
    "another mode": lambda kit, g: changed(g, "road", mode=Mode.TRANSPORT),
    "another lane": lambda kit, g: changed(g, "road", kernel=KernelOptions(priority=7)),
    "ours is another": lambda kit, g: changed(g, "road", local_ts=kit.selectors("10.9.0.0/16")),
    "one of ours is another": lambda kit, g: changed(g, "road", local_ts=kit.selectors("10.1.1.0/24", "10.9.0.0/16")),
    "the peer's is another": lambda kit, g: changed(g, "road", remote_ts=kit.selectors("10.9.0.0/16")),
    "one of the peer's is another": lambda kit, g: changed(g, "road", remote_ts=kit.selectors("10.4.9.0/25")),
    "it is a configured peer's": lambda kit, g: changed(g, "paris", "dmz", remote_ts=kit.selectors("10.4.0.0/16")),
}


@pytest.mark.parametrize("why", [*RESTORED, *NOT_RESTORED])
def test_a_road_warriors_policy_stays_as_long_as_the_configuration_would_make_it(bench, life, kernel, kit, why):
    both = {
        "local_ts": kit.selectors("10.1.2.0/24"),
        "remote_ts": kit.selectors("10.4.9.128/25"),
    }
    wider = changed(bench.gateway, "road", local_ts=kit.selectors("10.1.1.0/24", "10.1.2.0/24"))
    life.begin(wider)
    life.install("road", asked=both, remote="198.51.100.9")
    (number,) = (record.number for record in life.written(PolicyRecord) if record.connection == "road")
    kernel.pairs.clear()
    bench.plane.calls.clear()
    life.begin((RESTORED | NOT_RESTORED)[why](kit, wider))
    placed = [policy.remote_ts for name, policy in bench.plane.calls if name == "add_policy"]
    assert (both["remote_ts"] in placed) is (why in RESTORED)
    assert ((number, *both.values()) in kernel.cleared) is (why in NOT_RESTORED)


def test_a_road_warrior_who_got_an_address_has_the_configured_policy_alone(bench, life, kernel, kit):
    narrow = [f"10.4.{octet}.0/24" for octet in (9, 10)]
    for remote_ts in narrow:
        life.install("road", remote="198.51.100.9", remote_ts=remote_ts)
    kernel.pairs.clear()
    bench.plane.calls.clear()
    life.begin(reconnected(bench.gateway, "road", remote=kit.endpoint("198.51.100.9").address))
    placed = [policy.remote_ts for name, policy in bench.plane.calls if name == "add_policy"]
    assert kit.selectors("10.2.0.0/16", "10.4.0.0/16") in placed
    assert not {kit.selectors(each) for each in narrow} & set(placed)


@pytest.mark.parametrize(("then", "now"), [(False, True), (True, False), (True, True)])
def test_a_road_warriors_policy_compresses_if_it_did_and_still_may(bench, life, kernel, kit, then, now):
    life.begin(changed(bench.gateway, "road", ipcomp=True))
    life.install("road", asked={"cpi_out": 0x500} if then else {}, **ROAD)
    kernel.pairs.clear()
    bench.plane.calls.clear()
    life.begin(changed(bench.gateway, "road", ipcomp=now))
    placed = [policy for name, policy in bench.plane.calls if name == "add_policy"]
    (policy,) = (policy for policy in placed if policy.remote_ts == kit.selectors("10.4.9.0/24"))
    assert policy.ipcomp is (then and now)


def test_of_two_records_of_one_pair_one_is_adopted(bench, life, kernel, kit):
    """As they stand there while the peer moves, should the kernel not tell them apart."""
    ends = {"local": kit.endpoint("192.0.2.1", 4500), "remote": kit.endpoint("192.0.2.2", 40000)}
    spi = life.install(asked=ends | {"encap": True})
    bench.plane.held = True
    bench.service.moved(spi, kit.endpoint("192.0.2.2", 40001))
    bench.plane.held = False
    assert len(life.written()) == 2
    service = life.begin()
    assert [entry.pair.spi_in for entry in service.sadb.entries()] == [spi]
    assert life.reasons() == [Denial.EXISTS.value]


def test_a_pair_that_cannot_be_removed_is_tried_again_by_the_next_successor(bench, life, kernel, kit):
    spi = life.install()
    before = bench.gateway
    kernel.failing = True
    life.begin(changed(before, remote_ts=kit.selectors("10.2.4.0/24")))
    assert ("earlier-pairs", {"adopted": 0, "removed": 0, "forgotten": 1}) in life.log
    # of each earlier policy, of the pair, and of the policy in whose place another is
    earlier = len(life.written(PolicyRecord)) - 1
    assert [code for code, _ in life.log].count("cleanup-failed") == earlier + 2
    assert [record.spi_in for record in life.written()] == [spi]
    kernel.failing = False
    life.begin()
    assert kernel.discarded == [spi]


def test_pairs_are_written_down_before_they_are_installed_and_not_kept_when_that_fails(bench, life, kit):
    written = []
    install = bench.plane.install_inbound
    bench.plane.install_inbound = lambda pair: (written.extend(life.written()), install(pair))[1]
    spi = life.install()
    assert [record.spi_in for record in written] == [spi]
    bench.plane.failing.add("install_inbound")
    with pytest.raises(AssertionError, match="DATAPLANE"):
        life.install()
    assert [record.spi_in for record in life.written()] == [spi]


def test_policies_keep_their_numbers_when_the_configuration_grows_or_shrinks(bench, life, kit):
    """SAs are tied to them: with another number no packet would find its SA."""
    spi = life.install("paris", "dmz")
    numbers = {(record.connection, record.child): record.number for record in life.written(PolicyRecord)}
    gateway = bench.gateway
    first = kit.connection(name="aachen", remote=kit.endpoint("192.0.2.77").address)
    fewer = dataclasses.replace(gateway.connections[0], children=gateway.connections[0].children[1:])
    service = life.begin(dataclasses.replace(gateway, connections=(first, fewer, *gateway.connections[1:])))
    assert service.sadb.entry(spi) is not None
    placed = {(record.connection, record.child): record.number for record in life.written(PolicyRecord)}
    assert all(placed[owner] == number for owner, number in numbers.items() if owner in placed)
    assert placed["aachen", "lan"] not in numbers.values()
    assert ("paris", "lan") not in placed


def test_numbers_of_an_earlier_instance_that_leave_no_room_are_given_up(kit):
    policies = Policies(kit.gateway(), {65535: ("gone", "lan"), 2: ("paris", "lan")})
    assert [policy.number for policy in policies.static()] == list(range(1, len(policies.static()) + 1))
    children = sum(len(connection.children) for connection in kit.gateway().connections)
    policies = Policies(kit.gateway(), {65535 - children: ("gone", "lan"), 2: ("paris", "lan")})
    assert policies.static()[0].number == 2


def test_what_became_of_earlier_pairs_is_logged_if_there_were_any(bench, life, kernel):
    assert "earlier-pairs" not in [code for code, _ in life.log]
    kernel.pairs[life.install()] = 0
    life.install(spi_out=0x4000)
    life.begin()
    assert ("earlier-pairs", {"adopted": 1, "removed": 0, "forgotten": 1}) in life.log


@pytest.mark.parametrize("verb", ["expect", "clear"])
def test_a_leftover_policy_that_the_kernel_does_not_show_or_remove_is_logged(bench, life, kernel, verb):
    smaller = reconnected(bench.gateway, children=bench.gateway.connections[0].children[:1])
    setattr(kernel, verb, lambda policy: failed())
    life.begin(smaller)
    assert {code for code, _ in life.log} == {"cleanup-failed"}
    assert ("dmz" in [record.child for record in life.written(PolicyRecord)]) is (verb == "clear")


def failed():
    future = Future()
    future.set_error(lambda: DataplaneError("refused"))
    return future


def test_leftover_policies_of_what_is_not_configured_any_more_are_cleared_after_the_new_ones_are_placed(
    bench, life, kernel, kit
):
    number = next(record.number for record in life.written(PolicyRecord) if record.child == "dmz")
    smaller = reconnected(bench.gateway, children=bench.gateway.connections[0].children[:1])
    placed_before = len(bench.plane.calls)
    order = []
    add_policy, clear, expect = bench.plane.add_policy, kernel.clear, kernel.expect
    kernel.expect = lambda policy: (order.append("1 expect"), expect(policy))[1]
    bench.plane.add_policy = lambda policy: (order.append("2 place"), add_policy(policy))[1]
    kernel.clear = lambda policy: (order.append("3 clear"), clear(policy))[1]
    written = {record.number for record in life.written(PolicyRecord)}
    life.begin(smaller)
    assert {policy.number for policy in kernel.expected} == written
    assert placed_before < len(bench.plane.calls)
    assert number in [cleared for cleared, *_ in kernel.cleared]
    assert order == sorted(order)
    assert len(set(order)) == 3
    assert "dmz" not in [record.child for record in life.written(PolicyRecord)]


def test_a_policy_whose_selectors_changed_is_placed_under_its_number_and_the_old_one_cleared(bench, life, kernel, kit):
    before = next(record for record in life.written(PolicyRecord) if (record.connection, record.child)[1] == "dmz")
    life.begin(changed(bench.gateway, child="dmz", remote_ts=kit.selectors("10.9.0.0/16")))
    assert kernel.cleared == [(before.number, before.local_ts, before.remote_ts)]
    (now,) = [record for record in life.written(PolicyRecord) if record.child == "dmz"]
    assert (now.number, now.remote_ts) == (before.number, kit.selectors("10.9.0.0/16"))


def test_a_road_warriors_policy_stays_without_its_pair_and_never_on_a_configured_peers_traffic(
    bench, life, kernel, kit
):
    for octet in (9, 10):
        life.install("road", remote=f"198.51.100.{octet}", remote_ts=f"10.4.{octet}.0/24")
    numbers = {record.number for record in life.written(PolicyRecord) if record.connection == "road"}
    kernel.pairs.clear()
    bench.plane.calls.clear()
    life.begin()
    placed = [policy.number for name, policy in bench.plane.calls if name == "add_policy"]
    assert numbers <= set(placed)
    assert kernel.cleared == []
    life.begin(changed(bench.gateway, remote_ts=kit.selectors("10.4.9.0/24")))
    assert len([cleared for cleared, *_ in kernel.cleared if cleared in numbers]) == 1


def test_a_peer_that_moved_leaves_one_policy_written_down(life):
    for octet in (9, 10):
        life.install("road", remote=f"198.51.100.{octet}", remote_ts="10.4.0.0/16")
    (record,) = [record for record in life.written(PolicyRecord) if record.connection == "road"]
    assert str(record.remote.address) == "198.51.100.10"


def test_a_clean_stop_leaves_no_journal_and_a_failed_daemon_its_policies(bench, life):
    life.install()
    bench.service.epoch_ended()
    bench.service.stop()
    assert not life.path.exists()
    life.begin()
    life.install()
    bench.service.epoch_ended()
    bench.service.stop(Leave.POLICIES)
    assert life.written() == ()
    assert len(life.written(PolicyRecord)) > 0


def test_a_stop_that_could_not_remove_everything_leaves_the_rest_to_a_successor(bench, life):
    spi = life.install()
    bench.plane.failing.add("remove")
    bench.service.epoch_ended()
    bench.service.stop()
    assert [record.spi_in for record in life.written()] == [spi]


def test_a_journal_that_is_not_believed_is_said_so_and_costs_the_adoption(life, kernel):
    life.install()
    life.path.write_bytes(b"\0\0\0\1\xc1")
    service = life.begin()
    assert ("journal-ignored", {"reason": "not one msgpack value within limits"}) in life.log
    assert service.sadb.entries() == ()
    assert kernel.discarded == []


@pytest.fixture
def shunts(kit):
    """Two by name."""
    common = {"local_ts": kit.selectors("10.1.0.0/16"), "action": Action.PASS, "order": Order.FIRST}
    return tuple(
        Shunt(name=name, remote_ts=kit.selectors(remote), **common)
        for name, remote in (("spare", "10.2.3.0/24"), ("none", "10.2.4.0/24"))
    )


def test_shunts_are_placed_after_policies_kept_and_cleared_when_they_are_gone(bench, life, kernel, shunts):
    plain = bench.gateway
    life.begin(dataclasses.replace(plain, shunts=shunts))
    names = bench.plane.names()
    assert names[-2:] == ["add_shunt", "add_shunt"]
    assert [record.name for record in life.written(ShuntRecord)] == ["spare", "none"]
    moved = dataclasses.replace(shunts[0], action=Action.DROP)
    life.begin(dataclasses.replace(plain, shunts=(moved,)))
    assert kernel.cleared == list(shunts)
    assert [(record.name, record.action) for record in life.written(ShuntRecord)] == [("spare", Action.DROP)]


def test_shunts_go_with_a_clean_stop_and_stay_when_the_daemon_failed(bench, life, shunts):
    for leave, removed in ((Leave.POLICIES, []), (Leave.NOTHING, list(shunts))):
        bench.plane.calls.clear()
        life.begin(dataclasses.replace(bench.gateway, shunts=shunts))
        bench.service.epoch_ended()
        bench.service.stop(leave)
        assert [shunt for name, shunt in bench.plane.calls if name == "remove_shunt"] == removed


def test_owners_are_read_by_number(life, bench):
    journal = Journal(life.path, bench.clock, lambda level, code, **fields: None)
    assert owners(journal)[2] == ("paris", "dmz")


@pytest.fixture
def compressing(bench, life):
    """A daemon with a pair that compresses; its inbound SPI and both CPIs."""
    life.begin(changed(bench.gateway, ipcomp=True))
    spi = life.install(asked={"cpi_out": 0x500})
    return spi, bench.service.sadb.entry(spi).pair.ipcomp


def of_paris(bench):
    """The policies of paris/lan that were placed."""
    return [each for name, each in bench.plane.calls if name == "add_policy" and each.number == 1]


def test_a_pair_with_ipcomp_is_adopted_with_its_cpis_under_a_policy_that_compresses(
    bench, life, kernel, kit, compressing
):
    spi, cpis = compressing
    bench.plane.calls.clear()
    service = life.begin()
    assert [each.spi_in for each in life.adopted()] == [spi]
    assert kernel.described[-1].ipcomp == cpis == Cpis(inbound=cpis.inbound, outbound=0x500)
    pair = service.sadb.entry(spi).pair
    assert (pair.ipcomp, pair.policy.ipcomp) == (cpis, True)
    assert [policy.ipcomp for policy in of_paris(bench)] == [True], "without, what it sends would find no SA"
    assert service.sadb.has_outbound(kit.endpoint("192.0.2.2").address, ProtocolId.IPCOMP, 0x500)


def test_a_pair_without_ipcomp_is_adopted_where_the_child_may_have_it(bench, life):
    life.begin(changed(bench.gateway, ipcomp=True))
    spi = life.install()
    bench.plane.calls.clear()
    service = life.begin()
    assert service.sadb.entry(spi).pair.ipcomp is None
    assert [policy.ipcomp for policy in of_paris(bench)] == [False]


def test_of_two_adopted_pairs_the_later_one_says_whether_its_policy_compresses(bench, life, compressing):
    bench.clock.advance(1)
    life.install()
    bench.plane.calls.clear()
    life.begin()
    assert len(life.adopted()) == 2
    assert [policy.ipcomp for policy in of_paris(bench)] == [False]


def test_a_pair_with_ipcomp_is_removed_whole_where_the_child_has_it_no_more(bench, life, kernel, compressing):
    spi, cpis = compressing
    life.begin(changed(bench.gateway, ipcomp=False))
    assert life.adopted() == []
    assert life.reasons() == [Denial.IPCOMP.value]
    assert kernel.discarded == [spi]
    assert kernel.described[-1].ipcomp == cpis
    assert [policy.ipcomp for policy in of_paris(bench)][-1] is False


@pytest.mark.parametrize("allowed", [True, False])
def test_a_road_warriors_policy_compresses_on_only_while_the_child_does(bench, life, kernel, allowed):
    life.begin(changed(bench.gateway, "road", ipcomp=True))
    life.install("road", remote="198.51.100.9", remote_ts="10.4.0.0/16", asked={"cpi_out": 0x500})
    (written,) = [record for record in life.written(PolicyRecord) if record.connection == "road"]
    assert written.ipcomp
    kernel.pairs.clear()
    life.begin(changed(bench.gateway, "road", ipcomp=allowed))
    (written,) = [record for record in life.written(PolicyRecord) if record.connection == "road"]
    assert written.ipcomp is allowed


@pytest.fixture
def natted(bench, life, kit):
    """The inbound SPI of a pair whose peer is behind a NAT."""
    ends = {"local": kit.endpoint("192.0.2.1", 4500), "remote": kit.endpoint("192.0.2.2", 40000)}
    return life.install(asked={"encap": True, **ends})


@pytest.mark.parametrize("follows", [True, False])
def test_a_successor_knows_the_port_to_which_a_peer_moved(bench, life, kernel, kit, natted, follows):
    if not follows:
        bench.plane.failing.add("follow")
    bench.service.moved(natted, kit.endpoint("192.0.2.2", 40001))
    (record,) = life.written()
    assert record.remote.port == (40001 if follows else 40000)
    kernel.ports[natted] = record.remote.port
    service = life.begin()
    assert service.sadb.entry(natted).pair.remote.port == record.remote.port
    service.expired(natted, True)
    assert life.written() == ()


@pytest.fixture
def travelling(life, kit):
    """Install a pair of a road warrior's at that address; its inbound SPI."""

    def install(address):
        ends = {"local": kit.endpoint("192.0.2.1", 4500), "remote": kit.endpoint(address, 40000)}
        return life.install("road", remote=address, remote_ts="10.4.0.0/16", asked={"encap": True, **ends})

    return install


def places(life):
    return {record.spi_in: str(record.remote.address) for record in life.written()}


def test_a_removal_that_comes_late_leaves_the_next_pair_with_that_spi(bench, life, kit, natted):
    bench.plane.held = True
    bench.ask(Remove(spi_in=natted))
    bench.plane.held = False
    bench.service.expired(natted, True)
    bench.plane.next_spi = natted
    ends = {"local": kit.endpoint("192.0.2.1", 4500), "remote": kit.endpoint("192.0.2.2", 40000)}
    assert life.install(asked={"encap": True, **ends}) == natted
    bench.plane.waiting.pop().set_result(None)
    assert [record.spi_in for record in life.written()] == [natted]
    bench.service.moved(natted, kit.endpoint("192.0.2.2", 40001))
    assert [record.remote.port for record in life.written()] == [40001]


def test_of_a_pair_that_did_not_move_nothing_stays_written_once_it_ends(bench, life, kit, natted):
    bench.plane.failing.add("follow")
    bench.service.moved(natted, kit.endpoint("192.0.2.2", 40001))
    bench.service.expired(natted, True)
    assert life.written() == ()


@pytest.mark.parametrize("goes", [True, False, "refused"])
def test_a_successor_knows_where_a_peers_pairs_went(bench, life, travelling, goes):
    old = travelling("198.51.100.9")
    bench.plane.migrates = goes is True
    if goes == "refused":
        bench.plane.failing.add("migrate")
    new = travelling("198.51.100.10")
    where = "198.51.100.10" if goes is True else "198.51.100.9"
    assert len(life.written()) == 2
    assert places(life) == {old: where, new: "198.51.100.10"}
    assert str(life.begin().sadb.entry(old).pair.remote.address) == where


def test_of_a_pair_that_ends_while_it_goes_nothing_stays_written(bench, life, kit, travelling, monkeypatch):
    old = travelling("198.51.100.9")

    def migrate(policy, pairs, remote):
        # the old one, the new one, and the old one where it goes
        addresses = [str(record.remote.address) for record in life.written()]
        assert addresses == ["198.51.100.9", "198.51.100.10", "198.51.100.10"]
        bench.service.expired(old, True)
        return type(bench.plane).migrate(bench.plane, policy, pairs, remote)

    monkeypatch.setattr(bench.plane, "migrate", migrate)
    new = travelling("198.51.100.10")
    assert places(life) == {new: "198.51.100.10"}
    assert [entry.pair.spi_in for entry in bench.service.sadb.entries()] == [new]
    assert not bench.service.sadb.has_outbound(kit.endpoint("198.51.100.10").address, ProtocolId.ESP, old + 0x10000)


@pytest.mark.parametrize("port", [40000, 40001])
def test_a_daemon_that_is_killed_while_a_peer_moves_leaves_one_pair(bench, life, kernel, kit, natted, port):
    bench.plane.held = True
    bench.service.moved(natted, kit.endpoint("192.0.2.2", 40001))
    bench.plane.held = False
    assert [record.remote.port for record in life.written()] == [40000, 40001]
    kernel.ports[natted] = port
    service = life.begin()
    assert [each.remote.port for each in life.adopted()] == [port]
    assert [record.remote.port for record in life.written()] == [port]
    assert kernel.pairs == {natted: 2}
    service.expired(natted, True)
    assert life.written() == ()
