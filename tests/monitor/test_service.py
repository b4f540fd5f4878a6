"""The monitor's service against honest and lying workers, keyds and data planes."""

import ipaddress
from dataclasses import replace
from types import SimpleNamespace

import pytest

from monitor import epoch as epoch_module
from monitor import numbers
from monitor import sadb as sadb_module
from monitor import service as service_module
from monitor.dataplane import Cpis, DataplaneError
from monitor.installer import Leave
from monitor.sadb import Phase
from privsep.algorithms import ChildSuite
from privsep.config.model import RemoteAny
from privsep.errors import ChannelClosed, Violation
from privsep.iana import ProtocolId
from privsep.rate import LINES_PER_SECOND, TELL_SECONDS
from privsep.schema.install import (
    Acquire,
    Adopted,
    Allocated,
    Completed,
    Denial,
    Denied,
    Describe,
    Described,
    Expired,
    Installed,
    InstallOutbound,
    Moved,
    Outcome,
    Progress,
    Remove,
    Removed,
    Stop,
    Up,
)
from privsep.schema.keymat import NotRedeemable, Ready


def allocate(bench, kit, connection="paris", child="lan", remote="192.0.2.2", **changes):
    ends = {"local": kit.endpoint("192.0.2.1"), "remote": kit.endpoint(remote)}
    return bench.ask(kit.allocate(connection, child, **ends, **changes))


def installed(bench, kit, **changes):
    """An SPI allocated and its pair installed; the inbound SPI."""
    spi = allocate(bench, kit).spi
    answer = bench.install(kit.redeemed(spi_in=spi, spi_out=spi + 0x10000, **changes))
    assert answer == Installed(spi_in=spi)
    return spi


def answers_to(future):
    """What a future holds, as (value, error)."""
    assert future.done
    return future._value if future._error is None else future._error()


def asked(bench, kind):
    """The last message of that type to the worker, and its sequence."""
    return [(message, sequence) for message, sequence in bench.sent if isinstance(message, kind)][-1]


# an honest life


def test_policies_of_fixed_peers_are_in_place_before_any_worker_and_others_wait(cold_bench):
    cold_bench.service.start()
    placed = [policy for name, policy in cold_bench.plane.calls if name == "add_policy"]
    children = [
        (connection.name, child.name)
        for connection in cold_bench.gateway.connections
        if connection.name != "road"
        for child in connection.children
    ]
    assert len(placed) == len(children)
    assert [policy.number for policy in placed] == list(range(1, len(children) + 1))


def test_a_policy_that_cannot_be_placed_stops_the_start(cold_bench):
    cold_bench.plane.failing.add("add_policy")
    assert isinstance(answers_to(cold_bench.service.start()), DataplaneError)


def test_a_stop_while_policies_are_placed_ends_the_placing(cold_bench):
    plane = cold_bench.plane
    plane.held = True
    started = cold_bench.service.start()
    assert plane.names() == ["add_policy"]
    plane.held = False
    assert cold_bench.service.stop().done
    plane.waiting.pop().set_result(None)
    assert answers_to(started) is False
    assert plane.names().count("add_policy") == 1


def test_a_policy_that_is_placed_during_the_stop_is_removed_too(cold_bench):
    plane = cold_bench.plane
    cold_bench.service.start()
    plane.held = True
    stopped = cold_bench.service.stop()
    # the answer to what was asked before comes first, and brings one policy more
    last = next(policy for name, policy in plane.calls if name == "add_policy")
    cold_bench.service.installer._placed[99] = last
    while plane.waiting:
        plane.waiting.pop(0).set_result(None)
    assert answers_to(stopped) is None
    assert plane.names().count("remove_policy") == plane.names().count("add_policy") + 1


def test_a_peer_at_a_changing_address_may_come_while_policies_are_placed(cold_bench, kit):
    plane = cold_bench.plane
    plane.held = True
    started = cold_bench.service.start()
    cold_bench.service.epoch_began()
    child = cold_bench.gateway.connection("road").children[0]
    policy = kit.replace(plane.calls[0][1], number=7, local_ts=child.local_ts)
    cold_bench.service.installer.policies.record("road", child.name, policy)
    while plane.waiting:
        plane.waiting.pop(0).set_result(None)
    assert answers_to(started) is True


def test_an_honest_worker_gets_its_pair_installed_and_removed(bench, kit):
    spi = allocate(bench, kit).spi
    assert bench.install(kit.redeemed(spi_in=spi)) == Installed(spi_in=spi)
    (first, receives), (then, sends) = bench.plane.calls[-2:]
    assert (first, receives.spi_in, receives.encryption_in, receives.encryption_out) == (
        "install_inbound",
        spi,
        kit.key,
        b"",
    )
    assert (then, sends.spi_in, sends.encryption_in, sends.encryption_out) == (
        "install_outbound",
        spi,
        b"",
        kit.key[::-1],
    )
    assert bench.ask(Remove(spi_in=spi)) == Removed()
    assert bench.plane.calls[-1] == ("remove", spi)
    assert bench.codes() == ["installed", "removed"]
    assert bench.service.sadb.entry(spi) is None
    assert "remove_policy" not in bench.plane.names()
    assert Adopted not in [type(message) for message, _ in bench.sent], "its worker knows it"


def test_what_happens_to_a_pair_is_logged_with_its_names(bench, kit):
    spi = behind_nat(bench, kit)
    named = {"connection": "paris", "child": "lan", "spi_in": f"0x{spi:08x}", "spi_out": "0x00002000"}
    bench.service.moved(spi, kit.endpoint("192.0.2.2", 40001))
    bench.service.expired(spi, False)
    bench.plane.failing.add("remove")
    bench.ask(Remove(spi_in=spi))
    bench.plane.failing.clear()
    bench.ask(Remove(spi_in=spi))
    assert bench.codes() == ["installed", "moved", "expires", "remove-failed", "removed"]
    for _, fields in bench.logged:
        assert fields.items() >= named.items()
        assert fields["remote"].address == kit.remote
    bench.service.expired(again := installed(bench, kit), True)
    assert bench.logged[-1][0] == "expired"
    assert bench.logged[-1][1]["spi_in"] == f"0x{again:08x}"


