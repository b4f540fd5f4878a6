"""What every group says of a public value that is not one."""

from privsep.errors import PeerError
from privsep.iana import NotifyType


class BadPublicValue(PeerError):
    """The peer's KE is not a public value of the group, or is ours sent back."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, NotifyType.INVALID_KEY_INFORMATION)
