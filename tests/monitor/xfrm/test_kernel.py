"""The same against this machine's kernel, in a network namespace of its own. Nothing may stay behind."""

import os
import socket
import subprocess
import time
from contextlib import nullcontext, suppress
from dataclasses import replace

import pytest

from monitor.dataplane import DataplaneError
from monitor.inheritance import policy_record, shunt_record
from monitor.installer import Installer, Leave
from monitor.journal import Journal
from monitor.plane import leave_kernel
from monitor.sockets import Plane, open_listeners
from monitor.waiting import begin
from monitor.xfrm.bypass import bypass, udp_encap
from monitor.xfrm.client import KernelDataplane
from monitor.xfrm.interfaces import Interfaces, possible, remove_made
from monitor.xfrm.migration import one_round
from monitor.xfrm.netlink import KernelError, XfrmNetlink
from monitor.xfrm.probe import can_migrate, knows_direction, lacking
from privsep.algorithms import ChildSuite
from privsep.config.lanes import KernelOptions, Lane, Mark
from privsep.config.model import Action, Order
from privsep.errors import OperatorError
from privsep.iana import ProtocolId
from privsep.types import Mode

pytestmark = pytest.mark.root

GCM = ChildSuite.parse("aes256gcm16")
CBC = ChildSuite.parse("aes128-sha256")
AH = ChildSuite.parse("sha256", ProtocolId.AH)
ETH_P_ALL = 3


@pytest.fixture
def hasty(inside):
    """Larval SAs live one second."""
    subprocess.run(
        ["ip", "netns", "exec", inside, "sh", "-c", "echo 1 > /proc/sys/net/core/xfrm_acq_expires"], check=True
    )


def test_an_allocated_spi_is_reserved_and_released(kit, bench):
    local, remote = kit.endpoint("192.0.2.1"), kit.endpoint("192.0.2.2")
    spi = bench.plane.allocate_spi(local, remote, ProtocolId.ESP)
    assert spi >= 0x100
    assert f"spi 0x{spi:08x}" in bench.ip("xfrm", "state")
    bench.plane.release_spi(spi, local, remote, ProtocolId.ESP)
    assert bench.ip("xfrm", "state") == ""


def test_an_spi_of_ah_is_reserved_expires_and_is_reported(kit, bench, hasty):
    local, remote = kit.endpoint("192.0.2.1"), kit.endpoint("192.0.2.2")
    spi = bench.plane.allocate_spi(local, remote, ProtocolId.AH)
    assert f"proto ah spi 0x{spi:08x}" in bench.ip("xfrm", "state")
    assert bench.wait(5) == [("expired", spi, True)]


def test_a_larval_sa_expires_and_is_reported(kit, bench, hasty):
    local, remote = kit.endpoint("192.0.2.1"), kit.endpoint("192.0.2.2")
    spi = bench.plane.allocate_spi(local, remote, ProtocolId.ESP)
    assert bench.wait(5) == [("expired", spi, True)]
    assert bench.ip("xfrm", "state") == ""
    with pytest.raises(DataplaneError, match="not reserved"):
        kit.result(kit.install(bench.plane, kit.pair(spi_in=spi)))


def test_a_policy_requires_esp_in_every_direction_and_goes_away(kit, bench):
    kit.result(bench.plane.add_policy(kit.mixed))
    shown = bench.ip("xfrm", "policy")
    assert [shown.count(f"dir {direction} ") for direction in ("out", "in", "fwd")] == [2, 2, 2]
    assert shown.count("proto esp reqid 7 mode tunnel") == 6
    assert "level use" not in shown
    kit.result(bench.plane.remove_policy(kit.mixed))
    assert bench.ip("xfrm", "policy") == ""


def test_a_policy_left_behind_is_taken_over_with_the_new_address(kit, bench):
    kit.result(bench.plane.add_policy(kit.policy(number=3)))
    kit.result(bench.plane.add_policy(kit.policy(remote=kit.endpoint("192.0.2.99"))))
    shown = bench.ip("xfrm", "policy")
    assert shown.count("reqid 7") == 3
    assert "192.0.2.99" in shown
    assert "reqid 3" not in shown


