"""The policy that decides is found as by a look at each of them, and for the price of one."""

import ipaddress
from dataclasses import replace

from effort import instructions
from hypothesis import given
from hypothesis import strategies as st

from monitor.userspace.database import MAX_POLICIES, Policies
from monitor.userspace.index import Index
from monitor.userspace.packet import Flow, Matcher
from privsep.schema.esp import AddPolicy
from privsep.types import TrafficSelector


def network(version, address, length):
    return ipaddress.ip_network((address << (32 if version == 4 else 128) - 8, length), strict=False)


few = st.integers(0, 3)
selectors = st.builds(
    TrafficSelector,
    st.builds(network, st.sampled_from([4, 6]), few, st.sampled_from([0, 6, 7, 8, 32])),
    st.sampled_from([0, 6, 17]),
    st.sampled_from([0, 1, 2]),
)
policies = st.lists(st.tuples(st.lists(selectors, min_size=1, max_size=3), st.lists(selectors, min_size=1, max_size=3)))
addresses = few.map(lambda number: number << 24)
flows = st.builds(
    Flow,
    st.just(4),
    addresses,
    addresses,
    st.sampled_from([1, 6, 17]),
    *[st.sampled_from([-1, 1, 2])] * 2,
    st.just(False),
)


def by_looking_at_each(placed, flow):
    """RFC 4301 section 4.4.1, one policy after the other; more specific ones first, of equal ones the first."""

    def best(side, *what):
        fits = [each for each in side if Matcher(each).fits(flow.version, *what)]
        return max(((s.network.prefixlen, bool(s.protocol), bool(s.port)) for s in fits), default=None)

    found = []
    for number, order in placed.items():
        there = best(order.remote_ts, flow.destination, flow.protocol, flow.destination_port)
        here = best(order.local_ts, flow.source, flow.protocol, flow.source_port)
        if there is not None and here is not None:
            found.append((there, here, -number))
    return -max(found)[2] if found else None


@given(policies, st.lists(st.integers(0, 9)), flows)
def test_the_most_specific_policy_decides_after_any_changes_rfc4301_4_4_1(added, changed, flow):
    spd, placed = Policies(), {}
    for number, (local, remote) in enumerate(added, 1):
        placed[number] = AddPolicy(policy=number, local_ts=tuple(local), remote_ts=tuple(remote))
        spd.add(placed[number])
    for which in changed:
        number = which + 1
        if number in placed and which % 2:
            spd.remove(number)
            del placed[number]
        elif number in placed:
            swapped = replace(placed[number], local_ts=placed[number].remote_ts, remote_ts=placed[number].local_ts)
            placed[number] = swapped
            spd.add(swapped)
    assert spd.deciding(flow) == by_looking_at_each(placed, flow)
    assert sorted(spd) == sorted(placed)
    for number in tuple(placed):
        spd.remove(number)
    assert (len(spd), bool(spd._remote), spd._remote._ordered) == (0, False, {4: [], 6: []})


def test_a_packet_costs_the_same_whether_there_are_sixteen_policies_or_all_that_can_be():
    def cost(count):
        spd = Policies()
        for number in range(1, count + 1):
            # one subnet for some of them, one peer for others
            local, remote = (number, 0) if number % 2 else (0, number)
            spd.add(
                AddPolicy(
                    policy=number,
                    local_ts=(TrafficSelector(ipaddress.ip_network((0x0A000000 + local, 32))),),
                    remote_ts=(TrafficSelector(ipaddress.ip_network((0x0B000000 + remote, 32))),),
                )
            )
        flow = Flow(4, 0x0A00000F, 0x0B000000, 1, -1, -1, False)
        return instructions(lambda: spd.deciding(flow))

    assert cost(MAX_POLICIES) == cost(16)


ANYWHERE = (TrafficSelector(ipaddress.ip_network("0.0.0.0/0")),)


def test_an_index_makes_a_value_once_and_forgets_it():
    index = Index(list)
    for each in ANYWHERE * 2:
        index.at(each).append(1)
    assert list(index.fitting((4, 5, 6, 7))) == [[1, 1]]
    index.remove(ANYWHERE[0])
    assert list(index.fitting((4, 5, 6, 7))) == []
    assert not index
