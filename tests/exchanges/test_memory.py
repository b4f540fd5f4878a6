"""What an exchange leaves behind when it has failed: nothing, and without the garbage collector's help."""

import gc
from collections import Counter

import pytest

from privsep.schema.install import Outcome
from privsep.tasks import Future, Task
from worker.errors import Failed
from worker.exchange import Exchange
from worker.isakmp_sa import IkeSa
from worker.timers import Timer

REPEATED = 10


def alive() -> Counter:
    kinds = (Exchange, IkeSa, Task, Future, Timer, Failed)
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, kinds))


@pytest.fixture
def uncollected():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def unanswered(world):
    world.fate = lambda site, send: []


def half_open(world):
    world.fate = lambda site, send: [0.01] if site is world.left and send.data[16] == 1 else []


def cut_off_after_message_3(world):
    world.fate = lambda site, send: [] if send.data[16] == 4 and site is world.right else [0.01]


@pytest.mark.parametrize("failure", [unanswered, half_open, cut_off_after_message_3])
@pytest.mark.usefixtures("uncollected")
def test_failed_exchanges_leave_nothing_for_the_garbage_collector(make, failure):
    """A stored exception that is raised would lead, by its traceback, to the exchange that stores it."""
    world = make.Pair()
    failure(world)
    before = Counter()
    for number in range(REPEATED):
        orders = [world.left.up(), world.left.up()]
        world.run(200.0)
        assert [world.left.outcome(order).outcome for order in orders] == [Outcome.FAILED] * 2
        if number == 0:
            before = alive()
    assert alive() == before


@pytest.mark.usefixtures("uncollected")
def test_a_wrong_secret_leaves_nothing_for_the_garbage_collector(make):
    world = make.Pair(psks=(b"one secret that is long enough", b"another one that is long enough"))
    before = Counter()
    for number in range(REPEATED):
        order = world.left.up()
        world.run(200.0)
        assert world.left.outcome(order).outcome is Outcome.FAILED
        if number == 0:
            before = alive()
    assert alive() == before


@pytest.mark.usefixtures("uncollected")
def test_an_order_that_is_broken_off_leaves_nothing_for_the_garbage_collector(make):
    """`down` ends the exchanges of an `up` under way."""
    world = make.Pair()
    unanswered(world)
    before = Counter()
    for number in range(REPEATED):
        world.left.up()
        world.run(2.0)
        world.left.down()
        world.run(200.0)
        if number == 0:
            before = alive()
    assert alive() == before
