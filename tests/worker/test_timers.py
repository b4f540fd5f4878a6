"""Timers on a clock that tests move."""

from worker.timers import SLACK, Timers


def test_timers_run_when_due_in_order_and_once():
    timers, ran = Timers(), []
    for when in (3.0, 1.0, 2.0):
        timers.at(when, lambda when=when: ran.append(when))
    assert timers.next_deadline() == 1.0
    timers.run(2.0)
    timers.run(2.0)
    assert ran == [1.0, 2.0]
    assert timers.next_deadline() == 3.0


def test_a_cancelled_timer_never_runs_and_sets_no_deadline():
    timers, ran = Timers(), []
    timers.at(1.0, lambda: ran.append("cancelled")).cancel()
    assert timers.next_deadline() is None
    timers.run(5.0)
    assert ran == []


def test_a_timer_that_another_one_cancels_at_the_same_time_does_not_run():
    timers, ran = Timers(), []
    timers.at(1.0, lambda: (second.cancel(), ran.append("first")))
    second = timers.at(1.0, lambda: ran.append("second"))
    timers.run(1.0)
    assert ran == ["first"]
    second.cancel()
    assert timers.next_deadline() is None


def test_what_a_timer_adds_waits_for_the_next_run():
    timers, ran = Timers(), []
    timers.at(1.0, lambda: timers.at(0.0, lambda: ran.append("later")))
    timers.run(1.0)
    assert ran == []
    timers.run(1.0)
    assert ran == ["later"]


def test_memory_is_proportional_to_live_timers():
    timers = Timers()
    kept = timers.at(1e9, lambda: None)
    for _ in range(20 * SLACK):
        timers.at(1e6, lambda: None).cancel()
    assert len(timers._heap) < 3 * SLACK
    assert timers.next_deadline() == kept.when
