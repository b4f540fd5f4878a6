"""Pairs in this machine's kernel, if it has ESP; `make test-kernel` boots one that has. Nothing may stay behind."""

import errno
import re
from dataclasses import replace

import pytest

from monitor.dataplane import Cpis, DataplaneError
from monitor.xfrm.client import KernelDataplane
from monitor.xfrm.netlink import KernelError
from monitor.xfrm.probe import lacking
from privsep.algorithms import ChildSuite
from privsep.config.lanes import KernelOptions, Lane, Mark
from privsep.iana import ProtocolId
from privsep.types import Cpi, Spi

pytestmark = pytest.mark.root

GCM, CBC = ChildSuite.parse("aes256gcm16"), ChildSuite.parse("aes128-sha256")


@pytest.fixture
def bench(bench):
    """Skip where the kernel has no ESP."""
    missing = lacking(bench.netlink, [GCM, CBC], [4])
    if missing is not None:
        pytest.skip(missing)
    return bench


@pytest.mark.parametrize("suite", [GCM, CBC])
def test_a_pair_stands_counts_and_goes(kit, bench, suite):
    pair = make(kit, bench, suite)
    kit.result(kit.install(bench.plane, pair))
    shown = bench.ip("xfrm", "state")
    assert f"spi 0x{pair.spi_in:08x} reqid 7 mode tunnel" in shown
    assert "replay_window 64" in shown
    assert kit.result(bench.plane.traffic(pair)).packets_out == 0
    bench.knock()
    assert kit.result(bench.plane.traffic(pair)).packets_out == 0
    kit.result(bench.plane.add_policy(pair.policy))
    bench.knock()
    assert kit.result(bench.plane.traffic(pair)).packets_out == 1
    kit.result(bench.plane.remove(pair))
    assert bench.ip("xfrm", "state") == ""


def test_an_outbound_sa_that_exists_is_kept_as_it_is(kit, bench):
    first = make(kit, bench, CBC)
    kit.result(kit.install(bench.plane, first))
    before = bench.ip("xfrm", "state")
    with pytest.raises(DataplaneError, match="NEWSA: EEXIST"):
        kit.result(kit.install(bench.plane, make(kit, bench, CBC)))
    assert bench.ip("xfrm", "state") == before


def test_a_hard_lifetime_takes_both_sas(kit, bench):
    pair = make(kit, bench, CBC, lifetime=3)
    kit.result(kit.install(bench.plane, pair))
    assert bench.wait(5)[0] == ("expired", pair.spi_in, False)
    bench.reported.clear()
    assert bench.wait(5) == [("expired", pair.spi_in, True)]
    assert bench.ip("xfrm", "state") == ""


@pytest.mark.parametrize("suite", [GCM, CBC])
def test_a_pair_goes_with_its_sequence_numbers_and_counters(kit, bench, suite):
    """For the peer it is one SA still, in which no number may come twice; and its lifetimes go on."""
    kit.result(bench.plane.add_policy(kit.policy()))
    pair = make(kit, bench, suite)
    kit.result(kit.install(bench.plane, pair))
    bench.ip("neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:01", "dev", "under")
    for _ in range(3):
        bench.knock()
    there = kit.endpoint("192.0.2.99")
    before = bench.ip("-s", "xfrm", "state")
    assert kit.result(bench.plane.migrate(kit.policy(), (pair,), there)) == (pair.spi_in,)
    after = bench.ip("-s", "xfrm", "state")
    assert "oseq 0x3" in after
    assert kept(after) == kept(before)
    assert (before.count("192.0.2.2\n"), after.count("192.0.2.2\n"), after.count("192.0.2.99\n")) == (1, 0, 1)
    kit.result(bench.plane.remove(replace(pair, remote=there)))
    assert bench.ip("xfrm", "state") == ""


@pytest.mark.parametrize("version", [4, 6])
def test_all_pairs_of_a_policy_go_with_their_ports(kit, bench, version):
    """Three of them, and several of the kernel's policies."""
    base, there = (kit.policy(), "192.0.2.99") if version == 4 else (kit.over_ipv6, "2001:db8::99")
    policy = replace(base, remote_ts=kit.selectors("10.2.0.0/16", "10.3.0.0/16"))
    ends = {"local": replace(policy.local, port=4500), "remote": replace(policy.remote, port=40000), "encap": True}
    kit.result(bench.plane.add_policy(policy))
    pairs = tuple(make(kit, bench, GCM, policy, spi_out=Spi(0x2000 + number), **ends) for number in range(3))
    for pair in pairs:
        kit.result(kit.install(bench.plane, pair))
    remote = kit.endpoint(there, 40001)
    assert kit.result(bench.plane.migrate(policy, pairs, remote)) == tuple(pair.spi_in for pair in pairs)
    shown = bench.ip("xfrm", "state")
    assert str(policy.remote.address) + "\n" not in shown + bench.ip("xfrm", "policy")
    assert shown.count("sport 4500 dport 40001") == shown.count("sport 40001 dport 4500") == 3
    for pair in pairs:
        kit.result(bench.plane.remove(replace(pair, remote=remote)))
    assert bench.ip("xfrm", "state") == ""


