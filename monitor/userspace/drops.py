"""Why packets are dropped: the auditable events of RFC 4303 section 5 and RFC 4301, as counters."""

from enum import Enum

from privsep.errors import PrivsepError


class Reason(Enum):
    """Stable names, as they stand in the log."""

    MALFORMED = "malformed"
    UNKNOWN_SPI = "unknown-spi"
    WRONG_ENCAPSULATION = "wrong-encapsulation"
    REPLAYED = "replayed"
    NOT_AUTHENTIC = "not-authentic"
    DUMMY = "dummy"
    OUTSIDE_SELECTORS = "outside-selectors"
    NO_POLICY = "no-policy"
    NO_SA = "no-sa"
    NOT_TRANSPORTABLE = "not-transportable"
    SEND_FAILED = "send-failed"


class Dropped(PrivsepError):
    """The packet goes no further."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason
