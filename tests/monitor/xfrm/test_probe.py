"""What the kernel lacks is said in a sentence that names the build option; trials are taken back."""

import errno
import ipaddress
from dataclasses import replace

import pytest

from monitor.xfrm import interfaces
from monitor.xfrm.algorithms import CIPHERS, CONFIG, INTEGRITIES
from monitor.xfrm.messages import Type
from monitor.xfrm.netlink import KernelError
from monitor.xfrm.probe import can_migrate, knows_direction, lacking, probe
from privsep.algorithms import ChildSuite, EspCipher, Integrity
from privsep.config.lanes import KernelOptions, Lane
from privsep.iana import ProtocolId

GCM = ChildSuite.parse("aes256gcm16")
CBC = ChildSuite.parse("aes128-sha256")


class FakeKernel:
    def __init__(self, refused=None):
        self.refused = refused
        self.done = []

    def do(self, message):
        self.done.append(message)
        if self.refused is not None:
            raise KernelError(message.kind.name, self.refused)


def test_each_trial_is_removed_at_once():
    kernel = FakeKernel()
    assert lacking(kernel, [GCM, CBC], [4, 6]) is None
    assert [message.kind for message in kernel.done] == [Type.NEWSA, Type.DELSA] * 4
    for made, removed in zip(kernel.done[::2], kernel.done[1::2], strict=True):
        assert made["id.spi"] == removed["spi"]
        assert made["id.daddr"] == removed["daddr"]
        assert made["lft.hard_add_expires_seconds"] == 2


def test_the_trials_keys_are_random():
    kernel = FakeKernel()
    lacking(kernel, [GCM, GCM], [4])
    first, second = (dict(message["attrs"])["XFRMA_ALG_AEAD"]["key"] for message in kernel.done[::2])
    assert first != second


@pytest.mark.parametrize(
    ("refused", "sentence"),
    [
        (errno.EPROTONOSUPPORT, "the kernel has no ESP for IPv4 (CONFIG_INET_ESP)"),
        (errno.ENOSYS, "the kernel lacks rfc4106(gcm(aes)) (CONFIG_CRYPTO_GCM and CONFIG_CRYPTO_AES)"),
        (errno.ENOENT, "the kernel lacks rfc4106(gcm(aes)) (CONFIG_CRYPTO_GCM and CONFIG_CRYPTO_AES)"),
        (errno.EPERM, "the kernel refuses aes256gcm16: NEWSA: EPERM"),
    ],
)
def test_a_refusal_is_explained_and_nothing_is_there_to_remove(refused, sentence):
    kernel = FakeKernel(refused)
    assert lacking(kernel, [GCM], [4]) == sentence
    assert {message.kind for message in kernel.done} == {Type.NEWSA}


class KernelWithoutEsp:
    """As Linux orders it: algorithms are looked up before the protocol."""

    def __init__(self, absent):
        self.absent = absent

    def do(self, message):
        names = {attribute[1]["name"] for attribute in message["attrs"]}
        raise KernelError(message.kind.name, errno.ENOSYS if names & self.absent else errno.EPROTONOSUPPORT)


def test_missing_esp_is_named_before_the_missing_algorithm_that_hides_it():
    kernel = KernelWithoutEsp({b"rfc4106(gcm(aes))"})
    assert lacking(kernel, [GCM], [4]) == (
        "the kernel has no ESP for IPv4 (CONFIG_INET_ESP); "
        "the kernel lacks rfc4106(gcm(aes)) (CONFIG_CRYPTO_GCM and CONFIG_CRYPTO_AES)"
    )


def test_esp_is_not_blamed_for_a_missing_algorithm():
    kernel = KernelWithoutEsp({b"rfc4106(gcm(aes))", b"hmac(sha1)"})
    assert "CONFIG_INET_ESP" not in lacking(kernel, [GCM], [4])


def test_missing_ah_is_named_for_each_ip_version_and_esp_is_not_blamed():
    suites = [ChildSuite.parse("sha1", ProtocolId.AH), ChildSuite.parse("aesxcbc-esn", ProtocolId.AH)]
    assert lacking(FakeKernel(errno.EPROTONOSUPPORT), suites, [4, 6]) == (
        "the kernel has no AH for IPv4 (CONFIG_INET_AH); the kernel has no AH for IPv6 (CONFIG_INET6_AH)"
    )


@pytest.mark.parametrize(
    ("keyword", "protocol", "told"),
    [
        ("aes128ctr-sha256", ProtocolId.ESP, "rfc3686(ctr(aes)) (CONFIG_CRYPTO_HMAC and CONFIG_CRYPTO_SHA256, CONFIG_"),
        ("aes128ccm8", ProtocolId.ESP, "rfc4309(ccm(aes)) (CONFIG_CRYPTO_CCM and CONFIG_CRYPTO_AES)"),
        ("aes128gmac", ProtocolId.ESP, "rfc4543(gcm(aes)) (CONFIG_CRYPTO_GCM and CONFIG_CRYPTO_AES)"),
        ("chacha20poly1305", ProtocolId.ESP, "rfc7539esp(chacha20,poly1305) (CONFIG_CRYPTO_CHACHA20POLY1305)"),
        ("aesxcbc", ProtocolId.AH, "xcbc(aes) (CONFIG_CRYPTO_XCBC and CONFIG_CRYPTO_AES)"),
        ("md5", ProtocolId.AH, "hmac(md5) (CONFIG_CRYPTO_HMAC and CONFIG_CRYPTO_MD5)"),
    ],
)
def test_the_build_option_of_a_missing_algorithm_is_named(keyword, protocol, told):
    assert told in lacking(FakeKernel(errno.ENOSYS), [ChildSuite.parse(keyword, protocol)], [4])