def test_a_pair_of_an_interface_goes(kit, bench):
    policy = kit.policy(kernel=KernelOptions(lane=Lane(if_id_in=41, if_id_out=42)))
    kit.result(bench.plane.add_policy(policy))
    pair, remote = make(kit, bench, GCM, policy), kit.endpoint("192.0.2.99")
    kit.result(kit.install(bench.plane, pair))
    assert kit.result(bench.plane.migrate(policy, (pair,), remote)) == (pair.spi_in,)
    shown = bench.ip("xfrm", "state")
    assert ("192.0.2.2\n" in shown, shown.count("if_id 0x29"), shown.count("if_id 0x2a")) == (False, 1, 1)


def test_a_pair_with_a_mark_goes_where_the_kernel_finds_its_policies_and_else_stays(kit, bench):
    """Some look for a policy as for a packet, which has no mark here."""
    lane = Lane(mark_in=Mark(0x20, 0xF0), mark_out=Mark(0x10, 0xFF))
    policy = kit.policy(kernel=KernelOptions(lane=lane))
    kit.result(bench.plane.add_policy(policy))
    pair, remote = make(kit, bench, GCM, policy), kit.endpoint("192.0.2.99")
    kit.result(kit.install(bench.plane, pair))
    try:
        went = kit.result(bench.plane.migrate(policy, (pair,), remote)) == (pair.spi_in,)
    except KernelError as error:
        if error.number != errno.ENOENT:
            raise
        went = False
    present = replace(pair, remote=remote) if went else pair
    shown = bench.ip("xfrm", "state")
    assert (shown.count(str(present.remote.address)), shown.count("mark 0x10/0xff")) == (2, 1)
    kit.result(bench.plane.remove(present))
    assert bench.ip("xfrm", "state") == ""


def compressed(kit, bench, **options):
    """A pair with IPComp, installed with its policy."""
    policy = kit.policy(ipcomp=True, kernel=KernelOptions(**options))
    kit.result(bench.plane.add_policy(policy))
    cpi = bench.plane.allocate_spi(policy.local, policy.remote, ProtocolId.IPCOMP)
    pair = make(kit, bench, CBC, policy, ipcomp=Cpis(inbound=Cpi(cpi), outbound=Cpi(0x500)), **kit.natted)
    kit.result(kit.install(bench.plane, pair))
    return pair


def test_ipcomp_takes_what_has_the_mark_and_is_adopted_and_removed_with_it(kit, bench):
    pair = compressed(kit, bench, lane=Lane(mark_in=Mark(0x20, 0xF0), mark_out=Mark(0x10, 0xFF)))
    for mark, packets in (0, 0), (0x10, 1):
        bench.knock(mark)
        assert kit.result(bench.plane.traffic(pair)).packets_out == packets
    successor = KernelDataplane(bench.netlink)
    kit.result(successor.adopt(pair))
    kit.result(successor.remove(pair))
    assert "reqid 7" not in bench.ip("xfrm", "state")


def test_ipcomp_goes_with_what_is_around_it(kit, bench):
    pair = compressed(kit, bench)
    remote = kit.endpoint("192.0.2.99", 40001)
    assert kit.result(bench.plane.migrate(pair.policy, (pair,), remote)) == (pair.spi_in,)
    # the kernel's own tunnel for what was not compressed stays, until the pair goes
    ends = re.findall(r"src (\S+) dst (\S+)\n\tproto (?:esp|comp)", bench.ip("xfrm", "state"))
    assert sorted(ends) == 2 * [("192.0.2.1", "192.0.2.99")] + 2 * [("192.0.2.99", "192.0.2.1")]
    kit.result(bench.plane.remove(replace(pair, remote=remote)))
    assert "reqid 7" not in bench.ip("xfrm", "state")


def kept(shown):
    """Of `ip -s xfrm state`: what an SA has wherever it leads to, whatever the order."""
    words = r"proto esp|replay-window|oseq|aead|auth-trunc|enc |limit|expire|bytes|packets|add |sel src"
    return sorted(line for line in shown.splitlines() if re.search(words, line))


def make(kit, bench, suite, policy=None, **changes):
    """A pair that can be installed."""
    policy = policy or kit.policy()
    values = {} if suite is GCM else dict(kit.cbc)
    spi = bench.plane.allocate_spi(policy.local, policy.remote, ProtocolId.ESP)
    return kit.pair(policy, **values | {"suite": suite, "spi_in": spi} | changes)
