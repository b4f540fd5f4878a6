"""What an earlier worker had is found by SPI and by connection, whatever others have."""

import ipaddress

from effort import instructions
from hypothesis import given
from hypothesis import strategies as st

from privsep.iana import IdType
from privsep.schema.install import Adopted
from privsep.types import Endpoint, Identity
from worker.adoptions import Adoptions

END = Endpoint(ipaddress.ip_address("192.0.2.1"), 500)
PEER = Identity(IdType.FQDN, b"gw2.example.org")


def pair(spi, connection, left=60):
    return Adopted(
        connection=connection, child="lan", identity=PEER, spi_in=spi, spi_out=9, local=END, remote=END, left_s=left
    )


STEPS = st.lists(st.tuples(st.booleans(), st.integers(1, 6), st.sampled_from("ab"), st.integers(1, 3)))


@given(STEPS)
def test_it_holds_what_a_dictionary_would(steps):
    adoptions, known = Adoptions(), {}
    for stays, spi, named, left in steps:
        # an SPI is one connection's for as long as its pair is known
        connection = known[spi].connection if spi in known else named
        if stays:
            known[spi] = pair(spi, connection, left)
            adoptions.put(known[spi])
        else:
            assert adoptions.drop(spi) is (known.pop(spi, None) is not None)
        assert set(adoptions) == set(known)
        assert len(adoptions) == len(known)
        assert all(adoptions.get(each) == known.get(each) for each in range(7))
        for name in "ab":
            assert {each.spi_in for each in adoptions.of(name)} == {n for n, p in known.items() if p.connection == name}


def test_a_connections_own_cost_the_same_among_thousands():
    def cost(size):
        adoptions = Adoptions()
        for spi in range(size):
            adoptions.put(pair(spi, f"c{spi}"))
        return instructions(lambda: (adoptions.of("c0"), adoptions.drop(0)))

    assert cost(2000) == cost(1)
