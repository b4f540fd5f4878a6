"""What the data plane asks of the kernel, in which order, and what it takes back when the kernel refuses."""

import errno
import ipaddress
import socket
from collections import Counter
from dataclasses import replace

import pytest

from monitor.dataplane import Cpis, DataplaneError, Traffic
from monitor.xfrm import sa
from monitor.xfrm.client import HOLD_SECONDS, KernelDataplane, Later
from monitor.xfrm.ends import Ends
from monitor.xfrm.messages import Type
from monitor.xfrm.netlink import KernelError, XfrmNetlink
from monitor.xfrm.policy import DISCOVERY_PRIORITY, PRIORITY_BASE, SHUNT_BASES
from monitor.xfrm.sa import SaId
from privsep.algorithms import ChildSuite
from privsep.config.lanes import KernelOptions
from privsep.config.model import Action, Order, Shunt
from privsep.iana import ProtocolId
from privsep.types import Mode, Role, Spi


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

    do_unless = XfrmNetlink.do_unless

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
    kit.result(kit.install(plane, pair))
    kernel.done.clear()
    return pair


def test_the_inbound_sa_takes_the_larval_ones_place_and_the_outbound_is_new(kit, kernel, plane):
    pair = kit.pair()
    assert plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol) == 0x1000
    kit.result(kit.install(plane, pair))
    assert kernel.kinds() == [Type.ALLOCSPI, Type.UPDSA, Type.NEWSA]
    assert kernel.done[1]["id.spi"] == (0x1000).to_bytes(4)
    assert kernel.done[2]["id.spi"] == (0x2000).to_bytes(4)


def test_an_inbound_spi_that_was_not_allocated_is_not_installed(kit, kernel, plane):
    with pytest.raises(DataplaneError, match="not reserved"):
        kit.result(kit.install(plane, kit.pair()))
    assert kernel.done == []


def test_an_spi_is_installed_once(kit, kernel, plane, installed):
    with pytest.raises(DataplaneError, match="not reserved"):
        kit.result(kit.install(plane, installed))
    assert kernel.done == []


def test_an_allocation_for_another_address_does_not_count(kit, kernel, plane):
    plane.allocate_spi(kit.endpoint("192.0.2.77"), kit.endpoint("192.0.2.2"), ProtocolId.ESP)
    with pytest.raises(DataplaneError, match="not reserved"):
        kit.result(kit.install(plane, kit.pair()))


CPI, PEERS_CPI = 0x1001, 0x500


@pytest.fixture
def compressed(kit, kernel, plane):
    """A pair with IPComp, its SPI and CPI allocated."""
    pair = kit.pair(kit.policy(ipcomp=True), ipcomp=Cpis(inbound=CPI, outbound=PEERS_CPI))
    plane.allocate_spi(pair.local, pair.remote, ProtocolId.ESP)
    assert plane.allocate_spi(pair.local, pair.remote, ProtocolId.IPCOMP) == CPI
    assert (kernel.done[1]["min"], kernel.done[1]["max"]) == (256, 61439)
    kernel.done.clear()
    return pair


def kinds_and_protocols(kernel):
    return [(message.kind, message["id.proto"], message["mode"]) for message in kernel.done]


def test_ipcomp_makes_the_tunnel_and_esp_is_around_it_rfc3173(kit, kernel, plane, compressed):
    kit.result(kit.install(plane, compressed))
    assert kinds_and_protocols(kernel) == [
        (Type.UPDSA, 108, 1),
        (Type.UPDSA, 50, 0),
        (Type.NEWSA, 108, 1),
        (Type.NEWSA, 50, 0),
    ]
    assert [message["lft.hard_add_expires_seconds"] for message in kernel.done] == [3600] * 4


def test_a_cpi_that_was_not_allocated_is_not_installed(kit, kernel, plane, compressed):
    plane.release_spi(Spi(CPI), compressed.local, compressed.remote, ProtocolId.IPCOMP)
    kernel.done.clear()
    with pytest.raises(DataplaneError, match="not reserved"):
        kit.result(kit.install(plane, compressed))
    assert kernel.done == []


@pytest.mark.parametrize(("accepted", "deleted"), [(0, [0x1000, CPI]), (1, [PEERS_CPI, 0x1000, CPI])])
def test_a_refusal_takes_what_stands_and_nobody_elses(kit, kernel, plane, compressed, accepted, deleted):
    kernel.refuse[Type.NEWSA], kernel.allow[Type.NEWSA] = errno.EEXIST, accepted
    with pytest.raises(DataplaneError, match="EEXIST"):
        kit.result(kit.install(plane, compressed))
    assert kernel.spis(Type.DELSA) == deleted


@pytest.mark.parametrize("which", ["inbound", "outbound", "decompressing", "compressing"])
def test_when_one_sa_of_a_bundle_ends_the_others_go_too(kit, kernel, plane, compressed, which):
    kit.result(kit.install(plane, compressed))
    kernel.done.clear()
    assert plane.ended(getattr(Ends.of(compressed), which)) == compressed.spi_in
    assert kernel.spis(Type.DELSA) == [0x1000, CPI, 0x2000, PEERS_CPI]
    assert plane.ended(getattr(Ends.of(compressed), which)) is None


def test_a_larval_cpi_that_expires_is_not_taken_for_an_spi(plane, compressed):
    assert plane.ended(Ends.of(compressed).decompressing) is None
    assert plane.ended(Ends.of(compressed).inbound) == compressed.spi_in


def templates(message):
    found = dict(message["attrs"])["XFRMA_TMPL"]
    while found is not None:
        yield found["id.proto"], found["mode"], found.get("optional", 0), found["reqid"]
        found = found.get("next")