def test_somebody_elses_policy_stays_and_ours_is_not_half_there(kit, bench):
    bench.ip("xfrm", "policy", "add", "src", "10.2.0.0/16", "dst", "10.1.0.0/16", "dir", "fwd", "priority", "5")
    before = bench.ip("xfrm", "policy")
    with pytest.raises(DataplaneError, match="NEWPOLICY: EEXIST"):
        kit.result(bench.plane.add_policy(kit.policy()))
    assert bench.ip("xfrm", "policy") == before


def test_a_policy_goes_to_its_peers_new_address_where_the_kernel_can(kit, bench):
    policy = kit.policy(remote_ts=kit.selectors("10.2.0.0/16", "10.3.0.0/16"))
    kit.result(bench.plane.add_policy(policy))
    before = bench.ip("xfrm", "policy")
    for message in one_round(policy, kit.pair(policy, remote=kit.endpoint("192.0.2.99"))):
        with nullcontext() if can_migrate(bench.netlink) else pytest.raises(KernelError, match="ENOPROTOOPT"):
            bench.netlink.do(message)
    after = before.replace("192.0.2.2", "192.0.2.99") if can_migrate(bench.netlink) else before
    assert bench.ip("xfrm", "policy") == after


def marked(kit, number, value):
    return kit.policy(number=number, kernel=KernelOptions(lane=Lane(mark_in=Mark(value), mark_out=Mark(value))))


def test_equal_selectors_in_several_lanes_are_several_policies(kit, bench):
    lanes = [kit.policy(number=1), marked(kit, 2, 16), marked(kit, 3, 32)]
    lanes.append(kit.policy(number=4, kernel=KernelOptions(lane=Lane(if_id_in=5, if_id_out=5))))
    for policy in lanes:
        kit.result(bench.plane.add_policy(policy))
    shown = bench.ip("xfrm", "policy")
    assert [shown.count(f"reqid {number} ") for number in (1, 2, 3, 4)] == [3] * 4
    for policy in lanes[1::2]:
        kit.result(bench.plane.remove_policy(policy))
    shown = bench.ip("xfrm", "policy")
    assert [shown.count(f"reqid {number} ") for number in (1, 2, 3, 4)] == [3, 0, 3, 0]


def test_a_marked_packet_asks_for_an_sa_of_the_policy_with_its_mark(kit, bench):
    for policy in (marked(kit, 2, 16), marked(kit, 3, 32)):
        kit.result(bench.plane.add_policy(policy))
    bench.knock()
    assert bench.wait(0.3) == [], "none has its mark"
    bench.knock(32)
    assert bench.wait(2) == [("acquired", 3)]


def test_a_policy_of_a_lane_that_was_left_behind_is_taken_over_in_that_lane(kit, bench):
    old = replace(marked(kit, 3, 16), remote=kit.endpoint("192.0.2.99"))
    for policy in (marked(kit, 2, 32), old, marked(kit, 7, 16)):
        kit.result(bench.plane.add_policy(policy))
    shown = bench.ip("xfrm", "policy")
    assert "192.0.2.99" not in shown
    assert [shown.count(f"reqid {number} ") for number in (2, 3, 7)] == [3, 0, 3]


def test_the_kernel_takes_directions_exactly_if_it_knows_them(kit, bench):
    plane = KernelDataplane(bench.netlink, directed=knows_direction(bench.netlink))
    local, remote = kit.endpoint("192.0.2.1"), kit.endpoint("192.0.2.2")
    spi = plane.allocate_spi(local, remote, ProtocolId.ESP)
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert knows_direction(bench.netlink) is (release >= (6, 10))
    plane.release_spi(spi, local, remote, ProtocolId.ESP)
    assert bench.ip("xfrm", "state") == ""


def test_a_packet_without_an_sa_asks_for_one_and_does_not_leave(kit, bench):
    kit.result(bench.plane.add_policy(kit.policy()))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as far:
        far.bind(("far", 0))
        bench.knock()
        assert bench.wait(2) == [("acquired", 7)]
        assert not _left_in_clear(far, b"knock")


