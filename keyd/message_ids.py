"""The message ids that an IKE SA has used: none is used twice (RFC 2408 section 3.1, RFC 2409 section 5.5)."""

from array import array
from bisect import bisect_left

MAX_MESSAGE_IDS = 16384
"""64 KB. A DPD message each way every two seconds for eight hours, with its answers, comes to nearly twice as many: the
worker replaces the IKE SA in time (`worker/renewal.py`)."""


class MessageIds:
    """A sorted array: four octets each, and ten comparisons or so to find one."""

    __slots__ = ("_used",)

    def __init__(self) -> None:
        self._used = array("I", (0,))
        """0 is phase 1's."""

    def __len__(self) -> int:
        return len(self._used)

    def __contains__(self, message_id: int) -> bool:
        at = bisect_left(self._used, message_id)
        return at < len(self._used) and self._used[at] == message_id

    def add(self, message_id: int) -> None:
        """It is used from now on."""
        at = bisect_left(self._used, message_id)
        if at == len(self._used) or self._used[at] != message_id:
            self._used.insert(at, message_id)

    @property
    def used_up(self) -> bool:
        """Whether the IKE SA must be replaced."""
        return len(self._used) >= MAX_MESSAGE_IDS