def test_keys_are_forgotten_once_the_data_plane_has_them(bench, kit):
    pair = bench.service.sadb.entry(installed(bench, kit)).pair
    assert (pair.encryption_in, pair.integrity_in, pair.encryption_out, pair.integrity_out) == (b"", b"", b"", b"")
    assert kit.key.decode() not in str(bench.logged)


def test_a_peer_of_variable_address_gets_its_policy_with_its_first_pair_only(bench, kit):
    before = bench.plane.names().count("add_policy")
    for spi_out in (0x2000, 0x2001):
        spi = allocate(bench, kit, "road", remote="198.51.100.9").spi
        remote = kit.endpoint("198.51.100.9")
        bench.install(kit.redeemed(connection="road", spi_in=spi, spi_out=spi_out), remote=remote)
    assert bench.plane.names().count("add_policy") == before + 1
    assert bench.plane.names()[-3:] == ["allocate_spi", "install_inbound", "install_outbound"]
    pairs = [pair for name, pair in bench.plane.calls if name == "install_inbound"]
    assert pairs[0].policy == pairs[1].policy
    assert pairs[0].policy.remote.address == ipaddress.ip_address("198.51.100.9")


def test_a_peer_that_moved_gets_its_policy_again_under_the_same_number(bench, kit):
    policies = []
    for remote, spi_out in (("198.51.100.9", 0x2000), ("198.51.100.10", 0x2001)):
        spi = allocate(bench, kit, "road", remote=remote).spi
        bench.install(kit.redeemed(connection="road", spi_in=spi, spi_out=spi_out), remote=kit.endpoint(remote))
        policies.append([policy for name, policy in bench.plane.calls if name == "add_policy"][-1])
    assert policies[0].number == policies[1].number
    assert policies[0].remote != policies[1].remote


def test_two_peers_of_one_child_have_two_policy_numbers(bench, kit):
    numbers = set()
    for octet in (9, 10):
        remote = f"198.51.100.{octet}"
        wish = {"identity": kit.identity(remote), "remote_ts": kit.selectors(f"10.4.{octet}.0/24")[0]}
        spi = allocate(bench, kit, "road", remote=remote, **wish).spi
        bench.install(
            kit.redeemed(connection="road", spi_in=spi, identity=kit.identity(remote)),
            remote=kit.endpoint(remote),
            remote_ts=kit.selectors(f"10.4.{octet}.0/24"),
        )
        numbers.add(bench.plane.calls[-1][1].policy.number)
    assert len(numbers) == 2


def test_an_acquire_reaches_the_worker_by_name(bench):
    bench.service.acquired(2)
    assert bench.sent[-1] == (Acquire(connection="paris", child="dmz"), 0)
    assert bench.logged == [("acquire", {"connection": "paris", "child": "dmz"})]


@pytest.mark.parametrize("number", [0, 65535])
def test_an_acquire_of_no_policy_of_ours_is_nothing(bench, number):
    bench.service.acquired(number)
    assert bench.sent == []


def test_expiry_is_passed_on_and_a_hard_one_forgets_the_pair(bench, kit):
    spi = installed(bench, kit)
    bench.service.expired(spi, False)
    assert bench.sent[-1] == (Expired(spi_in=spi, hard=False), 0)
    assert bench.service.sadb.entry(spi) is not None
    bench.service.expired(spi, True)
    assert bench.sent[-1] == (Expired(spi_in=spi, hard=True), 0)
    assert bench.service.sadb.entry(spi) is None
    assert bench.ask(Remove(spi_in=spi)) == Denied(why=Denial.UNKNOWN_SA)


def test_an_spi_that_expired_in_the_kernel_cannot_be_installed_any_more(bench, kit):
    spi = allocate(bench, kit).spi
    bench.service.expired(spi, True)
    assert bench.install(kit.redeemed(spi_in=spi)) == Denied(why=Denial.SPI)


# lies


@pytest.mark.parametrize(
    ("redeemed", "request_", "denial"),
    [
        ({"connection": "rome"}, {}, Denial.NO_SUCH_CHILD),
        ({"identity": "mallory"}, {}, Denial.IDENTITY),
        ({"encryption_in": b"short"}, {}, Denial.ALGORITHMS),
        ({"spi_in": 0xBAD0}, {}, Denial.SPI),
        ({}, {"remote": "203.0.113.1"}, Denial.ADDRESSES),
        ({}, {"remote_ts": "0.0.0.0/0"}, Denial.SELECTORS),
    ],
)
def test_a_lie_is_denied_and_the_data_plane_hears_nothing_of_it(bench, kit, redeemed, request_, denial):
    if "identity" in redeemed:
        redeemed = {"identity": kit.identity(redeemed["identity"])}
    if "remote" in request_:
        request_ = {"remote": kit.endpoint(request_["remote"])}
    if "remote_ts" in request_:
        request_ = {"remote_ts": kit.selectors(request_["remote_ts"])}
    spi = allocate(bench, kit).spi
    calls = list(bench.plane.calls)
    assert bench.install(kit.redeemed(**{"spi_in": spi} | redeemed), **request_) == Denied(why=denial)
    assert bench.plane.calls == calls
    assert bench.logged[-1][0] == "denied"
    assert bench.logged[-1][1]["reason"] == denial.name.lower()


def test_an_ah_childs_spi_is_allocated_and_given_back_as_ah(bench, kit):
    suites = (ChildSuite.parse("sha256", ProtocolId.AH),)
    paris = kit.connection(children=(kit.child(suites=suites),))
    bench.service.gateway = replace(bench.gateway, connections=(paris,))
    spi = allocate(bench, kit).spi
    assert bench.plane.protocols == {spi: ProtocolId.AH}
    assert bench.ask(Remove(spi_in=spi)) == Removed()
    assert bench.plane.calls[-1] == ("release_spi", spi)


def with_ipcomp(bench, kit):
    """The first child compresses; its SPI and CPI."""
    paris = kit.connection(children=(kit.child(ipcomp=True),))
    bench.service.gateway = replace(bench.gateway, connections=(paris,))
    answer = allocate(bench, kit)
    assert bench.plane.protocols == {answer.spi: ProtocolId.ESP, answer.cpi: ProtocolId.IPCOMP}
    return answer


