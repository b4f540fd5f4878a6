"""What the monitor needs besides futures: a clock with timers, coroutines begun, a deadline."""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from monitor.dataplane import DataplaneError
from privsep.log import Level, Log
from privsep.loop import Timer
from privsep.tasks import Future, Task, handed_over

T = TypeVar("T")


class Clock(Protocol):
    """`privsep.loop.Loop`, or a test's."""

    def now(self) -> float:
        """Seconds of a monotonic clock."""

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call in so many seconds."""


def begin(coroutine: Coroutine[Any, None, T]) -> Future[T]:
    """Run the coroutine; its value or exception resolves the future."""
    future: Future[T] = Future()
    values: list[T] = []

    async def run() -> None:
        values.append(await coroutine)

    def ended(error: BaseException | None) -> None:
        # resolved here and not in `run`, so that an error of the one who waits is not taken for the coroutine's
        if error is None:
            future.set_result(values[0])
        else:
            future.set_error(handed_over(error))

    Task(run(), ended)
    return future


def settled(action: Callable[[], T]) -> Future[T]:
    """What is done at once, as a future: its result, or the data plane's refusal."""
    future: Future[T] = Future()
    try:
        future.set_result(action())
    except DataplaneError as error:
        future.set_error(handed_over(error))
    return future


def run(coroutine: Coroutine[Any, None, None]) -> None:
    """Run a coroutine that nobody waits for. Its exception goes to whoever resolved what it waited for."""

    def ended(error: BaseException | None) -> None:
        if error is not None:
            raise error

    Task(coroutine, ended)


async def quietly(future: Future[None], log: Log) -> bool:
    """Whether the data plane did it; a refusal is logged and costs nothing else."""
    try:
        await future
    except DataplaneError as error:
        log(Level.WARNING, "cleanup-failed", error=error)
        return False
    return True


def within(clock: Clock, seconds: float, future: Future[T]) -> Future[T]:
    """The same result, or TimeoutError when it takes longer."""
    limited: Future[T] = Future()
    timer = clock.after(seconds, lambda: limited.set_error(TimeoutError))

    async def run() -> None:
        try:
            value = await future
        finally:
            timer.cancel()
        limited.set_result(value)

    def ended(error: BaseException | None) -> None:
        if error is not None:
            limited.set_error(handed_over(error))

    Task(run(), ended)
    return limited
