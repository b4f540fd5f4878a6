"""The second opinion: one lie for each check, denied for its reason, let through if that check alone were missing."""

import ipaddress
import struct
from dataclasses import replace

import pytest

from monitor import authorize as authorize_module
from monitor import sadb as sadb_module
from monitor.authorize import CHECKS, PASSED, Plan, authorize, foresee, outer_addresses, with_outbound
from monitor.dataplane import Cpis, Pair
from monitor.sadb import Allocation, Claim, Entry, Policies, Sadb
from privsep.algorithms import ChildSuite
from privsep.config.lanes import OPEN, KernelOptions, Lane, Mark
from privsep.config.model import RemoteAny
from privsep.iana import ProtocolId
from privsep.schema.install import Denial
from privsep.types import Endpoint, Mode, TrafficSelector


class Scene:
    """A request that is honest until a lie changes it."""

    def __init__(self, kit):
        self.kit = kit
        self.gateway = kit.gateway()
        self.sadb = Sadb()
        self.policies = Policies(self.gateway)
        self.redeemed = kit.redeemed()
        self.request = kit.install()
        self.allocated = {"connection": "paris", "child": "lan", "local": None, "remote": None, "cpi": None}

    def redeem(self, **changes):
        self.redeemed = replace(self.redeemed, **changes)

    def install(self, **changes):
        """Where the two ends are is the worker's to say, all the rest keyd's."""
        named, agreed = self.kit.said(changes)
        self.request = replace(self.request, **named)
        self.redeem(**agreed)

    def of(self, connection, child="lan"):
        """The same honest request for another child."""
        mode = self.gateway.connection(connection).child(child).mode
        self.redeem(connection=connection, child=child, mode=mode)
        self.allocated |= {"connection": connection, "child": child}

    def plan(self):
        """What the checks of whose traffic it is look at."""
        redeemed, request = self.redeemed, self.request
        connection = self.gateway.connection(redeemed.connection)
        return authorize_module.Plan(
            gateway=self.gateway,
            connection=connection,
            child=connection.child(redeemed.child),
            identity=redeemed.identity,
            local=request.local,
            remote=request.remote,
            local_ts=redeemed.local_ts,
            remote_ts=redeemed.remote_ts,
            sadb=self.sadb,
            policies=self.policies,
        )

    def resident(self, identity, spi_out, *, connection="road", **selectors):
        """A pair that is installed already."""
        pair = authorize_pair(self.kit, spi_out, **selectors)
        claim = Claim(connection, self.kit.identity(identity), pair.local_ts, pair.remote_ts, pair.policy.kernel.lane)
        entry = Entry(connection=connection, child="lan", identity=claim.identity, claim=claim, pair=pair, since=0.0)
        self.sadb.reserve(entry)

    def judge(self):
        self.sadb.allocate(
            Allocation(
                spi=self.redeemed.spi_in,
                connection=self.allocated["connection"],
                child=self.allocated["child"],
                protocol=self.redeemed.suite.protocol,
                local=self.allocated["local"] or self.request.local,
                remote=self.allocated["remote"] or self.request.remote,
                cpi=self.allocated["cpi"],
            )
        )
        return authorize(self.gateway, self.sadb, self.policies, self.redeemed, self.request)


def authorize_pair(kit, spi_out, **selectors):
    scene = Scene(kit)
    scene.redeem(spi_in=0x9000, spi_out=spi_out)
    pair = scene.judge()
    return replace(pair, **selectors)


@pytest.fixture
def scene(kit):
    return Scene(kit)


def wanderer(scene):
    """An honest request of somebody whom no connection but `road` describes."""
    scene.of("road")
    scene.redeem(identity=scene.kit.identity("wanderer.example.org"))
    scene.install(remote_ts=scene.kit.selectors("10.4.0.0/16"))


def another_identity(scene):
    scene.redeem(identity=scene.kit.identity("mallory.example.org"))


def weaker_suite(scene):
    scene.redeem(suite=ChildSuite.parse("aes128gcm16-modp2048"), encryption_in=b"K" * 20)


def short_key(scene):
    scene.redeem(encryption_in=scene.redeemed.encryption_in[:-1])


def equal_spis(scene):
    scene.redeem(spi_out=scene.redeemed.spi_in)


def spi_of_another_child(scene):
    scene.allocated["child"] = "dmz"


def laxer_connection(scene):
    scene.of("road")


def other_address_than_the_spis(scene):
    wanderer(scene)
    scene.allocated["remote"] = scene.kit.endpoint("192.0.2.77")


