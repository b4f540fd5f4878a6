"""Which data plane is chosen, and the sentence that says why."""

import ipaddress
from dataclasses import replace

import pytest

from monitor import plane
from monitor.dataplane import Events
from monitor.sockets import Plane
from privsep.algorithms import ChildSuite, Integrity
from privsep.config.lanes import KernelOptions, Lane
from privsep.config.model import DataplaneChoice, RemoteAny
from privsep.errors import OperatorError
from privsep.iana import ProtocolId

NO_NETLINK = "the kernel lacks XFRM's netlink (CONFIG_XFRM_USER)"
NO_GCM = "the kernel lacks rfc4106(gcm(aes)) (CONFIG_CRYPTO_GCM and CONFIG_CRYPTO_AES)"


class FakeNetlink:
    """A kernel that lacks what `lacking` says, or XFRM itself."""

    without_xfrm = False
    lacking = None
    migrates = True

    def __init__(self):
        if self.without_xfrm:
            raise OperatorError(NO_NETLINK)
        self.closed = False
        self.opened.append(self)

    def close(self):
        self.closed = True


class FakeRoutes:
    tun = 9

    def settle(self):
        pass

    def close(self):
        pass


@pytest.fixture
def kernel(monkeypatch):
    class Kernel(FakeNetlink):
        pass

    Kernel.opened = []
    monkeypatch.setattr(plane, "XfrmNetlink", Kernel)
    monkeypatch.setattr(plane, "probe", lambda netlink, gateway: netlink.lacking)
    monkeypatch.setattr(plane, "knows_direction", lambda netlink: False)
    monkeypatch.setattr(plane, "can_migrate", lambda netlink: netlink.migrates)
    monkeypatch.setattr(plane, "Routes", FakeRoutes)
    return Kernel


@pytest.fixture
def choose(kit, loop):
    def choose(asked, *suites, connections=(), **child):
        events = Events(acquired=lambda number: None, expired=lambda spi, hard: None, moved=lambda spi, remote: None)
        gateway = kit.gateway()
        gateway = replace(gateway, connections=connections or gateway.connections)
        child |= {"suites": suites} if suites else {}
        if child:
            gateway = replace(gateway, connections=(kit.connection(children=(kit.child(**child),)),))
        return plane.choose(replace(gateway, dataplane=asked), loop, events, lambda reason: None)

    return choose


TRAVELLERS = [RemoteAny(), ipaddress.ip_network("198.51.100.0/24")]


@pytest.mark.parametrize("migrates", [True, False])
@pytest.mark.parametrize("remote", [*TRAVELLERS, ipaddress.ip_address("198.51.100.9")])
def test_a_kernel_that_migrates_nothing_is_taken_and_named_where_a_peer_may_move(kernel, kit, choose, remote, migrates):
    kernel.migrates = migrates
    told = plane.ABLE + (plane.NO_MIGRATION if remote in TRAVELLERS and not migrates else "")
    gateway = replace(kit.gateway(), connections=(kit.connection(remote=remote),))
    assert plane.foresee(gateway) == (Plane.KERNEL, told)
    assert [netlink.closed for netlink in kernel.opened] == [True]
    assert choose(DataplaneChoice.AUTO, connections=gateway.connections).reason == told


def test_auto_falls_back_on_a_kernel_without_xfrm_and_says_so(kernel, choose):
    kernel.without_xfrm = True
    choice = choose(DataplaneChoice.AUTO)
    assert (choice.dataplane.name, choice.reason) == ("userspace", NO_NETLINK)


def test_auto_falls_back_on_a_kernel_without_a_configured_suite_and_closes_what_it_asked_with(kernel, choose):
    kernel.lacking = NO_GCM
    choice = choose(DataplaneChoice.AUTO)
    assert (choice.dataplane.name, choice.reason) == ("userspace", NO_GCM)
    assert [netlink.closed for netlink in kernel.opened] == [True]


@pytest.mark.parametrize(("without_xfrm", "reason"), [(True, NO_NETLINK), (False, NO_GCM)])
def test_who_insists_on_the_kernel_hears_what_it_lacks(kernel, choose, without_xfrm, reason):
    kernel.without_xfrm, kernel.lacking = without_xfrm, NO_GCM
    with pytest.raises(OperatorError) as caught:
        choose(DataplaneChoice.KERNEL)
    assert str(caught.value) == f'dataplane = "kernel": {reason}; "auto" or "userspace" would work'


XCBC, AH = ChildSuite.parse("aes256-aesxcbc"), ChildSuite.parse("sha1", ProtocolId.AH)


