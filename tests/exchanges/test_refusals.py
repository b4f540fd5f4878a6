"""Negotiations that must fail, and what the operator then reads."""

import dataclasses

import pytest

from privsep.algorithms import ChildSuite, IkeSuite
from privsep.config.model import Encap
from privsep.iana import IdType
from privsep.schema.install import Denial, Outcome
from privsep.types import Identity, Mode

DIFFERS = "pre-shared key for gw2.example.org probably differs"
POSSIBLY = (
    "the pre-shared key for gw2.example.org differs",
    "the peer does not accept our identity gw1.example.org",
    "it wants more than a pre-shared key (XAUTH)",
)
"""What silence after message 5 may mean."""


def test_a_wrong_psk_is_reported_at_both_ends_rfc2409_5_4(make):
    world = make.Pair(psks=(b"one", b"another"))
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert DIFFERS in done.text
    assert "AUTHENTICATION_FAILED" in done.text
    (report,) = world.right.logged("authentication-failed")
    assert report["reason"] == ("peer's message does not decrypt: pre-shared key for gw1.example.org probably differs")
    assert report["connection"] == "paris"
    world.run(200.0)
    for site in (world.left, world.right):
        assert site.pairs == {}
        assert len(site.engine._context.sas) == 0
    world.settled()


def test_a_wrong_psk_is_reported_when_the_peer_only_falls_silent(make):
    world = make.Pair(psks=(b"one", b"another"))
    world.fate = lambda site, send: [] if send.data[18] == 5 else [make.LATENCY]
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert "does not answer Main Mode 5/6" in done.text
    for possibility in POSSIBLY:
        assert possibility in done.text
        assert any(possibility in step for step in world.left.monitor.progress)


def test_no_common_ike_proposal_is_reported_at_both_ends_rfc2408_3_14(make):
    ours = make.connection(suites=(IkeSuite.parse("aes128-sha256-modp2048"),))
    theirs = dataclasses.replace(make.mirrored(ours), suites=(IkeSuite.parse("aes256-sha512-ecp384"),))
    world = make.Pair(ours, theirs)
    started = world.now
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert "NO_PROPOSAL_CHOSEN (not authenticated); we offered aes128-sha256-modp2048" in done.text
    assert world.now - started < 10
    (report, *_) = world.right.logged("main-mode-failed")
    assert "peer offers aes128-sha256-modp2048; configured aes256-sha512-ecp384" in report["reason"]
    assert len(world.right.engine._context.sas) == 0
    world.settled()


def test_an_unauthenticated_refusal_does_not_end_the_exchange(make):
    """RFC 2408 section 5.14, CVE-2004-0164: the order fails, Main Mode goes on and succeeds."""
    world = make.Pair()
    world.fate = lambda site, send: [make.LATENCY + 8.0]
    sequence = world.left.up()
    world.run(1.0)
    first = world.left.sent[0]
    forged = (
        first.data[:16]
        + bytes((11, 0x10, 5, 0))
        + b"\0\0\0\x07"
        + (28 + 12).to_bytes(4, "big")
        + bytes((0, 0, 0, 12, 0, 0, 0, 1, 1, 0, 0, 14))
    )
    world.left.engine.datagram(forged, first.local, first.remote, world.now)
    assert world.run(10.0, lambda: world.left.outcome(sequence) is not None)
    assert "NO_PROPOSAL_CHOSEN (not authenticated)" in world.left.outcome(sequence).text
    assert world.run(120.0, lambda: len(world.left.established()) == 1)


def test_no_common_esp_proposal_is_answered_under_protection_rfc2409_5_5(make):
    ours = make.connection()
    theirs = make.mirrored(ours)
    other = tuple(dataclasses.replace(c, suites=(ChildSuite.parse("aes128-sha1"),)) for c in theirs.children)
    world = make.Pair(ours, dataclasses.replace(theirs, children=other))
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert "gw2.example.org answers NO_PROPOSAL_CHOSEN" in done.text
    (report,) = world.right.logged("quick-mode-failed")
    assert "peer offers aes256gcm16" in report["reason"]
    assert "configured aes128-sha1 tunnel" in report["reason"]
    assert len(world.left.established()) == 1
    world.settled()


