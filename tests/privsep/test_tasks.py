"""Futures and tasks: a coroutine goes on inside the call that resolves what it waits for."""

import gc
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from privsep.tasks import Cancelled, Future, Task, handed_over


def test_a_task_runs_until_it_waits_and_goes_on_when_resolved():
    future: Future[int] = Future()
    seen = []

    async def work() -> None:
        seen.append("began")
        seen.append(await future)

    ends = []
    task = Task(work(), ends.append)
    assert seen == ["began"]
    future.set_result(5)
    assert seen == ["began", 5]
    assert ends == [None]
    assert task.ended


def test_only_the_first_resolution_counts():
    future: Future[int] = Future()
    future.set_result(1)
    future.set_result(2)
    future.set_error(ValueError)
    seen = []

    async def work() -> None:
        seen.append(await future)

    Task(work(), lambda error: None)
    assert seen == [1]


def test_an_error_is_raised_where_it_is_awaited_and_ends_the_task():
    future: Future[int] = Future()

    async def work() -> None:
        await future

    ends = []
    Task(work(), ends.append)
    error = ValueError("why")
    future.set_error(lambda: error)
    assert ends == [error]


class Witness:
    """Something that a coroutine knows."""


def failing(future: Future[int], witness: Witness) -> Coroutine[Any, None, None]:
    async def work() -> None:
        assert witness
        await future

    return work()


@pytest.mark.parametrize(
    "fail",
    [
        lambda future: future.set_error(ValueError),
        lambda future: future.set_error(lambda: ValueError("why")),
        lambda future: future.set_error(handed_over(ValueError("why"))),
    ],
)
def test_an_error_leaves_no_cycle_behind(fail):
    """exception -> traceback -> frame -> future -> exception would keep all that the coroutine knew."""
    gc.disable()
    try:
        future: Future[int] = Future()
        witness = Witness()
        gone = weakref.ref(witness)
        task = Task(failing(future, witness), lambda error: None)
        fail(future)
        assert task.ended
        del witness, future, task
        assert gone() is None
    finally:
        gc.enable()


def test_cancel_unwinds_and_a_late_answer_changes_nothing():
    future: Future[int] = Future()
    seen = []

    async def work() -> None:
        try:
            await future
            seen.append("never")
        finally:
            seen.append("unwound")

    ends = []
    task = Task(work(), ends.append)
    task.cancel()
    future.set_result(1)
    task.cancel()
    assert seen == ["unwound"]
    assert ends == [None]


def test_no_handler_of_exceptions_swallows_a_cancellation():
    future: Future[int] = Future()

    async def work() -> None:
        try:
            await future
        except Exception:
            pytest.fail("cancellation must pass")

    ends = []
    Task(work(), ends.append).cancel()
    assert ends == [None]
    assert not issubclass(Cancelled, Exception)
