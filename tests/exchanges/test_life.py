"""What becomes of SAs: deletion, renewal, restart, both ends at once."""

import dataclasses

import pytest
from effort import instructions

from keyd import agreement
from privsep.config.model import Start
from privsep.isakmp.child_proposals import notified_lifetime
from privsep.isakmp.terms import agreed_lifetime
from privsep.schema import keyd
from privsep.schema.install import Acquire, Adopted, Describe, Expired, Moved, Outcome, Stop
from privsep.types import Endpoint
from worker.renewal import GRACE, PEERS_GRACE

HOUR = 3600.0
INFORMATIONAL = 5
"""The exchange type, in the 19th octet (RFC 2408 section 3.1)."""


def up_at_both_ends(make, **changes):
    ours = make.connection(**({"children": (make.child(start=Start.UP),)} | changes))
    theirs = make.mirrored(ours)
    theirs = dataclasses.replace(
        theirs, children=tuple(dataclasses.replace(c, start=Start.UP) for c in theirs.children)
    )
    return ours, theirs


def test_down_of_a_child_deletes_it_at_both_ends_and_keeps_the_ike_sa_rfc2408_3_15(make):
    world = make.Pair()
    world.up()
    sequence = world.left.down(child="lan")
    world.run(1.0)
    assert world.left.outcome(sequence).outcome is Outcome.DONE
    assert world.left.pairs == world.right.pairs == {}
    assert len(world.left.established()) == len(world.right.established()) == 1
    world.settled()


@pytest.mark.parametrize("side", ["left", "right"])
def test_down_of_a_connection_by_either_end_deletes_everything(make, side):
    world = make.Pair()
    world.up()
    sequence = getattr(world, side).down()
    world.run(1.0)
    assert getattr(world, side).outcome(sequence).outcome is Outcome.DONE
    for site in (world.left, world.right):
        assert site.pairs == {}
        assert site.status() == []
    world.settled()


def test_stop_says_delete_and_is_then_completed(make):
    world = make.Pair()
    world.up()
    sequence = world.left.order(Stop())
    world.run(1.0)
    assert world.left.outcome(sequence).outcome is Outcome.DONE
    assert world.right.status() == []
    assert world.right.pairs == {}


def test_what_the_peer_deletes_comes_back_if_it_starts_by_itself(make):
    world = make.Pair(make.connection(children=(make.child(start=Start.UP),)))
    world.run(10.0)
    assert world.mirror() == 1
    world.right.down(child="lan")
    world.run(2.0)
    assert world.left.pairs == {}
    world.run(30.0)
    assert world.mirror() == 1
    world.left.down(child="lan")
    world.run(300.0)
    assert world.left.pairs == {}, "the operator's word counts"
    world.settled()


@pytest.mark.parametrize("both", [False, True])
def test_eight_hours_without_a_gap_rfc2408_2_1(make, both):
    ours, theirs = up_at_both_ends(make, lifetime=int(1.5 * HOUR))
    world = make.Pair(ours, theirs if both else None, seed=7)
    world.run(30.0)
    assert world.mirror() >= 1
    first = set(world.left.pairs)
    cookies = {sa.cky_i for sa in world.left.established()}
    gaps = []
    while world.now < 1000.0 + 8 * HOUR:
        world.run(7.0)
        if not world.mirror():
            gaps.append(world.now)
    assert gaps == []
    assert len(world.left.pairs) <= 3
    assert len(world.right.pairs) <= 3
    assert len(world.left.established()) <= 3
    assert not first & set(world.left.pairs)
    assert not cookies & {sa.cky_i for sa in world.left.established()}
    assert len(world.left.logged("child-installed")) < 40
    world.settled()


def test_renewal_survives_a_lossy_network(make):
    ours, theirs = up_at_both_ends(make)
    world = make.Pair(ours, theirs, seed=3)
    world.run(30.0)
    world.fate = lambda site, send: [] if world.rng.random() < 0.3 else [make.LATENCY]
    gaps = 0
    while world.now < 1000.0 + 6 * HOUR:
        world.run(30.0)
        gaps += not world.mirror()
    assert gaps == 0
    assert len(world.left.pairs) < 12
    world.settled()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("delay", [0.0, 0.004, 0.013, 0.04])
