"""How many IKE SAs authenticated peers may have. keyd's shares (`keyd/phase1.py`) are larger: here a peer is told."""

from privsep.shares import Shares
from worker.isakmp_sa import IkeSa

MAX_ESTABLISHED = 49152
"""In all, of whichever connection has most when there is no room: three quarters of what keyd keeps."""
MAX_OF_ONE_IDENTITY = 16
"""Under one connection: half of what keyd keeps. A peer needs one, and two while it renews it or both ends begin at
once. One that has lost its memory a few times in the lifetime of an IKE SA leaves some more, and one that has several
connections with the same names may have an IKE SA for each."""


class Established:
    """The IKE SAs that count, the longest unused first to go."""

    def __init__(self) -> None:
        self._of_identities: Shares[IkeSa] = Shares(each=MAX_OF_ONE_IDENTITY)
        self._of_connections: Shares[IkeSa] = Shares(MAX_ESTABLISHED)

    def enter(self, sa: IkeSa) -> tuple[IkeSa, ...]:
        """One more; those that have to go for it."""
        if sa.peer is None:
            return ()
        connection = sa.peer.connection.name
        of_its_own = self._of_identities.enter(sa, (connection, sa.peer.identity))
        if of_its_own is not None:
            self._of_connections.leave(of_its_own)
        of_another = self._of_connections.enter(sa, connection)
        if of_another is not None:
            self._of_identities.leave(of_another)
        return tuple(each for each in (of_its_own, of_another) if each is not None)

    def use(self, sa: IkeSa) -> None:
        """The peer has said something under it."""
        self._of_identities.use(sa)
        self._of_connections.use(sa)

    def leave(self, sa: IkeSa) -> None:
        """It is closed. Harmless when it is out."""
        self._of_identities.leave(sa)
        self._of_connections.leave(sa)
