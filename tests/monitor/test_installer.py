"""A peer that turns up at another address: which of its pairs go there, and what everybody is told."""

from dataclasses import replace

import pytest

from monitor.dataplane import Cpis
from monitor.installer import MAX_MIGRATED
from monitor.sadb import Phase
from privsep.iana import ProtocolId
from privsep.schema.install import Installed, Moved
from privsep.types import Cpi

WHERE, THERE = "198.51.100.9", "198.51.100.10"


@pytest.fixture
def road(bench, kit):
    """Install a pair of a road warrior's, who is behind a NAT; its entry."""

    def install(
        address, *, local="192.0.2.1", encap=True, identity="gw2.example.org", remote_ts="10.4.0.0/16", **changes
    ):
        port = 4500 if encap else 500
        ends = {"local": kit.endpoint(local, port), "remote": kit.endpoint(address, 40000 if encap else 500)}
        traffic = {"identity": kit.identity(identity), "remote_ts": kit.selectors(remote_ts)[0]}
        spi = bench.ask(kit.allocate("road", "lan", **traffic, **ends)).spi
        values = {"connection": "road", "spi_in": spi, "spi_out": spi + 0x1000, "identity": kit.identity(identity)}
        answer = bench.install(
            kit.redeemed(**values | changes), encap=encap, remote_ts=kit.selectors(remote_ts), **ends
        )
        assert answer == Installed(spi_in=spi)
        return bench.service.sadb.entry(spi)

    return install


def migrations(bench):
    return [value for name, value in bench.plane.calls if name == "migrate"]


def test_the_peers_pairs_go_before_its_policy_and_its_new_pair_come(bench, kit, road):
    old = [road(WHERE), road(WHERE)]
    pairs = tuple(entry.pair for entry in old)
    bench.plane.calls.clear()
    new = road(THERE)
    assert bench.plane.names() == ["allocate_spi", "install_inbound", "migrate", "add_policy", "install_outbound"]
    policy, went, remote = migrations(bench)[0]
    assert (policy.number, policy.remote.address) == (new.pair.policy.number, kit.endpoint(WHERE).address)
    assert (went, remote) == (pairs, new.pair.remote)
    assert [entry.pair.remote for entry in old] == 2 * [new.pair.remote]


def test_the_worker_is_told_and_the_log(bench, road):
    old = road(WHERE)
    bench.sent.clear()
    new = road(THERE)
    told = [message for message, _ in bench.sent]
    done = Installed(spi_in=new.pair.spi_in)
    assert told[1:] == [done, Moved(spi_in=old.pair.spi_in, remote=new.pair.remote), done]
    moved = [fields for code, fields in bench.logged if code == "moved"]
    assert [fields["remote"] for fields in moved] == [new.pair.remote]


def test_an_outbound_sa_is_known_where_it_went_and_not_where_it_was(bench, kit, road):
    spi = road(WHERE).pair.spi_out
    road(THERE)
    sadb = bench.service.sadb
    assert sadb.has_outbound(kit.endpoint(THERE).address, ProtocolId.ESP, spi)
    assert not sadb.has_outbound(kit.endpoint(WHERE).address, ProtocolId.ESP, spi)


def test_what_went_goes_again(bench, road):
    old = road(WHERE)
    road(THERE)
    last = road(WHERE)
    assert [len(pairs) for _, pairs, _ in migrations(bench)] == [1, 2]
    assert old.pair.remote == last.pair.remote


def test_what_belongs_to_another_policy_stays(bench, kit, road):
    """A child of the same peer's that has not been negotiated anew."""
    goes, stays = road(WHERE, remote_ts="10.4.0.0/17"), road(WHERE, remote_ts="10.4.128.0/17")
    road(THERE, remote_ts="10.4.0.0/17")
    assert [entry.pair.remote.address for entry in (goes, stays)] == [
        kit.endpoint(address).address for address in (THERE, WHERE)
    ]


def test_a_pair_of_a_peer_that_stays_moves_nothing(bench, road):
    road(WHERE)
    road(WHERE)
    assert migrations(bench) == []


def test_what_does_not_go_stays_where_it_was(bench, kit, road):
    old = road(WHERE)
    bench.plane.migrates = False
    road(THERE)
    assert len(migrations(bench)) == 1
    assert old.pair.remote.address == kit.endpoint(WHERE).address
    assert not any(isinstance(message, Moved) for message, _ in bench.sent)


def test_a_data_plane_that_cannot_costs_nothing_but_the_pairs_that_stay(bench, kit, road):
    old = road(WHERE)
    bench.plane.failing.add("migrate")
    new = road(THERE)
    assert bench.codes()[-2:] == ["not-migrated", "installed"]
    assert bench.plane.names()[-2:] == ["add_policy", "install_outbound"]
    assert old.pair.remote.address == kit.endpoint(WHERE).address
    assert new.phase is Phase.INSTALLED


def make_it_anothers(entry, kit):
    entry.claim = replace(entry.claim, identity=kit.identity("gw3.example.org"))


def take_it_away(entry, kit):
    entry.phase = Phase.REMOVING


def compress_it(entry, kit):
    entry.pair = replace(entry.pair, ipcomp=Cpis(inbound=Cpi(0x400), outbound=Cpi(0x500)))


def put_it_out_of_udp(entry, kit):
    entry.pair = replace(entry.pair, encap=False)


def give_it_another_end(entry, kit):
    entry.pair = replace(entry.pair, local=kit.endpoint("192.0.2.7", 4500))


@pytest.mark.parametrize("spoil", [make_it_anothers, take_it_away, compress_it, put_it_out_of_udp, give_it_another_end])
def test_none_goes_if_one_may_not(bench, kit, road, spoil):
    """The kernel takes whichever it finds between two addresses."""
    road(WHERE)
    spoil(road(WHERE), kit)
    road(THERE)
    assert migrations(bench) == []


def test_none_goes_if_we_are_elsewhere_ourselves(bench, road):
    road(WHERE)
    road(THERE, local="192.0.2.7")
    assert migrations(bench) == []


def test_none_goes_where_another_has_the_same_spi(bench, kit, road):
    old = road(WHERE, remote_ts="10.4.0.0/17")
    road(THERE, identity="gw3.example.org", remote_ts="10.4.128.0/17", spi_out=old.pair.spi_out)
    road(THERE, remote_ts="10.4.0.0/17")
    assert migrations(bench) == []


@pytest.mark.parametrize(("count", "goes"), [(MAX_MIGRATED, True), (MAX_MIGRATED + 1, False)])
def test_a_bounded_number_goes(bench, road, count, goes):
    for _ in range(count):
        road(WHERE)
    road(THERE)
    assert bool(migrations(bench)) is goes