def test_a_cpi_comes_with_the_spi_and_goes_with_it(bench, kit):
    answer = with_ipcomp(bench, kit)
    assert bench.ask(Remove(spi_in=answer.spi)) == Removed()
    assert bench.plane.calls[-2:] == [("release_spi", answer.spi), ("release_spi", answer.cpi)]


def test_without_a_cpi_there_is_no_spi_either(bench, kit):
    bench.plane.failing.add("allocate_cpi")
    paris = kit.connection(children=(kit.child(ipcomp=True),))
    bench.service.gateway = replace(bench.gateway, connections=(paris,))
    assert allocate(bench, kit) == Denied(why=Denial.DATAPLANE)
    assert bench.plane.names()[-2:] == ["allocate_spi", "release_spi"]
    assert bench.service.sadb.allocations() == ()


def test_the_policy_compresses_once_the_pair_does(bench, kit):
    answer = with_ipcomp(bench, kit)
    bench.install(kit.redeemed(spi_in=answer.spi), cpi_out=0x500)
    (_, policy), (_, pair) = bench.plane.calls[-2:]
    # message 3 has come
    assert bench.plane.names()[-3:] == ["install_inbound", "add_policy", "install_outbound"]
    assert (policy.number, policy.ipcomp, pair.ipcomp) == (1, True, Cpis(inbound=answer.cpi, outbound=0x500))


def test_a_cpi_that_is_not_used_is_given_back(bench, kit):
    answer = with_ipcomp(bench, kit)
    bench.install(kit.redeemed(spi_in=answer.spi))
    assert bench.plane.names()[-3:] == ["install_inbound", "release_spi", "install_outbound"]
    assert bench.plane.calls[-2][1] == answer.cpi
    assert bench.plane.calls[-1][1].policy.ipcomp is False


def test_a_refused_installation_gives_the_cpi_back_too(bench, kit):
    answer = with_ipcomp(bench, kit)
    bench.plane.failing.add("install_inbound")
    assert bench.install(kit.redeemed(spi_in=answer.spi), cpi_out=0x500) == Denied(why=Denial.DATAPLANE)
    assert bench.plane.calls[-2:] == [("release_spi", answer.spi), ("release_spi", answer.cpi)]


def behind_nat(bench, kit):
    """An installed pair whose peer is behind a NAT; its inbound SPI."""
    spi = allocate(bench, kit).spi
    ends = {"local": kit.endpoint("192.0.2.1", 4500), "remote": kit.endpoint("192.0.2.2", 40000)}
    bench.install(kit.redeemed(spi_in=spi), encap=True, **ends)
    return spi


def test_a_new_port_is_followed_and_the_worker_told_rfc3948_3(bench, kit):
    spi = behind_nat(bench, kit)
    remote = kit.endpoint("192.0.2.2", 40001)
    bench.service.moved(spi, remote)
    name, pair = bench.plane.calls[-1]
    assert (name, pair.spi_in, pair.remote) == ("follow", spi, remote)
    assert bench.sent[-1] == (Moved(spi_in=spi, remote=remote), 0)
    assert bench.service.sadb.entry(spi).pair.remote == remote


@pytest.mark.parametrize(("address", "port"), [("192.0.2.3", 40001), ("192.0.2.2", 0), ("192.0.2.2", 40000)])
def test_another_address_no_port_and_the_same_port_are_not_followed(bench, kit, address, port):
    spi = behind_nat(bench, kit)
    sent = list(bench.sent)
    bench.service.moved(spi, kit.endpoint(address, port))
    assert "follow" not in bench.plane.names()
    assert bench.sent == sent
    assert ("move-ignored" in bench.codes()) is (address == "192.0.2.3")


def test_a_pair_without_udp_and_a_strangers_spi_do_not_move(bench, kit):
    for spi in (installed(bench, kit), 0xBAD0):
        bench.service.moved(spi, kit.endpoint("192.0.2.2", 40001))
    assert "follow" not in bench.plane.names()


def test_a_pair_moves_once_a_second(bench, kit):
    spi = behind_nat(bench, kit)
    for port in range(40001, 40011):
        bench.service.moved(spi, kit.endpoint("192.0.2.2", port))
    assert bench.plane.names().count("follow") == 1
    bench.clock.advance(1.0)
    bench.service.moved(spi, kit.endpoint("192.0.2.2", 40010))
    assert bench.service.sadb.entry(spi).pair.remote.port == 40010


def test_what_the_data_plane_refuses_to_follow_stays_where_it_was(bench, kit):
    spi = behind_nat(bench, kit)
    bench.plane.failing.add("follow")
    bench.service.moved(spi, kit.endpoint("192.0.2.2", 40001))
    assert bench.codes()[-1] == "move-failed"
    assert bench.service.sadb.entry(spi).pair.remote.port == 40000


def test_an_installed_spi_cannot_be_installed_again(bench, kit):
    spi = installed(bench, kit)
    calls = list(bench.plane.calls)
    assert bench.install(kit.redeemed(spi_in=spi, spi_out=0x3000)) == Denied(why=Denial.SPI)
    assert bench.plane.calls == calls


def test_an_spi_whose_installation_is_under_way_cannot_be_installed_again(bench, kit):
    spi = allocate(bench, kit).spi
    bench.plane.held = True
    assert bench.install(kit.redeemed(spi_in=spi)) is None
    assert bench.install(kit.redeemed(spi_in=spi, spi_out=0x3000)) == Denied(why=Denial.SPI)
    assert bench.plane.names().count("install_inbound") == 1


def test_a_keymat_handle_that_keyd_does_not_honour_is_denied(bench, kit):
    allocate(bench, kit)
    calls = list(bench.plane.calls)
    assert bench.install(NotRedeemable()) == Denied(why=Denial.KEYMAT)
    assert bench.plane.calls == calls
    assert bench.logged[-1] == ("denied", {"reason": "keymat", "remote": kit.endpoint("192.0.2.2")})