def test_esp_is_required_in_every_direction_and_ipcomp_where_we_compress_rfc3173_2_2(kit, kernel, plane):
    kit.result(plane.add_policy(kit.policy(ipcomp=True)))
    assert {message["dir"]: list(templates(message)) for message in kernel.done} == {
        1: [(108, 1, 0, 7), (50, 0, 0, 7)],
        0: [(108, 1, 1, 7), (50, 0, 0, 7)],
        2: [(108, 1, 1, 7), (50, 0, 0, 7)],
    }


def test_in_transport_mode_both_are(kit, kernel, plane):
    kit.result(plane.add_policy(replace(kit.hosts, ipcomp=True)))
    assert {message["dir"]: list(templates(message)) for message in kernel.done} == {
        1: [(108, 0, 0, 7), (50, 0, 0, 7)],
        0: [(108, 0, 1, 7), (50, 0, 0, 7)],
    }


COMPRESSES, MAY_COMPRESS, PROTECTS, MAY_PROTECT = (
    {"id.proto": protocol, "optional": optional, "reqid": 7} for protocol in (108, 50) for optional in (0, 1)
)


@pytest.mark.parametrize(
    ("first", "second", "ours"),
    [
        (MAY_COMPRESS, PROTECTS, True),
        (COMPRESSES, PROTECTS, True),
        (PROTECTS, None, True),
        (MAY_COMPRESS, MAY_PROTECT, False),
        (COMPRESSES, MAY_PROTECT, False),
        (COMPRESSES, None, False),
        (COMPRESSES, COMPRESSES, False),
    ],
)
def test_a_policy_is_ours_if_it_requires_protection_whatever_it_compresses(kit, kernel, plane, first, second, ours):
    kernel.refuse[Type.NEWPOLICY] = errno.EEXIST
    template = first | ({} if second is None else {"next": second})
    kernel.present = {"priority": 0x494B45 - 128, "attrs": [("XFRMA_TMPL", template)]}
    try:
        kit.result(plane.add_policy(kit.policy()))
    except DataplaneError:
        assert not ours
    assert (Type.UPDPOLICY in kernel.kinds()) is ours


def test_a_pair_follows_its_peer_with_keys_that_are_not_its_own(kit, kernel, plane):
    pair = kit.pair(**kit.natted)
    plane.allocate_spi(pair.local, pair.remote, ProtocolId.ESP)
    kit.result(kit.install(plane, pair))
    kernel.done.clear()
    kit.result(
        plane.follow(replace(pair, remote=kit.endpoint("192.0.2.2", 40001), encryption_in=b"", encryption_out=b""))
    )
    outbound, inbound = kernel.done
    assert kernel.kinds() == [Type.UPDSA, Type.UPDSA], "NEWSA would refuse, DELSA would forget the sequence numbers"
    assert dict(outbound["attrs"])["XFRMA_ENCAP"]["dport"] == (40001).to_bytes(2)
    assert dict(inbound["attrs"])["XFRMA_ENCAP"]["sport"] == (40001).to_bytes(2)
    for message, key in ((outbound, pair.encryption_out), (inbound, pair.encryption_in)):
        assert len(dict(message["attrs"])["XFRMA_ALG_AEAD"]["key"]) == 36
        assert dict(message["attrs"])["XFRMA_ALG_AEAD"]["key"] != key


def test_a_pair_that_is_gone_follows_nobody(kit, kernel, plane):
    with pytest.raises(DataplaneError, match="gone"):
        kit.result(plane.follow(kit.pair(**kit.natted)))
    assert kernel.done == []


def test_an_outbound_sa_that_exists_is_not_replaced_and_nothing_stays(kit, kernel, plane):
    pair = kit.pair()
    plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol)
    kernel.refuse[Type.NEWSA] = errno.EEXIST
    with pytest.raises(DataplaneError, match="EEXIST"):
        kit.result(kit.install(plane, pair))
    assert kernel.kinds() == [Type.ALLOCSPI, Type.UPDSA, Type.NEWSA, Type.DELSA]
    assert kernel.spis(Type.DELSA) == [0x1000]
    assert plane.owner(SaId(pair.remote.address, ProtocolId.ESP, pair.spi_out)) is None


def test_a_half_pair_that_goes_leaves_the_sa_that_stood_in_its_way(kit, kernel, plane):
    """Its own outbound SA was refused, as one of that name is another pair's."""
    first = kit.pair()
    second = replace(first, spi_in=Spi(0x1001))
    for pair in (first, second):
        kernel.spi = pair.spi_in
        plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol)
        kit.result(plane.install_inbound(pair))
    kit.result(plane.install_outbound(first))
    kernel.refuse[Type.NEWSA] = errno.EEXIST
    with pytest.raises(DataplaneError, match="EEXIST"):
        kit.result(plane.install_outbound(second))
    kit.result(plane.remove(second))
    assert kernel.spis(Type.DELSA) == [0x1001]
    assert plane.owner(SaId(first.remote.address, ProtocolId.ESP, first.spi_out)) == first.spi_in
    kit.result(plane.remove(first))
    assert kernel.spis(Type.DELSA) == [0x1001, 0x1000, 0x2000]


def test_a_refused_inbound_sa_takes_the_larval_one_along(kit, kernel, plane):
    pair = kit.pair()
    plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol)
    kernel.refuse[Type.UPDSA] = errno.EPROTONOSUPPORT
    with pytest.raises(DataplaneError, match=r"^UPDSA: EPROTONOSUPPORT \(for the test\)$"):
        kit.result(kit.install(plane, pair))
    assert kernel.kinds() == [Type.ALLOCSPI, Type.UPDSA, Type.DELSA]


AH = ChildSuite.parse("sha256", ProtocolId.AH)