def test_the_control_without_a_policy_lets_the_packet_out(bench):
    bench.ip("neigh", "add", "10.2.0.9", "lladdr", "02:00:00:00:00:01", "dev", "under")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as far:
        far.bind(("far", 0))
        bench.knock()
        assert _left_in_clear(far, b"knock")


@pytest.mark.parametrize(("action", "leaves"), [(Action.PASS, True), (Action.DROP, False)])
def test_a_shunt_within_a_policy_lets_a_packet_out_or_refuses_it_and_asks_for_no_sa(kit, bench, action, leaves):
    bench.ip("neigh", "add", "10.2.0.9", "lladdr", "02:00:00:00:00:01", "dev", "under")
    kit.result(bench.plane.add_policy(kit.policy()))
    kit.result(bench.plane.add_shunt(kit.shunt(remote_ts=kit.selectors("10.2.0.9/32"), action=action)))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as far:
        far.bind(("far", 0))
        try:
            bench.knock()
        except PermissionError:
            assert action is Action.DROP
        assert _left_in_clear(far, b"knock") is leaves
    assert bench.wait(0.2) == []


def test_a_shunt_after_all_children_leaves_them_theirs(kit, bench):
    kit.result(bench.plane.add_policy(kit.policy()))
    everything = {"local_ts": kit.selectors("0.0.0.0/0"), "remote_ts": kit.selectors("0.0.0.0/0")}
    kit.result(bench.plane.add_shunt(kit.shunt(**everything, action=Action.DROP, order=Order.LAST)))
    bench.knock()
    assert bench.wait(2) == [("acquired", 7)]


def test_a_successor_clears_what_is_provably_ours_and_leaves_what_is_not(kit, bench):
    wide = {"local_ts": kit.selectors("10.5.0.0/16"), "remote_ts": kit.selectors("10.6.0.0/16")}
    theirs = kit.policy(number=9, local_ts=kit.selectors("10.7.0.0/16"))
    kept, gone = kit.policy(), kit.policy(number=8, **wide)
    for each in (kept, gone, theirs):
        kit.result(bench.plane.add_policy(each))
    kit.result(bench.plane.add_shunt(kit.shunt()))
    successor = KernelDataplane(bench.netlink)
    kit.result(successor.add_policy(kept))
    for each in (kept, gone, replace(theirs, number=1)):
        kit.result(successor.clear(each))
    kit.result(successor.clear(kit.shunt(action=Action.DROP)))
    shown = bench.ip("xfrm", "policy")
    assert [shown.count(f"reqid {number} ") for number in (7, 8, 9)] == [3, 0, 3]
    assert shown.count("10.2.3.0/24") == 3
    kit.result(successor.clear(kit.shunt()))
    assert "10.2.3.0/24" not in bench.ip("xfrm", "policy")


def test_an_instance_with_another_data_plane_leaves_nothing_of_ours_in_the_kernel(kit, bench, clock, tmp_path):
    journal = Journal(tmp_path / "journal", clock, print)
    for each in (kit.policy(), kit.mixed):
        kit.result(bench.plane.add_policy(each))
        journal.add(policy_record("paris", "lan", each))
    kit.result(bench.plane.add_shunt(kit.shunt()))
    journal.add(shunt_record(kit.shunt()))
    bench.ip("xfrm", "policy", "add", "src", "10.8.0.0/16", "dst", "10.9.0.0/16", "dir", "out", "priority", "4803000")
    leave_kernel(Journal(tmp_path / "journal", clock, print), print)
    assert bench.ip("xfrm", "policy").count("dir ") == 1


