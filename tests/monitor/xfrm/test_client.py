"""What the data plane asks of the kernel, in which order, and what it takes back when the kernel refuses."""

import errno
import ipaddress
import socket
from collections import Counter
from dataclasses import replace

import pytest

from monitor.dataplane import DataplaneError, Traffic
from monitor.xfrm import sa
from monitor.xfrm.client import KernelDataplane
from monitor.xfrm.messages import Type
from monitor.xfrm.netlink import KernelError
from monitor.xfrm.sa import SaId
from privsep.algorithms import ChildSuite
from privsep.iana import ProtocolId
from privsep.types import Spi


class FakeKernel:
    """Records what it is asked. `refuse[type]` is the errno of every such request, or of those after `allow` ones."""

    def __init__(self):
        self.done = []
        self.refuse = {}
        self.allow = Counter()
        self.present = {}
        self.next_spi = 0x1000

    def kinds(self):
        return [message.kind for message in self.done]

    def spis(self, kind):
        return [int.from_bytes(message["spi"]) for message in self.done if message.kind is kind]

    def do(self, message):
        self.done.append(message)
        self.allow[message.kind] -= 1
        if message.kind in self.refuse and self.allow[message.kind] < 0:
            raise KernelError(message.kind.name, self.refuse[message.kind], "for the test")

    def ask(self, message, answer):
        self.do(message)
        values = dict(self.present)
        if message.kind is Type.ALLOCSPI:
            values, self.next_spi = {"id.spi": self.next_spi.to_bytes(4)}, self.next_spi + 1
        found = answer()
        found.update(values)
        found["attrs"] = values.get("attrs", [])
        return found


@pytest.fixture
def kernel():
    return FakeKernel()


@pytest.fixture
def plane(kernel):
    return KernelDataplane(kernel)


@pytest.fixture
def installed(kit, kernel, plane):
    """A pair that stands; the record starts after it."""
    pair = kit.pair()
    plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol)
    kit.result(plane.install(pair))
    kernel.done.clear()
    return pair


def test_the_inbound_sa_takes_the_larval_ones_place_and_the_outbound_is_new(kit, kernel, plane):
    pair = kit.pair()
    assert plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol) == 0x1000
    kit.result(plane.install(pair))
    assert kernel.kinds() == [Type.ALLOCSPI, Type.UPDSA, Type.NEWSA]
    assert kernel.done[1]["id.spi"] == (0x1000).to_bytes(4)
    assert kernel.done[2]["id.spi"] == (0x2000).to_bytes(4)


def test_an_inbound_spi_that_was_not_allocated_is_not_installed(kit, kernel, plane):
    with pytest.raises(DataplaneError, match="not reserved"):
        kit.result(plane.install(kit.pair()))
    assert kernel.done == []


def test_an_spi_is_installed_once(kit, kernel, plane, installed):
    with pytest.raises(DataplaneError, match="not reserved"):
        kit.result(plane.install(installed))
    assert kernel.done == []


def test_an_allocation_for_another_address_does_not_count(kit, kernel, plane):
    plane.allocate_spi(kit.endpoint("192.0.2.77"), kit.endpoint("192.0.2.2"), ProtocolId.ESP)
    with pytest.raises(DataplaneError, match="not reserved"):
        kit.result(plane.install(kit.pair()))


def test_an_outbound_sa_that_exists_is_not_replaced_and_nothing_stays(kit, kernel, plane):
    pair = kit.pair()
    plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol)
    kernel.refuse[Type.NEWSA] = errno.EEXIST
    with pytest.raises(DataplaneError, match="EEXIST"):
        kit.result(plane.install(pair))
    assert kernel.kinds() == [Type.ALLOCSPI, Type.UPDSA, Type.NEWSA, Type.DELSA]
    assert kernel.spis(Type.DELSA) == [0x1000]
    assert plane.owner(SaId(pair.remote.address, ProtocolId.ESP, pair.spi_out)) is None