def test_an_spi_of_one_protocol_is_none_of_the_other_rfc4301_4_1(kit, kernel, plane):
    pair = kit.pair(kit.ah, **kit.keyed(AH))
    plane.allocate_spi(pair.local, pair.remote, ProtocolId.ESP)
    with pytest.raises(DataplaneError, match="not reserved"):
        kit.result(kit.install(plane, pair))
    plane.release_spi(Spi(0x1000), pair.local, pair.remote, ProtocolId.AH)
    assert kernel.kinds() == [Type.ALLOCSPI]


def test_all_that_concerns_an_ah_pair_says_ah_rfc4302(kit, kernel, plane):
    pair = kit.pair(kit.ah, **kit.keyed(AH))
    kit.result(plane.add_policy(pair.policy))
    plane.allocate_spi(pair.local, pair.remote, ProtocolId.AH)
    kit.result(kit.install(plane, pair))
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
    kit.result(kit.install(plane, pair))
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
    kit.result(kit.install(plane, pair))
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
    assert kernel.spis(Type.DELSA) == [0x1000, 0x2000]


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


def between_hosts(kit, **changes):
    ends = {"local": kit.endpoint("2001:db8::1"), "remote": kit.endpoint("2001:db8::2")}
    hosts = {"local_ts": kit.selectors("2001:db8::1/128"), "remote_ts": kit.selectors("2001:db8::2/128")}
    return kit.policy(**(ends | hosts | changes))


def test_neighbours_find_each_other_in_clear_both_ways_and_nothing_else_does_rfc4861(kit, kernel, plane):
    kit.result(plane.add_policy(between_hosts(kit)))
    protected = [message["priority"] for message in kernel.done if message["attrs"]]
    clear = [message for message in kernel.done if not message["attrs"]]
    assert [(each["dir"], int.from_bytes(each["sel.sport"])) for each in clear] == [
        (1, 135),
        (0, 135),
        (1, 136),
        (0, 136),
    ]
    assert {each["sel.proto"] for each in clear} == {58}
    assert {each["sel.sport_mask"] for each in clear} == {b"\xff\xff"}
    assert {(each["sel.prefixlen_s"], each["sel.prefixlen_d"]) for each in clear} == {(128, 128)}
    assert max(each["priority"] for each in clear) < min(protected)
    kit.result(plane.remove_policy(between_hosts(kit)))
    kinds = kernel.kinds()
    assert kinds.count(Type.DELPOLICY) == kinds.count(Type.NEWPOLICY)


def test_where_the_gateways_themselves_are_not_in_the_selectors_nothing_is_in_clear(kit, kernel, plane):
    several = (
        between_hosts(kit, local_ts=kit.selectors("fd00:1::/64"), remote_ts=kit.selectors("fd00:2::/64")),
        between_hosts(kit, remote_ts=kit.selectors("2001:db8::2/128", protocol=6)),
        kit.hosts,
        kit.policy(),
    )
    for number, chosen in enumerate(several, 1):
        kit.result(plane.add_policy(replace(chosen, number=number)))
    assert all(message["attrs"] for message in kernel.done)


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
    several = (
        kit.selectors("10.0.0.0/8"),
        kit.selectors("10.2.0.0/16"),
        kit.selectors("10.2.0.0/16", protocol=6),
        kit.selectors("10.2.0.0/16", protocol=6, port=80),
        kit.selectors("10.2.3.0/24"),
    )
    for number, remote in enumerate(several, 1):
        kit.result(plane.add_policy(kit.policy(number=number, remote_ts=remote)))
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
    kernel.present = {"priority": priority, "attrs": [("XFRMA_TMPL", {"id.proto": 50, "optional": optional})]}


def test_a_policy_that_an_earlier_instance_left_is_replaced_in_one_step(kit, kernel, plane):
    leave(kernel, 0x494B45 - 128, optional=0)
    kit.result(plane.add_policy(kit.policy()))
    assert kernel.kinds() == [Type.NEWPOLICY, Type.GETPOLICY, Type.UPDPOLICY] * 3


def test_what_an_earlier_instance_left_for_neighbours_is_replaced(kit, kernel, plane):
    kernel.refuse[Type.NEWPOLICY] = errno.EEXIST
    kernel.allow[Type.NEWPOLICY] = 3
    kernel.present = {"priority": DISCOVERY_PRIORITY}
    kit.result(plane.add_policy(between_hosts(kit)))
    assert kernel.kinds() == [Type.NEWPOLICY] * 3 + [Type.NEWPOLICY, Type.GETPOLICY, Type.UPDPOLICY] * 4


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
    kit.result(kit.install(plane, pair))
    inbound, outbound = kernel.done[1:]
    assert (inbound["sel.prefixlen_d"], inbound["sel.prefixlen_s"]) == (24, 16)
    assert (outbound["sel.prefixlen_d"], outbound["sel.prefixlen_s"]) == (16, 24)


def test_only_the_inbound_sa_has_a_soft_lifetime_and_a_replay_window(kit, kernel, plane):
    pair = kit.pair(lifetime=1000)
    plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol)
    kit.result(kit.install(plane, pair))
    inbound, outbound = kernel.done[1:]
    assert (inbound["lft.soft_add_expires_seconds"], inbound["lft.hard_add_expires_seconds"]) == (900, 1000)
    assert (outbound["lft.soft_add_expires_seconds"], outbound["lft.hard_add_expires_seconds"]) == (0, 1000)
    assert dict(inbound["attrs"])["XFRMA_REPLAY_ESN_VAL"] == {"bmp_len": 2, "replay_window": 64}
    assert "XFRMA_REPLAY_ESN_VAL" not in dict(outbound["attrs"])


def test_nothing_that_is_kept_holds_a_key(plane, installed):
    kept = [getattr(ends, name) for ends in plane._installed.values() for name in ends.__slots__]
    assert kept
    assert not any(isinstance(value, bytes) for value in kept)


# what an earlier instance left