def foreign_remote_address(scene):
    scene.install(remote=scene.kit.endpoint("192.0.2.66"))


def encapsulation_where_it_is_off(scene):
    scene.of("bare")
    scene.install(encap=True, local=Endpoint(scene.kit.local, 4500), remote=Endpoint(scene.kit.remote, 4500))


def configure_ah(scene):
    """The child has AH, and the request is an honest one for it."""
    suite = ChildSuite.parse("sha256-modp2048", ProtocolId.AH)
    child = scene.kit.child(suites=(suite,), replay_window=1024)
    scene.gateway = replace(scene.gateway, connections=(scene.kit.connection(children=(child,)),))
    scene.policies = Policies(scene.gateway)
    scene.redeem(suite=suite, encryption_in=b"", integrity_in=b"I" * 32)


def ah_in_udp(scene):
    configure_ah(scene)
    scene.install(encap=True, local=Endpoint(scene.kit.local, 4500), remote=Endpoint(scene.kit.remote, 4500))


def configure_ipcomp(scene):
    """The child compresses, and the request is an honest one for it."""
    connection = scene.kit.connection(children=(scene.kit.child(ipcomp=True),))
    scene.gateway = replace(scene.gateway, connections=(connection,))
    scene.policies = Policies(scene.gateway)
    scene.allocated["cpi"] = 0x400
    scene.redeem(cpi_in=0x400, cpi_out=0x500)


def compression_that_is_not_configured(scene):
    scene.allocated["cpi"] = 0x400
    scene.redeem(cpi_in=0x400, cpi_out=0x500)


def cpi_of_another_child(scene):
    configure_ipcomp(scene)
    scene.redeem(cpi_in=0x401)


def mode_of_another_child(scene):
    scene.redeem(mode=Mode.TRANSPORT)


def cpi_of_another_pair(scene):
    configure_ipcomp(scene)
    scene.resident("gw2.example.org", 0x7777, ipcomp=Cpis(inbound=0x401, outbound=0x500))


def strange_local_port(scene):
    scene.install(local=Endpoint(scene.kit.local, 53))


def wider_remote_selector(scene):
    scene.install(remote_ts=scene.kit.selectors("10.0.0.0/8"))


def mixed_families(scene):
    scene.of("paris", "both")
    scene.install(remote_ts=scene.kit.selectors("fd02::/64"))


def transport_selector_of_another_host(scene):
    scene.of("host", "box")
    scene.install(local_ts=scene.kit.selectors("192.0.2.1/32"), remote_ts=scene.kit.selectors("192.0.2.3/32"))


def selectors_of_another_identity(scene):
    scene.resident("gw9.example.org", 0x7777, remote_ts=scene.kit.selectors("10.2.5.0/24"))


def traffic_of_a_peer_that_is_down(scene):
    scene.of("road")
    scene.redeem(identity=scene.kit.identity("stranger.example.org"))
    scene.install(remote_ts=scene.kit.selectors("10.2.5.0/24"))


def outbound_sa_that_exists(scene):
    scene.resident("gw2.example.org", scene.redeemed.spi_out)


def one_more_than_the_quota(scene):
    scene.sadb._installed_by_connection["paris"] = sadb_module.MAX_INSTALLED_PER_CONNECTION


LIES = {
    "_identity": (another_identity, Denial.IDENTITY),
    "_most_specific": (laxer_connection, Denial.IDENTITY),
    "_suite": (weaker_suite, Denial.ALGORITHMS),
    "_mode": (mode_of_another_child, Denial.MODE),
    "_key_lengths": (short_key, Denial.ALGORITHMS),
    "_spis_differ": (equal_spis, Denial.SPI),
    "_spi_is_ours": (spi_of_another_child, Denial.SPI),
    "_spi_addresses": (other_address_than_the_spis, Denial.ADDRESSES),
    "_outer_addresses": (foreign_remote_address, Denial.ADDRESSES),
    "_encapsulation": (encapsulation_where_it_is_off, Denial.ENCAPSULATION),
    "_not_ah": (ah_in_udp, Denial.AH_ENCAP),
    "_ports": (strange_local_port, Denial.PORTS),
    "_selectors_inside": (wider_remote_selector, Denial.SELECTORS),
    "_families_agree": (mixed_families, Denial.SELECTORS),
    "_transport_selectors": (transport_selector_of_another_host, Denial.SELECTORS),
    "_no_overlap": (selectors_of_another_identity, Denial.OVERLAP),
    "_not_reserved": (traffic_of_a_peer_that_is_down, Denial.OVERLAP),
    "_outbound_is_new": (outbound_sa_that_exists, Denial.EXISTS),
    "_compression": (compression_that_is_not_configured, Denial.IPCOMP),
    "_cpi_is_ours": (cpi_of_another_child, Denial.IPCOMP),
    "_cpi_is_new": (cpi_of_another_pair, Denial.EXISTS),
    "_quota": (one_more_than_the_quota, Denial.QUOTA),
}