def test_every_algorithm_has_a_name_and_a_build_option():
    assert set(CIPHERS) == set(EspCipher)
    assert set(INTEGRITIES) == set(Integrity)
    assert set(CONFIG) == {*CIPHERS.values(), *INTEGRITIES.values()}


def test_a_reason_is_given_once():
    found = lacking(FakeKernel(errno.EPROTONOSUPPORT), [GCM, CBC], [4, 6])
    assert (
        found == "the kernel has no ESP for IPv4 (CONFIG_INET_ESP); the kernel has no ESP for IPv6 (CONFIG_INET6_ESP)"
    )


def test_the_configurations_suites_are_tried_once_each_whatever_their_group(kit):
    kernel = FakeKernel()
    assert probe(kernel, kit.gateway()) is None
    assert len(kernel.done) == 2 * 2


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        (errno.EPROTONOSUPPORT, "the kernel has no IPCOMP for IPv4 (CONFIG_INET_IPCOMP)"),
        (errno.ENOSYS, "the kernel lacks deflate (CONFIG_CRYPTO_DEFLATE)"),
        (errno.EPERM, "the kernel refuses IPComp: NEWSA: EPERM"),
    ],
)
def test_ipcomp_is_tried_where_it_is_configured_and_what_it_lacks_is_named(kit, refused, told):
    class Kernel(FakeKernel):
        def do(self, message):
            self.done.append(message)
            if message.kind is Type.NEWSA and message["id.proto"] == 108:
                raise KernelError(message.kind.name, refused)

    children = (kit.child(ipcomp=True), kit.child(name="other"))
    gateway = replace(kit.gateway(), connections=(kit.connection(children=children),))
    assert probe(Kernel(), gateway) == told
    plain = FakeKernel()
    assert probe(plain, gateway) is None
    assert [message["id.proto"] for message in plain.done if message.kind is Type.NEWSA] == [50, 50, 108]
    assert [message["spi"] for message in plain.done[5:]] == [plain.done[4]["id.spi"]]


def test_ipcomp_over_ipv6_has_an_option_of_its_own(kit):
    child = kit.child(ipcomp=True)
    local = kit.connection(local=None, remote=ipaddress.ip_network("2001:db8::/32"), children=(child,))
    told = probe(FakeKernel(errno.EPROTONOSUPPORT), replace(kit.gateway(), connections=(local,)))
    assert told.endswith("the kernel has no IPCOMP for IPv6 (CONFIG_INET6_IPCOMP)")


def test_the_ip_versions_are_those_that_the_configuration_names(kit):
    kernel = FakeKernel()
    local = kit.connection(local=None, remote=ipaddress.ip_network("2001:db8::/32"))
    probe(kernel, replace(kit.gateway(), connections=(local,)))
    assert {message["id.daddr"] for message in kernel.done[::2]} == {ipaddress.ip_address("::1").packed}


LANES = (KernelOptions(lane=Lane(if_id_in=1)), KernelOptions(lane=Lane(if_id_in=1, if_id_out=1), interface="ipsec0"))


@pytest.mark.parametrize("options", LANES)
def test_xfrm_interfaces_are_missed_where_a_child_has_an_if_id_and_nowhere_else(kit, monkeypatch, options):
    monkeypatch.setattr(interfaces, "possible", lambda: False)
    plain, lane = kit.connection(), kit.connection(children=(kit.child(kernel=options),))
    assert probe(FakeKernel(), replace(kit.gateway(), connections=(plain,))) is None
    gateway = replace(kit.gateway(), connections=(plain, lane))
    lacks = "the kernel has no XFRM interfaces (CONFIG_XFRM_INTERFACE)"
    assert probe(FakeKernel(), gateway) == lacks
    assert probe(FakeKernel(errno.EPROTONOSUPPORT), gateway).endswith(f"(CONFIG_INET_ESP); {lacks}")
    monkeypatch.setattr(interfaces, "possible", lambda: True)
    assert probe(FakeKernel(), gateway) is None


@pytest.mark.parametrize(("answer", "can"), [(errno.EINVAL, True), (None, True), (errno.ENOPROTOOPT, False)])
def test_a_kernel_migrates_unless_it_says_that_it_has_no_such_thing(answer, can):
    kernel = FakeKernel(answer)
    assert can_migrate(kernel) is can
    assert [(message.kind, message["attrs"]) for message in kernel.done] == [(Type.MIGRATE, [])], "nothing is moved"


@pytest.mark.parametrize(("answer", "known"), [(errno.ERANGE, True), (errno.EINVAL, True), (errno.ESRCH, False)])
def test_directions_are_known_where_a_wrong_one_is_refused(answer, known):
    kernel = FakeKernel(answer)
    assert knows_direction(kernel) is known
    assert [message.kind for message in kernel.done] == [Type.GETSA], "nothing is changed"
