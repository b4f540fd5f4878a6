"""Dead peer detection: R-U-THERE of ours and what follows from silence (RFC 3706)."""

import dataclasses
import ipaddress

import pytest

from privsep.iana import IdType, NotifyType
from privsep.isakmp.payloads import Notification, parse_chain
from privsep.schema.install import AllocateSpi, Denial, Denied, Outcome
from privsep.schema.keyd import InfoSeal
from privsep.types import Identity
from worker.ikev1 import dpd


@pytest.fixture
def world(make):
    made = make.Pair()
    made.up()
    return made


def asked(site):
    """R-U-THEREs that the site had sealed, in order."""
    return notified(site, NotifyType.R_U_THERE)


def notified(site, kind):
    sealed = [request for request in site.keyd_requests if isinstance(request, InfoSeal)]
    payloads = [each for request in sealed for each in parse_chain(request.next_payload, request.payloads)]
    return [each for each in payloads if isinstance(each, Notification) and each.type == kind]


def ask(world, site):
    """Have the site ask its peer; the outcomes come in the list."""
    context = site.engine._context
    (sa,) = context.sas.all()
    outcomes = []

    async def run():
        outcomes.append(await dpd.ask(context, sa))

    context.spawn(run(), "test-failed", lambda: {})
    return outcomes


def test_a_peer_that_acknowledges_is_not_silent_rfc3706_5_4(world):
    outcomes = ask(world, world.left)
    world.run(1.0)
    assert outcomes == [False]
    (question,) = asked(world.left)
    (answer,) = notified(world.right, NotifyType.R_U_THERE_ACK)
    (sa,) = world.left.engine._context.sas.all()
    assert (question.spi, len(question.data)) == (sa.cky_i + sa.cky_r, 4)
    assert (answer.spi, answer.data) == (question.spi, question.data)
    world.run(60.0)
    assert len(asked(world.left)) == 1
    assert sa.probe is None


def test_a_question_is_repeated_under_its_number_until_the_patience_ends_rfc3706_5_4(world):
    world.fate = lambda site, send: []
    began = world.now
    outcomes = ask(world, world.left)
    assert world.run(60.0, lambda: outcomes != [])
    assert outcomes == [True]
    assert world.now - began == pytest.approx(sum(dpd.WAITS))
    assert len(asked(world.left)) == len(dpd.WAITS)
    assert len({question.data for question in asked(world.left)}) == 1


def test_a_lost_question_and_a_lost_answer_are_made_good(world):
    lost = iter([True, False, True, False, False])
    world.fate = lambda site, send: [] if next(lost, False) else [0.01]
    outcomes = ask(world, world.left)
    assert world.run(60.0, lambda: outcomes != [])
    assert outcomes == [False]
    assert len(asked(world.left)) == 3


def test_numbers_begin_below_the_highest_bit_and_count_rfc3706_6_2(world):
    for _ in range(3):
        outcomes = ask(world, world.left)
        world.run(1.0)
        assert outcomes == [False]
    first, second, third = (int.from_bytes(question.data, "big") for question in asked(world.left))
    assert first <= 0x80000000
    assert (second, third) == (first + 1, first + 2)


def test_one_question_serves_all_who_ask_meanwhile(world):
    world.fate = lambda site, send: [0.5]
    several = [ask(world, world.left) for _ in range(3)]
    world.run(5.0)
    assert several == [[False]] * 3
    assert len(asked(world.left)) == 1


def test_an_acknowledgement_of_another_number_is_none_rfc3706_6_1(world):
    world.fate = lambda site, send: []
    outcomes = ask(world, world.left)
    (sa,) = world.left.engine._context.sas.all()
    world.run(0.1)
    (question,) = asked(world.left)
    other = (int.from_bytes(question.data, "big") + 1).to_bytes(4, "big")
    sa.probe.acknowledged(other)
    assert world.run(60.0, lambda: outcomes != [])
    assert outcomes == [True]


def test_a_peer_that_never_announced_it_is_not_asked_rfc3706_5_1(world):
    (sa,) = world.left.engine._context.sas.all()
    assert sa.knows_dpd
    sa.knows_dpd = False
    outcomes = ask(world, world.left)
    world.run(60.0)
    assert outcomes == [False]
    assert asked(world.left) == []


def test_an_ike_sa_that_is_closed_meanwhile_is_not_a_silent_peer(world):
    world.fate = lambda site, send: []
    outcomes = ask(world, world.left)
    world.run(0.5)
    world.left.down()
    world.run(60.0)
    assert outcomes == [False]


def test_both_ends_may_ask_at_once(world):
    ours, theirs = ask(world, world.left), ask(world, world.right)
    world.run(1.0)
    assert (ours, theirs) == ([False], [False])


# a peer that comes back under another identity


OTHER = Identity(IdType.FQDN, b"gw3.example.org")


def overlapping(site):
    """As the real monitor judges: traffic of an installed pair is no other identity's."""
    answer = site.monitor.answer

    def judged(request):
        if isinstance(request, AllocateSpi):
            holders = {redeemed.identity for redeemed, _ in site.pairs.values()}
            if holders - {request.identity}:
                return Denied(why=Denial.OVERLAP)
        return answer(request)

    site.monitor.answer = judged


@pytest.fixture
def lax(make):
    """The right gateway accepts whoever has the secret."""
    ours = make.connection()
    made = make.Pair(ours, dataclasses.replace(make.mirrored(ours), remote_id=None, remote=make.RemoteAny()))
    overlapping(made.right)
    assert made.up().outcome is Outcome.DONE
    return made


def renamed(world, *addresses):
    """A left gateway without memory that says another name."""
    (connection,) = world.left.config.connections
    config = dataclasses.replace(
        world.left.config, connections=(dataclasses.replace(connection, local=addresses[0], local_id=OTHER),)
    )
    return world.add("renamed", config, *addresses)


def test_a_peer_that_comes_back_under_another_name_gets_in_when_the_old_one_is_silent(lax, make):
    newcomer = renamed(lax, make.LEFT)
    sequence = newcomer.up()
    assert lax.run(sum(dpd.WAITS) + 5.0, lambda: newcomer.outcome(sequence) is not None)
    assert newcomer.outcome(sequence).outcome is Outcome.DONE
    lax.run(1.0)
    assert [redeemed.identity for redeemed, _ in lax.right.pairs.values()] == [OTHER]
    assert [fields["identity"] for fields in lax.right.logged("peer-dead")] == [lax.left.config.connections[0].local_id]
    assert len(lax.right.established()) == 1


def test_a_neighbour_never_gets_the_traffic_of_one_who_answers(lax, make):
    newcomer = renamed(lax, ipaddress.ip_address("192.0.2.7"))
    sequence = newcomer.up()
    assert lax.run(60.0, lambda: newcomer.outcome(sequence) is not None)
    assert newcomer.outcome(sequence).outcome is Outcome.FAILED
    assert len(asked(lax.right)) >= 1
    assert lax.right.logged("peer-dead") == []
    assert lax.mirror() == len(lax.right.pairs) == 1
    assert newcomer.pairs == {}


def test_one_who_never_said_that_it_would_answer_is_not_taken_for_dead(lax, make):
    for sa in lax.right.engine._context.sas.all():
        sa.knows_dpd = False
    newcomer = renamed(lax, make.LEFT)
    sequence = newcomer.up()
    assert lax.run(60.0, lambda: newcomer.outcome(sequence) is not None)
    assert newcomer.outcome(sequence).outcome is Outcome.FAILED
    assert lax.right.logged("peer-dead") == []
    assert len(lax.right.pairs) == 1