def test_over_a_clean_stop_policies_and_shunts_stay_until_a_configuration_lacks_them(kit, bench, clock, tmp_path):
    bench.ip("neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:01", "dev", "under")
    child = kit.child(local_ts=kit.selectors("192.0.2.0/24"), remote_ts=kit.selectors("192.0.2.2/32"))
    shunt = kit.shunt(local_ts=kit.selectors("192.0.2.0/24"), remote_ts=kit.selectors("192.0.2.9/32"))
    gateway = replace(kit.gateway(), connections=(kit.connection(children=(child,)),), shunts=(shunt,))

    def installer(gateway):
        plane = KernelDataplane(bench.netlink)
        journal = Journal(tmp_path / "journal", clock, print)
        made = Installer(gateway, plane, lambda *_, **fields: None, journal, plane, lambda entry: None)
        kit.result(begin(made.start()))
        return made

    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as far,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        far.bind(("far", 0))

        def passes() -> bool:
            with suppress(OSError):
                sender.sendto(b"in clear", ("192.0.2.2", 9))
            return _left_in_clear(far, b"in clear")

        assert passes()
        for _ in range(2):
            kit.result(begin(installer(gateway).clear(Leave.POLICIES)))
            shown = bench.ip("xfrm", "policy")
            assert (shown.count("proto esp"), shown.count("192.0.2.9/32")) == (3, 3)
            assert not passes()
        kit.result(begin(installer(replace(gateway, connections=(), shunts=())).clear(Leave.POLICIES)))
        assert bench.ip("xfrm", "policy") == ""
        assert passes()
        kit.result(begin(installer(gateway).clear(Leave.NOTHING)))
    assert (bench.ip("xfrm", "policy"), (tmp_path / "journal").exists()) == ("", False)


def test_a_policy_that_yields_goes_when_the_next_has_its_number(kit, bench):
    before = kit.policy()
    after = replace(before, remote=kit.endpoint("192.0.2.3"), remote_ts=kit.selectors("10.3.0.0/16"))
    kit.result(bench.plane.add_policy(before))
    kit.result(bench.plane.add_policy(after))
    shown = bench.ip("xfrm", "policy")
    assert (shown.count("10.2.0.0/16"), shown.count("10.3.0.0/16"), shown.count("reqid 7 ")) == (0, 3, 3)


def test_an_interface_of_ours_goes_by_name_and_if_id_and_no_other(kit, bench):
    if not possible():
        pytest.skip("the kernel lacks CONFIG_XFRM_INTERFACE")
    interfaces = Interfaces({"ipsec0": 7, "ipsec1": 8})
    bench.ip("link", "set", "ipsec1", "alias", "somebody's")
    remove_made({"ipsec0": 9, "ipsec1": 8, "none": 1})
    assert all(name in bench.ip("link") for name in ("ipsec0", "ipsec1"))
    remove_made({"ipsec0": 7})
    assert "ipsec0" not in bench.ip("link")
    interfaces.close()


def test_a_larval_sa_is_no_pair_to_adopt_or_to_discard(kit, bench):
    local, remote = kit.endpoint("192.0.2.1"), kit.endpoint("192.0.2.2")
    pair = kit.pair(spi_in=bench.plane.allocate_spi(local, remote, ProtocolId.ESP))
    before = bench.ip("xfrm", "state")
    with pytest.raises(DataplaneError, match="all"):
        kit.result(bench.plane.adopt(pair))
    assert kit.result(bench.plane.discard(pair)) is False
    assert bench.ip("xfrm", "state") == before != ""


def _left_in_clear(far, payload):
    deadline = time.monotonic() + 0.5
    while (left := deadline - time.monotonic()) > 0:
        far.settimeout(left)
        try:
            if payload in far.recv(2048):
                return True
        except TimeoutError:
            return False
    return False


def test_a_socket_with_bypass_sends_in_clear_and_another_does_not(kit, bench):
    bench.ip("neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:01", "dev", "under")
    everything = kit.policy(local_ts=kit.selectors("192.0.2.0/24"), remote_ts=kit.selectors("0.0.0.0/0"))
    kit.result(bench.plane.add_policy(everything))
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as far,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ike,
    ):
        far.bind(("far", 0))
        bypass(ike)
        ike.sendto(b"in clear", ("192.0.2.2", 500))
        assert _left_in_clear(far, b"in clear")
        plain.sendto(b"protected", ("192.0.2.2", 500))
        assert not _left_in_clear(far, b"protected")


