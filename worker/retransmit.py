"""When to send again, when to give up, and what a duplicate is answered with (RFC 2408 section 5.1).

An initiator repeats its request with back-off. A responder of Main Mode never sends unasked, so that a spoofed first
message is answered by one datagram and no more; it repeats its last reply to a duplicate of the last request.
"""

import hashlib

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


_DIGEST_OCTETS = 16


class Resends:
    """How often a reply may still go out again, and when."""

    __slots__ = ("_left", "_not_before")

    def __init__(self) -> None:
        self._left = 0
        self._not_before = 0
        """In milliseconds."""

    def begin(self, now: float) -> None:
        """The reply has just been sent."""
        self._left = MAX_RESENDS
        self._not_before = _milliseconds(now + RESEND_INTERVAL)

    def admit(self, now: float) -> bool:
        """Whether a duplicate of the request gets the reply now; not when there were many just before."""
        if not self._left or _milliseconds(now) < self._not_before:
            return False
        self._left -= 1
        self._not_before = _milliseconds(now + RESEND_INTERVAL)
        return True


class LastReply:
    """The last request that was accepted, by its digest alone, and our reply to it."""

    __slots__ = ("_reply", "_request", "_resends")

    def __init__(self) -> None:
        self._request = b""
        self._reply = b""
        self._resends = Resends()

    def accepted(self, request: bytes) -> None:
        """A new request; it has no reply yet."""
        self._request, self._reply = _digest(request), b""

    def answers(self, request: bytes) -> bool:
        """Whether this is the request once more."""
        return self._request == _digest(request)

    def sent(self, reply: bytes, now: float) -> None:
        """Our reply to it, just sent."""
        self._reply = reply
        self._resends.begin(now)

    def again(self, now: float) -> bytes:
        """What a duplicate of the request is answered with now, or nothing."""
        return self._reply if self._reply and self._resends.admit(now) else b""


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _digest(message: bytes) -> bytes:
    return hashlib.blake2b(message, digest_size=_DIGEST_OCTETS).digest()
