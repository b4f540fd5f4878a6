"""What an operator is told when a negotiation comes to nothing: what was offered, who refused what, what it may mean.

Phase 1's last messages are encrypted under the pre-shared key, so a peer that refuses after message 5 often cannot be
understood: then every possibility is named, and none is given for certain.
"""

from privsep.iana import NotifyType
from worker.exchange import Exchange
from worker.isakmp_sa import IkeSa

_KEY_IS_WRONG = frozenset({NotifyType.AUTHENTICATION_FAILED, NotifyType.INVALID_HASH_INFORMATION})
"""What a peer says that cannot verify us."""


def differs(expected: object) -> str:
    """A message came and does not decrypt, or its HASH is wrong."""
    return f"peer's message does not decrypt: pre-shared key for {expected} probably differs"


def silence(sa: IkeSa) -> str:
    """What it may mean that message 5 gets no answer, or one that we cannot read."""
    ours = sa.connection.local_id if sa.connection is not None else "?"
    return (
        f"the pre-shared key for {sa.peer_name} differs, or the peer does not accept our identity {ours}, "
        "or it wants more than a pre-shared key (XAUTH)"
    )


def notified(exchange: Exchange, number: int) -> str:
    """What a notification means for that exchange, with what we offered; empty where nobody can tell."""
    match number:
        case NotifyType.NO_PROPOSAL_CHOSEN | NotifyType.BAD_PROPOSAL_SYNTAX if exchange.proposals:
            return f"we offered {exchange.proposals}"
        case NotifyType.INVALID_ID_INFORMATION if exchange.selectors:
            return f"we asked for {exchange.selectors}"
        case NotifyType.INVALID_ID_INFORMATION if exchange.sa.connection is not None:
            return f"it does not accept our identity {exchange.sa.connection.local_id}"
        case _ if number in _KEY_IS_WRONG and exchange.suspicion:
            return differs(exchange.sa.peer_name)
    return exchange.suspicion


def notify_name(number: int) -> str:
    """As the RFCs call it, or its number."""
    try:
        return NotifyType(number).name
    except ValueError:
        return f"notification {number}"
