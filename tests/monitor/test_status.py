"""The document of ``status --json`` (CONTRACT.md)."""

import json
from dataclasses import replace

import pytest
from effort import instructions

from monitor.dataplane import Traffic
from monitor.sadb import Entry
from monitor.status import Facts, WorkerState, document
from privsep.algorithms import ChildSuite, IkeSuite
from privsep.config.lanes import KernelOptions, Lane, Mark
from privsep.config.model import Action, Order, Shunt
from privsep.schema.install import ChildStatus, IkeStatus
from privsep.types import Role

CONTRACT_IKE_SA = (
    "connection version role mode state local remote local_id remote_id auth cookies proposal nat established_s "
    "rekey_in_s children"
)
CONTRACT_CHILD = (
    "name state protocol mode spi_in spi_out proposal local_ts remote_ts bytes_in bytes_out packets_in packets_out "
    "expires_in_s"
)


def child_status(kit, spi_in, **changes):
    values = {
        "name": "lan",
        "state": "installed",
        "suite": ChildSuite.parse("aes256gcm16-modp2048"),
        "spi_in": spi_in,
        "spi_out": 0xC0FFEE00,
        "local_ts": kit.selectors("10.1.0.0/16"),
        "remote_ts": kit.selectors("10.2.0.0/16"),
        "encap": False,
        "age_s": 100,
    }
    return ChildStatus(**(values | changes))


def ike_status(kit, *children, **changes):
    values = {
        "connection": "paris",
        "role": Role.INITIATOR,
        "mode": "main",
        "state": "established",
        "local": kit.endpoint("192.0.2.1"),
        "remote": kit.endpoint("192.0.2.2"),
        "local_id": kit.identity("gw1.example.org"),
        "remote_id": kit.identity("gw2.example.org"),
        "cky_i": b"\x01" * 8,
        "cky_r": b"\x02" * 8,
        "suite": IkeSuite.parse("aes256-sha256-modp2048"),
        "nat": "none",
        "established_s": 3,
        "rekey_in_s": 28000,
        "children": children,
    }
    return IkeStatus(**(values | changes))


@pytest.fixture
def facts(bench, kit):
    """One pair installed for a known IKE SA, one from an earlier worker."""
    entries = []
    for number, suite in ((0x1000, "aes256gcm16-modp2048"), (0x1001, "aes256gcm16-modp2048")):
        bench.service.sadb.allocate(
            kit.allocation(number),
        )
        bench.install(kit.redeemed(spi_in=number, spi_out=number + 0x10000, suite=ChildSuite.parse(suite)))
        entries.append(bench.service.sadb.entry(number))
    assert all(isinstance(entry, Entry) for entry in entries)
    return Facts(
        gateway=bench.gateway,
        dataplane="userspace",
        dataplane_reason="the kernel has no ESP",
        worker=WorkerState.RUNNING,
        ike_sas=(ike_status(kit, child_status(kit, 0x1000, spi_out=0x11000)),),
        entries=tuple(entries),
        traffic={0x1000: Traffic(bytes_in=252, bytes_out=84, packets_in=3, packets_out=1)},
        now=bench.clock.now() + 100,
    )


def test_it_holds_all_that_the_contract_names(facts):
    status = json.loads(json.dumps(document(facts)))
    assert (status["schema_version"], status["dataplane"]) == (1, "userspace")
    (ike_sa,) = status["ike_sas"]
    assert set(CONTRACT_IKE_SA.split()) <= set(ike_sa)
    (child,) = ike_sa["children"]
    assert set(CONTRACT_CHILD.split()) <= set(child)


def test_values_have_the_contracts_forms(facts):
    ike_sa = document(facts)["ike_sas"][0]
    assert ike_sa["local"] == "192.0.2.1[500]"
    assert ike_sa["cookies"] == ["0x0101010101010101", "0x0202020202020202"]
    assert (ike_sa["version"], ike_sa["role"], ike_sa["mode"], ike_sa["auth"]) == ("ikev1", "initiator", "main", "psk")
    child = ike_sa["children"][0]
    assert (child["spi_in"], child["spi_out"]) == ("0x00001000", "0x00011000")
    assert (child["protocol"], child["mode"], child["proposal"]) == ("esp", "tunnel", "aes256gcm16-modp2048")
    assert (child["bytes_in"], child["packets_out"], child["expires_in_s"]) == (252, 1, 3500)
    assert child["local_ts"] == ["10.1.0.0/16"]
    assert (child["replay_window"], child["ipcomp"]) == (64, False)