def test_auto_does_not_fall_back_for_some_suites_only(kernel, choose):
    kernel.lacking = NO_GCM
    good = ChildSuite.parse("aes256gcm16")
    with pytest.raises(OperatorError) as caught:
        choose(DataplaneChoice.AUTO, good, XCBC)
    assert str(caught.value) == (
        f'dataplane = "auto": {NO_GCM}; the userspace data plane cannot carry aes256-aesxcbc of paris/lan; '
        'esp = ["aes256gcm16"] in their place would work'
    )
    assert choose(DataplaneChoice.AUTO, good).dataplane.name == "userspace"
    kernel.lacking = None
    assert choose(DataplaneChoice.AUTO, good, XCBC).dataplane.name == "kernel"


def test_auto_does_not_fall_back_where_packets_are_to_be_compressed(kernel, choose):
    kernel.lacking = "the kernel has no IPCOMP for IPv4 (CONFIG_INET_IPCOMP)"
    with pytest.raises(OperatorError) as caught:
        choose(DataplaneChoice.AUTO, ipcomp=True)
    assert str(caught.value) == (
        f'dataplane = "auto": {kernel.lacking}; the userspace data plane cannot carry IPComp of paris/lan; '
        "ipcomp = false in their place would work"
    )


def test_who_insists_on_the_kernel_is_not_told_that_userspace_would_do_where_it_would_not(kernel, choose):
    kernel.lacking = "the kernel has no AH"
    with pytest.raises(OperatorError) as caught:
        choose(DataplaneChoice.KERNEL, AH)
    assert (
        str(caught.value) == f'dataplane = "kernel": {kernel.lacking}; esp = ["aes256gcm16"] in their place would work'
    )


def test_many_suites_that_cannot_be_carried_are_counted(kernel, choose):
    kernel.lacking = NO_GCM
    suites = [ChildSuite(ProtocolId.AH, None, integrity, None) for integrity in Integrity]
    suites += [replace(suite, esn=True) for suite in suites[:3]]
    with pytest.raises(OperatorError, match=r"AH md5 of paris/lan, .* and 2 more; "):
        choose(DataplaneChoice.AUTO, *suites)


def test_userspace_asks_no_kernel(kernel, choose):
    choice = choose(DataplaneChoice.USERSPACE)
    assert (choice.dataplane.name, kernel.opened) == ("userspace", [])


LANE = KernelOptions(lane=Lane(if_id_in=7, if_id_out=7), interface="ipsec0", reqid=70000)


@pytest.fixture
def in_a_lane(kit, monkeypatch):
    """The configuration's one child has an interface."""
    gateway = kit.gateway()
    connections = (kit.connection(children=(kit.child(kernel=LANE),)),)
    monkeypatch.setattr(kit, "gateway", lambda: replace(gateway, connections=connections))


def test_auto_does_not_fall_back_to_what_has_no_lanes(kernel, choose, in_a_lane):
    kernel.lacking = "the kernel has no XFRM interfaces (CONFIG_XFRM_INTERFACE)"
    with pytest.raises(OperatorError) as caught:
        choose(DataplaneChoice.AUTO)
    assert str(caught.value) == (
        f'dataplane = "auto": {kernel.lacking}; the userspace data plane cannot carry if_id of paris/lan, '
        "interface of paris/lan, reqid of paris/lan; doing without them would work"
    )


def test_interfaces_are_there_before_policies_and_go_with_a_clean_end(kernel, choose, in_a_lane, monkeypatch):
    done = []

    class FakeInterfaces:
        def __init__(self, wanted):
            done.append(wanted)

        def close(self):
            done.append("closed")

    monkeypatch.setattr(plane, "Interfaces", FakeInterfaces)
    choice = choose(DataplaneChoice.KERNEL)
    assert (choice.dataplane.name, done) == ("kernel", [{"ipsec0": 7}])
    choice.close()
    assert done == [{"ipsec0": 7}, "closed"]


def test_what_an_earlier_instance_left_goes_once_policies_are_placed(kernel, choose, in_a_lane, monkeypatch):
    removed = []
    monkeypatch.setattr(plane, "Interfaces", lambda wanted: None)
    monkeypatch.setattr(plane, "remove_made", removed.append)
    monkeypatch.setattr(plane, "clear_left", lambda: removed.append("routes of the userspace data plane"))
    choice = choose(DataplaneChoice.KERNEL)
    assert removed == []
    choice.settle({"ipsec0": 7, "ipsec1": 8})
    assert removed == [{"ipsec1": 8}, "routes of the userspace data plane"]
    removed.clear()
    # the interface has another if_id now: under the name that is configured nothing else can have been made
    choice.settle({"ipsec0": 9})
    assert removed[0] == {"ipsec0": 9}
