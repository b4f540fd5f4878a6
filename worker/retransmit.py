"""When to send again, when to give up, and what a duplicate is answered with (RFC 2408 section 5.1).

An initiator repeats its request with back-off. A responder of Main Mode never sends unasked, so that a spoofed first
message is answered by one datagram and no more; it repeats its last reply to a duplicate of the last request.
"""

FIRST_WAIT = 1.0
FACTOR = 1.8
TRANSMISSIONS = 6


def back_off(first: float, factor: float, transmissions: int) -> tuple[float, ...]:
    """Seconds to wait for an answer after each transmission."""
    return tuple(first * factor**number for number in range(transmissions))


BACK_OFF = back_off(FIRST_WAIT, FACTOR, TRANSMISSIONS)
"""41 s in all: longer than a rerouting takes, shorter than an operator's patience."""
HALF_OPEN = (30.0,)
"""A Main Mode responder's patience for each message: as long as an initiator goes on, sending nothing itself."""
LINGER = 60.0
"""Seconds that a finished exchange still answers duplicates: the peer's last message may have got no reply."""

RESEND_INTERVAL = 0.25
MAX_RESENDS = 16
"""Of one reply; more is not loss but somebody playing."""


class LastReply:
    """The last request that was accepted, and our reply to it."""

    __slots__ = ("_left", "_not_before", "reply", "request")

    def __init__(self) -> None:
        self.request = b""
        self.reply = b""
        self._left = 0
        self._not_before = 0.0

    def accepted(self, request: bytes) -> None:
        """A new request; it has no reply yet."""
        self.request, self.reply = request, b""

    def sent(self, reply: bytes, now: float) -> None:
        """Our reply to it, just sent."""
        self.reply = reply
        self._left = MAX_RESENDS
        self._not_before = now + RESEND_INTERVAL

    def again(self, now: float) -> bytes:
        """What a duplicate of the request is answered with now; nothing when there were many just before."""
        if not self._left or now < self._not_before:
            return b""
        self._left -= 1
        self._not_before = now + RESEND_INTERVAL
        return self.reply
