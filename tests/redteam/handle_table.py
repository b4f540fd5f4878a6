"""keyd's handles as docs/architecture.md and RFC 2409 have them, written down a second time.

The tests that compare keyd with this table from outside must not take it from keyd: a transition that somebody adds
there is what they look for.
"""

from keyd.handles import State
from privsep.schema import keyd as ops
from privsep.schema.keymat import RedeemInbound, RedeemOutbound

Key = tuple[State, type]

IKE_STATES = frozenset(
    {
        State.OFFERED,
        State.KEYED_I,
        State.CLAIMED,
        State.KEYED_R,
        State.PROVEN,
        State.AUTHENTICATED,
        State.DEAD,
    }
)
QUICK_STATES = frozenset({State.QUICK_OFFERED, State.QUICK_FINISHED, State.QUICK_OPENED, State.QUICK_ANSWERED})
KEYMAT_STATES = frozenset({State.DERIVED, State.RECEIVING, State.CONFIRMED, State.SENDABLE})

TABLE: dict[Key, State] = {
    # Main Mode, initiator
    (State.OFFERED, ops.IkeAgree): State.KEYED_I,
    (State.KEYED_I, ops.AuthSeal): State.CLAIMED,
    (State.CLAIMED, ops.AuthOpen): State.AUTHENTICATED,
    # Main Mode, responder: whoever speaks last has been convinced first
    (State.KEYED_R, ops.AuthOpen): State.PROVEN,
    (State.PROVEN, ops.AuthSeal): State.AUTHENTICATED,
    # phase 2 leaves the IKE SA where it is
    **{
        (State.AUTHENTICATED, operation): State.AUTHENTICATED
        for operation in (ops.InfoSeal, ops.InfoOpen, ops.QuickOffer, ops.QuickOpen)
    },
    # Quick Mode, initiator and responder
    (State.QUICK_OFFERED, ops.QuickFinish): State.QUICK_FINISHED,
    (State.QUICK_FINISHED, ops.QuickAccept): State.GONE,
    (State.QUICK_OPENED, ops.QuickAnswer): State.QUICK_ANSWERED,
    (State.QUICK_ANSWERED, ops.QuickConfirm): State.GONE,
    # the monitor takes each half of keymat once, what sends when the peer has confirmed
    (State.DERIVED, RedeemInbound): State.RECEIVING,
    (State.CONFIRMED, RedeemInbound): State.SENDABLE,
    (State.SENDABLE, RedeemOutbound): State.GONE,
    **{(state, ops.Drop): State.GONE for state in IKE_STATES | QUICK_STATES | KEYMAT_STATES},
}
"""(state, operation): the state after success."""

REJECTED: dict[Key, State] = {
    (State.KEYED_R, ops.AuthOpen): State.DEAD,
    (State.CLAIMED, ops.AuthOpen): State.DEAD,
    (State.QUICK_OFFERED, ops.QuickFinish): State.GONE,
}
"""(state, operation): the state after one of `REJECTIONS_OF` the operation; other refusals change nothing."""

REJECTIONS_OF: dict[type, frozenset[ops.Refusal]] = {
    ops.AuthOpen: frozenset({ops.Refusal.UNKNOWN_IDENTITY, ops.Refusal.WRONG_TOO_OFTEN}),
    ops.QuickFinish: frozenset({ops.Refusal.BAD_MESSAGE, ops.Refusal.BAD_PUBLIC_VALUE}),
}

BORN: dict[type, State] = {
    ops.IkeOffer: State.OFFERED,
    ops.IkeAnswer: State.KEYED_R,
    ops.QuickOffer: State.QUICK_OFFERED,
    ops.QuickOpen: State.QUICK_OPENED,
    ops.QuickAnswer: State.DERIVED,
    ops.QuickAccept: State.CONFIRMED,
}
"""The state of the one entry that an operation makes."""

ANSWERS: dict[type, type] = {
    ops.IkeOffer: ops.IkeKeys,
    ops.IkeAgree: ops.Done,
    ops.IkeAnswer: ops.IkeKeys,
    ops.AuthSeal: ops.Sealed,
    ops.AuthOpen: ops.Authenticated,
    ops.InfoSeal: ops.SealedNew,
    ops.InfoOpen: ops.Opened,
    ops.QuickOffer: ops.QuickOffered,
    ops.QuickFinish: ops.QuickAgreed,
    ops.QuickAccept: ops.QuickKeyed,
    ops.QuickOpen: ops.QuickOpened,
    ops.QuickAnswer: ops.QuickKeyed,
    ops.QuickConfirm: ops.Done,
    ops.Drop: ops.Done,
}
"""The reply that says yes."""


def handle_of(request: ops.Request) -> bytes | None:
    """The handle that a request names, None for the two that make one out of nothing."""
    for name in ("ike", "quick", "handle"):
        if hasattr(request, name):
            handle: bytes = getattr(request, name)
            return handle
    return None


def born_handle(reply: ops.Reply) -> bytes:
    """The handle that a reply hands out: keymat's where it names both."""
    for name in ("keymat", "quick", "ike"):
        if hasattr(reply, name):
            handle: bytes = getattr(reply, name)
            return handle
    raise ValueError(f"{type(reply).__name__} hands out nothing")