def test_every_check_has_its_lie():
    assert [check.__name__ for check in CHECKS] == list(LIES)


@pytest.mark.parametrize("check", LIES)
def test_the_lie_is_denied_for_its_reason(scene, check):
    lie, denial = LIES[check]
    lie(scene)
    assert scene.judge() is denial


@pytest.mark.parametrize("check", LIES)
def test_nothing_but_its_check_stops_the_lie(scene, check, monkeypatch):
    lie, _ = LIES[check]
    monkeypatch.setattr(authorize_module, "CHECKS", tuple(c for c in CHECKS if c.__name__ != check))
    lie(scene)
    assert isinstance(scene.judge(), Pair)


def test_an_honest_request_for_ipcomp_becomes_a_pair_under_a_policy_that_compresses_rfc3173(scene):
    configure_ipcomp(scene)
    pair = scene.judge()
    assert isinstance(pair, Pair)
    assert pair.ipcomp == Cpis(inbound=0x400, outbound=0x500)
    assert (pair.policy.ipcomp, pair.policy.protocol) == (True, ProtocolId.ESP)


def test_where_the_peer_has_no_ipcomp_nothing_is_compressed(scene):
    configure_ipcomp(scene)
    scene.redeem(cpi_in=None, cpi_out=None)
    pair = scene.judge()
    assert (pair.ipcomp, pair.policy.ipcomp) == (None, False)


@pytest.mark.parametrize("missing", ["cpi_in", "cpi_out"])
def test_half_of_ipcomp_is_denied_rfc3173_4(scene, missing):
    configure_ipcomp(scene)
    scene.redeem(**{missing: None})
    assert scene.judge() is Denial.IPCOMP


def test_absent_client_identities_are_the_outer_addresses_rfc2409_5_5(scene, kit):
    scene.of("host", "box")
    scene.redeem(local_ts=None, remote_ts=None)
    pair = scene.judge()
    assert (pair.local_ts, pair.remote_ts) == (kit.selectors("192.0.2.1/32"), kit.selectors("192.0.2.2/32"))


def test_a_cpi_is_no_spi(scene):
    configure_ipcomp(scene)
    scene.resident("gw2.example.org", 0x500)
    assert isinstance(scene.judge(), Pair)


def test_an_honest_request_for_ah_becomes_a_pair_with_the_childs_replay_window_rfc4302(scene):
    configure_ah(scene)
    pair = scene.judge()
    assert isinstance(pair, Pair)
    assert (pair.policy.protocol, pair.suite.protocol, pair.replay_window) == (ProtocolId.AH, ProtocolId.AH, 1024)
    assert (pair.encryption_in, pair.integrity_in, pair.integrity_out) == (b"", b"I" * 32, b"")


@pytest.mark.parametrize("protocol", ProtocolId.__members__.values())
def test_a_suite_of_the_other_protocol_is_not_the_childs(scene, protocol):
    configure_ah(scene)
    scene.redeem(suite=replace(scene.redeemed.suite, protocol=protocol))
    verdict = scene.judge()
    assert isinstance(verdict, Pair) if protocol is ProtocolId.AH else verdict is Denial.ALGORITHMS


def test_extended_sequence_numbers_are_the_configurations_rfc4304(scene):
    scene.redeem(suite=replace(scene.redeemed.suite, esn=True))
    assert scene.judge() is Denial.ALGORITHMS


def test_an_honest_request_becomes_a_pair_whose_policy_and_lifetime_are_the_configurations(scene, kit):
    pair = scene.judge()
    assert isinstance(pair, Pair)
    assert (pair.policy.number, pair.policy.mode, pair.lifetime) == (1, Mode.TUNNEL, 3600)
    assert pair.policy.local_ts == kit.selectors("10.1.0.0/16")
    assert (pair.spi_in, pair.spi_out) == (0x1000, 0x2000)
    assert pair.suite == ChildSuite.parse("aes256gcm16")
    assert (pair.encryption_in, pair.encryption_out) == (kit.key, b"")
    whole = with_outbound(pair, kit.outbound())
    assert (whole.encryption_in, whole.encryption_out) == (kit.key, kit.key[::-1])


