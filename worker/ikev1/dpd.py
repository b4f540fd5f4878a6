"""Dead peer detection (RFC 3706): whether a peer that we have an IKE SA with is still there.

Nobody is asked at intervals. Whoever needs to know asks, and one question serves all who ask meanwhile (section 5.4).
"""

from privsep.iana import NotifyType, ProtocolId
from privsep.isakmp.payloads import Notification
from privsep.log import Level
from privsep.tasks import Future
from worker.child import Flow
from worker.context import Context
from worker.ikev1 import informational
from worker.isakmp_sa import IkeSa, IkeState, Peer
from worker.peers import forget_child, forget_ike, newest, peers_of

WAITS = (2.0, 3.0, 5.0)
"""Seconds to wait after each R-U-THERE. A peer that leaves all of them unanswered is taken for dead; whoever waits for
that goes on repeating its own message for longer than this."""
MAX_HOLDERS = 4
"""Dead identities that one newcomer may have removed: a gateway that has changed its identity has one old one."""
DEAD = "the peer is dead: it leaves every R-U-THERE unanswered"
FIRST_SEQUENCE_MASK = 0x7FFFFFFF
"""RFC 3706 section 6.2: the first number is random, its highest bit zero, so that counting does not overflow."""


class Probe:
    """One question to the peer of an IKE SA, repeated until it is acknowledged or the peer is taken for dead."""

    __slots__ = ("_answer", "_context", "_data", "_sa", "_waiting", "alive")

    def __init__(self, context: Context, sa: IkeSa) -> None:
        self._context = context
        self._sa = sa
        if sa.asked == 0:
            sa.asked = int.from_bytes(context.random(4), "big") & FIRST_SEQUENCE_MASK
        sa.asked += 1
        self._data = sa.asked.to_bytes(informational.DPD_SEQUENCE_OCTETS, "big")
        self._answer: Future[None] = Future()
        self._waiting: list[Future[bool]] = []
        self.alive = False

    def outcome(self) -> Future[bool]:
        """Whether the peer stayed silent, once that is known."""
        future: Future[bool] = Future()
        self._waiting.append(future)
        return future

    def acknowledged(self, data: bytes) -> None:
        """An R-U-THERE-ACK came; with another sequence number it answers another question (RFC 3706 section 6.1)."""
        if data == self._data:
            self.alive = True
            self._answer.set_result(None)

    async def run(self) -> None:
        """Ask, wait, ask again. An IKE SA that is closed meanwhile counts as answered: it is gone anyway."""
        context, sa = self._context, self._sa
        silent = False
        question = Notification(
            protocol=ProtocolId.ISAKMP, type=NotifyType.R_U_THERE, spi=sa.cky_i + sa.cky_r, data=self._data
        )
        try:
            for wait in WAITS:
                await informational.send(context, sa, [question])
                await self._wait(wait)
                if self.alive:
                    return
            silent = sa.state is IkeState.ESTABLISHED
        finally:
            sa.probe = None
            for future in self._waiting:
                future.set_result(silent)

    async def _wait(self, seconds: float) -> None:
        if not self.alive:
            self._answer = Future()
            timer = self._context.after(seconds, lambda: self._answer.set_result(None))
            await self._answer
            timer.cancel()


def ask(context: Context, sa: IkeSa) -> Future[bool]:
    """Whether the peer of `sa` leaves every R-U-THERE unanswered, once that is known.

    False for a peer that never said that it knows the question (RFC 3706 section 5.1): its silence means nothing.
    """
    if sa.state is not IkeState.ESTABLISHED or not sa.knows_dpd:
        unasked: Future[bool] = Future()
        unasked.set_result(False)
        return unasked
    if sa.probe is not None:
        return sa.probe.outcome()
    probe = sa.probe = Probe(context, sa)
    outcome = probe.outcome()
    context.spawn(probe.run(), "dpd-failed", lambda: sa.label)
    return outcome


async def make_way(context: Context, flow: Flow, newcomer: Peer) -> bool:
    """Remove what dead peers hold of the traffic of `flow`; whether that helped, so that asking again is worth it.

    A peer that comes back under another identity finds its old pairs in its way. Only the silence of the old identity's
    IKE SA tells it from a neighbour behind the same NAT, who must not get another's traffic.
    """
    holders = {
        peer: sa
        for peer in peers_of(context, flow.connection.name)
        if peer is not newcomer and any(child.meets(flow) for child in peer.children.values())
        for sa in [newest(peer)]
    }
    if not 0 < len(holders) <= MAX_HOLDERS:
        return False
    questions = [ask(context, sa) for sa in holders.values() if sa is not None]
    dead = [await question for question in questions]
    if len(dead) != len(holders) or not all(dead):
        return False
    removals = []
    for peer, sa in holders.items():
        if newest(peer) is not sa:
            # it has come back while we waited
            return False
        context.log(Level.NOTICE, "peer-dead", connection=flow.connection.name, identity=peer.identity)
        removals += [forget_child(context, child, DEAD) for child in tuple(peer.children.values())]
        for each in tuple(peer.ike_sas):
            forget_ike(context, each, DEAD)
    for removal in removals:
        if removal is not None:
            await removal
    return True
