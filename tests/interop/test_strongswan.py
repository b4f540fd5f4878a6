"""Against Debian's strongSwan, with pings through its user-space ESP (kernel-libipsec) and ours."""

import re
import subprocess
import time
from itertools import product

import pytest
from lab import LEFT, PSK, RIGHT

pytestmark = pytest.mark.root

SUITES = [
    ("aes256-sha256-modp2048", "aes256gcm16-modp2048"),
    ("aes256-sha256-modp2048", "aes128-sha256"),
    ("aes128-sha256-curve25519", "aes128gcm16-curve25519"),
    ("aes128-sha256-curve25519", "aes256-sha256"),
    ("3des-sha1-modp1536", "aes128-sha1-modp1536"),
    ("aes192-sha384-ecp384", "aes192gcm16-ecp384"),
    ("aes256-sha512-modp3072", "aes256-sha512"),
    ("aes256-sha256-ecp256", "aes256-sha384-ecp256"),
]
FEW = SUITES[:4]


def assert_traffic_passes(network, wiretap) -> None:
    assert network.left.ping(network.right.inner) == 3
    assert network.right.ping(network.left.inner) == 3
    counts = wiretap.counts()
    assert counts["encrypted"] >= 12
    assert counts["cleartext"] == 0


@pytest.mark.parametrize(("ike", "esp"), SUITES)
def test_we_initiate_main_and_quick_mode_rfc2409_5_4(network, ours, strongswan, wiretap, ike, esp):
    strongswan.start(ike, esp)
    ours.start(ike, esp)
    ours.cli("up", "peer/net")
    (sa,) = ours.status()["ike_sas"]
    assert (sa["role"], sa["state"], sa["proposal"]) == ("initiator", "established", ike)
    assert [child["proposal"] for child in sa["children"]] == [esp]
    assert_traffic_passes(network, wiretap)
    (child,) = ours.children()
    assert child["packets_in"] >= 6
    assert child["packets_out"] >= 6


@pytest.mark.parametrize(("ike", "esp"), FEW)
def test_strongswan_initiates_rfc2409_5_4(network, ours, strongswan, wiretap, ike, esp):
    ours.start(ike, esp)
    strongswan.start(ike, esp)
    strongswan.swanctl("--initiate", "--child", "net", "--timeout", "20")
    (sa,) = ours.status()["ike_sas"]
    assert (sa["role"], sa["state"]) == ("responder", "established")
    assert_traffic_passes(network, wiretap)


MORE_ESP = [
    "aes128gcm8",
    "aes256gcm12",
    "aes128ccm8",
    "aes256ccm16",
    "aes256ctr-sha256",
    "camellia256-sha512",
    "3des-md5",
]


@pytest.mark.parametrize("esp", MORE_ESP)
def test_strongswans_esp_understands_ours_and_ours_its(network, ours, strongswan, wiretap, esp):
    """RFC 4106, RFC 4309, RFC 3686, RFC 4312, RFC 2451, RFC 2403."""
    strongswan.start(SUITES[0][0], esp)
    ours.start(SUITES[0][0], esp)
    ours.cli("up", "peer/net")
    assert [child["proposal"] for child in ours.children()] == [esp]
    assert_traffic_passes(network, wiretap)


def test_null_encryption_is_negotiated_when_both_name_it_rfc2410(network, ours, strongswan, wiretap):
    strongswan.start(SUITES[0][0], "null-sha256")
    ours.start(SUITES[0][0], "null-sha256")
    ours.cli("up", "peer/net")
    assert network.left.ping(network.right.inner) == 3
    assert wiretap.counts()["encrypted"] >= 6


def test_our_deletion_reaches_strongswan_rfc2408_3_15(network, ours, strongswan):
    strongswan.start(*SUITES[0])
    ours.start(*SUITES[0])
    ours.cli("up", "peer/net")
    ours.cli("down", "peer/net")
    assert network.wait_for(lambda: "INSTALLED" not in strongswan.swanctl("--list-sas"))
    ours.cli("down", "peer")
    assert network.wait_for(lambda: "ESTABLISHED" not in strongswan.swanctl("--list-sas"))


def test_our_shutdown_deletes_at_strongswan(network, ours, strongswan):
    strongswan.start(*SUITES[0])
    ours.start(*SUITES[0])
    ours.cli("up", "peer/net")
    assert ours.stop() == 0
    assert network.wait_for(lambda: "ESTABLISHED" not in strongswan.swanctl("--list-sas"))


def test_strongswans_deletion_removes_our_sas_and_nothing_passes_in_clear(network, ours, strongswan, wiretap):
    strongswan.start(*SUITES[0])
    ours.start(*SUITES[0])
    ours.cli("up", "peer/net")
    strongswan.swanctl("--terminate", "--ike", "peer", "--timeout", "10")
    assert network.wait_for(lambda: ours.children() == [])
    assert network.left.ping(network.right.inner, count=1) == 0
    assert wiretap.counts()["cleartext"] == 0