def test_a_refused_inbound_sa_takes_the_larval_one_along(kit, kernel, plane):
    pair = kit.pair()
    plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol)
    kernel.refuse[Type.UPDSA] = errno.EPROTONOSUPPORT
    with pytest.raises(DataplaneError, match=r"^UPDSA: EPROTONOSUPPORT \(for the test\)$"):
        kit.result(plane.install(pair))
    assert kernel.kinds() == [Type.ALLOCSPI, Type.UPDSA, Type.DELSA]


AH = ChildSuite.parse("sha256", ProtocolId.AH)


def test_an_spi_of_one_protocol_is_none_of_the_other_rfc4301_4_1(kit, kernel, plane):
    pair = kit.pair(kit.ah, **kit.keyed(AH))
    plane.allocate_spi(pair.local, pair.remote, ProtocolId.ESP)
    with pytest.raises(DataplaneError, match="not reserved"):
        kit.result(plane.install(pair))
    plane.release_spi(Spi(0x1000), pair.local, pair.remote, ProtocolId.AH)
    assert kernel.kinds() == [Type.ALLOCSPI]


def test_all_that_concerns_an_ah_pair_says_ah_rfc4302(kit, kernel, plane):
    pair = kit.pair(kit.ah, **kit.keyed(AH))
    kit.result(plane.add_policy(pair.policy))
    plane.allocate_spi(pair.local, pair.remote, ProtocolId.AH)
    kit.result(plane.install(pair))
    kit.result(plane.traffic(pair))
    kit.result(plane.remove(pair))
    policies, sas = kernel.done[:3], kernel.done[3:]
    assert {dict(message["attrs"])["XFRMA_TMPL"]["id.proto"] for message in policies} == {51}
    fields = {Type.ALLOCSPI: "info.id.proto", Type.UPDSA: "id.proto", Type.NEWSA: "id.proto"}
    assert [message[fields.get(message.kind, "proto")] for message in sas] == [51] * 7
    assert [name for name, _ in kernel.done[4]["attrs"]] == ["XFRMA_ALG_AUTH_TRUNC", "XFRMA_REPLAY_ESN_VAL"]


@pytest.mark.parametrize(
    ("protocol", "keyword", "over_ipv6", "flags"),
    [
        (ProtocolId.AH, "sha256", False, 64),  # RFC 4302 section 2.6: 4 octets over IPv4, 8 over IPv6
        (ProtocolId.AH, "sha256", True, 0),
        (ProtocolId.AH, "sha256-esn", False, 64 | 128),
        (ProtocolId.ESP, "aes128gcm16", False, 0),
        (ProtocolId.ESP, "aes128gcm16-esn", True, 128),
    ],
)
def test_flags_of_an_sa(kit, kernel, plane, protocol, keyword, over_ipv6, flags):
    suite = ChildSuite.parse(keyword, protocol)
    chosen = replace(kit.over_ipv6 if over_ipv6 else kit.policy(), protocol=protocol)
    pair = kit.pair(chosen, **kit.keyed(suite))
    plane.allocate_spi(pair.local, pair.remote, protocol)
    kit.result(plane.install(pair))
    assert [message["flags"] for message in kernel.done[1:]] == [flags, flags]


@pytest.mark.parametrize(
    ("window", "esn", "plain", "attribute"),
    [
        (32, False, 32, None),
        (33, False, 0, {"bmp_len": 2, "replay_window": 33}),
        (4096, False, 0, {"bmp_len": 128, "replay_window": 4096}),
        (32, True, 0, {"bmp_len": 1, "replay_window": 32}),
        (1024, True, 0, {"bmp_len": 32, "replay_window": 1024}),
    ],
)
def test_windows_above_32_and_extended_numbers_go_into_an_attribute(kit, kernel, plane, window, esn, plain, attribute):
    suite = ChildSuite.parse("aes256gcm16-esn" if esn else "aes256gcm16")
    pair = kit.pair(suite=suite, replay_window=window)
    plane.allocate_spi(pair.local, pair.remote, ProtocolId.ESP)
    kit.result(plane.install(pair))
    inbound, outbound = kernel.done[1:]
    assert inbound.get("replay_window", 0) == plain
    assert dict(inbound["attrs"]).get("XFRMA_REPLAY_ESN_VAL") == attribute
    assert outbound.get("replay_window", 0) == 0
    # an outbound SA with extended numbers keeps their upper half in the same attribute
    expected = {"bmp_len": 1, "replay_window": 32} if esn else None
    assert dict(outbound["attrs"]).get("XFRMA_REPLAY_ESN_VAL") == expected


