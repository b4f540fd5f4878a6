"""What every operation needs: configuration, secrets, handles, key pairs, time and chance."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from keyd.groups.pool import Pool
from keyd.handles import Registry
from keyd.secret import Secret
from privsep.config.model import Connection, Gateway


class PskStore(Protocol):
    """Where pre-shared keys come from: `keyd.credentials.Credentials`."""

    def psk_for(self, connection: Connection) -> Secret | None:
        """The pre-shared key of a connection, or None."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Context:
    """One epoch's worth of keyd. `clock` is monotonic seconds, `random` gives that many octets."""

    gateway: Gateway
    credentials: PskStore
    registry: Registry
    pool: Pool
    clock: Callable[[], float]
    random: Callable[[int], bytes]
