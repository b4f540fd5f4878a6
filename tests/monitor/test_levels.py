"""Levels of the log that an operator orders: in force here and in the children, those that come later too."""

import pytest

from monitor.levels import MAX_CONNECTIONS, Levels
from privsep import log
from privsep.log import Level
from privsep.schema.levels import SetLevel


@pytest.fixture
def told():
    return []


@pytest.fixture
def levels(told):
    yield Levels(told.append)
    log.configure(Level.INFO, {})


def test_an_order_is_in_force_here_and_told(levels, told):
    assert levels.set(Level.ERROR)
    assert levels.set(Level.DEBUG, "paris")
    assert not log.shown(Level.WARNING, "rome")
    assert log.shown(Level.DEBUG, "paris")
    assert told == [SetLevel(level=Level.ERROR, connection=""), SetLevel(level=Level.DEBUG, connection="paris")]


def test_new_children_are_told_what_is_in_force(levels, told):
    levels.set(Level.ERROR)
    levels.set(Level.DEBUG, "paris")
    levels.set(Level.NOTICE, "paris")
    del told[:]
    levels.tell_all()
    assert told == [SetLevel(level=Level.ERROR, connection=""), SetLevel(level=Level.NOTICE, connection="paris")]


def test_orders_about_connections_are_bounded_and_one_for_all_always_goes(levels):
    assert levels.set(Level.DEBUG)
    assert all(levels.set(Level.DEBUG, f"c{number}") for number in range(MAX_CONNECTIONS))
    assert not levels.set(Level.DEBUG, "one more")
    assert levels.set(Level.INFO, "c0")
    assert levels.set(Level.INFO)
