"""The monitor's end of the channel to keyd, for one epoch: its questions and their answers."""

from collections.abc import Callable
from itertools import count

from privsep.errors import ChannelClosed, Violation
from privsep.schema.keymat import Question, Ready, Reply
from privsep.tasks import Future


class Redeemer:
    """`send` puts a request on the channel; `on_ready` is called when keyd serves, which it says once and first."""

    def __init__(self, send: Callable[[Question, int], None], on_ready: Callable[[Ready], None]) -> None:
        self._send = send
        self._on_ready: Callable[[Ready], None] | None = on_ready
        self._sequence = count(1)
        self._waiting: dict[int, Future[Reply]] = {}

    def ask(self, request: Question) -> Future[Reply]:
        """Keyd's answer; ChannelClosed when keyd ends first."""
        future: Future[Reply] = Future()
        sequence = next(self._sequence)
        self._waiting[sequence] = future
        try:
            self._send(request, sequence)
        except ChannelClosed:
            del self._waiting[sequence]
            future.set_error(ChannelClosed)
        return future

    def handle(self, message: Reply, sequence: int) -> None:
        """A frame from keyd. Violation for an answer to nothing and for a second Ready."""
        if isinstance(message, Ready):
            on_ready, self._on_ready = self._on_ready, None
            if on_ready is None or sequence != 0:
                raise Violation("keyd says twice that it is ready")
            on_ready(message)
            return
        future = self._waiting.pop(sequence, None)
        if future is None:
            raise Violation("keyd answers what nobody asked")
        future.set_result(message)

    def close(self) -> None:
        """End: whoever waits gets ChannelClosed."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_error(ChannelClosed)