def test_judging_changes_nothing(scene):
    first = scene.judge()
    again = authorize(scene.gateway, scene.sadb, scene.policies, scene.redeemed, scene.request)
    assert first == again


@pytest.mark.parametrize("names", [("rome", "lan"), ("paris", "rome")])
def test_a_connection_or_child_that_is_not_configured_is_denied(scene, names):
    scene.redeem(connection=names[0], child=names[1])
    assert scene.judge() is Denial.NO_SUCH_CHILD


def test_an_spi_that_nobody_allocated_is_denied(scene):
    assert authorize(scene.gateway, Sadb(), scene.policies, scene.redeemed, scene.request) is Denial.SPI


def test_an_spi_that_nobody_allocated_has_no_addresses_either(scene):
    checks = (authorize_module._spi_addresses,)
    verdict = authorize(scene.gateway, Sadb(), scene.policies, scene.redeemed, scene.request, checks)
    assert verdict is Denial.ADDRESSES


def test_no_pair_without_a_policy_of_its_own(scene, monkeypatch):
    """Their numbers may be used up."""
    monkeypatch.setattr(scene.policies, "propose", lambda *_, **__: None)
    assert scene.judge() is Denial.QUOTA


def test_an_spi_of_another_connection_is_denied(scene):
    scene.allocated["connection"] = "road"
    assert scene.judge() is Denial.SPI


def test_a_suite_without_the_configured_pfs_group_is_denied_rfc2409_5_5(scene):
    scene.redeem(suite=ChildSuite.parse("aes256gcm16"))
    assert scene.judge() is Denial.ALGORITHMS


@pytest.mark.parametrize("field", ["encryption", "integrity"])
@pytest.mark.parametrize("change", [lambda key: key[:-1], lambda key: key + b"x"])
def test_each_key_has_exactly_the_suites_length_rfc2409_5_5(scene, kit, field, change):
    suite, right = ChildSuite.parse("aes256-sha256"), {"encryption": b"E" * 32, "integrity": b"I" * 32}
    wrong = right | {field: change(right[field])}
    scene.redeem(suite=suite, **{f"{each}_in": key for each, key in right.items()})
    pair = scene.judge()
    assert isinstance(pair, Pair)
    outbound = {f"{each}_out": key for each, key in right.items()}
    assert isinstance(with_outbound(pair, kit.outbound(**outbound)), Pair)
    outbound = {f"{each}_out": key for each, key in wrong.items()}
    assert with_outbound(pair, kit.outbound(**outbound)) is Denial.ALGORITHMS
    scene.redeem(**{f"{each}_in": key for each, key in wrong.items()})
    assert scene.judge() is Denial.ALGORITHMS


FORESEEN = {
    "_outer_addresses": ({"remote": "192.0.2.66"}, Denial.ADDRESSES),
    "_identity": ({"identity": "mallory.example.org"}, Denial.IDENTITY),
    "_most_specific": ({"connection": "road", "identity": "gw2.example.org"}, Denial.IDENTITY),
    "_selectors_inside": ({"remote_ts": "10.0.0.0/8"}, Denial.SELECTORS),
    "_families_agree": ({"child": "both", "remote_ts": "fd02::/64"}, Denial.SELECTORS),
    "_transport_selectors": ({"connection": "host", "child": "box", "remote_ts": "192.0.2.3/32"}, Denial.SELECTORS),
    "_no_overlap": ({"remote_ts": "10.2.5.0/24"}, Denial.OVERLAP),
    "_not_reserved": (
        {"connection": "road", "identity": "stranger.example.org", "remote_ts": "10.2.5.0/24", "remote": "192.0.2.77"},
        Denial.OVERLAP,
    ),
    "_quota": ({}, Denial.QUOTA),
}


def foretold(scene, kit, name):
    """What is said of a wish before there is an SPI."""
    changes, _ = FORESEEN[name]
    made = {
        "identity": kit.identity,
        "remote": kit.endpoint,
        "remote_ts": lambda text: kit.selectors(text)[0],
    }
    wish = kit.allocate(**{key: made.get(key, str)(value) for key, value in changes.items()})
    if name == "_no_overlap":
        selectors_of_another_identity(scene)
    elif name == "_quota":
        one_more_than_the_quota(scene)
    return foresee(scene.gateway, scene.sadb, scene.policies, wish)


