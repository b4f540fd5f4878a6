"""Which SA a packet takes, and which packets an SA lets out (RFC 4301 sections 5.1 and 5.2)."""

import dataclasses
import ipaddress
import struct

import pytest
from effort import counted
from hypothesis import given
from hypothesis import strategies as st

from monitor.userspace import database as module
from monitor.userspace.database import Database, NoSa
from monitor.userspace.drops import Dropped, Reason
from monitor.userspace.esp import Outbound, transform
from monitor.userspace.packet import ip_packet
from privsep.algorithms import ChildSuite
from privsep.schema.esp import AddInbound, AddOutbound, AddPolicy
from privsep.types import Endpoint, Mode, Spi, TrafficSelector

SUITE = ChildSuite.parse("aes128gcm16")
LEFT, RIGHT = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
FROM_RIGHT = ("192.0.2.2", 4500)


def selectors(*texts):
    return tuple(TrafficSelector(ipaddress.ip_network(text)) for text in texts)


def policy(number, local, remote):
    return AddPolicy(policy=number, local_ts=selectors(local), remote_ts=selectors(remote))


def order(**changes):
    base = AddInbound(
        spi_in=0x1001,
        spi_out=0x1002,
        suite=SUITE,
        mode=Mode.TUNNEL,
        policy=1,
        encryption_in=bytes(20),
        integrity_in=b"",
        local=Endpoint(LEFT, 4500),
        remote=Endpoint(RIGHT, 4500),
        encap=True,
        local_ts=selectors("10.1.0.0/16"),
        remote_ts=selectors("10.2.0.0/16"),
        replay_window=64,
        lifetime_s=3600,
    )
    return dataclasses.replace(base, **changes)


def both(database, made, **changes):
    """A pair that receives, and then sends."""
    pair = database.add_inbound(made)
    database.add_outbound(sending(spi_in=made.spi_in, **changes))
    return pair


def sending(**changes):
    return AddOutbound(**({"spi_in": 0x1001, "encryption_out": bytes(range(20)), "integrity_out": b""} | changes))


def packet(source, destination, protocol=17, ports=(1000, 2000)):
    addresses = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    return ip_packet(*addresses, protocol, struct.pack("!HH", *ports) + bytes(8))


class Peer:
    """What the other side sends on the SA that `order` receives on."""

    def __init__(self, spi=0x1001):
        self._outbound = Outbound(Spi(spi), transform(SUITE, bytes(20), b""))

    def sends(self, payload, next_header=4):
        return self._outbound.seal(next_header, payload)


@pytest.fixture
def database():
    made = Database()
    made.add_policy(policy(1, "10.1.0.0/16", "10.2.0.0/16"))
    return made


def test_a_packet_without_policy_is_dropped(database):
    with pytest.raises(Dropped, match="no-policy"):
        database.outbound(packet("10.1.0.1", "10.3.0.1"))
    with pytest.raises(Dropped, match="no-policy"):
        database.outbound(packet("10.9.0.1", "10.2.0.1"))


def test_a_packet_with_policy_and_without_sa_is_a_trap(database):
    with pytest.raises(NoSa) as caught:
        database.outbound(packet("10.1.0.1", "10.2.0.1"))
    assert caught.value.policy == 1


def test_the_newest_pair_sends_and_the_older_still_receives(database):
    old = both(database, order())
    assert database.outbound(packet("10.1.0.1", "10.2.0.1")) is old
    new = both(database, order(spi_in=0x2001, spi_out=0x2002))
    assert database.outbound(packet("10.1.0.1", "10.2.0.1")) is new
    assert database.inbound(Peer().sends(packet("10.2.0.1", "10.1.0.1")), FROM_RIGHT)[0] is old
    database.remove_pair(new.spi_in)
    assert database.outbound(packet("10.1.0.1", "10.2.0.1")) is old


def test_the_most_specific_policy_decides_even_without_sa(database):
    both(database, order())
    database.add_policy(policy(2, "10.1.0.0/16", "10.2.3.0/24"))
    with pytest.raises(NoSa) as caught:
        database.outbound(packet("10.1.0.1", "10.2.3.1"))
    assert caught.value.policy == 2


