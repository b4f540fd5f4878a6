"""The monitor's orders on behalf of operators (Up, Down, Stop), and what we tell about ourselves (Describe)."""

import bisect
import functools
import ipaddress
import itertools
from collections.abc import Coroutine
from typing import Any

from privsep.log import escape
from privsep.schema.install import (
    ChildStatus,
    Completed,
    Describe,
    Described,
    Down,
    IkeStatus,
    Outcome,
    Progress,
    Stop,
    Up,
    WorkerReply,
)
from privsep.tasks import Future
from privsep.types import Endpoint, Role, hex_spi
from worker.child import ChildSa
from worker.codec.header import ZERO_COOKIE
from worker.context import Context
from worker.effects import TellMonitor
from worker.errors import Withdrawn
from worker.isakmp_sa import IkeSa, IkeState
from worker.keeper import UP, Goal, Keeper
from worker.peers import newest, peers_of
from worker.renewal import Renewal

MAX_TEXT = 1000
MAX_PAGE = 16
MAX_CHILDREN = 64
"""Child SAs of a page: with identities of the greatest length it still fits into one frame."""
HINT_PATIENCE = 4.0
"""Seconds that an operator waits on once somebody said, unauthenticated, why it will fail. The exchange goes on."""
STOPPING = "the daemon stops"
ORDERED_DOWN = "the operator ordered it down"
NOT_CONFIGURED = "no such connection or child is configured"
_NONE = Endpoint(ipaddress.IPv4Address(0), 0)
NOWHERE = (_NONE, _NONE)


class Order:
    """An operator's order that is not completed."""

    def __init__(self, number: int, connection: str) -> None:
        self.number = number
        self.connection = connection
        self.waiting: Future[str] | None = None