def test_both_ends_begin_at_once_and_have_working_sas(make, seed, delay):
    world = make.Pair(seed=seed)
    left = world.left.up()
    world.run(delay)
    right = world.right.up()
    world.run(60.0)
    assert world.left.outcome(left).outcome is Outcome.DONE
    assert world.right.outcome(right).outcome is Outcome.DONE
    assert world.mirror() == len(world.left.pairs) == len(world.right.pairs) >= 1
    assert {sa.cky_i for sa in world.left.established()} == {sa.cky_i for sa in world.right.established()}
    world.settled()


def test_initial_contact_clears_what_the_peer_has_forgotten_rfc2407_4_6_3_3(make):
    world = make.Pair()
    world.up()
    make.restart(world, "left")
    assert world.up().outcome is Outcome.DONE
    assert len(world.right.established()) == 1
    assert len(world.right.pairs) == world.mirror() == 1
    world.settled()


def test_a_soft_expiry_replaces_the_pair_and_a_hard_one_loses_it(make):
    world = make.Pair(make.connection(children=(make.child(start=Start.UP),)))
    world.run(10.0)
    (old,) = world.left.pairs
    world.left.event(Expired(spi_in=old, hard=False))
    world.run(20.0)
    (new,) = world.left.pairs
    assert new != old
    assert world.mirror() == 1
    del world.left.pairs[new]
    world.left.event(Expired(spi_in=new, hard=True))
    world.run(1.0)
    assert world.right.pairs == {}
    world.run(30.0)
    assert world.mirror() == 1


def deaf_to_deletions(world, make):
    """The left end hears no Informational exchange: its peer is one that never says what it has replaced."""
    world.fate = lambda site, send: [] if site is world.right and send.data[18] == INFORMATIONAL else [make.LATENCY]


def rekey(world, site):
    """The end renews its newest pair."""
    world.run(1.0)
    site.event(Expired(spi_in=list(site.pairs)[-1], hard=False))
    world.run(2.0)


@pytest.mark.parametrize("pause", [1.0, PEERS_GRACE + 1.0])
def test_of_ten_pairs_that_the_peer_replaced_none_is_left_after_half_a_minute_rfc2408_5_15(make, pause):
    world = make.Pair()
    world.up()
    deaf_to_deletions(world, make)
    for _ in range(10):
        rekey(world, world.right)
        assert world.mirror() >= 1
        world.run(pause)
    newest = list(world.left.pairs)[-1]
    assert (len(world.left.pairs) == 1) is (pause > PEERS_GRACE)
    world.run(PEERS_GRACE)
    assert list(world.left.pairs) == [newest]
    # the peer was told of each, and of none that is in use
    world.run(600.0)
    assert world.mirror() == len(world.left.pairs) == len(world.right.pairs) == 1
    world.settled()


def test_two_pairs_at_most_while_the_peer_replaces_one_every_half_minute(make):
    world = make.Pair()
    world.up()
    deaf_to_deletions(world, make)
    for _ in range(10):
        rekey(world, world.right)
        assert len(world.left.pairs) == 2
        world.run(PEERS_GRACE)
    assert len(world.left.pairs) == 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("delay", [0.0, 0.004, 0.01, 0.02, 0.03, 0.04, 0.06])
def test_renewals_from_both_ends_at_once_never_leave_nothing(make, seed, delay):
    world = make.Pair(seed=seed)
    world.up()
    for _ in range(5):
        world.run(60.0)
        before = set(world.left.pairs)
        world.left.event(Expired(spi_in=list(world.left.pairs)[-1], hard=False))
        world.run(delay)
        world.right.event(Expired(spi_in=list(world.right.pairs)[-1], hard=False))
        for _ in range(20):
            world.run(2.0)
            assert world.mirror() >= 1
        assert world.mirror() == len(world.left.pairs) == len(world.right.pairs) <= 2
        assert before.isdisjoint(world.left.pairs)
    world.settled()