def test_a_peer_that_was_killed_gets_in_again_under_another_name_rfc3706(network, ours, strongswan, wiretap):
    """Its old identity's SAs are in the way until they do not answer R-U-THERE; charon says that it knows that."""
    ours.configure(*SUITES[0])
    ours.config.write_text(ours.config.read_text().replace(f'remote_id = "{RIGHT}"', 'remote_id = "any"'))
    ours.secrets.write_text(f'[[psk]]\nconnection = "peer"\nsecret = "{PSK}"\n')
    ours.launch()
    strongswan.start(*SUITES[0], ids=(LEFT, "first.example.org"))
    strongswan.swanctl("--initiate", "--child", "net", "--timeout", "20")
    network.kill(strongswan.pid)
    strongswan.stop()
    strongswan.start(*SUITES[0], ids=(LEFT, "second.example.org"))
    strongswan.swanctl("--initiate", "--child", "net", "--timeout", "40")
    assert network.wait_for(lambda: len(ours.children()) == 1)
    (sa,) = ours.status()["ike_sas"]
    assert sa["remote_id"] == "second.example.org"
    assert "peer-dead" in ours.text()
    assert_traffic_passes(network, wiretap)


def test_a_wrong_psk_is_reported_as_such_when_we_initiate(network, ours, strongswan):
    strongswan.start(*SUITES[0], psk="another secret entirely")
    ours.start(*SUITES[0])
    done = ours.cli("up", "peer/net", "--timeout", "20", check=False)
    assert done.returncode in (1, 5)
    # it answers under a key that we do not have
    assert "the pre-shared key for 192.0.2.2 differs, or the peer does not accept our identity" in done.stderr
    assert ours.children() == []


def test_a_wrong_psk_is_reported_as_such_when_strongswan_initiates(network, ours, strongswan):
    ours.start(*SUITES[0])
    strongswan.start(*SUITES[0], psk="another secret entirely")
    strongswan.swanctl("--initiate", "--child", "net", "--timeout", "5", check=False)
    assert network.wait_for(lambda: "probably differs" in ours.text()), ours.text()
    assert ours.children() == []


def test_no_common_proposal_is_told_to_the_operator(network, ours, strongswan):
    strongswan.start("aes128-sha1-modp1536", "aes128-sha1")
    ours.start(*SUITES[0])
    done = ours.cli("up", "peer/net", "--timeout", "20", check=False)
    assert done.returncode == 1
    assert "NO_PROPOSAL_CHOSEN (not authenticated); we offered aes256-sha256-modp2048" in done.stderr


def test_a_quick_mode_without_a_common_proposal_is_told_with_ours(network, ours, strongswan):
    strongswan.start(SUITES[0][0], "aes128-sha1")
    ours.start(*SUITES[0])
    done = ours.cli("up", "peer/net", "--timeout", "20", check=False)
    assert done.returncode == 1
    assert "192.0.2.2 answers NO_PROPOSAL_CHOSEN; we offered aes256gcm16-modp2048" in done.stderr


def test_an_identity_that_we_do_not_expect_is_named_with_the_one_that_we_do(network, ours, strongswan):
    strongswan.start(*SUITES[0], ids=(LEFT, "other.example.org"))
    ours.start(*SUITES[0])
    done = ours.cli("up", "peer/net", "--timeout", "20", check=False)
    assert done.returncode == 1
    assert "the peer proved to be other.example.org, peer expects 192.0.2.2" in done.stderr


def test_strongswans_identity_that_we_do_not_expect_is_told_once(network, ours, strongswan):
    ours.start(*SUITES[0])
    strongswan.start(*SUITES[0], ids=(LEFT, "other.example.org"))
    strongswan.swanctl("--initiate", "--child", "net", "--timeout", "5", check=False)
    assert network.wait_for(
        lambda: re.search(r'authentication-failed .*"the peer proved to be other.example.org, peer exp', ours.text())
    ), ours.text()
    assert ours.text().count("authentication-failed") == 1
    assert "main-mode-failed" not in ours.text()


def test_an_identity_of_ours_that_strongswan_does_not_expect_is_not_blamed_on_the_key_alone(network, ours, strongswan):
    strongswan.start(*SUITES[0], ids=("other.example.org", RIGHT))
    ours.start(*SUITES[0])
    done = ours.cli("up", "peer/net", "--timeout", "20", check=False)
    assert done.returncode in (1, 5)
    assert "or the peer does not accept our identity 192.0.2.1" in done.stderr


def test_a_strongswan_that_wants_xauth_is_not_blamed_on_the_key_alone(network, ours, strongswan):
    strongswan.start(*SUITES[0], more="remote-xauth { auth = xauth-generic }")
    ours.start(*SUITES[0])
    done = ours.cli("up", "peer/net", "--timeout", "20", check=False)
    assert done.returncode in (1, 5)
    assert "or it wants more than a pre-shared key (XAUTH)" in done.stderr
    assert "none allows pre-shared key authentication using Main Mode" in strongswan.text()
    assert ours.children() == []