def test_a_pair_with_narrower_selectors_carries_only_those(database):
    pair = both(database, order(remote_ts=selectors("10.2.5.0/24")))
    assert database.outbound(packet("10.1.0.1", "10.2.5.1")) is pair
    with pytest.raises(NoSa):
        database.outbound(packet("10.1.0.1", "10.2.6.1"))


@pytest.mark.parametrize(
    "changes",
    [
        {"spi_in": 0x1001, "spi_out": 0x9999},
        {"spi_in": 0x9999, "spi_out": 0x1002},
        {"spi_in": 0x9999, "spi_out": 0x9998, "policy": 7},
        {"spi_in": 0x9999, "spi_out": 0x9998, "encryption_in": bytes(19)},
        {"spi_in": 0x9999, "spi_out": 0x9998, "integrity_in": bytes(20)},
        {"spi_in": 0x9999, "spi_out": 0x9998, "local": Endpoint(ipaddress.ip_address("2001:db8::1"), 4500)},
    ],
    ids=["inbound SPI", "outbound SPI", "unknown policy", "short key", "surplus key", "two families"],
)
def test_a_pair_that_conflicts_or_does_not_fit_is_refused_and_changes_nothing(database, changes):
    pair = both(database, order())
    with pytest.raises(ValueError):  # noqa: PT011
        both(database, order(**changes))
    assert database.outbound(packet("10.1.0.1", "10.2.0.1")) is pair
    assert database.pair(0x9999) is None


def test_a_pair_receives_before_it_sends_and_the_older_one_sends_on_meanwhile(database):
    """Between message 2 and 3 of a Quick Mode (RFC 2409 section 5.5)."""
    new = database.add_inbound(order(spi_in=0x2001, spi_out=0x2002))
    assert database.inbound(Peer(0x2001).sends(packet("10.2.0.1", "10.1.0.1")), FROM_RIGHT)[0] is new
    with pytest.raises(NoSa):
        database.outbound(packet("10.1.0.1", "10.2.0.1"))
    # one that was begun later and confirmed earlier
    other = both(database, order())
    assert database.outbound(packet("10.1.0.1", "10.2.0.1")) is other
    database.add_outbound(sending(spi_in=0x2001))
    assert database.outbound(packet("10.1.0.1", "10.2.0.1")) is new


@pytest.mark.parametrize(
    "changes",
    [{"spi_in": 0x9999}, {"encryption_out": bytes(19)}, {"integrity_out": bytes(20)}],
    ids=["no such pair", "short key", "surplus key"],
)
def test_what_cannot_send_does_not_and_receives_on(database, changes):
    pair = database.add_inbound(order())
    with pytest.raises(ValueError):  # noqa: PT011
        database.add_outbound(sending(**changes))
    with pytest.raises(NoSa):
        database.outbound(packet("10.1.0.1", "10.2.0.1"))
    assert database.inbound(Peer().sends(packet("10.2.0.1", "10.1.0.1")), FROM_RIGHT)[0] is pair


def test_a_pair_gets_keys_to_send_with_once(database):
    both(database, order())
    with pytest.raises(ValueError, match="exists"):
        database.add_outbound(sending())


def test_the_same_outbound_spi_at_another_peer_is_another_sa_rfc4301_4_1(database):
    both(database, order())
    both(database, order(spi_in=0x2001, remote=Endpoint(ipaddress.ip_address("192.0.2.3"), 4500)))


def test_an_unknown_spi_is_dropped(database):
    with pytest.raises(Dropped, match="unknown-spi"):
        database.inbound(Peer(0x7777).sends(b""), FROM_RIGHT)


@pytest.mark.parametrize(("encap", "source"), [(True, None), (False, FROM_RIGHT)])
def test_an_sa_takes_only_the_encapsulation_that_was_negotiated(database, encap, source):
    both(database, order(encap=encap))
    with pytest.raises(Dropped, match="wrong-encapsulation"):
        database.inbound(Peer().sends(packet("10.2.0.1", "10.1.0.1")), source)


