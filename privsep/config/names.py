"""Names that only the machine can turn into numbers: hosts and users.

The worker has no resolver and keyd no network, and processes that asked at different times could get different answers.
So the first process asks and hands its `answers` to the others, whose `Names` know these and nothing else.
"""

import ipaddress
import pwd
import socket
from collections.abc import Mapping

from privsep.config.problems import quote
from privsep.types import Address

MAX_UID = 0xFFFFFFFE
"""Linux: the last one means "none"."""


class Names:
    """Answers given once stay the same."""

    def __init__(self, answers: Mapping[str, str] | None = None) -> None:
        """With `answers`, the machine is not asked at all."""
        self.answers: dict[str, str] = dict(answers or {})
        self._offline = answers is not None

    def host(self, name: str, version: int | None) -> Address:
        """The first address of that IP version (None: of either); ValueError if there is none."""
        key = f"host {version or 'any'} {name}"
        if key not in self.answers:
            family = {4: socket.AF_INET, 6: socket.AF_INET6, None: socket.AF_UNSPEC}[version]
            try:
                found = [] if self._offline else socket.getaddrinfo(name, None, family, socket.SOCK_DGRAM)
            except (OSError, UnicodeError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else "no host name"
                raise ValueError(f"{quote(name)} does not resolve ({reason}); an address would always do") from None
            if not found:
                raise ValueError(f"{quote(name)} has no address; an address would always do")
            self.answers[key] = str(found[0][4][0])
        return ipaddress.ip_address(self.answers[key])

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