def described(pair, *, outbound=False, **changes):
    """What the kernel has of one of the pair's SAs."""
    source, destination = (pair.local, pair.remote) if outbound else (pair.remote, pair.local)
    encap = {"type": 2, "sport": source.port.to_bytes(2), "dport": destination.port.to_bytes(2)}
    values = {
        "saddr": source.address.packed.ljust(16, b"\0"),
        "family": socket.AF_INET if source.address.version == 4 else socket.AF_INET6,
        "reqid": pair.policy.number,
        "mode": 1 if pair.policy.mode is Mode.TUNNEL else 0,
        "lft.hard_add_expires_seconds": pair.lifetime,
        "encap": encap if pair.encap else None,
    }
    return values | changes


@pytest.fixture
def having(kernel):
    """Let the kernel have SAs, by SPI."""

    def having(**sas):
        ask = kernel.ask

        def answer(message, kind):
            if message.kind is not Type.GETSA:
                return ask(message, kind)
            spi = int.from_bytes(message["spi"])
            kernel.done.append(message)
            if f"spi_{spi:x}" not in sas:
                raise KernelError("GETSA", errno.ESRCH)
            found = kind()
            found.update(sas[f"spi_{spi:x}"])
            return found

        kernel.ask = answer

    return having


@pytest.mark.parametrize("way", ["esp", "natted", "ipv6", "transport"])
def test_a_pair_that_the_kernel_has_as_described_is_adopted_and_reported_on(kit, plane, having, way):
    chosen = {"ipv6": kit.over_ipv6, "transport": kit.hosts}.get(way)
    pair = kit.pair(chosen, **(kit.natted if way == "natted" else {}))
    having(spi_1000=described(pair), spi_2000=described(pair, outbound=True))
    kit.result(plane.adopt(pair))
    inbound = SaId(pair.local.address, ProtocolId.ESP, Spi(0x1000))
    assert plane.owner(SaId(pair.remote.address, ProtocolId.ESP, Spi(0x2000))) == 0x1000
    assert plane.ended(inbound) == 0x1000
    assert plane.owner(inbound) is None


def test_a_pair_that_did_not_send_yet_is_adopted_too_and_what_stands_outbound_is_not_its(kit, kernel, plane, having):
    """The peer sends by it, and would go on to."""
    pair = kit.pair()
    having(spi_1000=described(pair))
    kit.result(plane.adopt(pair))
    assert plane.owner(SaId(pair.local.address, ProtocolId.ESP, Spi(0x1000))) == 0x1000
    assert plane.owner(SaId(pair.remote.address, ProtocolId.ESP, Spi(0x2000))) is None
    kit.result(plane.remove(pair))
    assert kernel.spis(Type.DELSA) == [0x1000]


def test_what_the_kernel_does_not_say_is_not_guessed(kit, kernel, plane):
    kernel.refuse[Type.GETSA] = errno.EPERM
    for verb in plane.adopt, plane.discard:
        with pytest.raises(KernelError, match="EPERM"):
            kit.result(verb(kit.pair()))


def test_a_pair_is_forgotten_with_its_other_sa_even_if_that_cannot_be_removed(kit, kernel, plane, installed):
    kernel.refuse[Type.DELSA] = errno.EPERM
    inbound = SaId(installed.local.address, ProtocolId.ESP, installed.spi_in)
    assert plane.ended(inbound) == installed.spi_in
    assert plane.owner(inbound) is None


@pytest.mark.parametrize("sends", [True, False])
def test_an_adopted_pair_sends_until_its_successor_may_and_one_that_never_did_is_not_waited_for(
    kit, kernel, clock, having, sends
):
    plane = KernelDataplane(kernel, Later(clock, lambda spi, hard: None))
    outbound = {"spi_2000": described(kit.pair(), outbound=True)} if sends else {}
    having(spi_9000=described(kit.pair(spi_in=Spi(0x9000))), **outbound)
    kit.result(plane.adopt(kit.pair(spi_in=Spi(0x9000))))
    spi = plane.allocate_spi(kit.policy().local, kit.policy().remote, ProtocolId.ESP)
    kit.result(kit.install(plane, kit.pair(spi_in=spi, spi_out=Spi(0x3000), role=Role.INITIATOR)))
    assert (Type.NEWSA in kernel.kinds()) is not sends
    clock.advance(HOLD_SECONDS)
    assert kernel.kinds().count(Type.NEWSA) == 1


def test_a_pair_by_which_nothing_arrives_is_not_adopted(kit, kernel, plane, having):
    having(spi_2000=described(kit.pair(), outbound=True))
    with pytest.raises(DataplaneError, match="all"):
        kit.result(plane.adopt(kit.pair()))


