"""IPComp in Quick Mode, between gateways that both have it, or one, or none (RFC 2393 section 4.1, RFC 2407 4.4.5)."""

import dataclasses

import pytest

from privsep.algorithms import ChildSuite
from privsep.iana import ProtocolId
from privsep.schema.install import Outcome
from privsep.types import Mode


def world(make, *, ours, theirs, **changes):
    left = make.connection(children=(make.child(ipcomp=ours, **changes),))
    right = make.mirrored(left)
    (child,) = right.children
    return make.Pair(left, dataclasses.replace(right, children=(dataclasses.replace(child, ipcomp=theirs),)))


def cpis(site):
    """Ours and the peer's of each pair; None where nothing is compressed."""
    return [(each.cpi_in, each.cpi_out) if each.cpi_out is not None else None for each, _ in site.pairs.values()]


@pytest.mark.parametrize(("ours", "theirs"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("keyword", ["aes256gcm16", "aes128-sha256-curve25519"])
def test_packets_are_compressed_if_both_ends_have_it_and_protected_in_any_case(make, ours, theirs, keyword):
    both = world(make, ours=ours, theirs=theirs, suites=(ChildSuite.parse(keyword),))
    assert both.up().outcome is Outcome.DONE
    assert both.mirror() == 1
    ((left,), (right,)) = cpis(both.left), cpis(both.right)
    if ours and theirs:
        assert left == right[::-1]
    else:
        assert left is right is None
    both.settled()


def test_ah_and_transport_mode_are_compressed_too(make):
    for changes in (
        {"suites": (ChildSuite.parse("sha256", ProtocolId.AH),)},
        {
            "mode": Mode.TRANSPORT,
            "local_ts": make.selectors(f"{make.LEFT}/32"),
            "remote_ts": make.selectors(f"{make.RIGHT}/32"),
        },
    ):
        both = world(make, ours=True, theirs=True, **changes)
        both.up()
        ((left,), (right,)) = cpis(both.left), cpis(both.right)
        assert left is not None
        assert left == right[::-1]


def test_a_successor_is_compressed_under_new_cpis(make):
    both = world(make, ours=True, theirs=True, lifetime=600)
    both.up()
    first = cpis(both.left)[0]
    both.run(700.0)
    (later,) = cpis(both.left)
    assert later is not None
    assert set(first).isdisjoint(later)
    both.settled()


def test_the_initiators_operator_is_told(make):
    both = world(make, ours=True, theirs=True)
    both.up()
    told = "\n".join(both.left.monitor.progress)
    assert "offering aes256gcm16 with or without IPComp" in told
    assert "chose aes256gcm16 with IPComp" in told


def test_keyd_hears_nothing_of_compression(make):
    both = world(make, ours=True, theirs=True)
    both.up()
    ((redeemed, _),) = both.left.pairs.values()
    assert redeemed.cpi_out not in (redeemed.spi_in, redeemed.spi_out)
    assert redeemed.suite == ChildSuite.parse("aes256gcm16")