@pytest.mark.parametrize("name", FORESEEN)
def test_what_needs_no_keys_is_denied_before_anything_is_negotiated(scene, kit, name, monkeypatch):
    assert foretold(scene, kit, name) is FORESEEN[name][1]
    others = tuple(check for check in authorize_module.FORESEEABLE if check.__name__ != name)
    monkeypatch.setattr(authorize_module, "FORESEEABLE", others)
    assert isinstance(foretold(Scene(kit), kit, name), Plan)


def test_everything_foreseeable_is_judged_again_at_the_installation():
    assert set(authorize_module.FORESEEABLE) <= set(CHECKS)
    assert [check.__name__ for check in authorize_module.FORESEEABLE] == list(FORESEEN)


@pytest.mark.parametrize("names", [("rome", "lan"), ("paris", "rome")])
def test_nothing_is_foreseen_for_what_is_not_configured(scene, kit, names):
    wish = kit.allocate(*names)
    assert foresee(scene.gateway, scene.sadb, scene.policies, wish) is Denial.NO_SUCH_CHILD


@pytest.mark.parametrize("side", ["local_ts", "remote_ts"])
@pytest.mark.parametrize("child", ["lan", "box"])
def test_a_right_selector_does_not_carry_a_wrong_one_on_the_other_side_along(scene, side, child):
    """In tunnel mode one outside of the child's; in transport mode another host than the outer address."""
    ends = {"local_ts": ("10.1.0.0/24", "10.9.0.0/24"), "remote_ts": ("10.2.0.0/24", "10.9.0.0/24")}
    if child == "box":
        scene.of("host", "box")
        ends = {"local_ts": ("192.0.2.1/32", "192.0.2.9/32"), "remote_ts": ("192.0.2.2/32", "192.0.2.9/32")}
    for name, (right, _) in ends.items():
        scene.install(**{name: scene.kit.selectors(right)})
    assert isinstance(scene.judge(), Pair)
    scene.install(**{side: scene.kit.selectors(ends[side][1])})
    assert scene.judge() is Denial.SELECTORS


def test_a_network_that_begins_with_the_host_is_not_the_host(scene):
    scene.of("host", "box")
    scene.install(local_ts=scene.kit.selectors("192.0.2.1/32"), remote_ts=scene.kit.selectors("192.0.2.2/31"))
    assert scene.judge() is Denial.SELECTORS


def test_two_ip_versions_do_not_make_a_pair_of_outer_addresses(kit):
    gateway = replace(kit.gateway(), listen=())
    road = gateway.connection("road")
    assert outer_addresses(gateway, road, kit.local, ipaddress.ip_address("2001:db8::2")) is Denial.ADDRESSES


@pytest.mark.parametrize(
    ("theirs", "ours", "taken"),
    [
        (("10.4.0.0/16", 0, 0), ("10.4.1.0/24", 0, 0), True),
        (("10.4.1.0/24", 0, 0), ("10.4.0.0/16", 0, 0), True),
        (("10.4.0.0/24", 0, 0), ("10.4.1.0/24", 0, 0), False),
        (("10.4.0.0/24", 6, 0), ("10.4.0.0/24", 17, 0), False),
        (("10.4.0.0/24", 6, 0), ("10.4.0.0/24", 0, 0), True),
        (("10.4.0.0/24", 0, 0), ("10.4.0.0/24", 6, 0), True),
        (("10.4.0.0/24", 6, 80), ("10.4.0.0/24", 6, 443), False),
        (("10.4.0.0/24", 6, 80), ("10.4.0.0/24", 6, 80), True),
        (("10.4.0.0/24", 6, 80), ("10.4.0.0/24", 6, 0), True),
        (("10.4.0.0/24", 6, 0), ("10.4.0.0/24", 6, 80), True),
    ],
)
def test_traffic_is_anothers_where_networks_protocols_and_ports_meet(scene, theirs, ours, taken):
    def selector(network, protocol, port):
        return TrafficSelector(ipaddress.ip_network(network), protocol, port)

    scene.resident("gw9.example.org", 0x7777, remote_ts=(selector("10.7.0.0/24", 0, 0), selector(*theirs)))
    wanderer(scene)
    scene.install(remote_ts=(selector(*ours),))
    verdict = scene.judge()
    assert verdict is Denial.OVERLAP if taken else isinstance(verdict, Pair)


def test_remote_id_none_accepts_any_identity_that_keyd_proved(scene):
    scene.of("road")
    scene.redeem(identity=scene.kit.identity("anybody.example.org"))
    scene.install(remote_ts=scene.kit.selectors("10.4.0.0/24"))
    assert isinstance(scene.judge(), Pair)


