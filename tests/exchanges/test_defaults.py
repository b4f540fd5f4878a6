"""Nothing said of proposals: the strongest common ones win, with perfect forward secrecy where both have it."""

import dataclasses

import pytest

from privsep.algorithms import ChildSuite, EspCipher, Group, Hash, IkeCipher, IkeSuite, Integrity
from privsep.config import loader
from privsep.config.names import Names
from privsep.schema.install import Outcome

SILENT = """
[connection.paris]
local = "192.0.2.1"
remote = "192.0.2.2"
[connection.paris.child.lan]
local_ts = ["10.1.0.0/16"]
remote_ts = ["10.2.0.0/16"]
"""
(OURS,) = loader.load(SILENT, "f", Names({})).connections
IKE, ESP = OURS.suites, OURS.children[0].suites
STRONGSWAN_TAKES = "aes128gcm16", "aes256-sha256", "aes128-sha256", "aes128-sha1"
STRONGSWAN_OFFERS = "aes128-sha256", "aes128gcm16"
LIBRESWAN_TAKES = "aes256gcm16-modp2048", "aes128-sha1-modp2048"
LIBRESWAN_OFFERS = "aes128-sha1-modp2048", "3des-sha1-modp2048"


def suites(*texts):
    return tuple(map(ChildSuite.parse, texts))


@pytest.fixture
def pair(make):
    """Ours with its defaults on the left or the right; the other with these proposals."""

    def build(ike=IKE, esp=ESP, *, ours_begins):
        silent = make.connection(suites=IKE, children=(make.child(suites=ESP),))
        other = make.connection(suites=ike, children=(make.child(suites=esp),))
        left, right = (silent, other) if ours_begins else (other, silent)
        return make.Pair(left, make.mirrored(right))

    return build


def agreed(world):
    (sa,) = world.left.status()
    return str(sa.suite), [str(child.suite) for child in sa.children]


def test_nothing_weak_is_in_a_default():
    assert {suite.cipher for suite in IKE} == {IkeCipher.AES_256, IkeCipher.AES_128}
    assert {suite.hash for suite in IKE} == {Hash.SHA2_256}
    groups = {suite.group for suite in IKE}
    assert groups == {Group.CURVE25519, Group.ECP_256, Group.MODP_3072, Group.MODP_2048}
    assert {suite.group for suite in ESP} == {Group.CURVE25519, Group.MODP_2048, None}
    assert {suite.integrity for suite in ESP[:-1]} == {None, Integrity.HMAC_SHA2_256}
    assert {suite.cipher for suite in ESP} == {
        *(EspCipher.AES_256_GCM_16, EspCipher.AES_128_GCM_16, EspCipher.AES_256, EspCipher.AES_128)
    }


def test_two_of_ours_have_the_strongest(pair):
    world = pair(ours_begins=True)
    assert world.up().outcome is Outcome.DONE
    assert agreed(world) == ("aes256-sha256-curve25519", ["aes256gcm16-curve25519"])


def test_a_peer_without_forward_secrecy_is_offered_that_last_and_only_the_first_time(make, pair):
    """RFC 2409 section 5.5: one group in a Quick Mode, so there is one for each."""
    world = pair(esp=suites(*STRONGSWAN_TAKES), ours_begins=True)
    assert world.up().outcome is Outcome.DONE
    assert agreed(world)[1] == ["aes128gcm16"]
    refused = len(world.right.logged("quick-mode-failed"))
    assert refused == 2
    # a successor begins with what was agreed on
    assert world.run(4000.0, lambda: len(world.right.logged("child-installed")) > 1)
    assert len(world.right.logged("quick-mode-failed")) == refused
    world.settled()


def test_a_peer_with_another_group_gets_the_next(pair):
    world = pair(esp=suites(*LIBRESWAN_TAKES), ours_begins=True)
    assert world.up().outcome is Outcome.DONE
    assert agreed(world)[1] == ["aes256gcm16-modp2048"]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (STRONGSWAN_OFFERS, "aes128gcm16"),
        (("aes128-sha1", "aes128-sha256", "aes256-sha256", "aes256gcm16"), "aes256gcm16"),
        (("aes128gcm16-modp2048", "aes256gcm16-modp2048"), "aes256gcm16-modp2048"),
        (("aes128-sha256-curve25519",), "aes128-sha256-curve25519"),
        (LIBRESWAN_OFFERS, "aes128-sha1-modp2048"),
        ((*LIBRESWAN_OFFERS, "aes128-sha256-modp2048"), "aes128-sha256-modp2048"),
    ],
)
def test_of_what_a_peer_offers_we_choose_by_our_preference_with_the_group_that_it_has(pair, offered, chosen):
    """RFC 2409 section 5.5: with KE in message 1 with its group, without KE without."""
    world = pair(esp=suites(*offered), ours_begins=False)
    assert world.up().outcome is Outcome.DONE
    assert agreed(world)[1] == [chosen]


def test_as_responder_we_take_the_strongest_of_phase_1_whatever_the_peer_prefers(pair):
    """RFC 2409 section 5: the responder chooses."""
    theirs = ("aes128-sha1-modp1536", "aes128-sha256-modp2048", "aes256-sha256-modp2048")
    world = pair(ike=tuple(map(IkeSuite.parse, theirs)), ours_begins=False)
    assert world.up().outcome is Outcome.DONE
    assert agreed(world)[0] == "aes256-sha256-modp2048"


def test_nothing_in_common_fails_after_one_try_for_each_group(pair):
    world = pair(esp=suites("aes128-sha1"), ours_begins=True)
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert "NO_PROPOSAL_CHOSEN" in done.text
    assert len(world.right.logged("quick-mode-failed")) == 3
    world.settled()


def test_another_refusal_is_not_answered_by_less(make):
    """A peer that has no such selectors would have none without forward secrecy either."""
    ours = make.connection(children=(make.child(suites=ESP),))
    theirs = make.connection(children=(make.child(suites=ESP, local_ts=make.selectors("10.9.0.0/16")),))
    world = make.Pair(ours, make.mirrored(theirs))
    assert world.up().outcome is Outcome.FAILED
    assert len(world.right.logged("quick-mode-failed")) == 1


def test_a_child_that_names_one_group_never_goes_without(make):
    only = make.connection(children=(make.child(suites=suites("aes256gcm16-curve25519")),))
    world = make.Pair(
        only, make.mirrored(dataclasses.replace(only, children=(make.child(suites=suites("aes256gcm16")),)))
    )
    assert world.up().outcome is Outcome.FAILED
    assert len(world.right.logged("quick-mode-failed")) == 1