def test_selectors_outside_of_the_child_are_refused_rfc2407_4_6_3(make):
    ours = make.connection(children=(make.child(remote_ts=make.selectors("10.0.0.0/8")),))
    theirs = make.mirrored(make.connection())
    world = make.Pair(ours, theirs)
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert "INVALID_ID_INFORMATION" in done.text
    (report,) = world.right.logged("quick-mode-failed")
    assert "no child protects 10.0.0.0/8 with 10.1.0.0/16" in report["reason"]
    assert world.right.pairs == {}
    world.settled()


def test_selectors_inside_of_the_childs_are_accepted_as_they_are(make):
    ours = make.connection(children=(make.child(remote_ts=make.selectors("10.2.7.0/24")),))
    world = make.Pair(ours, make.mirrored(make.connection()))
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 1
    ((redeemed, _),) = world.right.pairs.values()
    assert (redeemed.local_ts,) == make.selectors("10.2.7.0/24")


def test_an_identity_that_no_connection_accepts_is_refused(make):
    ours = make.connection(local_id=Identity(IdType.FQDN, b"stranger.example.org"))
    world = make.Pair(ours, make.mirrored(make.connection()))
    done = world.up()
    assert done.outcome is Outcome.FAILED
    (report,) = world.right.logged("authentication-failed")
    assert report["reason"] == "the peer proved to be stranger.example.org, paris expects gw1.example.org"
    assert world.right.logged("main-mode-failed") == []
    assert "INVALID_ID_INFORMATION (not authenticated)" in done.text
    assert "it does not accept our identity stranger.example.org" in done.text
    assert "pre-shared key" not in done.text
    assert world.right.established() == []
    world.settled()


def test_a_responder_whose_identity_is_not_the_one_expected_is_named_with_the_one_that_is(make):
    theirs = make.mirrored(make.connection(remote_id=Identity(IdType.FQDN, b"stranger.example.org")))
    world = make.Pair(make.connection(), theirs)
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert "the peer proved to be stranger.example.org, paris expects gw2.example.org" in done.text


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_the_monitor_denies_is_not_installed_and_spis_are_given_back(make, side):
    world = make.Pair()
    getattr(world, side).monitor.deny = Denial.SELECTORS
    sequence = world.left.up()
    world.run(120.0)
    done = world.left.outcome(sequence)
    if side == "left":
        assert done.outcome is Outcome.FAILED
        assert "the monitor refuses: the selectors are not inside the child's" in done.text
    assert world.left.pairs == {}
    assert world.right.pairs == {}
    world.settled()


def test_forced_encapsulation_fails_with_a_peer_without_nat_traversal_rfc3947_3_1(make):
    ours = make.connection(encap=Encap.FORCE)
    world = make.Pair(ours, dataclasses.replace(make.mirrored(ours), encap=Encap.OFF))
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert "the peer does not know NAT traversal" in done.text


def test_orders_for_what_is_not_configured_fail(make):
    world = make.Pair()
    for sequence in (
        world.left.up("rome"),
        world.left.down("rome"),
        world.left.up("paris", "x"),
        world.left.down("paris", "x"),
    ):
        assert world.left.outcome(sequence).outcome is Outcome.FAILED


def test_transport_mode_without_client_identities_means_the_outer_addresses_rfc2409_5_5(make):
    ours = make.connection(
        children=(
            make.child(
                mode=Mode.TRANSPORT, local_ts=make.selectors("192.0.2.1/32"), remote_ts=make.selectors("192.0.2.2/32")
            ),
        )
    )
    world = make.Pair(ours)
    # the initiator leaves IDci and IDcr away
    make.without_client_ids(world.left)
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 1
