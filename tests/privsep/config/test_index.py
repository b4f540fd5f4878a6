"""The index finds what a look at every connection finds, in the same order, and at the cost of one connection."""

import dataclasses
import ipaddress

import pytest
from effort import instructions
from hypothesis import given
from hypothesis import strategies as st

from privsep.algorithms import IkeSuite
from privsep.config import loader
from privsep.config.model import Connection, Encap, Gateway, RemoteAny
from privsep.config.names import Names, RemoteName
from privsep.iana import IdType
from privsep.types import Auth, Identity

STRONG, WEAK = IkeSuite.parse("aes256-sha256-modp2048"), IkeSuite.parse("aes128-sha1-modp2048")
ADDRESSES = [
    ipaddress.ip_address(each)
    for each in ("192.0.2.1", "192.0.2.2", "192.0.3.1", "198.51.100.1", "2001:db8::1", "2001:db8::2", "2001:db9::1")
]
REMOTES = [
    *ADDRESSES,
    RemoteAny(),
    *(
        ipaddress.ip_network(each)
        for each in ("0.0.0.0/0", "192.0.2.0/24", "192.0.2.2/32", "192.0.2.0/23", "128.0.0.0/1")
    ),
    *(ipaddress.ip_network(each) for each in ("::/0", "2001:db8::/32", "2001:db8::/127", "2001:db8::2/128")),
]
NOWHERE = ipaddress.ip_address("203.0.113.99")
PEERS = [Identity(IdType.FQDN, b"a.example.org"), Identity(IdType.FQDN, b"b.example.org")]
OFFERS = [(STRONG,), (WEAK,), (STRONG, WEAK)]
SHUNT = "[shunt.a]\naction = 'drop'\nlocal_ts = ['10.1.0.0/16']\nremote_ts = ['10.2.0.0/16']\n"
BARE = loader.load(SHUNT, "bare", Names({}))


def connection(number, local, remote, remote_id, suites):
    return Connection(
        name=f"c{number}",
        local=local,
        remote=remote,
        local_id=Identity(IdType.FQDN, b"gw.example.org"),
        remote_id=remote_id,
        auth=Auth.PSK,
        suites=suites,
        lifetime=3600,
        encap=Encap.AUTO,
        children=(),
    )


def gateway(*connections) -> Gateway:
    return dataclasses.replace(BARE, connections=connections)


gateways = st.lists(
    st.tuples(
        st.sampled_from([None, *ADDRESSES[:2]]),
        st.sampled_from(REMOTES),
        st.sampled_from([None, *PEERS]),
        st.sampled_from(OFFERS),
    ),
    max_size=12,
).map(lambda rows: gateway(*(connection(number, *row) for number, row in enumerate(rows))))


