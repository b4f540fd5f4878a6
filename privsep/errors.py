"""Errors, sorted by whose fault they are.

`PeerError`: what the other gateway sent is at fault; answered with its notify type or dropped, never logged raw.
`OperatorError`: the configuration or the machine is at fault; says file, line and what would be right.
`Violation`: a less privileged process of ours asked for what an honest one never asks; it is ended for it.
"""

from privsep.iana import NotifyType


class PrivsepError(Exception):
    """Base of every error that this project raises on purpose."""


class PeerError(PrivsepError):
    """The peer's message is unacceptable.

    `notify` is the type that RFC 2408 section 3.14.1 gives for it; None where the RFCs say to drop silently.
    `reason` is a short stable phrase of ours, safe to log.
    """

    def __init__(self, reason: str, notify: NotifyType | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.notify = notify


class MalformedError(PeerError):
    """Bytes that do not parse as what they claim to be."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, NotifyType.PAYLOAD_MALFORMED)


class OperatorError(PrivsepError):
    """The operator has to change something; `str()` tells what, where and how."""


class Violation(PrivsepError):
    """A request that the state table or the schema does not admit (DESIGN: "an honest worker never asks")."""


GONE = "the other end is gone"
"""Why a channel ends that nobody broke: whoever watches the processes says more about it than the one that is left."""


class ChannelClosed(PrivsepError):
    """The other end of a channel is gone."""