class Control:
    """Answers the monitor."""

    def __init__(self, context: Context, keeper: Keeper, renewal: Renewal) -> None:
        self._context = context
        self._keeper = keeper
        self._renewal = renewal
        self._orders: dict[str, list[Order]] = {}
        self._listed: list[tuple[int, IkeSa | Goal]] = []
        """What is described, by age, as it was when a first page was asked for; nothing once a last page was given."""

    def _reply(self, sequence: int, message: WorkerReply) -> None:
        self._context.outbox.append(TellMonitor(sequence, message))

    # steps

    def report(self, connection: str, text: str) -> None:
        """A step, to all orders for that connection."""
        for order in self._orders.get(connection, ()):
            self._tell(order, text)

    def _tell(self, order: Order, text: str) -> None:
        message = Progress(order=order.number, text=escape(text, MAX_TEXT))
        self._context.outbox.append(TellMonitor(0, message))

    def hint(self, connection: str, text: str) -> None:
        """Orders fail by it if nothing better happens soon; exchanges do not."""
        for order in self._orders.get(connection, ()):
            self._tell(order, f"   {text}")
            if order.waiting is not None:
                self._context.after(HINT_PATIENCE, functools.partial(order.waiting.set_result, text))

    # orders

    def up(self, message: Up, sequence: int) -> None:
        """Negotiate what is not up."""
        order = Order(message.order, message.connection)
        self._run(self._up(order, message.child), order, sequence)

    async def _up(self, order: Order, child: str) -> str:
        goals = self._keeper.of(order.connection, child)
        failures = [] if goals else [NOT_CONFIGURED]
        for goal in goals:
            self._keeper.want(goal)
            order.waiting = self._keeper.bring_up(goal)
            failure = await order.waiting
            self._tell(order, f"   {goal.child.name}: {failure or 'up'}")
            if failure != UP:
                failures.append(f"{goal.child.name}: {failure}")
        return "; ".join(failures)

    def down(self, message: Down, sequence: int) -> None:
        """Delete, and stop wanting it."""
        order = Order(message.order, message.connection)
        work = self._down_child(order, message.child) if message.child else self._down(order)
        self._run(work, order, sequence)

    async def _down_child(self, order: Order, name: str) -> str:
        goals = self._keeper.of(order.connection, name)
        for goal in goals:
            self._keeper.give_up(goal)
        for peer in peers_of(self._context, order.connection):
            for sa in peer.ike_sas:
                for exchange in tuple(sa.exchanges.values()):
                    if exchange.subject == name:
                        exchange.abort(lambda: Withdrawn(ORDERED_DOWN))
            for child in [each for each in peer.children.values() if each.child.name == name]:
                self._tell(order, f"-> {child.remote.address} Delete of {name}, SPI {hex_spi(child.spi_in)}")
                self._renewal.delete_child(child, ORDERED_DOWN)
        return UP if goals else NOT_CONFIGURED

    async def _down(self, order: Order) -> str:
        context = self._context
        if context.gateway.connection(order.connection) is None:
            return NOT_CONFIGURED
        for goal in self._keeper.of(order.connection):
            self._keeper.give_up(goal)
        for peer in peers_of(context, order.connection):
            for sa in peer.ike_sas:
                self._tell(order, f"-> {sa.remote.address} Delete of the IKE SA and its children")
        await self._renewal.close(order.connection, ORDERED_DOWN)
        return UP

    def stop(self, _: Stop, sequence: int) -> None:
        """DELETE to everybody. What an earlier worker had stays as it is: the monitor ends it."""
        for goal in self._keeper.goals.values():
            self._keeper.give_up(goal)
        self._run(self._stop(), Order(0, ""), sequence)

    async def _stop(self) -> str:
        self._renewal.abandon(STOPPING)
        closing = [self._closing(connection) for connection in tuple(self._context.peers)]
        for done in closing:
            await done
        return UP

    def _closing(self, connection: str) -> Future[None]:
        done: Future[None] = Future()

        async def close() -> None:
            try:
                await self._renewal.leave(connection, STOPPING)
            finally:
                done.set_result(None)

        self._context.spawn(close(), "stop-failed", lambda: {"connection": connection})
        return done

    def _run(self, work: Coroutine[Any, Any, str], order: Order, sequence: int) -> None:
        """Every order is completed, whatever becomes of it."""
        orders = self._orders.setdefault(order.connection, [])
        orders.append(order)

        async def run() -> None:
            failure = "an error of ours, see the log"
            try:
                failure = await work
            finally:
                orders.remove(order)
                if not orders and self._orders.get(order.connection) is orders:
                    del self._orders[order.connection]
                outcome = Outcome.DONE if failure == UP else Outcome.FAILED
                self._reply(sequence, Completed(outcome=outcome, text=escape(failure, MAX_TEXT)))

        self._context.spawn(run(), "order-failed", lambda: {"connection": order.connection})

    # description

    def describe(self, message: Describe, sequence: int) -> None:
        """IKE SAs and waiting goals by age, a page of them after the cursor."""
        if not message.cursor or not self._listed:
            self._listed = self._entries()
        page: list[IkeStatus] = []
        children = 0
        cursor = 0
        begin = bisect.bisect_right(self._listed, message.cursor, key=lambda each: each[0])
        for serial, entry in itertools.islice(self._listed, begin, None):
            if not _is_there(entry):
                continue
            status = self._waiting(entry) if isinstance(entry, Goal) else self._ike(entry)
            children += len(status.children)
            if page and (len(page) == MAX_PAGE or children > MAX_CHILDREN):
                break
            page.append(status)
            cursor = serial
        else:
            cursor = 0
            self._listed = []
        self._reply(sequence, Described(cursor=cursor, ike_sas=tuple(page)))

    def _entries(self) -> list[tuple[int, IkeSa | Goal]]:
        """Strangers' half-open SAs are not worth a line each; a connection that waits is."""
        sas = [sa for sa in self._context.sas.all() if sa.connection is not None]
        alive = {sa.connection.name for sa in sas if sa.connection is not None}
        waiting: dict[str, Goal] = {}
        for goal in self._keeper.goals.values():
            if goal.retry is not None and goal.connection.name not in alive:
                waiting.setdefault(goal.connection.name, goal)
        entries: list[IkeSa | Goal] = [*sas, *waiting.values()]
        return sorted(((each.serial, each) for each in entries), key=lambda pair: pair[0])

    def _ike(self, sa: IkeSa) -> IkeStatus:
        now, peer = self._context.now, sa.peer
        children = tuple(peer.children.values()) if peer is not None and newest(peer) is sa else ()
        return IkeStatus(
            connection=sa.connection.name if sa.connection is not None else "",
            role=sa.role,
            mode="main",
            state=sa.state.value,
            local=sa.local,
            remote=sa.remote,
            local_id=sa.connection.local_id if sa.connection is not None else None,
            remote_id=peer.identity if peer is not None else None,
            cky_i=sa.cky_i,
            cky_r=sa.cky_r,
            suite=sa.suite,
            nat=sa.nat.value,
            established_s=int(now - sa.established) if sa.state is IkeState.ESTABLISHED else 0,
            rekey_in_s=max(0, int(sa.renewal.when - now)) if sa.renewal is not None else 0,
            children=tuple(self._child(child) for child in children[-MAX_CHILDREN:]),
        )

    def _child(self, child: ChildSa) -> ChildStatus:
        return ChildStatus(
            name=child.child.name,
            state=child.state.value,
            suite=child.suite,
            spi_in=child.spi_in,
            spi_out=child.spi_out,
            local_ts=(child.local_ts,),
            remote_ts=(child.remote_ts,),
            encap=child.encap,
            age_s=int(self._context.now - child.installed),
        )

    def _waiting(self, goal: Goal) -> IkeStatus:
        """A connection with nothing but the intention to try again."""
        connection = goal.connection
        seconds = max(0, int(goal.retry.when - self._context.now)) if goal.retry is not None else 0
        local, remote = self._keeper.ends(goal) or NOWHERE
        return IkeStatus(
            connection=connection.name,
            role=Role.INITIATOR,
            mode="main",
            state=f"down, next attempt in {seconds} s",
            local=local,
            remote=remote,
            local_id=connection.local_id,
            remote_id=connection.remote_id,
            cky_i=ZERO_COOKIE,
            cky_r=ZERO_COOKIE,
            suite=None,
            nat="none",
            established_s=0,
            rekey_in_s=0,
            children=(),
        )


def _is_there(entry: IkeSa | Goal) -> bool:
    """Whether it is still what it was when it was listed."""
    return entry.retry is not None if isinstance(entry, Goal) else entry.state is not IkeState.CLOSED
