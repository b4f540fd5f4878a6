"""Coroutines begun, deadlines, rates."""

import pytest

from monitor.waiting import begin, run, within
from privsep.errors import Violation
from privsep.rate import Rate
from privsep.tasks import Future


def test_a_begun_coroutine_resolves_with_its_value_or_its_error():
    source = Future()

    async def half():
        return await source / 2

    result = begin(half())
    source.set_result(8)
    assert result._value == 4
    failing = Future()
    failing.set_error(ValueError)

    async def fail():
        return await failing

    assert isinstance(begin(fail())._error(), ValueError)


def test_an_error_of_the_one_who_waits_is_not_taken_for_the_coroutines():
    source = Future()

    async def value():
        return await source

    async def waiter():
        await begin(value())
        raise Violation("after the value came")

    run(waiter())
    with pytest.raises(Violation):
        source.set_result(1)


def test_within_passes_a_result_on_and_leaves_no_timer(clock):
    source = Future()
    limited = within(clock, 5, source)
    source.set_result("in time")
    clock.advance(10)
    assert limited._value == "in time"


def test_within_ends_in_timeout_error_and_ignores_what_comes_later(clock):
    source = Future()
    limited = within(clock, 5, source)
    clock.advance(5)
    assert isinstance(limited._error(), TimeoutError)
    source.set_result("late")
    assert isinstance(limited._error(), TimeoutError)


def test_within_passes_errors_on(clock):
    source = Future()
    limited = within(clock, 5, source)
    source.set_error(ValueError)
    assert isinstance(limited._error(), ValueError)


def test_a_rate_admits_so_many_a_second_and_counts_the_rest(clock):
    rate = Rate(3)
    assert [rate.admit(clock.now()) for _ in range(5)] == [True, True, True, False, False]
    clock.advance(1)
    assert rate.admit(clock.now())
    assert (rate.take_refused(), rate.take_refused()) == (2, 0)
