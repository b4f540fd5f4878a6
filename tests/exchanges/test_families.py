"""Client identities of one IP version under an IKE SA between addresses of the other (RFC 2407 section 4.6.2)."""

import dataclasses
import ipaddress

import pytest

from privsep.config.model import Encap, Start
from privsep.schema.install import Expired, Outcome

OUTER = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
INNER = {4: ("10.1.0.0/16", "10.2.0.0/16"), 6: ("fd01::/64", "fd02::/64"), 0: ("0.0.0.0/0", "0.0.0.0/0")}


def of(make, outer, inner, encap=Encap.AUTO):
    local, remote = (ipaddress.ip_address(each) for each in OUTER[outer])
    local_ts, remote_ts = (make.selectors(each) for each in INNER[inner])
    child = make.child(local_ts=local_ts, remote_ts=remote_ts)
    return make.connection(local=local, remote=remote, encap=encap, children=(child,))


@pytest.mark.parametrize("encap", [Encap.AUTO, Encap.FORCE])
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", OUTER)
def test_traffic_of_either_family_is_agreed_on_between_addresses_of_either(make, outer, inner, encap):
    ours = of(make, outer, inner, encap)
    world = make.Pair(ours)
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 1
    for site in (world.left, world.right):
        ((redeemed, asked),) = site.pairs.values()
        assert (asked.local.address.version, asked.remote.address.version) == (outer, outer)
        assert redeemed.encap is (encap is Encap.FORCE)
    ((redeemed, _),) = world.left.pairs.values()
    assert ((redeemed.local_ts,), (redeemed.remote_ts,)) == (ours.children[0].local_ts, ours.children[0].remote_ts)
    world.settled()


def test_identities_of_one_family_are_refused_where_the_other_is_configured(make):
    theirs = make.mirrored(of(make, 4, 4))
    world = make.Pair(of(make, 4, 6), theirs)
    assert world.up().outcome is Outcome.FAILED
    assert "INVALID_ID_INFORMATION" in world.left.monitor.completed[1].text
    assert world.right.pairs == {}


@pytest.mark.parametrize("seed", range(5))
def test_a_pair_that_both_data_planes_want_replaced_at_once_is_replaced_and_none_is_left_over(make, seed):
    ours = make.connection(children=(make.child(start=Start.UP),))
    world = make.Pair(ours, dataclasses.replace(make.mirrored(ours)), seed=seed)
    assert world.run(20, lambda: len(world.left.pairs) == len(world.right.pairs) == 1)
    world.run(1.0)
    olds = [next(iter(site.pairs)) for site in (world.left, world.right)]
    for site, old in zip((world.left, world.right), olds, strict=True):
        # each of its two SAs reports its limit
        site.event(Expired(spi_in=old, hard=False))
        site.event(Expired(spi_in=old, hard=False))
    assert world.run(
        30, lambda: not any(old in site.pairs for site, old in zip((world.left, world.right), olds, strict=True))
    )
    assert world.mirror() >= 1
    world.settled()
