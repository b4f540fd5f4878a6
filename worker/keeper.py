"""What should be up: children with `start = "up"`, traps that traffic waits for, what an operator asks for or a worker
before this one had.

A goal that fails is tried again with back-off as long as it is wanted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum

from privsep.config.model import Child, Connection, Start
from privsep.config.names import RemoteName
from privsep.errors import PeerError
from privsep.log import Level
from privsep.schema.install import Adopted, Unanswered
from privsep.schema.names import Located
from privsep.tasks import Future
from privsep.types import Address, Endpoint, Spi, hex_spi
from worker.child import ChildSa, flows, fraction
from worker.context import Context
from worker.effects import TellMonitor
from worker.errors import Failed, TimedOut
from worker.establish import Ends, Establisher, configured_ends
from worker.peers import peers_of, serving
from worker.renewal import GRACE, Renewal
from worker.timers import Timer

FIRST_RETRY = 5.0
MAX_RETRY = 300.0
STABLE = 60.0
"""Seconds after which a success ends the back-off: a peer that deletes at once is not asked at once."""
START_DELAY = 0.2
START_SPREAD = 0.01
"""Seconds for each child that starts by itself, so that many do not begin in the same moment."""

UP = ""
"""How a goal says that it succeeded; else why not."""


class Wanted(Enum):
    """Whether a goal that is down should come up by itself."""

    ALWAYS = "always"
    ON_DEMAND = "on demand"


@dataclass(slots=True, eq=False)
class Goal:
    """A configured child, as something to be achieved."""

    serial: int
    connection: Connection
    child: Child
    wanted: Wanted
    attempts: int = 0
    """That failed in a row."""
    achieved: float = float("-inf")
    running: bool = False
    retry: Timer | None = None
    ends: Ends | None = None
    """Where an earlier worker had the peer."""
    waiting: list[Future[str]] = field(default_factory=list)

    def label(self) -> dict[str, object]:
        """Fields for the log."""
        return {"connection": self.connection.name, "child": self.child.name}


class Keeper:
    """All goals."""

    def __init__(self, context: Context, establisher: Establisher, renewal: Renewal) -> None:
        self._context = context
        self._establisher = establisher
        self._renewal = renewal
        self.goals: dict[tuple[str, str], Goal] = {}
        for connection, child in context.gateway.children():
            wanted = Wanted.ALWAYS if child.start is Start.UP else Wanted.ON_DEMAND
            self.goals[connection.name, child.name] = Goal(next(context.serials), connection, child, wanted)

    def start(self) -> None:
        """Begin with what starts by itself, once the monitor had time to tell what is installed."""
        wanted = [goal for goal in self.goals.values() if goal.wanted is Wanted.ALWAYS and self.ends(goal)]
        for goal in wanted:
            delay = START_DELAY + START_SPREAD * len(wanted) * fraction(self._context.random)
            self._retry_in(goal, delay)

    def of(self, connection: str, child: str = "") -> tuple[Goal, ...]:
        """The goal of a child, or of all children of the connection; nothing if there is none of that name."""
        if child:
            goal = self.goals.get((connection, child))
            return (goal,) if goal is not None else ()
        configured = self._context.gateway.connection(connection)
        return tuple(self.goals[connection, each.name] for each in configured.children) if configured else ()

    def ends(self, goal: Goal) -> Ends | None:
        """Where to find the peer, if anything tells."""
        return goal.ends or configured_ends(self._context.gateway, goal.connection)

    def bring_up(self, goal: Goal) -> Future[str]:
        """UP when all of its flows are protected, or what went wrong. One attempt serves all who ask meanwhile."""
        future: Future[str] = Future()
        goal.waiting.append(future)
        if not goal.running:
            goal.running = True
            if goal.retry is not None:
                goal.retry.cancel()
            self._context.spawn(self._run(goal), "child-failed", goal.label)
        return future

    async def _run(self, goal: Goal) -> None:
        outcome = "an error of ours, see the log"
        try:
            for flow in flows(goal.connection, goal.child):
                if not any(serving(peer, flow) for peer in peers_of(self._context, goal.connection.name)):
                    await self._establisher.child(flow, goal.ends)
            outcome = UP
        except (Failed, PeerError) as error:
            outcome = error.reason
            if isinstance(error, TimedOut):
                self._look_up(goal.connection)
            raise
        finally:
            goal.running = False
            self._settle(goal, outcome)

    def _settle(self, goal: Goal, outcome: str) -> None:
        if outcome == UP:
            goal.achieved = self._context.now
        else:
            self._later(goal)
        waiting, goal.waiting = goal.waiting, []
        for future in waiting:
            future.set_result(outcome)

    def give_up(self, goal: Goal) -> None:
        """The operator wants it down, with what an earlier worker had for it."""
        goal.wanted = Wanted.ON_DEMAND
        goal.ends = None
        for adopted in self._context.adopted.of(goal.connection.name):
            if adopted.child == goal.child.name:
                self._context.adopted.drop(Spi(adopted.spi_in))
                self._context.release(Spi(adopted.spi_in))
        if goal.retry is not None:
            goal.retry.cancel()
            goal.retry = None

    def want(self, goal: Goal) -> None:
        """The operator wants it up again; one that starts by itself is then kept up as before."""
        if goal.child.start is Start.UP:
            goal.wanted = Wanted.ALWAYS

    def _later(self, goal: Goal) -> None:
        """Try again after a while, if it is wanted and we know where."""
        if goal.running or not (goal.wanted is Wanted.ALWAYS or goal.ends) or not self.ends(goal):
            return
        delay = min(MAX_RETRY, FIRST_RETRY * 2.0 ** min(goal.attempts, 10))
        goal.attempts += 1
        self._retry_in(goal, delay * (0.8 + 0.4 * fraction(self._context.random)))

    def _retry_in(self, goal: Goal, delay: float) -> None:
        if goal.retry is not None:
            goal.retry.cancel()
        goal.retry = self._context.after(delay, lambda: self._tried_again(goal))

    def _tried_again(self, goal: Goal) -> None:
        goal.retry = None
        self.bring_up(goal)

    # names

    def _look_up(self, connection: Connection) -> None:
        """Nobody answers where the name leads: it may lead elsewhere by now."""
        if isinstance(connection.remote, RemoteName):
            self._context.outbox.append(TellMonitor(0, Unanswered(connection=connection.name)))

    def located(self, located: Iterable[Located]) -> None:
        """Peers have an address now, or another one: what is wanted of them is tried there at once."""
        for each in located:
            self._located(each.connection, each.address)

    def _located(self, name: str, address: Address) -> None:
        context, connection = self._context, self._context.gateway.connection(name)
        if connection is None or not isinstance(connection.remote, RemoteName):
            return
        earlier = connection.remote.address
        context.gateway.locate(connection, address)
        for goal in self.of(name):
            if goal.ends is not None:
                goal.ends = configured_ends(context.gateway, connection)
            if not goal.running and (goal.retry is not None or goal.wanted is Wanted.ALWAYS):
                goal.attempts = 0
                self._retry_in(goal, START_DELAY + START_SPREAD * len(self.goals) * fraction(context.random))
        if earlier is None:
            for adopted in context.adopted.of(name):
                self._succeed(adopted)
        elif earlier != address:
            self._renewal.follow(connection, address)

    # events

    def acquire(self, connection: str, child: str) -> None:
        """Traffic waits for it, which is for a trap to answer, and for what should be up anyway."""
        for goal in self.of(connection, child):
            answers = goal.child.start is Start.TRAP or goal.wanted is Wanted.ALWAYS
            # a running attempt or a retry that is due will do; traffic repeats its request
            if child and answers and not goal.running and goal.retry is None:
                self.bring_up(goal)

    def installed(self, child: ChildSa) -> None:
        """A pair came up, whoever began: what an earlier worker had for the same is replaced by it."""
        context, connection = self._context, child.peer.connection
        replaced = [
            Spi(adopted.spi_in)
            for adopted in context.adopted.of(connection.name)
            if (adopted.child, adopted.identity) == (child.child.name, child.peer.identity)
        ]
        if replaced and all(serving(child.peer, flow) for flow in flows(connection, child.child)):
            context.after(GRACE, lambda: self._replace(child, replaced))

    def _replace(self, child: ChildSa, spis: list[Spi]) -> None:
        context = self._context
        gone = [spi for spi in spis if context.adopted.drop(spi)]
        for spi in gone:
            context.release(spi)
        self._renewal.tell_deleted(child.peer, [(child.suite.protocol, spi) for spi in gone])
        goal = self.goals[child.peer.connection.name, child.child.name]
        goal.ends = None

    def lost(self, child: ChildSa) -> None:
        """A pair is gone. If nothing else does its work and it is wanted, it comes back."""
        goal = self.goals[child.peer.connection.name, child.child.name]
        if goal.retry is None and serving(child.peer, child.flow) is None:
            if self._context.now - goal.achieved >= STABLE:
                goal.attempts = 0
            self._later(goal)

    def adopt(self, adopted: Adopted) -> None:
        """An earlier worker's pair: replace it before it ends, where the configuration lets us begin."""
        context = self._context
        goal = self.goals.get((adopted.connection, adopted.child))
        if goal is None:
            context.release(Spi(adopted.spi_in))
            return
        context.adopted.put(adopted)
        context.log(Level.INFO, "adopted", **goal.label(), spi_in=hex_spi(adopted.spi_in))
        self._succeed(adopted)

    def _succeed(self, adopted: Adopted) -> None:
        """Have a pair of our own in place of an earlier worker's, if anything tells where the peer is."""
        context, goal = self._context, self.goals[adopted.connection, adopted.child]
        if self.ends(goal) and not goal.running:
            was = adopted.local, adopted.remote
            still = goal.connection.describes(adopted.local.address, adopted.remote.address)
            goal.ends = was if still else configured_ends(context.gateway, goal.connection)
            spread = min(START_SPREAD * len(context.adopted), adopted.left_s / 2)
            self._retry_in(goal, START_DELAY + spread * fraction(context.random))

    def moved(self, spi: Spi, remote: Endpoint) -> None:
        """An earlier worker's pair has its peer at another port now, which is where to ask for another pair."""
        adopted = self._context.adopted.get(spi)
        if adopted is None:
            return
        self._context.adopted.put(replace(adopted, remote=remote))
        goal = self.goals[adopted.connection, adopted.child]
        if goal.ends == (adopted.local, adopted.remote):
            goal.ends = (adopted.local, remote)

    def _hasten(self, adopted: Adopted) -> None:
        """An earlier worker's pair ends soon: the pause between two attempts may be longer than that."""
        goal = self.goals.get((adopted.connection, adopted.child))
        if goal is not None and goal.retry is not None:
            self._retry_in(goal, START_DELAY)

    def expired(self, spi: Spi, *, hard: bool) -> None:
        """The data plane ended a pair or wants it replaced."""
        context = self._context
        if hard:
            context.adopted.drop(spi)
        child = context.children.get(spi)
        adopted = context.adopted.get(spi)
        if adopted is not None:
            self._hasten(adopted)
        if child is None:
            return
        if hard:
            self._renewal.delete_child(child, "the data plane ended it")
        else:
            self._renewal.renew_child(child)
