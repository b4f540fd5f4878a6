"""The smallest coroutines that will do: a future, and a task that runs until it awaits one.

No loop, no clock, no threads: whoever owns the future resolves it, and the waiting coroutine goes on at once, inside
that call. The worker's engine and the monitor's service are both written on this, which keeps them sans-IO.
"""

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Cancelled(BaseException):
    """Thrown into a task that is ended from outside. Not an Exception, so that no handler swallows it."""


class Future(Generic[T]):
    """A value that comes later. Resolved once; later resolutions are ignored (a timeout may have come first).

    It holds no exception, but what makes one: an exception that is kept and raised leads to itself, by its traceback
    and the frames there, and with it all that those frames knew stays until the garbage collector comes.
    """

    __slots__ = ("_callback", "_done", "_error", "_value")

    def __init__(self) -> None:
        self._done = False
        self._value: T
        self._error: Callable[[], BaseException] | None = None
        self._callback: Callable[[], None] | None = None

    @property
    def done(self) -> bool:
        """Whether it has a result or an error."""
        return self._done

    def set_result(self, value: T) -> None:
        """Resolve, and continue whoever waits."""
        if not self._done:
            self._done, self._value = True, value
            self._continue()

    def set_error(self, make: Callable[[], BaseException]) -> None:
        """Resolve with an exception, made and raised where it is awaited: an exception's type will do."""
        if not self._done:
            self._done, self._error = True, make
            self._continue()

    def _continue(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()

    def __await__(self) -> Generator["Future[T]", None, T]:
        if not self._done:
            yield self
        if self._error is not None:
            raise self._error()
        return self._value

    def on_done(self, callback: Callable[[], None]) -> None:
        """Call when resolved (at once if it is). One waiter only."""
        if self._done:
            callback()
        else:
            self._callback = callback


class Task:
    """A running coroutine. Starts at once; `on_end` gets the exception that ended it, None for a normal return."""

    __slots__ = ("_coroutine", "_on_end", "_waiting", "ended")

    def __init__(
        self,
        coroutine: Coroutine[Any, None, None],
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        self._coroutine = coroutine
        self._on_end = on_end
        self._waiting: Future[Any] | None = None
        self.ended = False
        self._step()

    def _step(self) -> None:
        self._waiting = None
        try:
            future = self._coroutine.send(None)
        except StopIteration:
            self._end(None)
        except BaseException as error:
            self._end(error)
        else:
            self._waiting = future
            future.on_done(self._step)

    def _end(self, error: BaseException | None) -> None:
        self.ended = True
        self._on_end(error)

    def cancel(self) -> None:
        """End the coroutine with `Cancelled` where it waits. Harmless when it has ended."""
        if self.ended:
            return
        if self._waiting is not None:
            self._waiting.on_done(_nothing)
            self._waiting = None
        try:
            self._coroutine.throw(Cancelled())
        except (StopIteration, Cancelled):
            self._end(None)
        except BaseException as error:
            self._end(error)
        else:
            self._coroutine.close()
            self._end(None)


def handed_over(error: BaseException) -> Callable[[], BaseException]:
    """For `Future.set_error`: that exception itself, once, with the traceback that says where it came from."""
    return [error].pop


def _nothing() -> None:
    pass
