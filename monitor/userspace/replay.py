"""The anti-replay window of one inbound SA (RFC 4303 section 3.4.3)."""


class ReplayWindow:
    """Which of the last `size` sequence numbers were received, as the bits of one integer; bit 0 is the highest.

    `admits` comes before the ICV is checked, `accept` only after: a forged packet must not move the window.
    """

    __slots__ = ("_highest", "_mask", "_seen", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._mask = (1 << size) - 1
        self._highest = 0
        self._seen = 0

    @property
    def highest(self) -> int:
        """The highest sequence number accepted; 0 before the first."""
        return self._highest

    def admits(self, sequence: int) -> bool:
        """Whether the number is new: right of the window, or inside and not yet seen. 0 is never sent (3.3.3)."""
        behind = self._highest - sequence
        if behind < 0:
            return True
        return sequence != 0 and behind < self._size and not self._seen >> behind & 1

    def accept(self, sequence: int) -> None:
        """Mark a number that `admits` admitted and whose packet proved authentic."""
        ahead = sequence - self._highest
        if ahead <= 0:
            self._seen |= 1 << -ahead
            return
        # a leap beyond the window forgets everything; shifting by 2**32 would build an integer of 512 MB
        self._seen = (self._seen << ahead | 1) & self._mask if ahead < self._size else 1
        self._highest = sequence
