"""Which data plane is chosen, and the sentence that says why."""

from dataclasses import replace

import pytest

from monitor import plane
from monitor.dataplane import Events
from privsep.config.model import DataplaneChoice
from privsep.errors import OperatorError

NO_NETLINK = "the kernel lacks XFRM's netlink (CONFIG_XFRM_USER)"
NO_GCM = "the kernel lacks rfc4106(gcm(aes)) (CONFIG_CRYPTO_GCM and CONFIG_CRYPTO_AES)"


class FakeNetlink:
    """A kernel that lacks what `lacking` says, or XFRM itself."""

    without_xfrm = False
    lacking = None

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
    monkeypatch.setattr(plane, "Routes", FakeRoutes)
    return Kernel


@pytest.fixture
def choose(kit, loop):
    def choose(asked):
        events = Events(acquired=lambda number: None, expired=lambda spi, hard: None)
        return plane.choose(replace(kit.gateway(), dataplane=asked), loop, events, lambda reason: None)

    return choose


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


def test_userspace_asks_no_kernel(kernel, choose):
    choice = choose(DataplaneChoice.USERSPACE)
    assert (choice.dataplane.name, kernel.opened) == ("userspace", [])
