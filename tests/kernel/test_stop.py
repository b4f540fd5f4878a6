"""What a clean stop leaves in a real kernel until the next start, and in an XFRM interface's routes (`on_stop`)."""

import pytest
from lab import launch, none_in_clear, run

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

IKE, GCM = "aes256-sha256-modp2048", "aes256gcm16-modp2048"


def test_policies_stand_over_a_clean_restart_and_are_taken_over_rfc4301_4_4_1(network, ours, theirs):
    ours.on_stop = "block"
    ours.configure(IKE, GCM)
    theirs.configure(IKE, GCM, uid=62011)
    launch(ours, theirs)
    ours.order("up")
    assert network.left.ping(network.right.inner) == 3
    before = ours.xfrm("policy")
    with none_in_clear(network, least=5):
        assert ours.stop() == 0
        assert (ours.xfrm("state"), ours.xfrm("policy")) == ("", before)
        assert network.wait_for(lambda: theirs.children() == [])
        ours.launch()
        ours.order("up")
    assert ours.xfrm("policy") == before
    assert network.left.ping(network.right.inner) == 3
    assert ours.stop() == 0
    run(*ours.words("clear"), timeout=60)
    assert ours.xfrm("policy") == ""


def test_an_interface_keeps_its_routes_over_a_stop_and_goes_when_no_child_has_it(network, ours):
    ours.on_stop = "block"
    ours.configure(IKE, GCM)
    with_interface = ours.config.read_text() + "if_id = 7\ninterface = 'ipsec0'\n"
    plain = ours.config.read_text()
    ours.config.write_text(with_interface)
    ours.launch()
    network.ip(network.left, "route", "add", network.right.inner, "dev", "ipsec0")
    with none_in_clear(network, least=5):
        assert ours.stop() == 0
        assert "ipsec0" in network.ip(network.left, "route")
    ours.config.write_text(plain)
    ours.launch()
    assert "ipsec0" not in network.ip(network.left, "link")
    assert ours.stop() == 0
    run(*ours.words("clear"), timeout=60)