def test_traffic_brings_a_trap_up(make):
    world = make.Pair(make.connection(children=(make.child(start=Start.TRAP),)))
    world.run(10.0)
    assert world.left.pairs == {}
    for _ in range(5):
        world.left.event(Acquire(connection="paris", child="lan"))
    world.run(2.0)
    assert world.mirror() == len(world.left.pairs) == 1


@pytest.mark.parametrize("start", [Start.WAIT, Start.UP])
def test_traffic_brings_nothing_else_up(make, start):
    world = make.Pair(make.connection(children=(make.child(start=start),)))
    world.run(10.0)
    world.left.down()
    world.run(10.0)
    for _ in range(5):
        world.left.event(Acquire(connection="paris", child="lan"))
        world.run(10.0)
    assert world.left.pairs == {}


def test_a_trap_that_failed_or_was_taken_down_traps_again(make):
    world = make.Pair(make.connection(children=(make.child(start=Start.TRAP),)))
    fate, world.fate = world.fate, lambda site, send: []
    world.left.event(Acquire(connection="paris", child="lan"))
    world.run(300.0)
    assert world.left.logged("child-failed")
    world.fate = fate
    for _ in range(2):
        assert world.left.pairs == {}
        world.left.event(Acquire(connection="paris", child="lan"))
        world.run(2.0)
        assert world.mirror() == 1
        world.left.down()
        world.run(10.0)


def adopted(make, **changes):
    """A pair of ours that an earlier worker had with a peer behind a NAT."""
    values = {
        "connection": "paris",
        "child": "lan",
        "identity": make.connection().remote_id,
        "spi_in": 0x1000,
        "spi_out": 0x2000,
        "local": Endpoint(make.LEFT, 4500),
        "remote": Endpoint(make.RIGHT, 40000),
        "left_s": 600,
    }
    return Adopted(**values | changes)


def test_an_adopted_pair_that_expires_soon_shortens_the_pause_between_attempts(make):
    """Lost datagrams cost a back-off that may be longer than what is left of the pair."""
    world = make.Pair()
    pair = adopted(make, local=Endpoint(make.LEFT, 500), remote=Endpoint(make.RIGHT, 500))
    fate, world.fate = world.fate, lambda site, send: []
    world.left.event(pair)
    world.run(900.0, lambda: len(world.left.logged("child-failed")) >= 4)
    world.fate = fate
    world.run(1.0)
    assert world.left.pairs == {}
    world.left.event(Expired(spi_in=0x1000, hard=False))
    world.run(2.0)
    assert world.mirror() == 1


@pytest.mark.parametrize("moves", [True, False])
def test_an_adopted_pair_is_replaced_where_its_peer_is_now(make, moves):
    """A NAT forgot it while no daemon ran; the data plane sees where its packets come from."""
    world = make.Pair()
    world.left.event(adopted(make))
    world.left.event(Moved(spi_in=0x1000 if moves else 0x1001, remote=Endpoint(make.RIGHT, 40001)))
    world.run(10.0)
    assert {send.remote.port for send in world.left.sent} == {40001 if moves else 40000}


def test_an_operator_who_took_it_down_is_not_overruled_by_a_move(make):
    world = make.Pair()
    world.left.event(adopted(make))
    world.left.down()
    world.left.event(Moved(spi_in=0x1000, remote=Endpoint(make.RIGHT, 40001)))
    world.run(60.0)
    assert world.left.sent == []


