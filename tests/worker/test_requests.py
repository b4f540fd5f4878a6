"""Requests in flight."""

import pytest

from worker.requests import WINDOW, Requests


@pytest.fixture
def emitted():
    return []


@pytest.fixture
def requests(emitted):
    return Requests(lambda sequence, request: emitted.append((sequence, request)))


def test_answers_find_their_requests_in_any_order(requests, emitted):
    first, second = requests.ask("a"), requests.ask("b")
    assert emitted == [(1, "a"), (2, "b")]
    requests.answered(2, "B")
    assert (first.done, second.done) == (False, True)
    requests.answered(1, "A")
    assert first.done


def test_an_answer_to_nothing_is_ignored(requests):
    requests.answered(7, "?")
    future = requests.ask("a")
    requests.answered(1, "A")
    requests.answered(1, "again")
    assert future.done


def test_no_more_than_the_window_is_in_flight_and_order_is_kept(requests, emitted):
    futures = [requests.ask(number) for number in range(WINDOW + 10)]
    assert len(emitted) == WINDOW
    for sequence in range(1, WINDOW + 11):
        requests.answered(sequence, sequence)
    assert [request for _, request in emitted] == list(range(WINDOW + 10))
    assert all(future.done for future in futures)