@pytest.mark.parametrize(
    ("source", "destination"), [("10.3.0.1", "10.1.0.1"), ("10.2.0.1", "10.9.0.1"), ("10.1.0.1", "10.2.0.1")]
)
def test_a_decrypted_packet_outside_the_selectors_is_dropped_rfc4301_5_2(database, source, destination):
    pair = both(database, order())
    with pytest.raises(Dropped, match="outside-selectors"):
        database.inbound(Peer().sends(packet(source, destination)), FROM_RIGHT)
    assert pair.packets_in == 0


def test_ports_count_in_the_selector_check_rfc4301_5_2(database):
    network = ipaddress.ip_network("10.2.0.0/16")
    both(database, order(remote_ts=(TrafficSelector(network, 17, 53),)))
    peer = Peer()
    database.inbound(peer.sends(packet("10.2.0.1", "10.1.0.1", ports=(53, 9))), FROM_RIGHT)
    for wrong in (packet("10.2.0.1", "10.1.0.1", ports=(54, 9)), packet("10.2.0.1", "10.1.0.1", 6, (53, 9))):
        with pytest.raises(Dropped, match="outside-selectors"):
            database.inbound(peer.sends(wrong), FROM_RIGHT)


def test_dummy_packets_are_dropped_rfc4303_2_6(database):
    both(database, order())
    with pytest.raises(Dropped, match="dummy"):
        database.inbound(Peer().sends(b"noise", 59), FROM_RIGHT)


@pytest.mark.parametrize("next_header", [41, 6, 0])
def test_tunnel_mode_lets_out_only_the_ip_version_it_names_rfc4303_2_6(database, next_header):
    both(database, order())
    with pytest.raises(Dropped, match="malformed"):
        database.inbound(Peer().sends(packet("10.2.0.1", "10.1.0.1"), next_header), FROM_RIGHT)


def test_an_authentic_newest_packet_from_a_new_port_moves_the_peer_rfc3948_4(database):
    pair = both(database, order())
    peer = Peer()
    first, second = (peer.sends(packet("10.2.0.1", "10.1.0.1")) for _ in range(2))
    database.inbound(second, ("192.0.2.2", 61000))
    assert pair.destination == ("192.0.2.2", 61000)
    database.inbound(first, FROM_RIGHT)
    assert pair.destination == ("192.0.2.2", 61000), "an older packet says nothing about now"


def test_nothing_else_moves_the_peer(database):
    pair = both(database, order())
    peer = Peer()
    sent = peer.sends(packet("10.2.0.1", "10.1.0.1"))
    with pytest.raises(Dropped):
        database.inbound(sent[:-1] + bytes((sent[-1] ^ 1,)), ("192.0.2.2", 61000))
    database.inbound(sent, ("198.51.100.9", 4500))
    assert pair.destination == FROM_RIGHT


def test_removing_a_policy_removes_its_pairs(database):
    pair = both(database, order())
    assert database.remove_policy(1) == [pair]
    assert database.pair(pair.spi_in) is None
    with pytest.raises(Dropped, match="no-policy"):
        database.outbound(packet("10.1.0.1", "10.2.0.1"))
    database.add_policy(policy(1, "10.1.0.0/16", "10.2.0.0/16"))
    both(database, order())


def test_transport_mode_carries_the_payload_between_the_outer_addresses_rfc4303_3_1_1():
    left, right = Database(), Database()
    for here, there, side, spis, keys in (
        (LEFT, RIGHT, left, (0x1001, 0x1002), (bytes(20), bytes(range(20)))),
        (RIGHT, LEFT, right, (0x1002, 0x1001), (bytes(range(20)), bytes(20))),
    ):
        side.add_policy(policy(1, f"{here}/32", f"{there}/32"))
        both(
            side,
            order(
                mode=Mode.TRANSPORT,
                encap=False,
                spi_in=spis[0],
                spi_out=spis[1],
                encryption_in=keys[0],
                local=Endpoint(here, 500),
                remote=Endpoint(there, 500),
                local_ts=selectors(f"{here}/32"),
                remote_ts=selectors(f"{there}/32"),
            ),
            encryption_out=keys[1],
        )
    inner = packet("192.0.2.1", "192.0.2.2")
    sealed = left.outbound(inner).seal(inner)
    assert right.inbound(sealed, None)[1] == inner