@pytest.mark.parametrize(
    ("local", "remote"),
    [
        ("192.0.2.5", "192.0.2.2"),
        ("192.0.2.1", "192.0.2.3"),
        ("192.0.2.1", "2001:db8::2"),
    ],
)
def test_outer_addresses_are_the_connections(kit, local, remote):
    gateway = kit.gateway()
    verdict = outer_addresses(
        gateway, gateway.connection("paris"), ipaddress.ip_address(local), ipaddress.ip_address(remote)
    )
    assert verdict is Denial.ADDRESSES


def test_a_remote_network_admits_its_hosts_and_no_other(kit):
    gateway = kit.gateway()
    connection = kit.connection(remote=ipaddress.ip_network("198.51.100.0/24"))
    inside, outside = ipaddress.ip_address("198.51.100.7"), ipaddress.ip_address("198.51.101.7")
    assert outer_addresses(gateway, connection, kit.local, inside) is PASSED
    assert outer_addresses(gateway, connection, kit.local, outside) is Denial.ADDRESSES


@pytest.mark.parametrize("remote", ["0.0.0.0", "224.0.0.1"])
def test_any_remote_does_not_mean_no_address_or_a_group(kit, remote):
    gateway = kit.gateway()
    verdict = outer_addresses(gateway, gateway.connection("road"), kit.local, ipaddress.ip_address(remote))
    assert verdict is Denial.ADDRESSES


def test_without_a_configured_local_address_only_those_we_listen_on_are_ours(kit):
    gateway = replace(kit.gateway(), listen=(kit.local,))
    road = gateway.connection("road")
    assert outer_addresses(gateway, road, kit.local, kit.remote) is PASSED
    assert outer_addresses(gateway, road, kit.remote, kit.remote) is Denial.ADDRESSES


@pytest.mark.parametrize(
    ("encap", "local", "remote", "allowed"),
    [
        (False, 500, 500, True),
        (False, 4500, 4500, True),
        (False, 500, 4501, True),
        (False, 500, 61234, True),
        (False, 0, 500, False),
        (False, 500, 0, False),
        (False, 61234, 500, False),
        (True, 4500, 4500, True),
        (True, 4500, 61234, True),
        (True, 4500, 0, False),
        (True, 500, 4500, False),
        (True, 61234, 4500, False),
    ],
)
def test_our_port_is_ikes_and_the_peers_is_its_own_affair_rfc3948_2(scene, encap, local, remote, allowed):
    scene.install(encap=encap, local=Endpoint(scene.kit.local, local), remote=Endpoint(scene.kit.remote, remote))
    verdict = scene.judge()
    assert isinstance(verdict, Pair) if allowed else verdict is Denial.PORTS


def test_forced_encapsulation_cannot_be_left_out(scene):
    scene.of("wrapped")
    assert scene.judge() is Denial.ENCAPSULATION


@pytest.mark.parametrize(
    ("local", "remote"),
    [("10.0.0.0/8", "10.2.0.0/16"), ("0.0.0.0/0", "10.2.0.0/16"), ("10.1.0.0/16", "0.0.0.0/0")],
)
def test_selectors_wider_than_configured_are_denied(scene, local, remote):
    scene.install(local_ts=scene.kit.selectors(local), remote_ts=scene.kit.selectors(remote))
    assert scene.judge() is Denial.SELECTORS


def test_narrower_selectors_pass(scene):
    scene.install(local_ts=scene.kit.selectors("10.1.7.0/24"), remote_ts=scene.kit.selectors("10.2.0.9/32"))
    assert isinstance(scene.judge(), Pair)


def test_a_protocol_or_port_outside_the_configured_one_is_denied_rfc2407_4_6_2(scene, kit):
    web = TrafficSelector(ipaddress.ip_network("10.2.0.0/16"), 6, 443)
    connection = kit.connection(children=(kit.child(remote_ts=(web,)),))
    scene.gateway = replace(scene.gateway, connections=(connection,))
    assert scene.judge() is Denial.SELECTORS
    scene.install(remote_ts=(replace(web, port=22),))
    assert scene.judge() is Denial.SELECTORS
    scene.install(remote_ts=(web,))
    assert isinstance(scene.judge(), Pair)


def test_transport_mode_takes_the_two_ends_and_no_network_rfc4301_4_1(scene):
    scene.of("host", "box")
    scene.install(local_ts=scene.kit.selectors("192.0.2.1/32"), remote_ts=scene.kit.selectors("192.0.2.2/32"))
    assert isinstance(scene.judge(), Pair)
    scene.install(local_ts=scene.kit.selectors("192.0.2.0/31"))
    assert scene.judge() is Denial.SELECTORS


