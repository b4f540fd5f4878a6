"""How an exchange ends without a result. A message that is merely not the awaited one is a PeerError instead."""

from privsep.errors import PrivsepError
from privsep.iana import NotifyType
from privsep.schema.install import Denial
from privsep.schema.keyd import Refused

_OF_THE_TRAFFIC = frozenset({Denial.SELECTORS, Denial.OVERLAP})
"""Denials of what the client identities ask for."""


class Failed(PrivsepError):
    """`reason` is for people: what went wrong and what to look at. `notify` is what the peer was or should be told."""

    told = ""
    """The event that has said why, where the log has it already."""

    def __init__(self, reason: str, notify: NotifyType | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.notify = notify


class TimedOut(Failed):
    """The peer did not answer."""


class NoneChosen(Failed):
    """The peer takes none of the proposals (NO-PROPOSAL-CHOSEN)."""


class Unsent(Failed):
    """Our own machine did not let the message out."""


class SaClosed(Failed):
    """The IKE SA ended under the exchange."""


class Withdrawn(Failed):
    """We end it ourselves: an operator ordered it, or the daemon stops."""


class KeydRefused(Failed):
    """keyd said no, and if a message of the peer's is at fault, what the peer is to be told."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.detail or refused.why.value, refused.notify)
        self.why = refused.why


class MonitorDenied(Failed):
    """The monitor's second opinion, or the data plane, said no."""

    def __init__(self, why: Denial) -> None:
        notify = NotifyType.INVALID_ID_INFORMATION if why in _OF_THE_TRAFFIC else NotifyType.NO_PROPOSAL_CHOSEN
        super().__init__(f"the monitor refuses: {why.value}", notify)
        self.why = why
