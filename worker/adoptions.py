"""Pairs that an earlier worker had installed: by inbound SPI, and those of one connection without a look at all."""

from collections import defaultdict
from collections.abc import Iterator

from privsep.schema.install import Adopted
from privsep.types import Spi


class Adoptions:
    """They end when they are replaced, when the peer or the data plane ends them, or by an operator's order."""

    def __init__(self) -> None:
        self._all: dict[Spi, Adopted] = {}
        self._of: defaultdict[str, dict[Spi, Adopted]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Spi]:
        return iter(self._all)

    def get(self, spi: Spi) -> Adopted | None:
        """The pair of that SPI."""
        return self._all.get(spi)

    def of(self, connection: str) -> tuple[Adopted, ...]:
        """Those of a connection."""
        return tuple(self._of.get(connection, {}).values())

    def put(self, adopted: Adopted) -> None:
        """One more, or what is known of one now."""
        spi = Spi(adopted.spi_in)
        self._all[spi] = self._of[adopted.connection][spi] = adopted

    def drop(self, spi: Spi) -> bool:
        """It is no more; whether it was there."""
        adopted = self._all.pop(spi, None)
        if adopted is None:
            return False
        of = self._of[adopted.connection]
        del of[spi]
        if not of:
            del self._of[adopted.connection]
        return True