OTHERS = {
    "another peer": {"saddr": bytes(16)},
    "another policy": {"reqid": 8},
    "larval": {"reqid": 0, "lft.hard_add_expires_seconds": 30},
    "another mode": {"mode": 0},
    "another lifetime": {"lft.hard_add_expires_seconds": 60},
    "in UDP": {"encap": {"type": 2, "sport": b"\x11\x94", "dport": b"\x11\x94"}},
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("side", ["inbound", "outbound"])
def test_an_sa_that_is_not_as_described_is_neither_adopted_nor_removed(kit, kernel, plane, having, other, side):
    pair = kit.pair()
    sas = {"spi_1000": described(pair), "spi_2000": described(pair, outbound=True)}
    foreign, own = ("spi_1000", 0x2000) if side == "inbound" else ("spi_2000", 0x1000)
    sas[foreign] |= OTHERS[other]
    having(**sas)
    with pytest.raises(DataplaneError, match="all"):
        kit.result(plane.adopt(pair))
    assert plane.owner(SaId(pair.local.address, ProtocolId.ESP, Spi(0x1000))) is None
    assert kit.result(plane.discard(pair)) is True
    assert kernel.spis(Type.DELSA) == [own]


def test_ports_of_encapsulated_sas_count(kit, plane, having):
    pair = kit.pair(**kit.natted)
    moved = described(pair)
    moved["encap"] = moved["encap"] | {"sport": b"\0\1"}
    having(spi_1000=moved, spi_2000=described(pair, outbound=True))
    with pytest.raises(DataplaneError, match="all"):
        kit.result(plane.adopt(pair))


def test_a_pair_of_which_nothing_is_left_is_nothing_to_discard(kit, kernel, plane, having):
    having()
    assert kit.result(plane.discard(kit.pair())) is False
    assert Type.DELSA not in kernel.kinds()


def leftover(**changes):
    """A policy as the kernel has it: by default ours."""
    template = {"id.proto": 50, "reqid": 7, "optional": 0}
    return {"priority": PRIORITY_BASE - 4 * 32, "attrs": [("XFRMA_TMPL", template | changes.pop("template", {}))]} | (
        changes
    )


@pytest.mark.parametrize(
    ("changes", "removed"),
    [
        ({}, 3),
        ({"template": {"reqid": 8}}, 0),
        ({"priority": 1}, 0),
        ({"template": {"optional": 1}}, 0),
        ({"attrs": []}, 0),
    ],
)
def test_of_leftover_policies_only_what_is_provably_ours_is_cleared(kit, kernel, plane, changes, removed):
    kernel.present = leftover(**changes)
    kit.result(plane.clear(kit.policy()))
    assert kernel.kinds().count(Type.DELPOLICY) == removed


def test_a_leftover_policy_in_whose_place_another_stands_is_not_cleared(kit, kernel, plane):
    kernel.present = leftover()
    kit.result(plane.add_policy(kit.policy()))
    kit.result(plane.clear(kit.policy()))
    assert Type.DELPOLICY not in kernel.kinds()
    kit.result(plane.remove_policy(kit.policy()))
    kernel.done.clear()
    kit.result(plane.clear(kit.policy()))
    assert kernel.kinds().count(Type.DELPOLICY) == 3


def test_a_leftover_policy_that_is_gone_is_no_error(kit, kernel, plane):
    kernel.refuse[Type.GETPOLICY] = errno.ENOENT
    kit.result(plane.clear(kit.policy()))
    kernel.refuse[Type.GETPOLICY] = errno.EPERM
    with pytest.raises(KernelError):
        kit.result(plane.clear(kit.policy()))


def test_what_is_ours_is_replaced_for_no_other_reason_than_that_it_is_there(kit, kernel, plane):
    kernel.refuse[Type.NEWPOLICY] = errno.EPERM
    kernel.present = leftover()
    with pytest.raises(KernelError, match="EPERM"):
        kit.result(plane.add_policy(kit.policy()))
    assert Type.UPDPOLICY not in kernel.kinds()


def around(kit, number, remote, **changes):
    """A policy that protects the outer addresses themselves, so that neighbours must be let through."""
    everything = kit.selectors("2001:db8::/32")
    ends = {"local": kit.endpoint("2001:db8::1"), "remote": kit.endpoint(remote)}
    return kit.policy(number=number, local_ts=everything, remote_ts=everything, **ends | changes)


def test_of_a_policy_whose_peer_moved_nothing_stays_where_it_was(kit, kernel, plane):
    """With those neighbours nothing is to be spoken in clear any more."""
    kit.result(plane.add_policy(around(kit, 7, "2001:db8::2")))
    kernel.done.clear()
    kit.result(plane.add_policy(around(kit, 7, "2001:db8::3")))
    removed = [message for message in kernel.done if message.kind is Type.DELPOLICY]
    ends = {(message["sel.saddr"][-1], message["sel.daddr"][-1]) for message in removed}
    assert (len(removed), ends) == (4, {(1, 2), (2, 1)})
    kernel.done.clear()
    kit.result(plane.remove_policy(around(kit, 7, "2001:db8::3")))
    assert kernel.kinds() == 7 * [Type.DELPOLICY]


def test_selectors_that_come_to_the_same_are_one_policy_that_goes(kit, kernel, plane):
    tcp = kit.selectors("10.1.0.0/16", protocol=6)
    policy = kit.policy(
        local_ts=(*tcp, *kit.selectors("10.1.0.0/16")), remote_ts=kit.selectors("10.2.0.0/16", protocol=6)
    )
    for remote in ("192.0.2.2", "192.0.2.3"):
        policy = replace(policy, remote=kit.endpoint(remote))
        kit.result(plane.add_policy(policy))
    assert kernel.kinds() == 6 * [Type.NEWPOLICY]
    kit.result(plane.remove_policy(policy))
    assert kernel.kinds()[6:] == 3 * [Type.DELPOLICY]


def test_what_two_policies_have_goes_with_the_last(kit, kernel, plane):
    first, second = (
        around(kit, number, "2001:db8::2", protocol=each) for number, each in ((7, ProtocolId.ESP), (8, ProtocolId.AH))
    )
    second = replace(second, remote_ts=kit.selectors("2001:db8::/48"))
    for each in (first, second, first):
        kit.result(plane.add_policy(each))
    kernel.done.clear()
    kit.result(plane.remove_policy(first))
    assert kernel.kinds() == 3 * [Type.DELPOLICY]
    kit.result(plane.remove_policy(second))
    assert kernel.kinds() == 10 * [Type.DELPOLICY]


@pytest.mark.parametrize("now", [None, 88])
def test_a_policy_whose_configured_priority_changed_takes_its_predecessors_place(kit, kernel, plane, now):
    before, after = (kit.policy(kernel=KernelOptions(priority=priority)) for priority in (77, now))
    kernel.refuse[Type.NEWPOLICY] = errno.EEXIST
    kernel.present = leftover(priority=77)
    with pytest.raises(KernelError):
        kit.result(plane.add_policy(after))
    kit.result(plane.expect(before))
    kit.result(plane.add_policy(after))
    assert kernel.kinds().count(Type.UPDPOLICY) == 3


@pytest.mark.parametrize("changes", [{"priority": 78}, {"template": {"reqid": 8}}, {"attrs": []}])
def test_what_is_there_is_not_expected_unless_it_is_as_the_journal_has_it(kit, kernel, plane, changes):
    before, after = (kit.policy(kernel=KernelOptions(priority=priority)) for priority in (77, 88))
    kernel.refuse[Type.NEWPOLICY] = errno.EEXIST
    kernel.present = leftover(**{"priority": 77} | changes)
    kit.result(plane.expect(before))
    with pytest.raises(KernelError):
        kit.result(plane.add_policy(after))
    assert Type.UPDPOLICY not in kernel.kinds()


# shunts


def priorities(kernel):
    return [message["priority"] for message in kernel.done if message.kind is Type.NEWPOLICY]


def test_shunts_go_before_or_after_all_children_whatever_their_prefixes(kit, kernel, plane):
    hosts = {"local_ts": kit.selectors("fd01::1/128"), "remote_ts": kit.selectors("fd02::1/128", protocol=6, port=80)}
    everything = {"local_ts": kit.selectors("::/0"), "remote_ts": kit.selectors("::/0")}
    for rule in (
        kit.shunt(**hosts),
        kit.shunt(**everything),
        kit.policy(**hosts),
        kit.policy(**everything),
        kit.shunt(**hosts, order=Order.LAST),
        kit.shunt(**everything, order=Order.LAST),
    ):
        kit.result(plane.add_shunt(rule) if isinstance(rule, Shunt) else plane.add_policy(rule))
        kit.result(plane.remove_shunt(rule) if isinstance(rule, Shunt) else plane.remove_policy(rule))
    found = priorities(kernel)
    assert len(found) == 18
    assert found == sorted(found)
    assert len(set(found)) == 6


def test_a_shunt_covers_every_direction_and_goes_away(kit, kernel, plane):
    shunt = kit.shunt(action=Action.DROP)
    kit.result(plane.add_shunt(shunt))
    assert [(message["dir"], message["action"]) for message in kernel.done] == [(1, 1), (0, 1), (2, 1)]
    kit.result(plane.remove_shunt(shunt))
    assert [message["dir"] for message in kernel.done[3:]] == [1, 0, 2]


def test_a_peers_selectors_do_not_take_a_shunts_place(kit, kernel, plane):
    shunt = kit.shunt(action=Action.DROP)
    kit.result(plane.add_shunt(shunt))
    kernel.done.clear()
    with pytest.raises(DataplaneError, match="a shunt stands there"):
        kit.result(plane.add_policy(kit.policy(local_ts=shunt.local_ts, remote_ts=shunt.remote_ts)))
    assert kernel.kinds() == []
    kit.result(plane.add_policy(kit.policy(local_ts=shunt.local_ts)))


def left_shunt(shunt, **changes):
    """A policy without a template as the kernel has it."""
    base = SHUNT_BASES[shunt.order]
    return {"priority": base - 4 * 40, "action": 0 if shunt.action is Action.PASS else 1, "attrs": []} | changes


@pytest.mark.parametrize(
    ("changes", "removed"),
    [({}, 3), ({"priority": 0}, 0), ({"priority": PRIORITY_BASE}, 0), ({"action": 1}, 0), (leftover(), 0)],
)
def test_of_leftover_shunts_only_what_is_provably_ours_is_cleared(kit, kernel, plane, changes, removed):
    kernel.present = left_shunt(kit.shunt(), **changes)
    kit.result(plane.clear(kit.shunt()))
    assert kernel.kinds().count(Type.DELPOLICY) == removed


@pytest.mark.parametrize(("priority", "replaced"), [(SHUNT_BASES[Order.FIRST], True), (1, False)])
def test_a_shunt_takes_over_an_earlier_instances_and_nobody_elses(kit, kernel, plane, priority, replaced):
    kernel.refuse[Type.NEWPOLICY] = errno.EEXIST
    kernel.present = left_shunt(kit.shunt(), priority=priority)
    if replaced:
        kit.result(plane.add_shunt(kit.shunt()))
    else:
        with pytest.raises(KernelError):
            kit.result(plane.add_shunt(kit.shunt()))
    assert (Type.UPDPOLICY in kernel.kinds()) is replaced


# replacing a pair that sends


@pytest.fixture
def replacing(kit, kernel, clock):
    """A data plane with a pair; what it reports as ended; a function that installs another pair."""
    ended = []
    plane = KernelDataplane(kernel, Later(clock, lambda spi, hard: ended.append((spi, hard))))

    def install(role, number=7, **changes):
        spi = plane.allocate_spi(kit.policy().local, kit.policy().remote, ProtocolId.ESP)
        pair = kit.pair(kit.policy(number=number), spi_in=spi, spi_out=Spi(spi + 0x1000), role=role, **changes)
        kernel.done.clear()
        kit.result(kit.install(plane, pair))
        return pair

    install(Role.INITIATOR)
    return plane, install, ended


def test_an_initiators_new_pair_sends_once_the_peer_can_take_it(kit, kernel, clock, replacing):
    plane, install, ended = replacing
    pair = install(Role.INITIATOR)
    assert kernel.kinds() == [Type.UPDSA]
    clock.advance(HOLD_SECONDS)
    assert kernel.kinds() == [Type.UPDSA, Type.NEWSA]
    assert kernel.done[1]["id.spi"] == pair.spi_out.to_bytes(4)
    assert plane.owner(SaId(pair.remote.address, ProtocolId.ESP, pair.spi_out)) == pair.spi_in
    assert ended == []


@pytest.mark.parametrize(
    ("role", "number", "remote"),
    [(Role.RESPONDER, 7, "10.2.0.0/16"), (Role.INITIATOR, 8, "10.2.0.0/16"), (Role.INITIATOR, 7, "10.3.0.0/16")],
)
def test_a_responders_pair_and_a_flows_first_one_send_at_once(kit, kernel, replacing, role, number, remote):
    _, install, _ = replacing
    install(role, number, remote_ts=kit.selectors(remote))
    assert kernel.kinds() == [Type.UPDSA, Type.NEWSA]


def test_after_the_old_pair_is_gone_the_next_sends_at_once(kit, kernel, clock, replacing):
    plane, install, _ = replacing
    pair = install(Role.INITIATOR)
    clock.advance(HOLD_SECONDS)
    for each in (pair, kit.pair()):
        kit.result(plane.remove(each))
    install(Role.INITIATOR)
    assert kernel.kinds() == [Type.UPDSA, Type.NEWSA]


def test_of_pairs_that_are_gone_nothing_is_kept(kit, kernel, clock, replacing):
    plane, install, _ = replacing
    for pair in (kit.pair(), install(Role.INITIATOR)):
        kit.result(plane.remove(pair))
    assert not any((plane._larval, plane._installed, plane._senders, plane._held))


def test_a_pair_that_is_removed_while_it_waits_never_sends(kit, kernel, clock, replacing):
    plane, install, ended = replacing
    kit.result(plane.remove(install(Role.INITIATOR)))
    clock.advance(HOLD_SECONDS)
    assert Type.NEWSA not in kernel.kinds()
    assert ended == []


def test_a_pair_whose_outbound_sa_fails_is_removed_and_reported(kit, kernel, clock, replacing):
    plane, install, ended = replacing
    pair = install(Role.INITIATOR)
    kernel.refuse[Type.NEWSA] = errno.EEXIST
    clock.advance(HOLD_SECONDS)
    assert ended == [(pair.spi_in, True)]
    assert pair.spi_in in kernel.spis(Type.DELSA)
    assert plane.owner(SaId(pair.local.address, ProtocolId.ESP, pair.spi_in)) is None


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
    template = PROTECTS | {"optional": optional, "reqid": reqid}
    kernel.present = {"priority": priority, "attrs": [("XFRMA_TMPL", template)]}
    if replaced:
        kit.result(plane.add_policy(kit.in_lane))
    else:
        with pytest.raises(DataplaneError, match="EEXIST"):
            kit.result(plane.add_policy(kit.in_lane))
    assert (Type.UPDPOLICY in kernel.kinds()) is replaced


def test_an_sa_of_a_lane_is_found_by_its_mark_and_known_without(kit, kernel, plane):
    pair = kit.pair(kit.in_lane)
    plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol)
    kit.result(kit.install(plane, pair))
    kernel.done.clear()
    kit.result(plane.traffic(pair))
    kit.result(plane.remove(pair))
    found = {"XFRMA_MARK": OUTWARD["XFRMA_MARK"]}
    assert [lanes(message) for message in kernel.done] == [{}, found] * 2