def test_a_released_spi_is_deleted_once(kit, kernel, plane):
    local, remote = kit.endpoint("192.0.2.1"), kit.endpoint("192.0.2.2")
    spi = plane.allocate_spi(local, remote, ProtocolId.ESP)
    plane.release_spi(spi, local, remote, ProtocolId.ESP)
    plane.release_spi(spi, local, remote, ProtocolId.ESP)
    assert kernel.spis(Type.DELSA) == [0x1000]


def test_releasing_an_installed_spi_does_nothing(kernel, plane, installed):
    plane.release_spi(installed.spi_in, installed.local, installed.remote, ProtocolId.ESP)
    assert kernel.done == []


def test_removing_takes_both_and_is_harmless_when_they_are_gone(kit, kernel, plane, installed):
    kernel.refuse[Type.DELSA] = errno.ESRCH
    kit.result(plane.remove(installed))
    kit.result(plane.remove(installed))
    assert kernel.spis(Type.DELSA) == [0x1000, 0x2000] * 2


def test_a_removal_that_fails_is_told_and_may_be_tried_again(kit, kernel, plane, installed):
    kernel.refuse[Type.DELSA] = errno.EPERM
    with pytest.raises(DataplaneError, match="EPERM"):
        kit.result(plane.remove(installed))
    assert plane.owner(SaId(installed.local.address, ProtocolId.ESP, installed.spi_in)) == installed.spi_in


def test_a_tunnel_has_policies_out_in_and_forward(kit, kernel, plane):
    kit.result(plane.add_policy(kit.policy()))
    assert [(message.kind, message["dir"]) for message in kernel.done] == [
        (Type.NEWPOLICY, 1),
        (Type.NEWPOLICY, 0),
        (Type.NEWPOLICY, 2),
    ]


def test_transport_mode_forwards_nothing_rfc4301_4_1(kit, kernel, plane):
    kit.result(plane.add_policy(kit.hosts))
    assert [message["dir"] for message in kernel.done] == [1, 0]
    _, template = kernel.done[0]["attrs"][0]
    assert (template["saddr"], template["id.daddr"]) == (b"", b"")


def test_each_local_selector_meets_each_remote_of_its_family(kit, kernel, plane):
    chosen = kit.policy(
        local_ts=kit.selectors("10.1.0.0/16", "10.3.0.0/16", "fd00:1::/64"),
        remote_ts=kit.selectors("10.2.0.0/16", "fd00:2::/64"),
    )
    kit.result(plane.add_policy(chosen))
    assert len(kernel.done) == 3 * 3
    assert Counter(message["sel.family"] for message in kernel.done) == {socket.AF_INET: 6, socket.AF_INET6: 3}


def test_selectors_of_different_protocols_share_no_traffic(kit, kernel, plane):
    chosen = kit.policy(
        local_ts=kit.selectors("10.1.0.0/16", protocol=6), remote_ts=kit.selectors("10.2.0.0/16", protocol=17)
    )
    kit.result(plane.add_policy(chosen))
    assert kernel.done == []


def test_the_more_specific_policy_goes_first(kit, kernel, plane):
    for remote in (
        kit.selectors("10.0.0.0/8"),
        kit.selectors("10.2.0.0/16"),
        kit.selectors("10.2.0.0/16", protocol=6),
        kit.selectors("10.2.0.0/16", protocol=6, port=80),
        kit.selectors("10.2.3.0/24"),
    ):
        kit.result(plane.add_policy(kit.policy(remote_ts=remote)))
    priorities = [message["priority"] for message in kernel.done if message["dir"] == 1]
    assert priorities == sorted(priorities, reverse=True)
    assert len(set(priorities)) == 5