@pytest.mark.parametrize("initial", [True, False])
def test_of_two_peers_behind_one_nat_each_keeps_its_adopted_pair(make, initial):
    """Whether one says INITIAL-CONTACT, or only has a new pair: the other is somebody else at the same address."""
    world = make.Pair()
    stranger = dataclasses.replace(make.connection().remote_id, data=b"gw3.example.org")
    ends = {"local": Endpoint(make.RIGHT, 500), "remote": Endpoint(make.LEFT, 500), "left_s": 3000}
    for spi, identity in (0x1000, make.connection().local_id), (0x2000, stranger):
        world.right.monitor.allocated[spi] = "from before"
        world.right.event(adopted(make, spi_in=spi, identity=identity, **ends))
    if not initial:
        world.left.event(adopted(make, spi_in=0x3000, identity=stranger))
    world.up()
    world.run(GRACE + 10.0)
    assert world.right.monitor.removed == [0x1000]


def test_adopted_pairs_are_replaced_and_then_removed(make):
    world = make.Pair()
    world.up()
    (old,) = world.left.pairs
    redeemed, asked = world.left.pairs[old]
    pairs = dict(world.left.pairs)
    make.restart(world, "left")
    world.left.monitor.pairs.update(pairs)
    world.left.event(
        Adopted(
            connection="paris",
            child="lan",
            identity=redeemed.identity,
            spi_in=old,
            spi_out=redeemed.spi_out,
            local=asked.local,
            remote=asked.remote,
            left_s=3000,
        )
    )
    gaps = 0
    for _ in range(40):
        world.run(0.5)
        gaps += not world.mirror()
    assert gaps == 0
    assert len(world.left.pairs) == len(world.right.pairs) == 1
    assert old not in world.left.pairs
    world.settled()


def test_a_child_with_several_selectors_has_a_quick_mode_for_each_pair_rfc2407_4_6_2(make):
    ours = make.connection(
        children=(
            make.child(
                local_ts=make.selectors("10.1.0.0/16", "10.4.0.0/16"),
                remote_ts=make.selectors("10.2.0.0/16", "10.3.0.0/16"),
            ),
        )
    )
    world = make.Pair(ours)
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 4
    assert len(world.left.established()) == 1
    sequence = world.left.up()
    assert world.left.outcome(sequence).outcome is Outcome.DONE
    assert len(world.left.pairs) == 4


def test_the_shorter_lifetime_counts_and_is_told_rfc2407_4_5_4(make):
    ours = make.connection(children=(make.child(lifetime=7200),))
    theirs = make.mirrored(ours)
    theirs = dataclasses.replace(theirs, children=tuple(dataclasses.replace(c, lifetime=600) for c in theirs.children))
    world = make.Pair(ours, theirs)
    world.up()
    (child,) = world.left.engine._context.children.values()
    assert child.expires - child.installed == 600


def test_status_comes_in_pages(make):
    connections = [
        make.connection(name=f"c{n}", remote=make.address(f"198.51.100.{n}"), children=(make.child(start=Start.UP),))
        for n in range(1, 60)
    ]
    world = make.World()
    site = world.add("left", make.gateway(*connections), make.LEFT)
    world.run(60.0)
    status = site.status()
    assert {each.connection for each in status} == {each.name for each in connections}
    assert all("next attempt in" in each.state or each.state == "negotiating" for each in status)


def waiting_site(make, size):
    """A gateway with connections that wait for their next attempt."""
    connections = [make.connection(name=f"c{n}", remote=make.address("198.18.0.0") + n) for n in range(1, size + 1)]
    site = make.World().add("left", make.gateway(*connections), make.LEFT)
    for goal in site.engine._keeper.goals.values():
        goal.retry = site.engine._context.after(1000.0, lambda: None)
    return site


def test_four_times_as_many_pages_of_status_cost_about_four_times_as_much(make):
    def cost(size):
        site = waiting_site(make, size)
        return instructions(site.status)

    assert cost(1600) < 5 * cost(400)


def test_two_who_ask_for_status_at_once_both_get_all(make):
    site = waiting_site(make, 40)
    first = site.monitor.described[site.order(Describe(cursor=0))]
    assert len(site.status()) == 40
    found, cursor = list(first.ike_sas), first.cursor
    while cursor:
        page = site.monitor.described[site.order(Describe(cursor=cursor))]
        found, cursor = [*found, *page.ike_sas], page.cursor
    assert [each.connection for each in found] == [f"c{n}" for n in range(1, 41)]


