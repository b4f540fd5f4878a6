"""What the kernel is told of a policy, and by what one of ours is known."""

import pytest

from monitor.xfrm.messages import NewPolicy
from monitor.xfrm.policy import (
    DISCOVERY_PRIORITY,
    MAX_SPECIFICITY,
    PRIORITY_BASE,
    SHUNT_BASES,
    entries,
    has_our_priority,
    is_ours,
    stands_for,
)
from privsep.config.model import Action, Order


def around(kit, local="2001:db8::1", remote="2001:db8::2", **changes):
    ends = {"local": kit.endpoint(local), "remote": kit.endpoint(remote)}
    return kit.policy(**ends | changes)


def in_clear(policy):
    return [entry for entry in entries(policy) if entry.template is None]


@pytest.mark.parametrize(
    ("local_ts", "remote_ts", "found"),
    [
        (("2001:db8::/64", 0), ("2001:db8::/64", 0), True),
        (("2001:db8::/64", 58), ("2001:db8::/64", 0), True),
        (("2001:db8::/64", 0), ("2001:db8::/64", 58), True),
        (("2001:db8::/64", 17), ("2001:db8::/64", 0), False),
        (("2001:db8::/64", 0), ("2001:db8::/64", 17), False),
        (("fd00:1::/64", 0), ("2001:db8::/64", 0), False),
        (("2001:db8::/64", 0), ("fd00:2::/64", 0), False),
    ],
)
def test_neighbours_are_let_through_where_they_would_be_protected_rfc4861(kit, local_ts, remote_ts, found):
    sides = {"local_ts": local_ts, "remote_ts": remote_ts}
    policy = around(kit, **{side: kit.selectors(network, protocol=number) for side, (network, number) in sides.items()})
    clear = in_clear(policy)
    assert len(clear) == (4 if found else 0)
    assert {entry.values["priority"] for entry in clear} <= {DISCOVERY_PRIORITY}


def test_one_of_several_selectors_suffices_for_that(kit):
    several = kit.selectors("fd00:1::/64", "2001:db8::/64")
    assert len(in_clear(around(kit, local_ts=several, remote_ts=several))) == 4


def test_ipv4_has_other_means_for_that(kit):
    everything = kit.selectors("0.0.0.0/0")
    assert in_clear(around(kit, "192.0.2.1", "192.0.2.2", local_ts=everything, remote_ts=everything)) == []


@pytest.mark.parametrize("side", ["local_ts", "remote_ts"])
def test_a_protocol_and_a_port_of_either_side_go_before_the_same_without(kit, side):
    def priority(**chosen):
        policy = kit.policy(**{side: kit.selectors("10.0.0.0/8", **chosen)})
        (found,) = {entry.values["priority"] for entry in entries(policy)}
        return found

    assert priority(protocol=6, port=443) < priority(protocol=6) < priority()


@pytest.mark.parametrize(
    ("priority", "ours"),
    [(PRIORITY_BASE, True), (PRIORITY_BASE - MAX_SPECIFICITY, True)]
    + [(PRIORITY_BASE + 1, False), (PRIORITY_BASE - MAX_SPECIFICITY - 1, False)],
)
def test_policies_of_ours_have_priorities_of_their_own(priority, ours):
    assert has_our_priority(priority) is ours


@pytest.mark.parametrize("base", SHUNT_BASES.values())
def test_so_have_shunts_and_what_lets_neighbours_through(base):
    inside = (base, base - MAX_SPECIFICITY, DISCOVERY_PRIORITY)
    assert all(is_ours(present(priority)) for priority in inside)
    outside = (1, *SHUNT_BASES.values(), DISCOVERY_PRIORITY)
    assert not is_ours(present(max(outside) + 1))
    assert not is_ours(present(min(SHUNT_BASES.values()) - MAX_SPECIFICITY - 1))


def present(priority, action=0, **template):
    """As the kernel has it."""
    message = NewPolicy()
    message.update({"priority": priority, "action": action, "attrs": [("XFRMA_TMPL", template)] if template else []})
    return message


def test_a_policy_is_known_by_its_number_a_shunt_by_what_it_does(kit):
    policy, pass_, drop = kit.policy(), kit.shunt(), kit.shunt(action=Action.DROP)
    base = SHUNT_BASES[Order.FIRST]
    ours, another = (present(PRIORITY_BASE, **{"id.proto": 50, "reqid": reqid, "optional": 0}) for reqid in (7, 8))
    discovery = present(DISCOVERY_PRIORITY)
    of_the_policy = [stands_for(each, policy) for each in (ours, another, discovery, present(base))]
    assert of_the_policy == [True, False, True, False]
    for shunt, action in (pass_, 0), (drop, 1):
        several = present(base, action), present(base, 1 - action), ours, discovery
        assert [stands_for(each, shunt) for each in several] == [True, False, False, False]


def test_sides_that_name_the_same_protocol_have_traffic_in_common(kit):
    sides = {
        "local_ts": kit.selectors("10.1.0.0/16", protocol=6),
        "remote_ts": kit.selectors("10.2.0.0/16", protocol=6),
    }
    assert [entry.key["sel.proto"] for entry in entries(kit.policy(**sides))] == [6, 6, 6]