def test_an_answer_of_keyd_of_another_kind_is_a_violation(bench, kit):
    bench.ask(kit.install())
    with pytest.raises(Violation):
        bench.redemptions[-1].set_result(Ready(same_secret=b""))


@pytest.mark.parametrize(
    ("names", "remote", "denial"),
    [
        (("rome", "lan"), "192.0.2.2", Denial.NO_SUCH_CHILD),
        (("paris", "rome"), "192.0.2.2", Denial.NO_SUCH_CHILD),
        (("paris", "lan"), "192.0.2.3", Denial.ADDRESSES),
    ],
)
def test_no_spi_for_what_is_not_configured(bench, kit, names, remote, denial):
    calls = list(bench.plane.calls)
    assert allocate(bench, kit, *names, remote=remote) == Denied(why=denial)
    assert bench.plane.calls == calls


def test_an_allocated_spi_can_be_given_back_once(bench, kit):
    spi = allocate(bench, kit).spi
    assert bench.ask(Remove(spi_in=spi)) == Removed()
    assert bench.plane.calls[-1] == ("release_spi", spi)
    assert bench.ask(Remove(spi_in=spi)) == Denied(why=Denial.UNKNOWN_SA)


def test_an_sa_that_is_not_ours_cannot_be_removed(bench):
    calls = list(bench.plane.calls)
    assert bench.ask(Remove(spi_in=0xDEAD)) == Denied(why=Denial.UNKNOWN_SA)
    assert bench.plane.calls == calls


@pytest.mark.parametrize("limit", ["MAX_ALLOCATED", "MAX_ALLOCATED_PER_CONNECTION"])
def test_spis_are_bounded_in_total_and_for_each_connection(bench, kit, monkeypatch, limit):
    monkeypatch.setattr(sadb_module, limit, 2)
    first = allocate(bench, kit)
    assert isinstance(first, Allocated)
    assert isinstance(allocate(bench, kit), Allocated)
    assert allocate(bench, kit) == Denied(why=Denial.QUOTA)
    bench.ask(Remove(spi_in=first.spi))
    assert isinstance(allocate(bench, kit), Allocated)


@pytest.mark.parametrize("limit", ["MAX_INSTALLED", "MAX_INSTALLED_PER_CONNECTION"])
def test_pairs_are_bounded_in_total_and_for_each_connection(bench, kit, monkeypatch, limit):
    monkeypatch.setattr(sadb_module, limit, 1)
    spare = allocate(bench, kit).spi
    installed(bench, kit)
    assert bench.install(kit.redeemed(spi_in=spare, spi_out=0x3000)) == Denied(why=Denial.QUOTA)
    # nor is anything begun
    assert allocate(bench, kit) == Denied(why=Denial.QUOTA)


def test_policy_numbers_are_bounded(bench, kit, monkeypatch):
    monkeypatch.setattr(numbers, "MAX_POLICY_NUMBER", 6)
    spi = allocate(bench, kit, "road").spi
    redeemed = kit.redeemed(connection="road", identity=kit.identity("wanderer.example.org"), spi_in=spi)
    assert bench.install(redeemed, remote_ts=kit.selectors("10.4.0.0/16")) == Denied(why=Denial.QUOTA)
    monkeypatch.setattr(numbers, "MAX_POLICY_NUMBER", 7)
    assert bench.install(redeemed, remote_ts=kit.selectors("10.4.0.0/16")) == Installed(spi_in=spi)


@pytest.fixture
def road(bench, kit):
    """Installs a pair of a peer at a changing address; selectors, and an identity, by number."""

    def install(number, who=None, connection="road"):
        name = f"wanderer{number if who is None else who}.example.org"
        who, remote_ts = kit.identity(name), kit.selectors(f"10.4.{number}.0/24")
        spi = allocate(bench, kit, connection, identity=who, remote_ts=remote_ts[0]).spi
        redeemed = kit.redeemed(connection=connection, identity=who, spi_in=spi, spi_out=spi + 0x10000)
        answer = bench.install(redeemed, remote_ts=remote_ts)
        return answer if isinstance(answer, Denied) else answer.spi_in

    return install


def placed(bench):
    """The third octet of each policy of a road warrior that is in place, by number."""
    policies = {each.number: each for name, each in bench.plane.calls if name == "add_policy"}
    octets = {number: str(each.remote_ts[0].network).split(".") for number, each in policies.items()}
    return {number: int(third) for number, (_, second, third, _) in octets.items() if second == "4"}


def test_of_three_times_the_share_all_get_in_one_after_the_other_and_the_oldest_unused_goes(bench, road, monkeypatch):
    monkeypatch.setattr(numbers, "MAX_POLICIES_PER_CONNECTION", 8)
    staying = road(0)
    for number in range(1, 24):
        spi = road(number)
        assert isinstance(spi, int)
        assert len(placed(bench)) == min(number + 1, 8)
        assert bench.ask(Remove(spi_in=spi)) == Removed()
    # the one with a live pair never went, and of the others the latest are there
    assert sorted(placed(bench).values()) == [0, *range(17, 24)]
    assert bench.service.sadb.entry(staying) is not None
    # who comes back makes its policy the last to go
    bench.ask(Remove(spi_in=road(17)))
    bench.ask(Remove(spi_in=road(30)))
    assert sorted(placed(bench).values()) == [0, 17, *range(19, 24), 30]


def test_where_all_policies_have_a_pair_the_next_peer_is_denied_until_one_has_not(bench, road, kit, monkeypatch):
    monkeypatch.setattr(numbers, "MAX_POLICIES_PER_CONNECTION", 2)
    first, _ = road(1), road(2)
    assert road(3) == Denied(why=Denial.QUOTA)
    assert isinstance(road(1), int)
    # nor do policies from the configuration count
    assert isinstance(installed(bench, kit), int)
    bench.ask(Remove(spi_in=first))
    assert road(3) == Denied(why=Denial.QUOTA)


def test_a_peer_that_chooses_ever_other_selectors_uses_up_its_own(bench, road, monkeypatch):
    monkeypatch.setattr(numbers, "MAX_UNUSED_OF_IDENTITY", 3)
    bench.ask(Remove(spi_in=road(1)))
    for number in range(2, 12):
        bench.ask(Remove(spi_in=road(number, who="x")))
    assert sorted(placed(bench).values()) == [1, 9, 10, 11]


