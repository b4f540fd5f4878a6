"""Names that only the machine can turn into numbers: hosts and users.

Users are asked for once, by the first process, which hands its `answers` to the others: these know nothing else.
Hosts are asked for while the daemon runs, again and again (`monitor/names.py`), and nobody waits for them here.
"""

import pwd
from collections.abc import Mapping
from dataclasses import dataclass, field

from privsep.types import Address

MAX_UID = 0xFFFFFFFE
"""Linux: the last one means "none"."""


@dataclass(slots=True, unsafe_hash=True)
class RemoteName:
    """`remote` by name. Its address is the one value of a configuration that changes (`Gateway.locate`)."""

    name: str
    version: int | None
    """Of IP; None where `local` leaves that open."""
    address: Address | None = field(default=None, compare=False)
    """The last that was found; None before the first."""

    def __str__(self) -> str:
        return self.name if self.address is None else f"{self.name} ({self.address})"


class Names:
    """Answers given once stay the same."""

    def __init__(self, answers: Mapping[str, str] | None = None) -> None:
        """With `answers`, the machine is not asked at all."""
        self.answers: dict[str, str] = dict(answers or {})
        self._offline = answers is not None

    def user(self, user: str | int) -> tuple[int, int] | None:
        """Its uid and gid; a number that names no user is its own gid. None for a name that does not exist."""
        key = f"user {user}"
        if key not in self.answers and not self._offline:
            try:
                entry = pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
                self.answers[key] = f"{entry.pw_uid} {entry.pw_gid}"
            except KeyError:
                self.answers[key] = f"{user} {user}" if isinstance(user, int) else ""
        uid, _, gid = self.answers.get(key, "").partition(" ")
        return (int(uid), int(gid)) if uid else None
