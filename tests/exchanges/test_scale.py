"""A handshake among many connections costs what it costs with one, at both ends and in every process."""

import dataclasses

import pytest
from effort import counted

from privsep.iana import IdType
from privsep.schema.install import Outcome
from privsep.types import Identity

OTHERS = 400
MARGIN = 1.05
"""Keys are random, and so is a little of what it takes to make them."""


def others(make, ours, beside):
    """Connections to others, which the peer's address or its identity tells from this one."""
    remotes = {
        "addresses of their own": lambda number: make.address("198.18.0.0") + number,
        "the same address": lambda _: ours.remote,
        "any address": lambda _: make.RemoteAny(),
    }
    return [
        dataclasses.replace(
            ours,
            name=f"c{number}",
            remote=remotes[beside](number),
            remote_id=Identity(IdType.FQDN, b"peer%d.example.org" % number),
        )
        for number in range(OTHERS)
    ]


@pytest.mark.parametrize("beside", ["addresses of their own", "the same address", "any address"])
def test_a_handshake_costs_among_hundreds_of_connections_what_it_costs_with_one(make, beside):
    def cost(many):
        ours = make.connection()
        theirs = make.mirrored(ours)
        world = make.World()
        sites = [
            world.add(
                name, make.gateway(connection, *(others(make, connection, beside) if many else ())), connection.local
            )
            for name, connection in (("left", ours), ("right", theirs))
        ]
        world.run(1.0)  # what is done once in a gateway's life
        sequence = sites[0].up()
        with counted() as found:
            assert world.run(20.0, lambda: sites[0].outcome(sequence) is not None)
        assert sites[0].outcome(sequence).outcome is Outcome.DONE
        return found.instructions

    cost(many=False)  # what is done once in a process
    assert cost(many=True) < MARGIN * cost(many=False)
