"""What the log and `events` say of a tunnel's life: codes, levels, and who did it."""

import dataclasses
import ipaddress

import pytest

from privsep.algorithms import IkeSuite
from privsep.config.model import Start
from privsep.log import Level
from privsep.schema.install import Adopted, Expired, Outcome
from privsep.types import Endpoint


def levels(site, code: str) -> list[Level]:
    return [level for level, each, _ in site.log if each == code]


def otherwise(make, **changes):
    """A pair whose ends have no IKE proposal in common."""
    ours = make.connection(suites=(IkeSuite.parse("aes128-sha256-modp2048"),), **changes)
    theirs = dataclasses.replace(make.mirrored(ours), suites=(IkeSuite.parse("aes256-sha512-ecp384"),))
    return ours, theirs


def test_a_configured_tunnel_that_fails_is_a_warning_at_both_ends(make):
    world = make.Pair(*otherwise(make))
    assert world.up().outcome is Outcome.FAILED
    # nobody proved to have refused it: the exchange itself goes on for a while
    world.run(200.0)
    assert levels(world.left, "ike-failed") == levels(world.left, "child-failed") == [Level.WARNING]
    assert world.left.logged("ike-failed")[0]["connection"] == "paris"
    assert "does not answer" in world.left.logged("ike-failed")[0]["reason"]
    assert world.left.logged("child-failed")[0]["reason"] == "there is no IKE SA, ike-failed says why"
    assert set(levels(world.right, "main-mode-failed")) == {Level.WARNING}
    assert world.right.logged("main-mode-failed")[0]["connection"] == "paris"


def test_a_strangers_failure_is_no_warning(make):
    """At an address that only a connection for everybody admits, and at one that none does."""
    ours, theirs = otherwise(make)
    for remote in (make.RemoteAny(), ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_address("203.0.113.1")):
        world = make.Pair(ours, dataclasses.replace(theirs, remote=remote))
        assert world.up().outcome is Outcome.FAILED
        assert set(levels(world.right, "main-mode-failed")) == {Level.INFO}


def test_what_an_operator_ends_is_no_failure(make):
    world = make.Pair()
    world.fate = lambda site, send: []
    world.left.up()
    world.run(1.0)
    world.left.down()
    world.run(5.0)
    assert levels(world.left, "ike-failed") == levels(world.left, "child-failed") == [Level.INFO]
    assert world.left.logged("ike-failed")[0]["reason"] == "the operator ordered it down"


def test_a_renewal_is_told_at_both_ends_with_what_it_replaces(make):
    world = make.Pair(make.connection(children=(make.child(start=Start.UP),)))
    world.run(10.0)
    old = world.left.logged("child-installed")[0]
    world.left.event(Expired(spi_in=int(old["spi_in"], 16), hard=False))
    world.run(60.0)
    for site, spi in ((world.left, old["spi_in"]), (world.right, old["spi_out"])):
        (renewed,) = site.logged("child-rekeyed")
        assert renewed["replaces"] == spi
        assert renewed["spi_in"] != spi
        (closed,) = site.logged("child-closed")
        assert closed["spi_in"] == spi
    assert world.left.logged("child-closed")[0]["reason"] == "replaced"
    assert world.right.logged("child-closed")[0]["reason"] == "the peer deleted it"


def test_a_new_ike_sa_with_a_peer_is_told_with_the_one_it_replaces(make):
    world = make.Pair(make.connection(lifetime=3600, children=(make.child(start=Start.UP),)))
    world.run(3600.0)
    (first, *_) = world.left.logged("ike-established")
    for site in (world.left, world.right):
        assert site.logged("ike-rekeyed")[0]["replaces"] == first["cookies"]
        assert site.logged("ike-closed")[0]["cookies"] == first["cookies"]


@pytest.mark.parametrize("code", ["child-installed", "child-closed", "adopted"])
def test_spis_have_one_form(make, code):
    world = make.Pair()
    world.up()
    pair, (_, asked) = next(iter(world.left.pairs.items()))
    world.left.down()
    world.run(2.0)
    make.restart(world, "right")
    world.right.event(
        Adopted(
            connection="paris",
            child="lan",
            identity=world.right.config.connections[0].remote_id,
            spi_in=pair,
            spi_out=pair,
            local=Endpoint(make.RIGHT, 500),
            remote=asked.local,
            left_s=100,
        )
    )
    told = [fields for site in (world.left, world.right) for fields in site.logged(code)]
    assert told
    for fields in told:
        for name in fields.keys() & {"spi_in", "spi_out"}:
            assert len(fields[name]) == 10
            assert fields[name].startswith("0x")