def test_the_flow_cache_is_bounded_and_forgets_when_pairs_change(database, monkeypatch):
    monkeypatch.setattr(module, "MAX_FLOWS", 8)
    pair = both(database, order())
    for port in range(100):
        assert database.outbound(packet("10.1.0.1", "10.2.0.1", ports=(port, 80))) is pair
        assert len(database._flows) <= 8
    database.remove_pair(pair.spi_in)
    with pytest.raises(NoSa):
        database.outbound(packet("10.1.0.1", "10.2.0.1", ports=(99, 80)))


def test_the_admitted_flows_of_a_pair_are_bounded(database, monkeypatch):
    monkeypatch.setattr(module, "MAX_ADMITTED", 8)
    pair = both(database, order())
    peer = Peer()
    for port in range(100):
        database.inbound(peer.sends(packet("10.2.0.1", "10.1.0.1", ports=(port, 80))), FROM_RIGHT)
        assert len(pair._admitted) <= 8
    assert pair.packets_in == 100


@given(payload=st.binary(max_size=120), next_header=st.integers(0, 255), mode=st.sampled_from(Mode))
def test_whatever_an_authenticated_peer_sends_is_delivered_inside_the_selectors_or_dropped(payload, next_header, mode):
    database = Database()
    database.add_policy(policy(1, "10.1.0.0/16", "10.2.0.0/16"))
    pair = both(database, order(mode=mode))
    try:
        _, inner = database.inbound(Peer().sends(payload, next_header), FROM_RIGHT)
    except Dropped:
        assert pair.packets_in == 0
    else:
        assert ipaddress.ip_address(inner[12:16]) in ipaddress.ip_network("10.2.0.0/16")


@given(datagram=st.binary(max_size=120), prefix=st.sampled_from([b"", b"\0\0\x10\x01"]))
def test_any_datagram_is_dropped_and_counts_nothing(datagram, prefix):
    database = Database()
    database.add_policy(policy(1, "10.1.0.0/16", "10.2.0.0/16"))
    pair = both(database, order())
    with pytest.raises(Dropped) as caught:
        database.inbound(prefix + datagram, FROM_RIGHT)
    assert caught.value.reason in (Reason.MALFORMED, Reason.UNKNOWN_SPI, Reason.NOT_AUTHENTIC, Reason.REPLAYED)
    assert (pair.packets_in, pair.bytes_in) == (0, 0)


NETWORKS = ("10.0.0.0/8", "10.2.0.0/16", "10.2.3.0/24", "10.2.3.4/32", "0.0.0.0/0", "10.3.0.0/16")


@given(
    st.lists(
        st.tuples(
            st.integers(1, 5),
            st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=3, unique=True),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.sampled_from(["10.2.3.4", "10.2.3.5", "10.2.9.9", "10.3.0.1", "192.0.2.9"]),
)
def test_the_policy_that_decides_is_the_one_of_a_look_at_all(steps, destination):
    database, known = Database(), {}
    for number, remotes, stays in steps:
        if stays:
            database.add_policy(
                AddPolicy(policy=number, local_ts=selectors("10.1.0.0/16"), remote_ts=selectors(*remotes))
            )
            known[number] = remotes
        else:
            database.remove_policy(number)
            known.pop(number, None)
    fitting = [
        (ipaddress.ip_network(each).prefixlen, -number)
        for number, remotes in known.items()
        for each in remotes
        if ipaddress.ip_address(destination) in ipaddress.ip_network(each)
    ]
    with pytest.raises(Dropped) as caught:
        database.outbound(packet("10.1.0.1", destination))
    assert getattr(caught.value, "policy", None) == (-max(fitting)[1] if fitting else None)


def test_a_new_flow_costs_among_thousands_of_policies_what_it_costs_with_a_few():
    def cost(size):
        database = Database()
        for number in range(1, size + 1):
            database.add_policy(policy(number, "10.1.0.0/16", f"10.{2 + number // 256}.{number % 256}.0/24"))
        with pytest.raises(NoSa), counted() as found:
            database.outbound(packet("10.1.0.1", "10.2.1.9"))
        return found.instructions

    assert cost(2000) == cost(2)
