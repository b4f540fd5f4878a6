"""RFC 2409 sections 5.4 and 5.5 between two engines with real keyds."""

import pytest

from privsep.algorithms import ChildSuite, EspCipher, IkeSuite, Integrity
from privsep.iana import ProtocolId
from privsep.schema.install import Outcome

IKE_SUITES = [
    "aes128-sha1-modp1536",
    "aes192-sha384-ecp384",
    "aes256-sha256-modp2048",
    "aes256-sha512-ecp521",
    "3des-sha1-modp1024",
    "aes128-sha256-ecp256",
    "aes256-sha256-curve25519",
]
ESP_SUITES = {
    "aes128gcm16": (20, 0),
    "aes192gcm16-curve25519": (28, 0),
    "aes256gcm16-modp2048": (36, 0),
    "aes128gcm8": (20, 0),
    "aes192gcm8": (28, 0),
    "aes256gcm8": (36, 0),
    "aes128gcm12": (20, 0),
    "aes192gcm12": (28, 0),
    "aes256gcm12": (36, 0),
    "aes128ccm8": (19, 0),
    "aes192ccm8": (27, 0),
    "aes256ccm8": (35, 0),
    "aes128ccm12": (19, 0),
    "aes192ccm12": (27, 0),
    "aes256ccm12": (35, 0),
    "aes128ccm16": (19, 0),
    "aes192ccm16": (27, 0),
    "aes256ccm16-esn": (35, 0),
    "aes128gmac": (20, 0),
    "aes192gmac": (28, 0),
    "aes256gmac": (36, 0),
    "aes128-sha1": (16, 20),
    "aes192-sha256-ecp256": (24, 32),
    "aes256-sha384": (32, 48),
    "aes256-sha512-curve25519": (32, 64),
    "aes128-md5-esn": (16, 16),
    "aes128ctr-sha256": (20, 32),
    "aes192ctr-aesxcbc": (28, 16),
    "aes256ctr-sha512": (36, 64),
    "camellia128-sha256": (16, 32),
    "camellia192-sha1": (24, 20),
    "camellia256-sha512": (32, 64),
    "3des-sha1": (24, 20),
    "null-sha256-curve25519-esn": (0, 32),
}
"""With the octets of KEYMAT that cipher (salt or nonce included) and integrity take, as their RFCs say."""
AH_SUITES = {"md5": 16, "sha1-curve25519": 20, "sha256-esn": 32, "sha384": 48, "sha512": 64, "aesxcbc": 16}


@pytest.mark.parametrize("ike", IKE_SUITES)
def test_main_mode_with_every_kind_of_suite_rfc2409_5_4(make, ike):
    world = make.Pair(make.connection(suites=(IkeSuite.parse(ike),)))
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 1
    (left,), (right,) = world.left.status(), world.right.status()
    assert (left.state, right.state) == ("established", "established")
    assert str(left.suite) == str(right.suite) == ike
    assert (str(left.remote_id), str(right.remote_id)) == ("gw2.example.org", "gw1.example.org")
    world.settled()


@pytest.mark.parametrize("esp", ESP_SUITES)
def test_quick_mode_with_and_without_pfs_rfc2409_5_5(make, esp):
    world = make.Pair(make.connection(children=(make.child(suites=(ChildSuite.parse(esp),)),)))
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 1
    (status,) = world.left.status()
    assert [str(each.suite) for each in status.children] == [esp]
    assert lengths(world) == ESP_SUITES[esp]
    world.settled()


def lengths(world):
    """Octets of the encryption and the integrity keys, which are the same for both directions."""
    ((redeemed, _),) = world.left.pairs.values()
    inbound = len(redeemed.encryption_in), len(redeemed.integrity_in)
    assert (len(redeemed.encryption_out), len(redeemed.integrity_out)) == inbound
    return inbound


def test_every_algorithm_that_ikev1_has_a_number_for_is_among_these():
    suites = [ChildSuite.parse(each) for each in ESP_SUITES]
    suites += [ChildSuite.parse(each, ProtocolId.AH) for each in AH_SUITES]
    assert {suite.cipher for suite in suites} - {None} == {each for each in EspCipher if each.number is not None}
    for protocol in (ProtocolId.AH, ProtocolId.ESP):
        assert {suite.integrity for suite in suites if suite.protocol is protocol} - {None} == {
            each for each in Integrity if each.number is not None
        }


@pytest.mark.parametrize("ah", AH_SUITES)
def test_quick_mode_for_ah_rfc2407_4_4_3_rfc4302(make, ah):
    suite = ChildSuite.parse(ah, ProtocolId.AH)
    world = make.Pair(make.connection(children=(make.child(suites=(suite,)),)))
    assert world.up().outcome is Outcome.DONE
    assert world.mirror() == 1
    (status,) = world.left.status()
    assert [each.suite for each in status.children] == [suite]
    assert lengths(world) == (0, AH_SUITES[ah])
    assert any(text.endswith(f"chose AH {ah}") for text in world.left.monitor.progress)
    down = world.left.down()
    world.run(10.0, lambda: world.left.outcome(down) is not None and not world.right.pairs)
    assert (world.left.pairs, world.right.pairs) == ({}, {})
    world.settled()


def test_ah_and_esp_have_no_proposal_in_common(make):
    ours = make.connection(children=(make.child(suites=(ChildSuite.parse("sha1", ProtocolId.AH),)),))
    theirs = make.connection(children=(make.child(suites=(ChildSuite.parse("3des-sha1"),)),))
    world = make.Pair(ours, make.mirrored(theirs))
    assert world.up().outcome is Outcome.FAILED
    assert "NO_PROPOSAL_CHOSEN" in world.left.monitor.completed[1].text
    (failed,) = world.right.logged("quick-mode-failed")
    assert "peer offers AH sha1 mode TUNNEL; configured 3des-sha1 tunnel" in failed["reason"]


def test_extended_sequence_numbers_are_agreed_on_by_both_or_not_used_rfc4304_2(make):
    both = tuple(ChildSuite.parse(each) for each in ("aes128gcm16-esn", "aes128gcm16"))
    for theirs in both:
        ours = make.connection(children=(make.child(suites=both),))
        world = make.Pair(ours, make.mirrored(make.connection(children=(make.child(suites=(theirs,)),))))
        assert world.up().outcome is Outcome.DONE
        assert [each.suite.esn for each in world.left.status()[0].children] == [theirs.esn]
    only = make.connection(children=(make.child(suites=both[:1]),))
    world = make.Pair(only, make.mirrored(make.connection(children=(make.child(suites=both[1:]),))))
    assert world.up().outcome is Outcome.FAILED
