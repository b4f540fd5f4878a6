"""RFC 2409 sections 5.4 and 5.5 between two engines with real keyds."""

import pytest

from privsep.algorithms import ChildSuite, IkeSuite
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
ESP_SUITES = [
    "aes128gcm16",
    "aes192gcm16-curve25519",
    "aes256gcm16-modp2048",
    "aes128-sha1",
    "aes192-sha256-ecp256",
    "aes256-sha384",
    "aes256-sha512-curve25519",
]


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
    world.settled()