@pytest.mark.parametrize("plane", Plane)
def test_ike_gets_past_a_policy_for_everything_with_either_data_plane_rfc4301_4_4_1(kit, bench, plane):
    bench.ip("neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:01", "dev", "under")
    everything = kit.policy(local_ts=kit.selectors("192.0.2.0/24"), remote_ts=kit.selectors("0.0.0.0/0"))
    kit.result(bench.plane.add_policy(everything))
    listeners = open_listeners((kit.endpoint("192.0.2.1").address,), plane, 62001)
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as far:
            far.bind(("far", 0))
            # ESP's own packets too, where they are not the kernel's
            for sock in (*listeners.ike, *listeners.natt, *listeners.esp_udp, *listeners.esp_raw):
                octets = b"from %d" % sock.fileno()
                sock.sendto(octets, ("192.0.2.2", 4500))
                assert _left_in_clear(far, octets), sock
    finally:
        listeners.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_bypass_and_udp_encapsulation_are_to_be_had(bench, family):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        bypass(sock)
        udp_encap(sock)


def test_bypass_of_a_socket_that_cannot_says_what_it_needs(bench):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock, pytest.raises(OperatorError, match="CONFIG_XFRM"):
        udp_encap(sock)


@pytest.mark.parametrize("suite", [GCM, CBC, AH])
@pytest.mark.parametrize("version", [4, 6])
def test_probing_changes_nothing(bench, suite, version):
    found = lacking(bench.netlink, [suite], [version])
    assert found is None or "CONFIG_" in found
    assert bench.ip("xfrm", "state") == ""
    assert bench.ip("xfrm", "policy") == ""


def test_a_refused_pair_leaves_nothing(kit, bench):
    if lacking(bench.netlink, [CBC], [4]) is None:
        pytest.skip("this kernel has ESP, so it refuses nothing here")
    pair = kit.pair()
    spi = bench.plane.allocate_spi(pair.local, pair.remote, ProtocolId.ESP)
    with pytest.raises(DataplaneError, match=r"UPDSA: E\w+ \(.*not found\)"):
        kit.result(kit.install(bench.plane, kit.pair(spi_in=spi)))
    assert bench.ip("xfrm", "state") == ""


@pytest.fixture
def neighbours(kit):
    """Two namespaces on one link, 2001:db8::1 and 2001:db8::2."""
    with kit.network() as near, kit.network() as far:
        link = ["ip", "link", "add", "wire", "netns", near, "type", "veth", "peer", "name", "wire", "netns", far]
        subprocess.run(link, check=True)
        for name, address in ((near, "2001:db8::1"), (far, "2001:db8::2")):
            for command in (f"address add {address}/64 dev wire nodad", "link set wire up"):
                subprocess.run(["ip", "-n", name, *command.split()], check=True)
        yield near, far


def protect_all_between(kit, local, remote):
    """A socket that IKE could use, with a policy for everything else."""
    netlink = XfrmNetlink()
    hosts = {"local_ts": kit.selectors(f"{local}/128"), "remote_ts": kit.selectors(f"{remote}/128")}
    ends = {"local": kit.endpoint(local), "remote": kit.endpoint(remote)}
    kit.result(KernelDataplane(netlink).add_policy(kit.policy(mode=Mode.TRANSPORT, **hosts, **ends)))
    netlink.close()
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.settimeout(3)
    bypass(sock)
    sock.bind((local, 500))
    return sock


@pytest.mark.parametrize("found", [True, False])
def test_neighbours_find_each_other_though_all_between_them_is_protected_rfc4861(kit, neighbours, monkeypatch, found):
    if not found:
        monkeypatch.setattr("monitor.xfrm.policy._discovery", lambda local, remote: ())
    near, far = neighbours
    with kit.entered(near):
        ours = protect_all_between(kit, "2001:db8::1", "2001:db8::2")
    with kit.entered(far):
        theirs = protect_all_between(kit, "2001:db8::2", "2001:db8::1")
    with ours, theirs:
        ours.sendto(b"IKE", ("2001:db8::2", 500))
        if found:
            assert theirs.recv(10) == b"IKE"
        else:
            with pytest.raises(TimeoutError):
                theirs.recv(10)