def test_what_is_gone_when_its_page_comes_is_left_out(make):
    site = waiting_site(make, 40)
    first = site.monitor.described[site.order(Describe(cursor=0))]
    site.engine._keeper.goals["c40", "lan"].retry = None
    found, cursor = list(first.ike_sas), first.cursor
    while cursor:
        page = site.monitor.described[site.order(Describe(cursor=cursor))]
        found, cursor = [*found, *page.ike_sas], page.cursor
    assert len(found) == 39


@pytest.mark.parametrize("moment", range(24))
@pytest.mark.parametrize("side", ["left", "right"])
def test_an_sa_that_ends_while_keyd_works_harms_nobody_cve_2011_4073(make, moment, side):
    world = make.Pair()
    for site in (world.left, world.right):
        site.keyd_delay = 0.05
    world.left.up()
    world.run(moment * 0.031)
    getattr(world, side).down()
    world.run(200.0)
    world.settled()
    for site in (world.left, world.right):
        site.keyd_delay = 0.0
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() >= 1
    world.settled()


def test_a_peer_of_no_fixed_address_is_answered_and_renewed_but_never_called(make):
    ours = make.connection()
    theirs = dataclasses.replace(make.mirrored(ours), remote=make.RemoteAny())
    world = make.Pair(ours, theirs)
    sequence = world.right.up()
    assert "only the peer can begin" in world.right.outcome(sequence).text
    assert world.up().outcome is Outcome.DONE
    world.right.event(Expired(spi_in=next(iter(world.right.pairs)), hard=False))
    world.run(20.0)
    assert world.mirror() == len(world.right.pairs) == 1
    assert Endpoint(make.LEFT, 500) == next(iter(world.right.pairs.values()))[1].remote


def hasty(make, side):
    """A world where one side says that every SA ends after a second, and does nothing about it itself."""
    both = {"left": make.connection(), "right": make.mirrored(make.connection())}
    children = tuple(dataclasses.replace(each, lifetime=1) for each in both[side].children)
    both[side] = dataclasses.replace(both[side], lifetime=1, children=children)
    world = make.Pair(*both.values())
    renewal = getattr(world, side).engine._renewal
    renewal.watch_child = renewal.watch_ike = lambda sa: None
    return world, world.right if side == "left" else world.left


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_peer_whose_lifetime_is_a_second_has_us_renew_once_a_minute_rfc2407_4_5_4(make, side):
    """As initiator it offers that, as responder it tells it by RESPONDER-LIFETIME; we renewed every second."""
    world, honest = hasty(make, side)
    assert world.up().outcome is Outcome.DONE
    before = len(honest.keyd_requests)
    world.run(600.0)
    requests = honest.keyd_requests[before:]
    assert 5 < sum(isinstance(each, keyd.QuickOffer) for each in requests) <= 12
    assert sum(isinstance(each, keyd.IkeOffer) for each in requests) <= 10
    assert honest.errors == []


def test_a_responder_tells_the_lifetime_that_it_chose_whether_longer_or_shorter_rfc2407_4_6_3_1(make, monkeypatch):
    compose, told = agreement.responder_lifetime, []
    monkeypatch.setattr(agreement, "responder_lifetime", lambda *args: told.append(compose(*args)) or told[-1])
    world, _ = hasty(make, "left")
    assert world.up().outcome is Outcome.DONE
    assert [notified_lifetime(each) for each in told[:1]] == [60]


@pytest.mark.parametrize(
    ("ours", "offered", "agreed"),
    [(3600, 1, 60), (3600, 60, 60), (3600, 61, 61), (30, 1, 30), (30, 60, 30), (3600, 7200, 3600)],
)
def test_what_an_operator_configures_is_never_lengthened(ours, offered, agreed):
    assert agreed_lifetime(ours, offered, 60) == agreed