def test_a_policy_that_is_refused_half_way_leaves_nothing(kit, kernel, plane):
    kernel.refuse[Type.NEWPOLICY] = errno.ENOMEM
    kernel.allow[Type.NEWPOLICY] = 2
    with pytest.raises(DataplaneError, match="ENOMEM"):
        kit.result(plane.add_policy(kit.policy()))
    assert [message["dir"] for message in kernel.done if message.kind is Type.DELPOLICY] == [1, 0]


def leave(kernel, priority, optional):
    kernel.refuse[Type.NEWPOLICY] = errno.EEXIST
    kernel.present = {"priority": priority, "attrs": [("XFRMA_TMPL", {"optional": optional})]}


def test_a_policy_that_an_earlier_instance_left_is_replaced_in_one_step(kit, kernel, plane):
    leave(kernel, 0x494B45 - 128, optional=0)
    kit.result(plane.add_policy(kit.policy()))
    assert kernel.kinds() == [Type.NEWPOLICY, Type.GETPOLICY, Type.UPDPOLICY] * 3


@pytest.mark.parametrize(("priority", "optional"), [(0, 0), (0x494B45 + 1, 0), (0x494B45 - 128, 1)])
def test_somebody_elses_policy_is_not_replaced(kit, kernel, plane, priority, optional):
    leave(kernel, priority, optional)
    with pytest.raises(DataplaneError, match="EEXIST"):
        kit.result(plane.add_policy(kit.policy()))
    assert Type.UPDPOLICY not in kernel.kinds()
    assert Type.DELPOLICY not in kernel.kinds()


def test_removing_a_policy_takes_all_directions_and_is_harmless_when_they_are_gone(kit, kernel, plane):
    kernel.refuse[Type.DELPOLICY] = errno.ENOENT
    kit.result(plane.remove_policy(kit.policy()))
    assert [message["dir"] for message in kernel.done] == [1, 0, 2]


def test_traffic_is_the_kernels_counters(kit, kernel, plane, installed):
    kernel.present = {"curlft.bytes": 840, "curlft.packets": 10}
    expected = Traffic(bytes_in=840, bytes_out=840, packets_in=10, packets_out=10)
    assert kit.result(plane.traffic(installed)) == expected
    assert kernel.spis(Type.GETSA) == [0x1000, 0x2000]


def test_traffic_of_a_pair_that_is_gone_is_an_error(kit, kernel, plane, installed):
    kernel.refuse[Type.GETSA] = errno.ESRCH
    with pytest.raises(DataplaneError, match="ESRCH"):
        kit.result(plane.traffic(installed))


@pytest.mark.parametrize("which", ["inbound", "outbound"])
def test_when_one_sa_ends_the_other_goes_too(kernel, plane, installed, which):
    names = {
        "inbound": SaId(installed.local.address, ProtocolId.ESP, installed.spi_in),
        "outbound": SaId(installed.remote.address, ProtocolId.ESP, installed.spi_out),
    }
    assert plane.ended(names[which]) == installed.spi_in
    assert kernel.spis(Type.DELSA) == [0x1000, 0x2000]
    assert plane.ended(names[which]) is None


def test_a_peers_spi_is_not_mistaken_for_one_of_ours(plane, installed):
    ours = SaId(installed.local.address, ProtocolId.ESP, installed.spi_in)
    assert plane.owner(ours) == installed.spi_in
    address = ipaddress.ip_address("192.0.2.99")
    for stranger in (replace(ours, destination=address), replace(ours, protocol=ProtocolId.AH)):
        assert plane.owner(stranger) is None
        assert plane.ended(stranger) is None