def test_when_all_numbers_are_taken_another_connection_s_oldest_unused_goes(bench, road, kit, monkeypatch):
    road(1)
    bench.ask(Remove(spi_in=road(2)))
    monkeypatch.setattr(numbers, "MAX_POLICY_NUMBER", max(placed(bench)))
    other = kit.connection(name="path", local=None, remote=RemoteAny(), remote_id=None)
    other = replace(other, children=bench.gateway.connection("road").children)
    bench.service.gateway = replace(bench.gateway, connections=(*bench.gateway.connections, other))
    assert isinstance(road(3, connection="path"), int)
    assert sorted(placed(bench).values()) == [1, 3]
    assert bench.service.installer.policies.owner(max(placed(bench))) == ("path", "lan")


@pytest.mark.parametrize("sequence", [0, 7])
@pytest.mark.parametrize("kind", ["install", "allocate", "remove"])
def test_a_request_without_a_number_of_its_own_is_a_violation(bench, kit, sequence, kind):
    ends = {"local": kit.endpoint("192.0.2.1"), "remote": kit.endpoint("192.0.2.2")}
    again = {
        "install": kit.install(),
        "allocate": kit.allocate("paris", "lan", **ends),
        "remove": Remove(spi_in=1),
    }
    bench.service.from_worker(kit.install(), 7)
    with pytest.raises(Violation):
        bench.service.from_worker(again[kind], sequence)


def test_too_many_unanswered_requests_are_a_violation(bench, kit, monkeypatch):
    monkeypatch.setattr(epoch_module, "MAX_OPEN", 2)
    bench.ask(kit.install())
    bench.ask(kit.install())
    with pytest.raises(Violation):
        bench.ask(kit.install())


def test_a_sequence_number_is_free_again_after_its_answer(bench, kit):
    for _ in range(2):
        bench.service.from_worker(Remove(spi_in=0xDEAD), 7)
    assert [sequence for _, sequence in bench.sent] == [7, 7]


@pytest.mark.parametrize("message", [Completed(outcome=Outcome.DONE, text=""), Described(cursor=0, ike_sas=())])
def test_an_answer_to_nothing_is_a_violation(bench, message):
    with pytest.raises(Violation):
        bench.service.from_worker(message, 1)


def test_an_answer_of_the_wrong_kind_is_a_violation(bench):
    bench.service.describe(3)
    _, sequence = asked(bench, Describe)
    with pytest.raises(Violation):
        bench.service.from_worker(Completed(outcome=Outcome.DONE, text=""), sequence)


def test_a_second_answer_is_a_violation(bench):
    bench.service.describe(3)
    _, sequence = asked(bench, Describe)
    bench.service.from_worker(Described(cursor=0, ike_sas=()), sequence)
    with pytest.raises(Violation):
        bench.service.from_worker(Described(cursor=0, ike_sas=()), sequence)


def test_denials_are_logged_at_a_bounded_rate_and_the_rest_counted(bench, kit):
    for _ in range(100):
        allocate(bench, kit, "rome")
    assert bench.codes().count("denied") == LINES_PER_SECOND
    bench.clock.advance(TELL_SECONDS)
    assert bench.logged[-1] == ("left-out", {"event": "denied", "lines": 100 - LINES_PER_SECOND})


# failures of the data plane


def test_a_failed_installation_leaves_nothing_behind(bench, kit):
    spi = allocate(bench, kit).spi
    bench.plane.failing.add("install_inbound")
    assert bench.install(kit.redeemed(spi_in=spi)) == Denied(why=Denial.DATAPLANE)
    assert bench.plane.calls[-1] == ("release_spi", spi)
    assert bench.codes() == ["install-failed", "denied"]
    assert bench.service.sadb.entries() == ()
    assert not bench.service.sadb.has_outbound(kit.remote, ProtocolId.ESP, 0x2000)
    bench.plane.failing.clear()
    again = allocate(bench, kit).spi
    assert bench.install(kit.redeemed(spi_in=again)) == Installed(spi_in=again)


def test_without_its_policy_no_pair_is_installed(bench, kit):
    spi = allocate(bench, kit, "road").spi
    bench.plane.failing.add("add_policy")
    redeemed = kit.redeemed(connection="road", identity=kit.identity("wanderer.example.org"), spi_in=spi)
    assert bench.install(redeemed, remote_ts=kit.selectors("10.4.0.0/16")) == Denied(why=Denial.DATAPLANE)
    assert "install_inbound" not in bench.plane.names()


def test_a_failed_removal_keeps_the_pair_known(bench, kit):
    spi = installed(bench, kit)
    bench.plane.failing.add("remove")
    assert bench.ask(Remove(spi_in=spi)) == Denied(why=Denial.DATAPLANE)
    assert bench.service.sadb.entry(spi).phase is Phase.INSTALLED


def test_no_spi_from_the_data_plane_is_a_denial(bench, kit):
    bench.plane.failing.add("allocate_spi")
    assert allocate(bench, kit) == Denied(why=Denial.DATAPLANE)


def test_an_spi_that_is_in_use_for_another_address_is_not_given_out_twice(bench, kit):
    spi = allocate(bench, kit).spi
    bench.plane.next_spi = spi
    assert allocate(bench, kit, "road") == Denied(why=Denial.DATAPLANE)
    assert bench.plane.calls[-1] == ("release_spi", spi)
    assert bench.service.sadb.allocation(spi).connection == "paris"
    assert bench.install(kit.redeemed(spi_in=spi)) == Installed(spi_in=spi)
    bench.plane.next_spi = spi
    assert allocate(bench, kit, "road") == Denied(why=Denial.DATAPLANE)
    assert bench.plane.calls[-1] == ("release_spi", spi)


def test_an_spi_that_cannot_be_given_back_is_logged(bench, kit):
    spi = allocate(bench, kit).spi
    bench.plane.failing.add("release_spi")
    assert bench.ask(Remove(spi_in=spi)) == Removed()
    assert bench.codes() == ["cleanup-failed"]


