"""Two ESP processes, confined as in production, over real TUN devices in two namespaces."""

import json
import shutil

import pytest
from lab import wait_for

pytestmark = pytest.mark.root

SUITES = ["aes128gcm16", "aes256gcm16", "aes128-sha1", "aes256-sha256", "aes192-sha384", "aes256-sha512"]
ALL = {"esp": 6, "clear": 0}


def ping(side, target, *options, count=3):
    return side.run("ping", "-c", str(count), "-i", "0.05", "-W", "1", *options, target, check=False)


def install(*sides):
    for side in sides:
        side.ask("install")


@pytest.mark.parametrize("encap", [True, False], ids=["udp", "raw"])
@pytest.mark.parametrize("address", ["10.2.0.1", "fd00:2::1"])
def test_pings_cross_the_tunnel_encrypted_only_rfc4303_3_1_2(cable, encrypted, encap, address):
    left, right = cable.connect(encap=encap)
    install(left, right)
    with encrypted(cable.left, "4500" if encap else "ESP(") as seen:
        assert " 0% packet loss" in ping(left, address)
    assert seen == ALL
    assert left.ask("traffic") == right.ask("traffic")
    assert left.ask("traffic")[:2] == [3, 3]


@pytest.mark.parametrize("listen", [[], ["192.0.2.HERE", "2001:db8::HERE"]], ids=["wildcard", "bound"])
@pytest.mark.parametrize("encap", [True, False], ids=["udp", "raw"])
def test_outer_ipv6_works_from_wildcard_and_bound_sockets(cable, encrypted, encap, listen):
    left, right = cable.connect(encap=encap, listen=listen, local="2001:db8::HERE", remote="2001:db8::THAT")
    install(left, right)
    with encrypted(cable.left, "4500" if encap else "ESP(") as seen:
        assert " 0% packet loss" in ping(left, "10.2.0.1")
    assert seen == ALL


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_carries_packets_of_any_size_rfc4303_2_4(cable, suite):
    left, right = cable.connect(suite=suite, listen=["192.0.2.HERE"])
    install(left, right)
    for size in (0, 1, 15, 16, 1352, 5000):
        assert " 0% packet loss" in ping(left, "10.2.0.1", "-s", str(size), count=1)


@pytest.mark.parametrize("encap", [True, False], ids=["udp", "raw"])
def test_transport_mode_protects_the_outer_addresses_own_traffic_rfc4303_3_1_1(cable, encrypted, encap):
    """The remote selector is the peer's outer address: outer packets must not go round in the tunnel."""
    left, right = cable.connect(
        mode="TRANSPORT", encap=encap, local_ts=["192.0.2.HERE/32"], remote_ts=["192.0.2.THAT/32"]
    )
    install(left, right)
    with encrypted(cable.left, "4500" if encap else "ESP(") as seen:
        assert " 0% packet loss" in ping(left, "192.0.2.2")
    assert seen == ALL


def test_a_remote_selector_of_everything_spares_outer_packets_and_local_networks(cable, encrypted):
    left, right = cable.connect(local_ts=["10.HERE.0.0/16"], remote_ts=["0.0.0.0/0"])
    install(left, right)
    with encrypted(cable.left, "4500") as seen:
        assert " 0% packet loss" in ping(left, "10.2.0.1")
    assert seen == ALL
    assert " dev pike" not in left.run("ip", "route", "get", "10.1.77.1")


def test_traffic_without_sa_is_held_back_and_reported_once_a_second(cable, encrypted):
    left, _ = cable.connect()
    with encrypted(cable.left, "4500") as seen:
        assert "100% packet loss" in ping(left, "10.2.0.1", count=5)
    assert seen == {"esp": 0, "clear": 0}
    assert left.event("acquired") == {"event": "acquired", "policy": 1}
    left.tell("pid")
    left.answer()
    assert [event["event"] for event in left.events].count("acquired") <= 3


def test_a_lifetime_ends_the_pair_in_the_process_itself_rfc4301_4_4_2_1(cable):
    left, right = cable.connect(lifetime=1)
    install(left, right)
    assert left.event("expired") == {"event": "expired", "spi": 0x1001, "hard": True}
    with pytest.raises(AssertionError, match="gone"):
        left.ask("traffic")
    assert "100% packet loss" in ping(left, "10.2.0.1", count=1)


def test_a_pair_that_is_removed_carries_nothing_and_can_be_installed_again(cable):
    left, right = cable.connect()
    install(left, right)
    left.ask("remove")
    assert "100% packet loss" in ping(left, "10.2.0.1", count=1)
    left.ask("install")
    # its sequence numbers start anew, which the old window of the other side refuses
    right.ask("remove")
    right.ask("install")
    assert " 0% packet loss" in ping(left, "10.2.0.1")


def test_the_death_of_the_process_loses_its_sas_and_lets_nothing_out_in_the_clear(cable, encrypted):
    left, right = cable.connect()
    install(left, right)
    left.tell("kill")
    left.event("lost")
    assert left.event("expired") == {"event": "expired", "spi": 0x1001, "hard": True}
    with encrypted(cable.left, "4500") as seen:
        assert "100% packet loss" in ping(left, "10.2.0.1", count=1)
    assert seen == {"esp": 0, "clear": 0}


def test_a_new_process_knows_the_policies_and_takes_new_pairs(cable):
    left, right = cable.connect()
    install(left, right)
    left.tell("kill")
    left.event("lost")
    left.ask("start")
    right.ask("remove")
    install(left, right)
    assert " 0% packet loss" in ping(left, "10.2.0.1")


def test_the_process_runs_as_its_own_user_without_capabilities_to_act(cable):
    left, _ = cable.connect()
    pid = left.ask("pid")
    left.ask("install")
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
    assert fields["Uid"].split() == ["61003"] * 4
    assert fields["Seccomp"] == "2"
    assert fields["NoNewPrivs"] == "1"
    # CAP_IPC_LOCK at most, which keeps its keys out of swap
    assert int(fields["CapEff"], 16) | 1 << 14 == 1 << 14


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["aes256gcm16", "aes256-sha256"])
@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
def test_tcp_gets_through_at_a_rate_worth_having(cable, suite, capsys):
    left, right = cable.connect(suite=suite)
    install(left, right)
    server = right.start("iperf3", "-s", "-1", "-B", "10.2.0.1")
    try:
        assert wait_for(lambda: ":5201" in right.run("ss", "-Hltn"))
        report = json.loads(left.run("iperf3", "-c", "10.2.0.1", "-t", "3", "-J"))
    finally:
        server.kill()
        server.wait()
    rate = report["end"]["sum_received"]["bits_per_second"] / 1e6
    with capsys.disabled():
        print(f"\n{suite}: {rate:.0f} Mbit/s TCP through two ESP processes on this machine")
    assert rate > 10