def test_what_only_the_kernel_has_is_shown_as_configured(facts, kit):
    options = KernelOptions(
        lane=Lane(if_id_in=7, if_id_out=7, mark_out=Mark(16, 255)), interface="ipsec0", life_packets=1000
    )
    child = kit.child(kernel=options)
    gateway = replace(facts.gateway, connections=(kit.connection(children=(child,)),))
    ((shown,),) = (each["children"] for each in document(replace(facts, gateway=gateway))["connections"])
    assert (shown["interface"], shown["if_id_in"], shown["if_id_out"]) == ("ipsec0", 7, 7)
    assert (shown["mark_in"], shown["mark_out"]) == (None, "0x10/0xff")
    assert (shown["life_bytes"], shown["life_packets"], shown["priority"]) == (None, 1000, None)
    assert document(facts)["ike_sas"][0]["children"][0]["reqid"] == 1


def test_pairs_of_an_earlier_worker_are_shown_apart(facts):
    (adopted,) = document(facts)["adopted"]
    assert (adopted["connection"], adopted["spi_in"], adopted["bytes_in"]) == ("paris", "0x00001001", None)
    assert adopted["identity"] == "gw2.example.org"


def test_connections_that_are_down_are_listed(facts):
    connections = {each["name"]: each for each in document(facts)["connections"]}
    assert connections["paris"]["state"] == "established"
    assert {child["name"]: child["state"] for child in connections["paris"]["children"]} == {
        "lan": "installed",
        "dmz": "down",
        "both": "down",
    }
    assert connections["road"] == {
        "name": "road",
        "state": "down",
        "local": "any",
        "remote": "any",
        "local_id": "gw1.example.org",
        "remote_id": None,
        "children": connections["road"]["children"],
    }


def test_one_connection_can_be_asked_for(facts):
    status = document(facts, "road")
    assert [each["name"] for each in status["connections"]] == ["road"]
    assert (status["ike_sas"], status["adopted"]) == ([], [])


def test_a_worker_cannot_claim_algorithms_or_selectors_that_are_not_installed(facts, kit):
    lie = child_status(
        kit, 0x1000, suite=ChildSuite.parse("aes128-sha1"), remote_ts=kit.selectors("0.0.0.0/0"), spi_out=0xBAD00
    )
    (child,) = document(kit.replace(facts, ike_sas=(ike_status(kit, lie),)))["ike_sas"][0]["children"]
    assert (child["proposal"], child["remote_ts"], child["spi_out"]) == ("aes256gcm16", ["10.2.0.0/16"], "0x00011000")


def test_a_child_that_the_monitor_does_not_know_has_no_counters_and_is_not_called_installed(facts, kit):
    status = document(kit.replace(facts, ike_sas=(ike_status(kit, child_status(kit, 0xABCD)),)))
    (child,) = status["ike_sas"][0]["children"]
    assert "bytes_in" not in child
    assert child["state"] == "unknown"


def test_shunts_are_told_with_the_whole_and_not_with_a_connection(kit, facts):
    shunt = Shunt(
        name="spare",
        local_ts=kit.selectors("10.1.0.0/16"),
        remote_ts=kit.selectors("10.2.3.0/24"),
        action=Action.PASS,
        order=Order.FIRST,
    )
    told = kit.replace(facts, gateway=kit.replace(facts.gateway, shunts=(shunt,)))
    assert document(told)["shunts"] == [
        {
            "name": "spare",
            "action": "pass",
            "order": "first",
            "local_ts": ["10.1.0.0/16"],
            "remote_ts": ["10.2.3.0/24"],
        }
    ]
    assert document(told, "paris")["shunts"] == []


def test_four_times_as_many_tunnels_take_about_four_times_as_long(facts, kit):
    def cost(size):
        connections = tuple(kit.connection(name=f"c{number}") for number in range(size))
        sas = tuple(ike_status(kit, connection=each.name) for each in connections)
        entries = tuple(kit.replace(facts.entries[0], connection=each.name) for each in connections)
        changed = kit.replace(
            facts, gateway=kit.replace(facts.gateway, connections=connections), ike_sas=sas, entries=entries
        )
        return instructions(lambda: document(changed))

    assert cost(160) < 5 * cost(40)