def test_after_lost_events_what_vanished_is_found(kit, kernel, plane, installed):
    waiting = plane.allocate_spi(installed.local, installed.remote, ProtocolId.ESP)
    assert plane.vanished() == []
    kernel.refuse[Type.GETSA] = errno.ESRCH
    assert plane.vanished() == [installed.spi_in, waiting]
    assert plane.vanished() == []


def test_a_single_pair_of_selectors_narrows_the_sa_below_its_policy(kit, kernel, plane):
    pair = kit.pair(local_ts=kit.selectors("10.1.7.0/24"), remote_ts=kit.selectors("10.2.0.0/16"))
    plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol)
    kit.result(plane.install(pair))
    inbound, outbound = kernel.done[1:]
    assert (inbound["sel.prefixlen_d"], inbound["sel.prefixlen_s"]) == (24, 16)
    assert (outbound["sel.prefixlen_d"], outbound["sel.prefixlen_s"]) == (16, 24)


def test_only_the_inbound_sa_has_a_soft_lifetime_and_a_replay_window(kit, kernel, plane):
    pair = kit.pair(lifetime=1000)
    plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol)
    kit.result(plane.install(pair))
    inbound, outbound = kernel.done[1:]
    assert (inbound["lft.soft_add_expires_seconds"], inbound["lft.hard_add_expires_seconds"]) == (900, 1000)
    assert (outbound["lft.soft_add_expires_seconds"], outbound["lft.hard_add_expires_seconds"]) == (0, 1000)
    assert dict(inbound["attrs"])["XFRMA_REPLAY_ESN_VAL"] == {"bmp_len": 2, "replay_window": 64}
    assert "XFRMA_REPLAY_ESN_VAL" not in dict(outbound["attrs"])


def test_nothing_that_is_kept_holds_a_key(plane, installed):
    kept = [getattr(ends, name) for ends in plane._installed.values() for name in ends.__slots__]
    assert kept
    assert not any(isinstance(value, bytes) for value in kept)


def lanes(message):
    """What of a message's attributes is no template and no key."""
    return {name: values for name, values in message["attrs"] if name in ("XFRMA_MARK", "XFRMA_IF_ID")}


OUTWARD = {"XFRMA_MARK": {"value": 0x10, "mask": 0xFF}, "XFRMA_IF_ID": {"value": 42}}
INWARD = {"XFRMA_MARK": {"value": 0x20, "mask": 0xF0}, "XFRMA_IF_ID": {"value": 41}}


def test_a_policy_is_made_and_removed_in_its_lane(kit, kernel, plane):
    kit.result(plane.add_policy(kit.in_lane))
    kit.result(plane.remove_policy(kit.in_lane))
    assert [lanes(message) for message in kernel.done] == [OUTWARD, INWARD, INWARD] * 2


def test_a_policy_in_the_way_is_looked_for_in_the_lane(kit, kernel, plane):
    leave(kernel, 0x494B45 - 128, optional=0)
    kit.result(plane.add_policy(kit.in_lane))
    assert kernel.kinds() == [Type.NEWPOLICY, Type.GETPOLICY, Type.UPDPOLICY] * 3
    assert [lanes(message) for message in kernel.done] == [OUTWARD] * 3 + [INWARD] * 6


@pytest.mark.parametrize(
    ("priority", "reqid", "optional", "replaced"),
    [(77, 70000, 0, True), (77, 70000, 1, False), (77, 7, 0, False), (78, 70000, 0, False)],
)
def test_a_configured_priority_and_reqid_together_tell_that_a_policy_is_ours(
    kit, kernel, plane, priority, reqid, optional, replaced
):
    kernel.refuse[Type.NEWPOLICY] = errno.EEXIST
    kernel.present = {"priority": priority, "attrs": [("XFRMA_TMPL", {"optional": optional, "reqid": reqid})]}
    if replaced:
        kit.result(plane.add_policy(kit.in_lane))
    else:
        with pytest.raises(DataplaneError, match="EEXIST"):
            kit.result(plane.add_policy(kit.in_lane))
    assert (Type.UPDPOLICY in kernel.kinds()) is replaced


