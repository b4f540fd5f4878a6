"""What is allocated and installed, by every key that the checks look it up with."""

import ipaddress
import random
from dataclasses import replace

import pytest

from monitor.sadb import Claim, Claims, Entry, Policies, Sadb, fixed
from privsep.config.lanes import OPEN, Lane, Mark
from privsep.config.model import RemoteAny
from privsep.iana import ProtocolId


def claim(kit, name, *remote, lane=OPEN):
    return Claim("paris", kit.identity(name), kit.selectors("10.1.0.0/16"), kit.selectors(*remote), lane)


@pytest.mark.parametrize(
    ("held", "asked", "touches"),
    [
        ("10.2.0.0/16", "10.2.0.0/16", True),
        ("10.2.0.0/16", "10.2.3.0/24", True),
        ("10.2.3.0/24", "10.2.0.0/16", True),
        ("0.0.0.0/0", "10.2.3.4/32", True),
        ("10.2.255.255/32", "10.2.0.0/16", True),
        ("10.3.0.0/16", "10.2.0.0/16", False),
        ("10.1.255.255/32", "10.2.0.0/16", False),
        ("::/0", "0.0.0.0/0", False),
        ("255.255.255.255/32", "0.0.0.0/0", True),
        ("fd02::/64", "fd02::/32", True),
    ],
)
def test_claims_are_found_whether_they_hold_the_network_or_lie_in_it(kit, held, asked, touches):
    claims = Claims()
    held_claim = claim(kit, "a", held)
    claims.add(held_claim)
    assert list(claims.touching(ipaddress.ip_network(asked), OPEN)) == ([held_claim] if touches else [])


def test_claims_agree_with_a_plain_search_over_random_networks(kit):
    chance = random.Random(7)
    networks = [ipaddress.ip_network((chance.getrandbits(32), chance.randint(4, 32)), strict=False) for _ in range(300)]
    claims = Claims()
    for number, network in enumerate(networks):
        claims.add(claim(kit, str(number), str(network)))
    for number in range(0, 300, 3):
        claims.remove(claim(kit, str(number), str(networks[number])))
    left = [network for number, network in enumerate(networks) if number % 3]
    for asked in networks:
        found = sorted(str(each.remote_ts[0].network) for each in claims.touching(asked, OPEN))
        assert found == sorted(str(network) for network in left if network.overlaps(asked))


def test_a_claim_made_twice_is_left_after_one_removal(kit):
    claims = Claims()
    twice = claim(kit, "a", "10.2.0.0/16")
    claims.add(twice)
    claims.add(twice)
    claims.remove(twice)
    assert list(claims.touching(ipaddress.ip_network("10.2.0.0/16"), OPEN)) == [twice]
    claims.remove(twice)
    assert list(claims.touching(ipaddress.ip_network("10.2.0.0/16"), OPEN)) == []


LANES = (
    OPEN,
    Lane(if_id_in=1, if_id_out=1),
    Lane(if_id_in=1, if_id_out=2),
    Lane(if_id_in=2, if_id_out=1),
    Lane(mark_in=Mark(1), mark_out=Mark(1)),
    Lane(mark_in=Mark(0x10, 0xF0), mark_out=Mark(2)),
    Lane(mark_out=Mark(3)),
)


@pytest.mark.parametrize("asked", LANES)
def test_claims_of_each_lane_that_meets_the_asked_one_are_found_and_no_others(kit, asked):
    claims = Claims()
    held = {lane: claim(kit, str(lane), "0.0.0.0/0", lane=lane) for lane in LANES}
    for each in held.values():
        claims.add(each)
    found = set(claims.touching(ipaddress.ip_network("10.2.0.0/16"), asked))
    assert found == {each for lane, each in held.items() if lane.meets(asked)}
    assert held[asked] in found
    for each in held.values():
        claims.remove(each)
    assert not claims._keys
    assert not claims._held


def test_a_forgotten_pair_leaves_no_trace(bench, kit):
    bench.service.sadb.allocate(kit.allocation())
    bench.install(kit.redeemed())
    pair = bench.service.sadb.entry(0x1000).pair
    sadb = Sadb()
    entry = Entry(
        connection="paris",
        child="lan",
        identity=kit.identity("a"),
        claim=Claim("paris", kit.identity("a"), pair.local_ts, pair.remote_ts, OPEN),
        pair=pair,
        since=0,
    )
    sadb.reserve(entry)
    assert sadb.has_outbound(kit.remote, ProtocolId.ESP, 0x2000)
    assert not sadb.has_outbound(kit.remote, ProtocolId.AH, 0x2000)
    assert sadb.under(pair.policy.number) == (entry,)
    sadb.forget(replace(entry))
    assert sadb.entry(0x1000) is entry
    sadb.forget(entry)
    sadb.forget(entry)
    assert sadb.entries() == sadb.under(pair.policy.number) == ()
    assert not sadb.has_outbound(kit.remote, ProtocolId.ESP, 0x2000)
    assert list(sadb.claims.touching(pair.remote_ts[0].network, OPEN)) == []


def test_policies_take_our_address_from_the_connection_else_the_only_one_we_listen_on(kit):
    gateway = replace(kit.gateway(), connections=(kit.connection(local=None),))
    unspecified, ours = ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("192.0.2.8")
    six = ipaddress.ip_address("2001:db8::8")

    def local(**changes):
        return Policies(replace(gateway, **changes)).static()[0].local.address

    assert local() == unspecified
    assert local(listen=(ours, six)) == ours
    assert local(listen=(ours, kit.local)) == unspecified
    assert local(connections=(kit.connection(),)) == kit.local
    assert local(connections=(kit.connection(local=None, remote=six),)) == ipaddress.ip_address("::")


def test_policies_of_fixed_peers_do_not_change_with_what_is_negotiated(kit):
    gateway = kit.gateway()
    policies = Policies(gateway)
    paris = gateway.connection("paris")
    proposed = policies.propose(
        paris,
        paris.child("lan"),
        kit.identity("a"),
        (kit.local, kit.remote),
        kit.selectors("10.1.1.0/24"),
        kit.selectors("10.2.1.0/24"),
    )
    assert proposed == policies.static()[0]


def test_a_policy_of_an_earlier_instance_comes_back_under_its_number_unless_that_is_taken_or_unknown(kit):
    policies = Policies(kit.gateway(), {8: ("road", "lan"), 1: ("paris", "lan")})
    road, taken = kit.gateway().connection("road"), policies.static()[0]
    ends = kit.local, ipaddress.ip_address("198.51.100.9")
    policy = policies.propose(
        road, road.child("lan"), kit.identity("a"), ends, kit.selectors("10.1.0.0/16"), kit.selectors("10.4.9.0/24")
    )
    for number in (taken.number, 65535):
        assert not policies.restore("road", "lan", replace(policy, number=number))
    assert policies.restore("road", "lan", replace(policy, number=8))
    assert not policies.restore("road", "lan", replace(policy, number=8))
    assert (("road", "lan"), replace(policy, number=8)) in policies.all()


def test_owners_are_known_by_number(kit):
    policies = Policies(kit.gateway())
    assert policies.owner(1) == ("paris", "lan")
    assert policies.owner(0) is None
    assert policies.owner(6) == ("wrapped", "lan")
    assert policies.owner(7) is None


def test_only_a_single_address_is_fixed(kit):
    assert fixed(kit.remote) == kit.remote
    assert fixed(RemoteAny()) is None
    assert fixed(ipaddress.ip_network("192.0.2.0/24")) is None
