"""Everything keyd answers, as one table. Sans-IO: requests in, replies out; time and chance are arguments."""

import struct
from collections.abc import Callable
from typing import Any, assert_never

from keyd.context import Context, PskStore
from keyd.groups.pool import Pool
from keyd.handles import Entry, Refuse, Registry
from keyd.phase1 import Phase1
from keyd.phase2 import Phase2
from privsep.algorithms import Group
from privsep.config.model import Gateway
from privsep.schema import keymat
from privsep.schema.codec import MAX_TEXT
from privsep.schema.keyd import (
    AuthOpen,
    AuthSeal,
    Done,
    Drop,
    IkeAgree,
    IkeAnswer,
    IkeOffer,
    InfoOpen,
    InfoSeal,
    QuickAccept,
    QuickAnswer,
    QuickConfirm,
    QuickFinish,
    QuickOffer,
    QuickOpen,
    Refused,
    Reply,
    Request,
)
from privsep.schema.names import Resolved


class Service:
    """keyd without its channels. A Violation from any method ends the process, and every handle with it."""

    def __init__(
        self,
        gateway: Gateway,
        credentials: PskStore,
        clock: Callable[[], float],
        random: Callable[[int], bytes],
    ) -> None:
        """`clock` is monotonic seconds; `random(n)` gives n octets from the system's generator."""
        self._gateway = gateway
        self._credentials = credentials
        self._registry = Registry(clock, random)
        self._pool = Pool(_groups(gateway))
        context = Context(
            gateway=gateway,
            credentials=credentials,
            registry=self._registry,
            pool=self._pool,
            clock=clock,
            random=random,
        )
        phase1, phase2 = Phase1(context), Phase2(context)
        self._redeem = phase2.redeem
        self._operations: dict[type[Request], Callable[[Any], Reply]] = {
            IkeOffer: phase1.offer,
            IkeAgree: phase1.agree,
            IkeAnswer: phase1.answer,
            AuthSeal: phase1.seal,
            AuthOpen: phase1.open,
            InfoSeal: phase2.info_seal,
            InfoOpen: phase2.info_open,
            QuickOffer: phase2.offer,
            QuickFinish: phase2.finish,
            QuickAccept: phase2.accept,
            QuickOpen: phase2.open,
            QuickAnswer: phase2.answer,
            QuickConfirm: phase2.confirm,
            Drop: self._drop,
        }

    def handle(self, request: Request) -> Reply:
        """The answer to the worker."""
        try:
            return self._operations[type(request)](request)
        except Refuse as refuse:
            fault = refuse.fault
            if fault is None:
                return Refused(why=refuse.why)
            return Refused(why=refuse.why, detail=fault.reason[:MAX_TEXT], notify=fault.notify)

    def answer(self, request: keymat.Question) -> keymat.Reply:
        """The answer to the monitor."""
        match request:
            case keymat.RedeemInbound() | keymat.RedeemOutbound():
                return self.redeem(request)
            case Resolved():
                return self._locate(request)
            case _:
                assert_never(request)

    def redeem(self, request: keymat.Redemption) -> keymat.Reply:
        """Keys, each half once."""
        return self._redeem(request)

    def same_secret(self) -> bytes:
        """For `Ready`: of each connection, the place of the first one that has the same secret."""
        first: dict[bytes, int] = {}
        places = []
        for place, connection in enumerate(self._gateway.connections):
            secret = self._credentials.psk_for(connection)
            places.append(place if secret is None else first.setdefault(bytes(secret), place))
        return struct.pack(f">{len(places)}H", *places)

    def _locate(self, request: Resolved) -> keymat.Known:
        """The monitor is trusted: it is what says who a connection's peer is."""
        for each in request.located:
            connection = self._gateway.connection(each.connection)
            if connection is not None:
                self._gateway.locate(connection, each.address)
        return keymat.Known()

    def idle(self) -> bool:
        """A little of the work that can wait; False when there is none."""
        return self._registry.sweep() or self._pool.fill()

    def _drop(self, request: Drop) -> Done:
        self._registry.drop(self._registry.find(request.handle, Entry, Drop))
        return Done()


def _groups(gateway: Gateway) -> set[Group]:
    """Every group that the configuration names."""
    phase1 = {suite.group for connection in gateway.connections for suite in connection.suites}
    phase2 = {
        suite.group
        for connection in gateway.connections
        for child in connection.children
        for suite in child.suites
        if suite.group is not None
    }
    return phase1 | phase2