def test_an_sa_of_a_lane_is_found_by_its_mark_and_known_without(kit, kernel, plane):
    pair = kit.pair(kit.in_lane)
    plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol)
    kit.result(plane.install(pair))
    kernel.done.clear()
    kit.result(plane.traffic(pair))
    kit.result(plane.remove(pair))
    found = {"XFRMA_MARK": OUTWARD["XFRMA_MARK"]}
    assert [lanes(message) for message in kernel.done] == [{}, found] * 2


@pytest.mark.parametrize("which", ["inbound", "outbound"])
def test_an_event_names_no_mark_and_the_other_sa_is_removed_by_its(kit, kernel, plane, which):
    pair = kit.pair(kit.in_lane)
    plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol)
    kit.result(plane.install(pair))
    kernel.done.clear()
    name = {
        "inbound": SaId(pair.local.address, ProtocolId.ESP, pair.spi_in),
        "outbound": SaId(pair.remote.address, ProtocolId.ESP, pair.spi_out),
    }[which]
    assert plane.owner(name) == pair.spi_in
    assert plane.ended(name) == pair.spi_in
    assert lanes(kernel.done[1]) == {"XFRMA_MARK": OUTWARD["XFRMA_MARK"]}


def test_what_comes_in_gets_the_mark_that_its_policies_look_for(kit):
    attributes = dict(sa.inbound(kit.pair(kit.in_lane))[1])
    assert (attributes["XFRMA_SET_MARK"], attributes["XFRMA_SET_MARK_MASK"]) == ({"value": 0x20}, {"value": 0xF0})
    assert "XFRMA_MARK" not in attributes, "the peer's packets have none yet when the SA is looked for"
    assert "XFRMA_SET_MARK" not in dict(sa.outbound(kit.pair(kit.in_lane))[1])


def test_an_acquire_is_for_the_policy_with_that_reqid_and_a_priority_of_ours(kit, plane):
    kit.result(plane.add_policy(kit.in_lane))
    kit.result(plane.add_policy(kit.policy(number=3)))
    assert plane.requiring(70000, 77) == 7
    assert plane.requiring(3, 0x494B45 - 128) == 3
    for reqid, priority in ((70000, 78), (3, 77), (7, 77), (4, 0x494B45)):
        assert plane.requiring(reqid, priority) is None
    kit.result(plane.remove_policy(kit.in_lane))
    assert plane.requiring(70000, 77) is None


@pytest.mark.parametrize(("spi_in", "share"), [(0x1000, 80), (0x3000, 92)])
def test_the_ends_ask_for_a_successor_one_before_the_other(kit, spi_in, share):
    pair = kit.pair(kit.limited, spi_in=Spi(spi_in))
    for values, _ in (sa.inbound(pair), sa.outbound(pair)):
        assert (values["lft.soft_packet_limit"], values["lft.hard_packet_limit"]) == (10 * share, 1000)
        assert (values["lft.soft_byte_limit"], values["lft.hard_byte_limit"]) == ((1 << 20) * share // 100, 1 << 20)


def test_a_kernel_that_knows_directions_is_told_them(kit, kernel):
    for directed, ways in ((False, [None] * 3), (True, [1, 1, 2])):
        kernel.done.clear()
        plane = KernelDataplane(kernel, directed=directed)
        spi = plane.allocate_spi(kit.pair().local, kit.pair().remote, ProtocolId.ESP)
        kit.result(plane.install(kit.pair(spi_in=spi, suite=ChildSuite.parse("aes256gcm16-esn"))))
        assert [dict(message["attrs"]).get("XFRMA_SA_DIR", {}).get("value") for message in kernel.done] == ways
        window = dict(kernel.done[2]["attrs"])["XFRMA_REPLAY_ESN_VAL"]
        # Linux refuses a window of what is told to be outbound, and none of what is not
        assert (window["bmp_len"], window["replay_window"]) == ((0, 0) if directed else (1, 32))