@pytest.mark.parametrize("which", ["inbound", "outbound"])
def test_an_event_names_no_mark_and_the_other_sa_is_removed_by_its(kit, kernel, plane, which):
    pair = kit.pair(kit.in_lane)
    plane.allocate_spi(pair.local, pair.remote, pair.suite.protocol)
    kit.result(kit.install(plane, pair))
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
        kit.result(kit.install(plane, kit.pair(spi_in=spi, suite=ChildSuite.parse("aes256gcm16-esn"))))
        assert [dict(message["attrs"]).get("XFRMA_SA_DIR", {}).get("value") for message in kernel.done] == ways
        window = dict(kernel.done[2]["attrs"])["XFRMA_REPLAY_ESN_VAL"]
        # Linux refuses a window of what is told to be outbound, and none of what is not
        assert (window["bmp_len"], window["replay_window"]) == ((0, 0) if directed else (1, 32))


# IPComp with what else there is


def bundle(pair):
    """What the kernel has of a pair with IPComp, which makes the tunnel."""
    outer, inner = {"mode": 0}, {"encap": None}
    return {
        "spi_1000": described(pair, **outer),
        "spi_2000": described(pair, outbound=True, **outer),
        f"spi_{CPI:x}": described(pair, **inner),
        f"spi_{PEERS_CPI:x}": described(pair, outbound=True, **inner),
    }


