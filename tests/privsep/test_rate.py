"""Rates, and what is told of what they refuse."""

import pytest

from privsep.log import Level
from privsep.rate import LINES_PER_SECOND, TELL_SECONDS, Rate, Sparing


def test_so_many_in_a_second_and_the_rest_is_counted():
    rate = Rate(3)
    assert [rate.admit(1.0 + number / 10) for number in range(5)] == [True, True, True, False, False]
    assert rate.take_refused() == 2
    assert rate.take_refused() == 0
    assert rate.admit(2.0)


class Clock:
    def __init__(self):
        self.time = 1.0
        self.timers = []

    def now(self):
        return self.time

    def after(self, seconds, callback):
        self.timers.append((self.time + seconds, callback))

    def advance(self, seconds):
        self.time += seconds
        due = [callback for when, callback in self.timers if when <= self.time]
        self.timers = [timer for timer in self.timers if timer[0] > self.time]
        for callback in due:
            callback()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines():
    return []


@pytest.fixture
def sparing(clock, lines):
    return Sparing(lambda level, code, **fields: lines.append((level, code, fields)), clock.now, clock.after)


def test_a_flood_of_one_kind_leaves_the_other_kinds_their_budget(sparing, lines):
    for number in range(1000):
        sparing(Level.INFO, "notified-in-clear", number=number)
    sparing(Level.WARNING, "authentication-failed", connection="paris")
    assert len(lines) == LINES_PER_SECOND + 1
    assert lines[-1] == (Level.WARNING, "authentication-failed", {"connection": "paris"})


def test_what_strangers_cause_takes_nothing_from_what_is_about_configured_peers(sparing, lines):
    for _ in range(1000):
        sparing(Level.INFO, "main-mode-failed")
    sparing(Level.WARNING, "main-mode-failed", connection="paris")
    assert lines[-1] == (Level.WARNING, "main-mode-failed", {"connection": "paris"})


def test_what_nobody_would_see_is_neither_written_nor_counted(sparing, clock, lines):
    for _ in range(1000):
        sparing(Level.DEBUG, "datagram-dropped")
    clock.advance(2 * TELL_SECONDS)
    assert lines == []


def test_what_was_left_out_is_told_by_code_when_the_flood_has_ended(sparing, clock, lines):
    for _ in range(100):
        sparing(Level.INFO, "notified")
        sparing(Level.WARNING, "denied")
    del lines[:]
    clock.advance(TELL_SECONDS)
    left_out = 100 - LINES_PER_SECOND
    assert lines == [
        (Level.INFO, "left-out", {"event": "notified", "lines": left_out}),
        (Level.WARNING, "left-out", {"event": "denied", "lines": left_out}),
    ]
    clock.advance(10 * TELL_SECONDS)
    assert len(lines) == 2


def test_a_flood_without_end_is_told_now_and_again_and_wholly_counted(sparing, clock, lines):
    for _ in range(100):
        for _ in range(50):
            sparing(Level.INFO, "notified")
        clock.advance(1.0)
    clock.advance(TELL_SECONDS)
    counted = [fields["lines"] for _, code, fields in lines if code == "left-out"]
    assert len(counted) <= 100 / TELL_SECONDS + 1
    assert sum(counted) + sum(code == "notified" for _, code, _ in lines) == 100 * 50