def test_a_pair_that_is_not_in_place_yet_or_is_going_is_not_touched(bench, kit):
    spi = allocate(bench, kit).spi
    ends = {"local": kit.endpoint("192.0.2.1", 4500), "remote": kit.endpoint("192.0.2.2", 40000)}
    bench.plane.held = True

    def untouched():
        calls = list(bench.plane.calls)
        assert bench.ask(Remove(spi_in=spi)) == Denied(why=Denial.UNKNOWN_SA)
        bench.service.moved(spi, kit.endpoint("192.0.2.2", 40001))
        assert answers_to(bench.service.traffic([spi, 0xBAD0])) == {}
        assert bench.plane.calls == calls

    bench.install(kit.redeemed(spi_in=spi), encap=True, **ends)
    untouched()
    bench.plane.waiting[-1].set_result(None)
    assert bench.ask(Remove(spi_in=spi)) is None
    untouched()


# epochs


def test_a_new_worker_is_told_what_is_installed(bench, kit):
    spi = installed(bench, kit)
    bench.service.epoch_ended()
    bench.sent.clear()
    bench.service.epoch_began()
    assert bench.sent == [
        (
            Adopted(
                connection="paris",
                child="lan",
                identity=kit.identity("gw2.example.org"),
                spi_in=spi,
                spi_out=spi + 0x10000,
                local=kit.endpoint("192.0.2.1"),
                remote=kit.endpoint("192.0.2.2"),
                left_s=3600,
            ),
            0,
        )
    ]
    assert "remove" not in bench.plane.names()


def test_many_adopted_pairs_come_in_portions_without_those_removed_meanwhile(bench, kit, monkeypatch):
    monkeypatch.setattr(service_module, "ADOPTED_AT_ONCE", 2)
    spis = [installed(bench, kit) for _ in range(5)]
    bench.service.epoch_ended()
    bench.sent.clear()
    bench.service.epoch_began()
    assert [message.spi_in for message, _ in bench.sent] == spis[:2]
    bench.service.expired(spis[2], True)
    bench.clock.advance(1)
    adopted = [message.spi_in for message, _ in bench.sent if isinstance(message, Adopted)]
    assert adopted == [spis[0], spis[1], spis[3], spis[4]]


def test_portions_for_a_worker_end_with_it(bench, kit, monkeypatch):
    monkeypatch.setattr(service_module, "ADOPTED_AT_ONCE", 1)
    spis = [installed(bench, kit) for _ in range(3)]
    bench.service.epoch_ended()
    bench.service.epoch_began()
    bench.service.epoch_ended()
    bench.sent.clear()
    bench.service.epoch_began()
    bench.clock.advance(1)
    assert [message.spi_in for message, _ in bench.sent] == spis


def test_spis_that_a_dead_worker_did_not_use_are_released(bench, kit):
    kept, spare = installed(bench, kit), allocate(bench, kit).spi
    bench.service.epoch_ended()
    assert bench.plane.calls[-1] == ("release_spi", spare)
    bench.service.epoch_began()
    assert bench.install(kit.redeemed(spi_in=spare, spi_out=0x3000)) == Denied(why=Denial.SPI)
    assert bench.service.sadb.entry(kept) is not None


def test_a_redemption_that_outlives_its_worker_installs_nothing(bench, kit):
    spi = allocate(bench, kit).spi
    bench.ask(kit.install())
    bench.service.epoch_ended()
    bench.service.epoch_began()
    bench.sent.clear()
    calls = list(bench.plane.calls)
    bench.redemptions[-1].set_result(kit.redeemed(spi_in=spi))
    assert bench.plane.calls == calls
    assert bench.sent == []
    assert bench.codes() == []


def test_a_redemption_that_keyds_death_ends_is_nothing(bench, kit):
    allocate(bench, kit)
    bench.ask(kit.install())
    bench.sent.clear()
    bench.redemptions[-1].set_error(ChannelClosed)
    assert bench.sent == []


def half(bench, kit, **changes):
    """A pair that receives, its peer has not confirmed; the inbound SPI."""
    spi = allocate(bench, kit).spi
    bench.keyd_answers.append(kit.redeemed(spi_in=spi, **changes))
    assert bench.ask(kit.install()) == Installed(spi_in=spi)
    return spi


def test_an_installation_that_outlives_its_worker_is_adopted_by_the_next(bench, kit):
    spi = half(bench, kit)
    bench.plane.held = True
    bench.install_outbound(spi)
    bench.service.epoch_ended()
    bench.service.epoch_began()
    assert Adopted not in [type(message) for message, _ in bench.sent], "not in place yet"
    bench.sent.clear()
    bench.plane.waiting[-1].set_result(None)
    assert [type(message) for message, _ in bench.sent] == [Adopted]


def test_an_installation_that_outlives_every_worker_is_told_to_nobody(bench, kit):
    spi = half(bench, kit)
    bench.plane.held = True
    bench.install_outbound(spi)
    bench.service.epoch_ended()
    bench.sent.clear()
    bench.plane.waiting[-1].set_result(None)
    assert bench.sent == []
    assert bench.service.sadb.entry(spi).phase is Phase.INSTALLED


# halves: the inbound SA stands before message 2 leaves, the outbound one comes with message 3 (RFC 2409 section 5.5)


def test_a_pair_receives_before_its_peer_has_confirmed_and_counts_already(bench, kit):
    spi = half(bench, kit)
    assert bench.plane.names()[-1] == "install_inbound"
    entry = bench.service.sadb.entry(spi)
    assert entry.phase is Phase.RECEIVING
    assert bench.codes() == []
    assert bench.service.sadb.has_outbound(kit.remote, ProtocolId.ESP, 0x2000)
    stranger = kit.allocate("road", remote=kit.endpoint("198.51.100.7"), remote_ts=entry.pair.remote_ts[0])
    assert bench.ask(stranger) == Denied(why=Denial.OVERLAP)


def test_a_pair_whose_peer_never_confirms_is_removed_and_its_selectors_are_free_again(bench, kit):
    spi = half(bench, kit)
    assert bench.ask(Remove(spi_in=spi)) == Removed()
    assert bench.plane.calls[-1] == ("remove", spi)
    assert bench.service.sadb.entries() == ()
    assert not bench.service.sadb.has_outbound(kit.remote, ProtocolId.ESP, 0x2000)