def closeness(remote, address):
    if isinstance(remote, RemoteAny):
        return 0
    if isinstance(remote, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return remote.prefixlen if address in remote else -1
    return 129 if remote == address else -1


def scanned(gateway, local, remote):
    """Every connection looked at: those of these addresses, the most specific first, else as configured."""
    fitting = [
        each for each in gateway.connections if each.local in (None, local) and closeness(each.remote, remote) >= 0
    ]
    return sorted(fitting, key=lambda each: -closeness(each.remote, remote))


@given(gateways, st.sampled_from(ADDRESSES), st.sampled_from(ADDRESSES), st.sampled_from(PEERS))
def test_who_takes_an_identity_is_found_as_by_a_look_at_every_connection(gateway, local, remote, identity):
    expected = [each for each in scanned(gateway, local, remote) if each.remote_id in (None, identity)]
    assert list(gateway.accepting(local, remote, identity)) == expected


@given(gateways, st.sampled_from(ADDRESSES), st.sampled_from(ADDRESSES))
def test_candidates_are_found_as_by_a_look_at_every_connection_the_first_of_those_alike(gateway, local, remote):
    firsts = {}
    for each in scanned(gateway, local, remote):
        firsts.setdefault((closeness(each.remote, remote), each.local, each.suites), each)
    assert list(gateway.candidates(local, remote)) == list(firsts.values())


@given(gateways, st.sampled_from(ADDRESSES), st.sampled_from(ADDRESSES))
def test_the_first_candidate_with_a_suite_is_the_first_connection_with_it(gateway, local, remote):
    def first(connections, suite):
        return next((each for each in connections if suite in each.suites), None)

    for suite in STRONG, WEAK:
        assert first(gateway.candidates(local, remote), suite) is first(scanned(gateway, local, remote), suite)


@given(gateways, st.sampled_from(ADDRESSES), st.sampled_from(ADDRESSES))
def test_a_connection_describes_the_addresses_that_a_look_at_it_says(gateway, local, remote):
    found = [each for each in gateway.connections if each.describes(local, remote)]
    assert sorted(map(id, found)) == sorted(map(id, scanned(gateway, local, remote)))


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([None, *PEERS]), st.sampled_from(OFFERS)), min_size=1, max_size=8
    ),
    st.lists(st.tuples(st.integers(0, 7), st.sampled_from(ADDRESSES)), max_size=12),
)
def test_a_name_that_moves_is_found_where_it_is_as_if_it_had_always_been_there(rows, moves):
    """Beside connections of the same address, and of the same name."""
    local = None
    among = [
        connection(n, local, RemoteName("gw.example.org", None) if named else ADDRESSES[n % 3], identity, offer)
        for n, (named, identity, offer) in enumerate(rows)
    ]
    moving = gateway(*among)
    for number, address in moves:
        if number < len(among):
            moving.locate(among[number], address)
    still = gateway(
        *(
            dataclasses.replace(each, remote=each.remote.address or NOWHERE)
            if isinstance(each.remote, RemoteName)
            else each
            for each in among
        ),
    )
    for address in ADDRESSES:
        for identity in PEERS:
            names = [
                [each.name for each in found.accepting(ADDRESSES[0], address, identity)] for found in (moving, still)
            ]
            assert names[0] == names[1]
        names = [[each.name for each in found.candidates(ADDRESSES[0], address)] for found in (moving, still)]
        assert names[0] == names[1]
        assert [each.describes(ADDRESSES[0], address) for each in moving.connections] == [
            each.describes(ADDRESSES[0], address) for each in still.connections
        ]


def test_a_name_without_an_address_is_nobody_s():
    made = gateway(connection(0, None, RemoteName("gw.example.org", 4), None, OFFERS[0]))
    for address in ADDRESSES:
        assert made.candidates(ADDRESSES[0], address) == made.accepting(ADDRESSES[0], address, PEERS[0]) == ()
        assert made.connections[0].specificity(address) == -1


@given(gateways)
def test_a_connection_is_found_by_its_name(gateway):
    assert [gateway.connection(each.name) for each in gateway.connections] == list(gateway.connections)
    assert gateway.connection("nobody") is None


def test_a_changed_configuration_has_an_index_of_its_own():
    one, other = (connection(n, None, ADDRESSES[n], None, OFFERS[0]) for n in (1, 2))
    before = gateway(one)
    after = dataclasses.replace(before, connections=(other,))
    assert before.candidates(ADDRESSES[0], ADDRESSES[1]) == (one,)
    assert after.candidates(ADDRESSES[0], ADDRESSES[1]) == ()
    assert after.connection("c2") is other
    assert before == gateway(one) != after


@pytest.mark.parametrize("remote", [None, RemoteAny()], ids=["each its own address", "all any"])
def test_a_lookup_costs_among_two_thousand_connections_what_it_costs_with_one(remote):
    local, peer, identity = ADDRESSES[0], ipaddress.ip_address("10.0.0.0"), Identity(IdType.FQDN, b"p0")

    def cost(size):
        among = gateway(
            *(
                connection(n, local, remote or peer + n, Identity(IdType.FQDN, b"p%d" % n), OFFERS[2])
                for n in range(size)
            )
        )
        assert among.accepting(local, peer, identity)[0].name == among.candidates(local, peer)[0].name == "c0"
        return instructions(
            lambda: (among.candidates(local, peer), among.accepting(local, peer, identity), among.connection("c0"))
        )

    assert cost(2000) == cost(1)