@pytest.mark.parametrize("natted", [False, True])
def test_of_a_pair_with_ipcomp_all_four_sas_are_adopted_and_removed(kit, kernel, plane, compressed, having, natted):
    pair = replace(compressed, **(kit.natted if natted else {}))
    having(**bundle(pair))
    kit.result(plane.adopt(pair))
    assert plane.owner(Ends.of(pair).compressing) == pair.spi_in
    kernel.done.clear()
    kit.result(plane.remove(pair))
    assert kernel.spis(Type.DELSA) == [0x1000, CPI, 0x2000, PEERS_CPI]


@pytest.mark.parametrize("lacking", ["spi_1000", "spi_2000", f"spi_{CPI:x}", f"spi_{PEERS_CPI:x}"])
def test_of_a_pair_with_ipcomp_that_is_not_whole_the_rest_is_discarded(kit, kernel, plane, compressed, having, lacking):
    left = bundle(compressed)
    del left[lacking]
    having(**left)
    with pytest.raises(DataplaneError, match="all"):
        kit.result(plane.adopt(compressed))
    assert kit.result(plane.discard(compressed)) is True
    assert sorted(f"spi_{spi:x}" for spi in kernel.spis(Type.DELSA)) == sorted(left)


def test_esp_in_tunnel_mode_is_not_the_one_around_ipcomp(kit, plane, compressed, having):
    having(**(bundle(compressed) | {"spi_1000": described(compressed)}))
    with pytest.raises(DataplaneError, match="all"):
        kit.result(plane.adopt(compressed))