@pytest.mark.parametrize("remote", ["10.2.0.0/16", "10.2.5.0/24", "10.2.0.0/15"])
def test_traffic_of_another_identity_is_not_taken_whether_wider_or_narrower(scene, remote):
    scene.resident("gw9.example.org", 0x7777, remote_ts=scene.kit.selectors(remote))
    assert scene.judge() is Denial.OVERLAP


def test_the_same_identity_may_rekey_its_own_selectors(scene):
    scene.resident("gw2.example.org", 0x7777)
    assert isinstance(scene.judge(), Pair)


def secrets(scene, *same: str):
    """keyd tells which connections have one secret, all if none is named; every other has its own."""
    names = [connection.name for connection in scene.gateway.connections]
    same = same or tuple(names)
    first = min(map(names.index, same))
    places = [first if name in same else place for place, name in enumerate(names)]
    scene.sadb.claimants.learn(scene.gateway, struct.pack(f">{len(places)}H", *places))


@pytest.mark.parametrize("shared", [True, False])
def test_the_same_name_proved_with_another_secret_is_another_claimant_of_what_is_up(scene, shared):
    """Two connections with different keys both accept the name; who has one key may say it, and has not the other."""
    wanderer(scene)
    scene.resident("gw2.example.org", 0x7777, connection="paris")
    scene.redeem(identity=scene.kit.identity("gw2.example.org"))
    scene.install(remote_ts=scene.kit.selectors("10.2.5.0/24"))
    secrets(scene, *(() if shared else ("paris",)))
    assert authorize_module._no_overlap(scene.plan()) is (authorize_module.PASSED if shared else Denial.OVERLAP)


@pytest.mark.parametrize("shared", [True, False])
def test_the_same_name_proved_with_another_secret_is_another_claimant_of_what_is_reserved(scene, shared):
    wanderer(scene)
    scene.redeem(identity=scene.kit.identity("gw2.example.org"))
    scene.install(remote_ts=scene.kit.selectors("10.2.5.0/24"))
    secrets(scene, *(() if shared else ("paris",)))
    assert authorize_module._not_reserved(scene.plan()) is (authorize_module.PASSED if shared else Denial.OVERLAP)


def test_another_identity_with_other_local_selectors_or_protocol_does_not_overlap(scene):
    scene.resident("gw9.example.org", 0x7777, local_ts=scene.kit.selectors("10.9.0.0/16"))
    tcp = TrafficSelector(ipaddress.ip_network("10.2.0.0/16"), 6, 0)
    udp = TrafficSelector(ipaddress.ip_network("10.2.0.0/16"), 17, 0)
    assert isinstance(scene.judge(), Pair)
    scene.sadb = Sadb()
    scene.resident("gw9.example.org", 0x7778, remote_ts=(tcp,))
    scene.install(remote_ts=(udp,))
    assert isinstance(scene.judge(), Pair)
    scene.install(remote_ts=(tcp,))
    assert scene.judge() is Denial.OVERLAP


def test_the_same_outbound_spi_towards_another_address_is_another_sa_rfc4301_4_1(scene, kit):
    scene.resident("gw2.example.org", scene.redeemed.spi_out)
    scene.of("road")
    scene.redeem(identity=kit.identity("gw2.example.org"))
    scene.install(remote=kit.endpoint("192.0.2.99"))
    assert isinstance(scene.judge(), Pair)


def test_a_denied_case_never_shows_keys():
    assert "encryption" not in repr(authorize_module.Case)
    assert authorize_module.Case.__repr__ is object.__repr__


def test_the_traffic_of_a_fixed_peer_that_may_prove_any_identity_is_nobody_elses(scene, kit):
    anybody = kit.connection(name="fixed", remote_id=None)
    scene.gateway = replace(scene.gateway, connections=(anybody, scene.gateway.connection("road")))
    scene.policies = Policies(scene.gateway)
    scene.of("road")
    scene.install(remote=kit.endpoint("192.0.2.77"))
    assert scene.judge() is Denial.OVERLAP


HUB = {number: Lane(if_id_in=number, if_id_out=number) for number in (1, 2)}
MARKS = {number: Lane(mark_in=Mark(number), mark_out=Mark(number)) for number in (1, 2)}
EVERYTHING = {"local_ts": ("0.0.0.0/0",), "remote_ts": ("0.0.0.0/0",)}