def test_halves_go_with_their_worker_and_are_told_to_none(bench, kit):
    spi = half(bench, kit)
    bench.service.epoch_ended()
    assert bench.plane.calls[-1] == ("remove", spi)
    assert bench.service.sadb.entries() == ()
    bench.sent.clear()
    bench.service.epoch_began()
    assert bench.sent == []


def test_a_half_that_is_in_place_when_its_worker_has_gone_goes_too(bench, kit):
    spi = allocate(bench, kit).spi
    bench.plane.held = True
    bench.keyd_answers.append(kit.redeemed(spi_in=spi))
    bench.ask(kit.install())
    bench.service.epoch_ended()
    bench.plane.held = False
    bench.plane.waiting[-1].set_result(None)
    assert bench.plane.calls[-1] == ("remove", spi)
    assert bench.service.sadb.entries() == ()


def test_the_outbound_half_is_installed_once_and_only_for_a_pair_that_receives(bench, kit):
    assert bench.ask(InstallOutbound(spi_in=0x1000)) == Denied(why=Denial.UNKNOWN_SA)
    spi = half(bench, kit)
    assert bench.install_outbound(spi) == Installed(spi_in=spi)
    assert bench.ask(InstallOutbound(spi_in=spi)) == Denied(why=Denial.UNKNOWN_SA)
    assert bench.plane.names().count("install_outbound") == 1


def test_before_hash_3_there_is_nothing_to_send_with_and_the_pair_goes_on_to_receive(bench, kit):
    spi = half(bench, kit)
    bench.keyd_answers.append(NotRedeemable())
    assert bench.ask(InstallOutbound(spi_in=spi)) == Denied(why=Denial.KEYMAT)
    assert "install_outbound" not in bench.plane.names()
    assert bench.service.sadb.entry(spi).phase is Phase.RECEIVING
    assert bench.install_outbound(spi) == Installed(spi_in=spi)


def test_a_key_to_send_with_that_does_not_fit_the_suite_is_denied(bench, kit):
    spi = half(bench, kit)
    assert bench.install_outbound(spi, kit.outbound(encryption_out=kit.key[1:])) == Denied(why=Denial.ALGORITHMS)
    assert "install_outbound" not in bench.plane.names()


def test_an_answer_of_the_other_half_is_a_violation(bench, kit):
    bench.ask(kit.install())
    with pytest.raises(Violation):
        bench.redemptions[-1].set_result(kit.outbound())


def test_of_a_pair_that_cannot_send_nothing_is_left(bench, kit):
    spi = half(bench, kit)
    bench.plane.failing.add("install_outbound")
    assert bench.install_outbound(spi) == Denied(why=Denial.DATAPLANE)
    assert bench.plane.calls[-1] == ("remove", spi)
    assert bench.service.sadb.entries() == ()


def test_a_pair_that_ends_before_it_may_send_is_not_installed(bench, kit):
    spi = half(bench, kit)
    assert bench.ask(InstallOutbound(spi_in=spi)) is None
    bench.service.expired(spi, True)
    bench.redemptions[-1].set_result(kit.outbound())
    assert bench.sent[-1][0] == Denied(why=Denial.UNKNOWN_SA)
    assert "install_outbound" not in bench.plane.names()


def test_a_policy_stays_where_its_older_pair_sends_until_the_peer_has_confirmed_another_place(bench, kit):
    """Whoever diverts a message 1 does not get the traffic."""
    remotes = [kit.endpoint(address) for address in ("198.51.100.9", "198.51.100.10")]
    who = {"connection": "road", "identity": kit.identity("wanderer.example.org")}

    def begin(remote, spi_out):
        spi = allocate(bench, kit, "road", remote=str(remote.address)).spi
        redeemed = kit.redeemed(spi_in=spi, spi_out=spi_out, remote_ts=kit.selectors("10.4.0.0/16")[0], **who)
        bench.keyd_answers.append(redeemed)
        assert bench.ask(kit.install(remote=remote)) == Installed(spi_in=spi)
        return spi

    bench.install_outbound(begin(remotes[0], 0x2000))
    bench.plane.calls.clear()
    spi = begin(remotes[1], 0x2001)
    assert bench.plane.names() == ["allocate_spi", "install_inbound"]
    bench.install_outbound(spi)
    assert bench.plane.names()[2:] == ["migrate", "add_policy", "install_outbound"]


def test_an_installation_that_has_expired_when_it_is_done_is_told_to_nobody(bench, kit):
    spi = allocate(bench, kit).spi
    bench.plane.held = True
    bench.install(kit.redeemed(spi_in=spi))
    bench.service.epoch_ended()
    bench.service.epoch_began()
    bench.service.expired(spi, True)
    bench.sent.clear()
    bench.plane.waiting[-1].set_result(None)
    assert bench.sent == []


def test_between_two_workers_messages_and_events_go_nowhere(bench, kit):
    spi = installed(bench, kit)
    bench.service.epoch_ended()
    bench.sent.clear()
    bench.service.from_worker(kit.install(), 99)
    bench.service.acquired(1)
    bench.service.expired(spi, True)
    assert bench.sent == []
    assert bench.service.sadb.entry(spi) is None


# orders


def test_an_order_goes_to_the_worker_and_its_steps_come_back(bench):
    steps = []
    future = bench.service.up("paris", "lan", steps.append)
    order, sequence = asked(bench, Up)
    assert (order.connection, order.child) == ("paris", "lan")
    bench.service.from_worker(Progress(order=order.order, text="message 1 sent"), 0)
    bench.service.from_worker(Completed(outcome=Outcome.DONE, text="up"), sequence)
    assert steps == ["message 1 sent"]
    assert answers_to(future) == Completed(outcome=Outcome.DONE, text="up")
    with pytest.raises(Violation):
        bench.service.from_worker(Progress(order=order.order, text="more"), 0)


def test_progress_as_a_request_is_a_violation(bench):
    bench.service.up("paris", "", lambda text: None)
    order, _ = asked(bench, Up)
    with pytest.raises(Violation):
        bench.service.from_worker(Progress(order=order.order, text="x"), 3)