def test_strongswan_is_told_that_we_do_not_speak_aggressive_mode_rfc2408_5_2(network, ours, strongswan):
    ours.start(*SUITES[0])
    strongswan.start(*SUITES[0], more="aggressive = yes")
    strongswan.swanctl("--initiate", "--child", "net", "--timeout", "5", check=False)
    # UNSUPPORTED-EXCHANGE-TYPE, for which charon has no name
    assert network.wait_for(lambda: "received (29) error notify" in strongswan.text()), strongswan.text()
    line = 'warning not-spoken connection=peer remote=192.0.2.2[500] wants="Aggressive Mode"'
    assert network.wait_for(lambda: line in ours.text()), ours.text()


def test_strongswan_understands_that_we_do_not_speak_ikev2_rfc7296_1_5(network, ours, strongswan):
    ours.start(*SUITES[0])
    strongswan.start(*SUITES[0], version=2)
    strongswan.swanctl("--initiate", "--child", "net", "--timeout", "5", check=False)
    understood = "received INVALID_MAJOR_VERSION notify error"
    assert network.wait_for(lambda: understood in strongswan.text()), strongswan.text()
    line = "warning not-spoken connection=peer remote=192.0.2.2[500] wants=IKEv2"
    assert network.wait_for(lambda: line in ours.text()), ours.text()


@pytest.mark.parametrize("begins", ["ours", "strongswan"])
def test_the_case_of_a_name_means_nothing_to_either_side_rfc4945_3_1_2(network, ours, strongswan, wiretap, begins):
    strongswan.start(*SUITES[0], ids=("GW1.Example.ORG", "gw2.EXAMPLE.org"))
    ours.configure(*SUITES[0])
    text = ours.config.read_text()
    for key, address, name in (("local_id", LEFT, "gw1.example.org"), ("remote_id", RIGHT, "gw2.example.org")):
        text = re.sub(rf'{key}( *)= "{address}"', rf'{key}\1= "{name}"', text)
    assert "gw1.example.org" in text
    ours.config.write_text(text)
    ours.secrets.write_text(f'[[psk]]\nids = ["GW1.example.org", "GW2.example.org"]\nsecret = "{PSK}"\n')
    ours.launch()
    if begins == "ours":
        ours.cli("up", "peer/net")
    else:
        strongswan.swanctl("--initiate", "--child", "net", "--timeout", "20")
    assert_traffic_passes(network, wiretap)


def test_two_hundred_proposals_of_strongswan_are_taken_rfc2408_3_5(network, ours, strongswan, wiretap):
    parts = (
        ("aes128", "aes192", "aes256", "3des"),
        ("sha1", "sha256", "sha384", "sha512"),
        ("modp1536", "modp3072", "modp4096", "modp6144", "modp8192", "modp1024", "ecp384", "ecp521", "ecp256",
         "curve25519", "modp768", "modp2048s256", "modp1024s160"),
    )  # fmt: skip
    many = ["-".join(each) for each in product(*parts)][:199]
    ours.start(*SUITES[0])
    strongswan.start(",".join([*many, SUITES[0][0]]), SUITES[0][1])
    strongswan.swanctl("--initiate", "--child", "net", "--timeout", "20")
    (sa,) = ours.status()["ike_sas"]
    assert (sa["role"], sa["proposal"]) == ("responder", SUITES[0][0])
    assert_traffic_passes(network, wiretap)


PINGS, REKEYS = 1000, 10


def test_a_strongswan_that_rekeys_under_traffic_loses_no_packet_rfc2409_5_5(network, ours, strongswan, wiretap):
    """It sends by its new SA on our message 2; a hundred packets a second, whose answers take the same way back."""
    ours.start(*SUITES[0])
    strongswan.start(*SUITES[0])
    strongswan.swanctl("--initiate", "--child", "net", "--timeout", "20")
    flood = (
        "ping",
        "-n",
        "-q",
        "-c",
        str(PINGS),
        "-i",
        "0.01",
        "-W",
        "2",
        "-I",
        network.right.inner,
        network.left.inner,
    )
    pinging = subprocess.Popen(network.right.command(*flood), stdout=subprocess.PIPE, text=True)
    for _ in range(REKEYS):
        strongswan.swanctl("--rekey", "--child", "net")
        time.sleep(0.5)
    said, _ = pinging.communicate(timeout=60)
    sent, received = (int(re.search(rf"(\d+) {what}", said).group(1)) for what in ("packets transmitted", "received"))
    renewed = len(re.findall(r"^notice installed ", ours.text(), re.M)) - 1
    assert renewed >= REKEYS // 2
    assert (sent, received) == (PINGS, PINGS), f"{sent - received} of {sent} lost in {renewed} rekeys"
    assert wiretap.counts()["cleartext"] == 0
