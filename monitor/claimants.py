"""Who holds traffic: an identity, proved with a secret. With another secret it is somebody else who says that name.

Which connections have the same secret keyd tells as it becomes ready, by their places in the configuration; of the
secrets themselves the monitor learns nothing.
"""

import struct

from privsep.config.model import Gateway
from privsep.errors import Violation

PLACE_OCTETS = 2


class Claimants:
    """What keyd told last."""

    def __init__(self) -> None:
        self._secrets: dict[str, int] = {}
        """By connection; nothing before the first keyd is ready, as an earlier instance has judged its pairs itself."""

    def learn(self, gateway: Gateway, told: bytes) -> None:
        """Each connection names the first one with its secret; Violation if that is not what was told."""
        names = [connection.name for connection in gateway.connections]
        if len(told) != PLACE_OCTETS * len(names):
            raise Violation("keyd tells of other connections than there are")
        places = struct.unpack(f">{len(names)}H", told)
        if any(first > place or places[first] != first for place, first in enumerate(places)):
            raise Violation("keyd tells of connections that are not the first with their secret")
        self._secrets = dict(zip(names, places, strict=True))

    def share_secret(self, one: str, other: str) -> bool:
        """Whether what is proved under the one connection is proved as under the other."""
        return one == other or self._secrets.get(one) == self._secrets.get(other)