def compressing_install(kit, kernel, plane):
    """An initiator's pair with IPComp in the place of another."""
    policy = kit.policy(ipcomp=True)
    spi = plane.allocate_spi(policy.local, policy.remote, ProtocolId.ESP)
    cpi = plane.allocate_spi(policy.local, policy.remote, ProtocolId.IPCOMP)
    cpis = Cpis(inbound=cpi, outbound=PEERS_CPI + spi)
    pair = kit.pair(policy, spi_in=spi, spi_out=Spi(spi + 0x1000), role=Role.INITIATOR, ipcomp=cpis)
    kernel.done.clear()
    kit.result(kit.install(plane, pair))
    return pair


def test_what_compresses_is_held_with_what_protects(kit, kernel, clock, replacing):
    plane, _, _ = replacing
    compressing_install(kit, kernel, plane)
    assert kernel.kinds() == [Type.UPDSA, Type.UPDSA, Type.NEWSA, Type.NEWSA], "what did not compress cannot send"
    pair = compressing_install(kit, kernel, plane)
    assert kernel.kinds() == [Type.UPDSA, Type.UPDSA]
    clock.advance(HOLD_SECONDS)
    assert [message["id.proto"] for message in kernel.done] == [108, 50, 108, 50]
    assert plane.owner(Ends.of(pair).compressing) == pair.spi_in


@pytest.mark.parametrize(("accepted", "outward"), [(0, 0), (1, 1)])
def test_of_a_pair_that_cannot_begin_to_send_only_what_stands_is_removed(
    kit, kernel, clock, replacing, accepted, outward
):
    plane, _, ended = replacing
    compressing_install(kit, kernel, plane)
    pair = compressing_install(kit, kernel, plane)
    kernel.refuse[Type.NEWSA], kernel.allow[Type.NEWSA] = errno.EEXIST, accepted
    clock.advance(HOLD_SECONDS)
    expected = [pair.ipcomp.outbound] * outward + [pair.spi_in, pair.ipcomp.inbound]
    assert kernel.spis(Type.DELSA) == expected
    assert ended == [(pair.spi_in, True)]


def test_a_pair_that_is_removed_while_it_waits_leaves_somebody_elses_sa(kit, kernel, replacing):
    plane, install, _ = replacing
    pair = install(Role.INITIATOR)
    kit.result(plane.remove(pair))
    assert kernel.spis(Type.DELSA) == [pair.spi_in]


def test_a_pair_that_waits_begins_with_the_port_to_which_its_peer_moved(kit, kernel, clock, replacing):
    plane, install, ended = replacing
    pair = install(Role.INITIATOR, **kit.natted)
    kernel.done.clear()
    moved = kit.endpoint("192.0.2.2", 40001)
    kit.result(plane.follow(replace(pair, remote=moved, encryption_in=b"", encryption_out=b"")))
    assert kernel.kinds() == [Type.UPDSA]
    clock.advance(HOLD_SECONDS)
    inbound, outbound = (dict(message["attrs"]) for message in kernel.done)
    assert inbound["XFRMA_ENCAP"]["sport"] == outbound["XFRMA_ENCAP"]["dport"] == (40001).to_bytes(2)
    assert outbound["XFRMA_ALG_AEAD"]["key"] == pair.encryption_out, "its own keys, not those that follow"
    assert ended == []


def test_what_compresses_is_in_its_lane_and_told_its_way(kit, kernel):
    plane = KernelDataplane(kernel, directed=True)
    policy = replace(kit.in_lane, ipcomp=True)
    spi = plane.allocate_spi(policy.local, policy.remote, ProtocolId.ESP)
    cpi = plane.allocate_spi(policy.local, policy.remote, ProtocolId.IPCOMP)
    kit.result(kit.install(plane, kit.pair(policy, spi_in=spi, ipcomp=Cpis(inbound=cpi, outbound=PEERS_CPI))))
    ways = [dict(message["attrs"])["XFRMA_SA_DIR"]["value"] for message in kernel.done]
    assert ways == [1, 1, 1, 1, 2, 2]
    decompressing, inbound, compressing, outbound = kernel.done[2:]
    assert lanes(decompressing) == lanes(inbound) == {"XFRMA_IF_ID": {"value": 41}}
    assert dict(decompressing["attrs"])["XFRMA_SET_MARK"] == {"value": 0x20}
    assert lanes(compressing) == lanes(outbound) == OUTWARD
    kernel.done.clear()
    plane.ended(SaId(policy.local.address, ProtocolId.ESP, spi))
    assert [lanes(message) for message in kernel.done] == [{}, {}] + [{"XFRMA_MARK": OUTWARD["XFRMA_MARK"]}] * 2


def test_limits_are_of_what_protects_and_not_of_what_compresses(kit):
    cpis = Cpis(inbound=CPI, outbound=PEERS_CPI)
    pair = kit.pair(replace(kit.limited, ipcomp=True), ipcomp=cpis)
    for values, _ in (sa.compressing(pair, cpis), sa.decompressing(pair, cpis)):
        assert values["lft.hard_packet_limit"] == values["lft.hard_byte_limit"] == 0xFFFFFFFFFFFFFFFF
    assert sa.outbound(pair)[0]["lft.hard_packet_limit"] == 1000


def test_a_policy_in_a_lane_that_compresses_is_known_by_its_priority_and_reqid(kit, kernel, plane):
    kernel.refuse[Type.NEWPOLICY] = errno.EEXIST
    template = MAY_COMPRESS | {"reqid": 70000, "next": PROTECTS | {"reqid": 70000}}
    kernel.present = {"priority": 77, "attrs": [("XFRMA_TMPL", template)]}
    kit.result(plane.add_policy(kit.in_lane))
    kernel.present = {"priority": 77, "attrs": [("XFRMA_TMPL", COMPRESSES | {"reqid": 70000})]}
    with pytest.raises(DataplaneError, match="EEXIST"):
        kit.result(plane.add_policy(kit.in_lane))