def test_steps_of_one_order_are_bounded(bench):
    steps = []
    bench.service.down("paris", "", steps.append)
    number = bench.sent[-1][0].order
    for _ in range(epoch_module.MAX_PROGRESS + 10):
        bench.service.from_worker(Progress(order=number, text="x"), 0)
    assert len(steps) == epoch_module.MAX_PROGRESS


def test_an_order_ends_with_its_worker_and_none_begins_without_one(bench):
    waiting = bench.service.up("paris", "", lambda text: None)
    bench.service.epoch_ended()
    assert isinstance(answers_to(waiting), ChannelClosed)
    assert isinstance(answers_to(bench.service.up("paris", "", lambda text: None)), ChannelClosed)


def test_a_stuck_worker_gets_a_bounded_number_of_questions(bench, monkeypatch):
    monkeypatch.setattr(epoch_module, "MAX_PENDING", 3)
    for _ in range(3):
        assert not bench.service.describe(3).done
    assert isinstance(answers_to(bench.service.describe(3)), epoch_module.WorkerBusy)
    assert [type(message) for message, _ in bench.sent] == [Describe] * 3


def test_pages_are_followed_to_their_end(bench):
    future = bench.service.describe(3)
    for cursor in (16, 32, 0):
        _, sequence = asked(bench, Describe)
        bench.service.from_worker(Described(cursor=cursor, ike_sas=()), sequence)
    assert [message.cursor for message, _ in bench.sent] == [0, 16, 32]
    assert answers_to(future) == ()


def test_a_worker_that_never_ends_its_pages_is_cut_off(bench, monkeypatch):
    monkeypatch.setattr(epoch_module, "MAX_PAGES", 5)
    future = bench.service.describe(3)
    while not future.done:
        _, sequence = asked(bench, Describe)
        bench.service.from_worker(Described(cursor=len(bench.sent), ike_sas=()), sequence)
    assert len(bench.sent) == 5


@pytest.mark.parametrize("cursor", [16, 15, 1])
def test_a_page_that_does_not_go_on_is_a_violation(bench, cursor):
    future = bench.service.describe(3)
    bench.service.from_worker(Described(cursor=16, ike_sas=()), asked(bench, Describe)[1])
    with pytest.raises(Violation):
        bench.service.from_worker(Described(cursor=cursor, ike_sas=()), asked(bench, Describe)[1])
    bench.service.epoch_ended()
    assert isinstance(answers_to(future), ChannelClosed)


def test_a_description_holds_a_bounded_number_of_sas_and_children(bench, monkeypatch):
    monkeypatch.setattr(epoch_module, "MAX_DESCRIBED", 7)
    sa = SimpleNamespace(children=(None, None))
    future = bench.service.describe(3)
    bench.service.from_worker(Described(cursor=1, ike_sas=(sa,)), asked(bench, Describe)[1])
    bench.service.from_worker(Described(cursor=4, ike_sas=(sa, sa, sa)), asked(bench, Describe)[1])
    assert answers_to(future) == (sa, sa)
    assert len(bench.sent) == 2
    full = bench.service.describe(3)
    bench.service.from_worker(Described(cursor=0, ike_sas=(sa, sa, SimpleNamespace(children=()))), bench.sent[-1][1])
    assert len(answers_to(full)) == 3


def test_pages_are_not_asked_for_when_nobody_waits_any_more(bench):
    future = bench.service.describe(3)
    _, sequence = asked(bench, Describe)
    bench.clock.advance(3)
    assert isinstance(answers_to(future), TimeoutError)
    bench.service.from_worker(Described(cursor=1, ike_sas=()), sequence)
    assert len(bench.sent) == 1


# the end


def test_a_clean_stop_asks_the_worker_then_removes_all_that_is_ours_and_nothing_else(bench, kit):
    spi, spare = installed(bench, kit), allocate(bench, kit).spi
    policies = {policy.number for name, policy in bench.plane.calls if name == "add_policy"}
    bench.plane.calls.clear()
    future = bench.service.stop()
    _, sequence = asked(bench, Stop)
    assert bench.plane.calls == []
    bench.service.from_worker(Completed(outcome=Outcome.DONE, text=""), sequence)
    assert future.done
    assert bench.plane.calls[:2] == [("release_spi", spare), ("remove", spi)]
    assert {policy.number for name, policy in bench.plane.calls[2:] if name == "remove_policy"} == policies
    assert len(bench.plane.calls) == 2 + len(policies)


def test_a_daemon_that_fails_leaves_its_policies_so_that_no_clear_text_leaves(bench, kit):
    spi = installed(bench, kit)
    future = bench.service.stop(Leave.POLICIES)
    bench.service.epoch_ended()
    assert future.done
    assert ("remove", spi) in bench.plane.calls
    assert "remove_policy" not in bench.plane.names()


def test_a_worker_that_does_not_answer_delays_the_stop_for_a_bounded_time(bench, kit):
    spi = installed(bench, kit)
    future = bench.service.stop()
    bench.clock.advance(service_module.STOP_SECONDS)
    assert future.done
    assert bench.codes()[-1] == "stop-unanswered"
    assert ("remove", spi) in bench.plane.calls


def test_a_worker_that_dies_instead_of_stopping_ends_the_wait(bench):
    future = bench.service.stop()
    bench.service.epoch_ended()
    assert future.done


def test_a_data_plane_that_refuses_at_the_end_does_not_keep_the_rest(bench, kit):
    installed(bench, kit)
    bench.plane.failing.update({"remove", "remove_policy"})
    future = bench.service.stop()
    bench.service.epoch_ended()
    assert answers_to(future) is None
    assert bench.codes().count("cleanup-failed") > 1


def test_while_stopping_nothing_new_is_installed(bench, kit):
    spi = allocate(bench, kit).spi
    bench.service.stop()
    assert allocate(bench, kit) == Denied(why=Denial.QUOTA)
    assert bench.install(kit.redeemed(spi_in=spi)) == Denied(why=Denial.DATAPLANE)
    assert "install_inbound" not in bench.plane.names()