class Hub(Scene):
    """Two peers, each of them with all traffic of a lane; nobody is up. `remote` as configured for the second."""

    def __init__(self, kit, first, second, remote=None):
        super().__init__(kit)
        everything = {key: kit.selectors(*texts) for key, texts in EVERYTHING.items()}
        self.gateway = replace(
            self.gateway,
            connections=tuple(
                kit.connection(
                    name=name,
                    remote_id=kit.identity(name),
                    remote=remote if name == "two" and remote else kit.remote,
                    children=(kit.child(**everything, kernel=KernelOptions(lane=lane)),),
                )
                for name, lane in (("one", first), ("two", second))
            ),
        )
        self.policies = Policies(self.gateway)
        self.install(**everything)

    def asks(self, name, spi):
        self.of(name)
        self.redeem(identity=self.kit.identity(name), spi_in=spi, spi_out=spi + 1)

    def up(self, name, spi):
        """That peer's pair, installed."""
        self.asks(name, spi)
        pair = self.judge()
        assert isinstance(pair, Pair)
        identity = self.redeemed.identity
        claim = Claim(name, identity, pair.local_ts, pair.remote_ts, pair.policy.kernel.lane)
        self.sadb.reserve(Entry(connection=name, child="lan", identity=identity, claim=claim, pair=pair, since=0.0))
        return pair


@pytest.mark.parametrize("lanes", [HUB, MARKS])
def test_two_peers_may_have_all_traffic_each_of_a_lane_of_its_own(kit, lanes):
    hub = Hub(kit, lanes[1], lanes[2])
    pairs = [hub.up("one", 0x1000), hub.up("two", 0x2000)]
    assert [pair.policy.kernel.lane for pair in pairs] == [lanes[1], lanes[2]]
    assert len({pair.policy.reqid for pair in pairs}) == 2


MEETING = {
    "the same": (HUB[1], HUB[1]),
    "none": (OPEN, OPEN),
    "out only": (Lane(if_id_in=1, if_id_out=1), Lane(if_id_in=2, if_id_out=1)),
    "in only": (Lane(if_id_in=1, if_id_out=1), Lane(if_id_in=1, if_id_out=2)),
    "a mark, and none": (MARKS[1], OPEN),
    "masks that overlap": (
        Lane(mark_in=Mark(0x10, 0xF0), mark_out=Mark(0x10, 0xF0)),
        Lane(mark_in=Mark(1, 0x0F), mark_out=Mark(1, 0x0F)),
    ),
    "a mark of one direction": (Lane(mark_out=Mark(1)), Lane(mark_out=Mark(2))),
}


@pytest.mark.parametrize("lanes", MEETING.values(), ids=MEETING)
def test_no_peer_takes_anothers_traffic_where_their_lanes_meet_in_either_direction(kit, lanes, monkeypatch):
    hub = Hub(kit, *lanes)
    hub.up("one", 0x1000)
    hub.asks("two", 0x2000)
    assert hub.judge() is Denial.OVERLAP
    monkeypatch.setattr(authorize_module, "CHECKS", tuple(c for c in CHECKS if c.__name__ != "_no_overlap"))
    assert isinstance(hub.judge(), Pair)


@pytest.mark.parametrize(("lane", "taken"), [(HUB[1], True), (HUB[2], False)])
def test_whoever_comes_from_anywhere_gets_no_traffic_of_a_configured_peers_lane(kit, lane, taken):
    hub = Hub(kit, HUB[1], lane, remote=RemoteAny())
    hub.asks("two", 0x2000)
    # the other's address would be described more closely
    hub.install(remote=kit.endpoint("192.0.2.77"))
    verdict = hub.judge()
    assert verdict is Denial.OVERLAP if taken else isinstance(verdict, Pair)


def test_what_the_kernel_does_with_a_pair_is_the_configurations(kit):
    options = KernelOptions(lane=HUB[1], interface="ipsec0", priority=7, reqid=70000, life_bytes=1 << 20)
    scene = Scene(kit)
    child = kit.child(kernel=options)
    scene.gateway = replace(scene.gateway, connections=(kit.connection(children=(child,)),))
    scene.policies = Policies(scene.gateway)
    policy = scene.judge().policy
    assert (policy.kernel, policy.number, policy.reqid) == (options, 1, 70000)
    assert scene.policies.static() == (policy,)
    hub = Hub(kit, HUB[1], HUB[2], remote=RemoteAny())
    hub.asks("two", 0x2000)
    hub.install(remote=kit.endpoint("192.0.2.77"))
    assert hub.judge().policy.kernel.lane == HUB[2], "also where the policy comes with its peer"
