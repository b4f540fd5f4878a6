"""The TUN device and its routing table, in a network namespace of the test's own."""

import ipaddress
import json
import os
import subprocess

import pytest
from namespace import own_network

from monitor.dataplane import Policy
from monitor.routes import OUTER_MARK, TABLE, TUN_MTU, Routes, clear_left
from privsep.config.model import Action, Order, Shunt
from privsep.iana import ProtocolId
from privsep.types import Endpoint, Mode, TrafficSelector

pytestmark = pytest.mark.root


def ip(*argv):
    done = subprocess.run(("ip", *argv), check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture(autouse=True)
def network():
    """An uplink with a default route, and an inner network of ours."""
    with own_network():
        for name, address in (("uplink", "192.0.2.1/24"), ("lan", "10.1.0.1/16")):
            ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
            ip("addr", "add", address, "dev", name)
            ip("link", "set", name, "up")
            ip("link", "set", f"{name}-far", "up")
        ip("addr", "add", "fd00:1::1/32", "dev", "lan", "nodad")
        ip("route", "add", "default", "via", "192.0.2.254")
        yield


@pytest.fixture
def routes():
    made = Routes()
    yield made
    made.close()


def policy(local, remote, number=1):
    def selectors(text):
        return tuple(TrafficSelector(ipaddress.ip_network(each)) for each in text.split())

    ends = (Endpoint(ipaddress.ip_address(address), 500) for address in ("192.0.2.1", "192.0.2.2"))
    return Policy(
        protocol=ProtocolId.ESP,
        number=number,
        mode=Mode.TUNNEL,
        local=next(ends),
        remote=next(ends),
        local_ts=selectors(local),
        remote_ts=selectors(remote),
    )


def shunt(remote, action=Action.PASS):
    both = (
        tuple(TrafficSelector(ipaddress.ip_network(each)) for each in text) for text in (("10.1.0.0/16",), (remote,))
    )
    return Shunt(name="spare", local_ts=next(both), remote_ts=next(both), action=action, order=Order.FIRST)


def table(*family):
    # ip fails, and prints nothing, for a table that never had a route
    command = ("ip", *family, "-j", "route", "show", "table", str(TABLE))
    return json.loads(subprocess.run(command, check=False, capture_output=True, text=True).stdout or "[]")


def leads_to(address, *more):
    return json.loads(ip("-j", "route", "get", address, *more))[0]


def test_the_device_is_up_with_room_for_esp_and_without_an_address(routes):
    link = json.loads(ip("-j", "addr", "show", "dev", routes.name))[0]
    assert link["mtu"] == TUN_MTU
    assert "UP" in link["flags"]
    assert link["addr_info"] == []


def test_protected_traffic_goes_to_the_device_from_an_address_that_the_policy_protects(routes):
    routes.add(policy("10.1.0.0/16", "10.2.0.0/16"))
    route = leads_to("10.2.3.4")
    assert (route["dev"], route["prefsrc"]) == (routes.name, "10.1.0.1")
    assert leads_to("10.3.0.1")["dev"] == "uplink"


def test_ipv6_alike(routes):
    routes.add(policy("fd00:1::/32", "fd00:2::/32"))
    route = leads_to("fd00:2::1")
    assert (route["dev"], route["prefsrc"]) == (routes.name, "fd00:1::1")


def test_without_a_protected_address_of_ours_there_is_no_hint(routes):
    routes.add(policy("10.9.0.0/16", "10.2.0.0/16"))
    assert [route.get("prefsrc") for route in table()] == [None, None]


def test_outer_packets_never_go_to_the_device_even_if_the_peer_itself_is_protected(routes):
    routes.add(policy("192.0.2.1/32", "192.0.2.2/32"))
    assert leads_to("192.0.2.2")["dev"] == routes.name
    assert leads_to("192.0.2.2", "mark", str(OUTER_MARK))["dev"] == "uplink"


def test_a_remote_selector_of_everything_leaves_our_own_networks_alone(routes):
    routes.add(policy("10.1.0.0/16", "0.0.0.0/0"))
    assert leads_to("198.51.100.1")["dev"] == routes.name
    assert leads_to("10.1.7.7")["dev"] == "lan"
    assert leads_to("198.51.100.1", "mark", str(OUTER_MARK))["dev"] == "uplink"


def test_networks_of_several_policies_stay_until_the_last_goes(routes):
    first, second = policy("10.1.0.0/17", "10.2.0.0/16"), policy("10.1.128.0/17", "10.2.0.0/16 10.4.0.0/16", number=2)
    routes.add(first)
    routes.add(second)
    routes.remove(first)
    assert leads_to("10.2.0.1")["dev"] == routes.name
    routes.remove(second)
    assert leads_to("10.2.0.1")["dev"] == "uplink"
    assert table() == []


def test_the_main_table_is_not_touched(routes):
    before = ip("route", "show", "table", "main")
    routes.add(policy("10.1.0.0/16", "0.0.0.0/0"))
    assert ip("route", "show", "table", "main") == before


def test_the_end_leaves_nothing_behind():
    rules = ip("rule"), ip("-6", "rule")
    routes = Routes()
    routes.add(policy("10.1.0.0/16 fd00:1::/32", "10.2.0.0/16 fd00:2::/32"))
    assert (ip("rule"), ip("-6", "rule")) != rules
    routes.close()
    assert (ip("rule"), ip("-6", "rule")) == rules
    assert table() == table("-6") == []
    assert routes.name not in ip("link")


@pytest.mark.parametrize(
    ("address", "local", "remote"),
    [
        ("10.2.0.1", "10.1.0.0/16", "10.2.0.0/16"),
        ("fd00:2::1", "fd00:1::/32", "fd00:2::/32"),
    ],
)
def test_a_monitor_that_is_killed_leaves_refusal_not_the_clear_path(address, local, remote):
    routes = Routes()
    routes.add(policy(local, remote))
    # the device goes with the last descriptor, as it does when the process is killed
    os.close(routes.tun)
    answer = subprocess.run(("ip", "route", "get", address), check=False, capture_output=True, text=True)
    assert "No route to host" in answer.stderr
    routes._netlink.close()


def test_the_next_start_takes_over_what_a_killed_one_left():
    rules = ip("rule")
    for _ in range(2):
        killed = Routes()
        killed.add(policy("10.1.0.0/16", "10.2.0.0/16 10.5.0.0/16"))
        os.close(killed.tun)
        killed._netlink.close()
    routes = Routes()
    routes.add(policy("10.1.0.0/16", "10.2.0.0/16"))
    assert leads_to("10.2.0.1")["dev"] == routes.name
    # refused until every policy is placed: there is no moment of clear text
    answer = subprocess.run(("ip", "route", "get", "10.5.0.1"), check=False, capture_output=True, text=True)
    assert "No route to host" in answer.stderr
    routes.settle()
    assert leads_to("10.2.0.1")["dev"] == routes.name
    assert leads_to("10.5.0.1")["dev"] == "uplink"
    routes.close()
    assert ip("rule") == rules


def test_what_a_killed_one_left_is_removed_whatever_its_networks():
    killed = Routes()
    killed.add(policy("10.1.0.0/16", "0.0.0.0/0"))
    killed.add(policy("fd00:1::/32", "::/0 fd00:2::/32"))
    os.close(killed.tun)
    killed._netlink.close()
    tables = [("-4", "route", "show", "table", str(TABLE)), ("-6", "route", "show", "table", str(TABLE))]
    routes = Routes()
    assert all(ip(*words) for words in tables)
    routes.settle()
    assert [ip(*words) for words in tables] == ["", ""]
    routes.close()


def test_shunts_inside_a_policy_go_past_the_device_or_nowhere(routes):
    routes.add(policy("10.1.0.0/16", "10.2.0.0/16"))
    spare, none = shunt("10.2.3.0/24"), shunt("10.2.4.0/24", Action.DROP)
    routes.add_shunt(spare)
    routes.add_shunt(none)
    assert leads_to("10.2.0.9")["dev"] == routes.name
    assert leads_to("10.2.3.9")["dev"] == "uplink"
    with pytest.raises(subprocess.CalledProcessError, match="ip"):
        leads_to("10.2.4.9")
    for each in (spare, none):
        routes.remove_shunt(each)
        assert leads_to(str(each.remote_ts[0].network[9]))["dev"] == routes.name


def test_a_shunts_leftover_route_goes_when_everything_is_placed(routes):
    routes.add(policy("10.1.0.0/16", "10.2.0.0/16"))
    ip("route", "add", "throw", "10.2.3.0/24", "table", str(TABLE), "metric", "2")
    routes.add_shunt(shunt("10.2.4.0/24"))
    routes.settle()
    assert leads_to("10.2.3.9")["dev"] == routes.name
    assert leads_to("10.2.4.9")["dev"] == "uplink"


def test_what_nobody_uses_any_more_is_cleared_and_what_a_running_one_has_stays():
    rules = ip("rule")
    ended = Routes()
    ended.add(policy("10.1.0.0/16", "10.2.0.0/16"))
    clear_left()
    assert leads_to("10.2.0.1")["dev"] == ended.name
    os.close(ended.tun)
    ended._netlink.close()
    clear_left()
    assert (ip("rule"), leads_to("10.2.0.1")["dev"]) == (rules, "uplink")
