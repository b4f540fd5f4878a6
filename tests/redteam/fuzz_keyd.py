"""Fuzzing keyd: two of them that talk to each other, either of them asked by a captured worker at any time.

What keyd does is compared from outside with `handle_table`: answers, states, births and deaths of handles, quotas; and
no answer to the worker holds octets of a key. Each side's SchemaErrors would end its process; here the same service
goes on, which admits more than reality does.
"""

from collections import Counter, deque
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from fuzz_base import EPOCH_STEPS, Fuzzer
from handle_table import (
    ANSWERS,
    BORN,
    IKE_STATES,
    KEYMAT_STATES,
    REJECTED,
    REJECTIONS_OF,
    TABLE,
    born_handle,
    handle_of,
)
from two_keyds import (
    BARE,
    CHILD_SUITES,
    IKE_SUITES,
    LEFT,
    LIAR,
    ORIGINALS,
    OURS,
    PLAIN,
    RIGHT,
    ROAD,
    SELECTORS,
    THEIRS,
    Conversation,
    Psks,
    Seen,
    Side,
    Talk,
    secrets_of,
)

import keyd.groups
from keyd import guesses, handles, message_ids, phase1, service
from keyd.groups import ecp, x25519
from keyd.handles import Entry, State
from keyd.phase1 import IkeSa
from keyd.phase2 import Keymat, Quick
from privsep.algorithms import Group
from privsep.config.model import DataplaneChoice, Gateway, Users
from privsep.errors import Violation
from privsep.schema import keyd as ops
from privsep.schema import keymat
from privsep.schema.codec import Table

QUOTAS = {"half-open": 8, "authenticated": 14, "Quick": 16, "Keymat": 12}
OF_ONE_IDENTITY = 4
MAX_CHILDREN, MAX_MESSAGE_IDS, MAX_WRONG = 2, 6, 2
HALF_A_KEY = 12
"""Octets of a key that count as a leak."""
SECRETS_KEPT = 600


def _pool(entry: Entry, state: State) -> str:
    """The quota that it counts under."""
    if isinstance(entry, IkeSa):
        return "authenticated" if state is State.AUTHENTICATED else "half-open"
    return type(entry).__name__


class KeydFuzzer(Fuzzer):
    """`handle` and `redeem` of keyd's service."""

    name = "keyd"

    def __init__(self, seed: int, table: Table[Any] = ops.REQUESTS) -> None:
        super().__init__(
            seed,
            table,
            connection=[each.name for each in OURS],
            child=("lan", "dmz"),
            local=(LEFT, RIGHT),
            remote=(LEFT, RIGHT, LIAR, BARE, ROAD),
            group=(None, None, Group.CURVE25519, Group.ECP_256),
            suite=IKE_SUITES,
            encap=(False, False, True),
            spi_in=range(0x1000, 0x1010),
            cpi_in=(None, None, None, 300),
            local_ts=SELECTORS,
            remote_ts=SELECTORS,
            originals=ORIGINALS,
            next_payload=(0,),
            payloads=(b"",),
        )
        self.now = 1000.0
        self.secrets: deque[bytes] = deque(maxlen=SECRETS_KEPT)
        with self.limits():
            self._new_epoch()

    def limits(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(patch.object(phase1, "HALF_OPEN", handles.Quota(QUOTAS["half-open"])))
        stack.enter_context(patch.object(phase1, "IKE_SAS", handles.Quota(QUOTAS["authenticated"])))
        one = handles.Quota(each=OF_ONE_IDENTITY)
        stack.enter_context(patch.object(phase1, "OF_ONE_IDENTITY", one))
        for kind in (Quick, Keymat):
            stack.enter_context(patch.object(kind, "quota", handles.Quota(QUOTAS[kind.__name__])))
        stack.enter_context(patch.object(handles, "MAX_CHILDREN", MAX_CHILDREN))
        stack.enter_context(patch.object(message_ids, "MAX_MESSAGE_IDS", MAX_MESSAGE_IDS))
        stack.enter_context(patch.object(guesses, "MAX_WRONG", MAX_WRONG))
        stack.enter_context(patch.object(guesses, "_MEASURES", {4: ((32, 4 * MAX_WRONG),), 6: ()}))
        # key pairs of the seed's, else no run could be repeated
        seeded = {
            Group.CURVE25519: lambda _: x25519.from_octets(self.random.randbytes(32)),
            Group.ECP_256: lambda group: ecp.from_scalar(group, 1 + self.random.getrandbits(255)),
        }
        stack.enter_context(patch.dict(keyd.groups._MODULES, seeded))
        # a set's order is not the seed's
        groups = service._groups
        stack.enter_context(patch.object(service, "_groups", lambda gateway: sorted(groups(gateway), key=str)))
        return stack

    def _new_epoch(self) -> None:
        psks = Psks({each.name: self.random.randbytes(32) for each in OURS if each.name != "bare"})
        self.secrets.extend(psks.by_name.values())
        users = Users(worker=(1, 1), keyd=(2, 2), userspace=(3, 3))
        self.sides = tuple(
            Side(
                name,
                Gateway(
                    listen=(),
                    dataplane=DataplaneChoice.AUTO,
                    users=users,
                    absent=frozenset(),
                    connections=connections,
                ),
                psks,
                self,
            )
            for name, connections in (("left", OURS), ("right", THEIRS))
        )
        self.started = self.steps
        self.conversations: list[tuple[Conversation, tuple[Side, Any]]] = []

    # what to do next

    def step(self) -> None:
        choice = self.random.random()
        if self.steps - self.started > EPOCH_STEPS:
            self._new_epoch()
        elif choice < 0.001:
            self._guess(self.random.choice(self.sides))
        elif choice < 0.6:
            self._converse()
        elif choice < 0.70:
            self._captured()
        elif choice < 0.80:
            self._probe(self.random.choice(self.sides))
        elif choice < 0.88:
            self._redeem(self.random.choice(self.sides))
        elif choice < 0.95:
            self._frame()
        else:
            self._pass_time()

    def _probe(self, side: Side) -> None:
        """What the table does not admit is a violation that has changed nothing, so the epoch may go on here."""
        entries = list(side.service._registry._entries.values())
        if not entries:
            return
        state = self.random.choice(list(dict.fromkeys(each.state for each in entries)))
        entry = self.random.choice([each for each in entries if each.state is state])
        kind = self.random.choice([each for each in ANSWERS if each not in (ops.IkeOffer, ops.IkeAnswer)])
        if (entry.state, kind) in TABLE:
            return
        name = "ike" if "ike" in kind.__dataclass_fields__ else "quick"
        suite = self.random.choice(CHILD_SUITES)
        request = self.generator.message(kind, 0.0, **{name: entry.handle, "suite": suite})
        request = self.through_the_channel(side.name, request)
        before = side.entries()
        reply = self.call(side.service.handle, request)
        self.check(isinstance(reply, Violation), f"{kind.__name__} in state {entry.state.name} is no violation")
        self._compare(side, before, {})
        self.saw(kind.__name__, "Violation")

    def _guess(self, side: Side) -> None:
        """Whoever asks for unknown handles again and again does not go on for long."""
        allowance = side.allowance - side.unknown
        for asked in range(allowance + 1):
            if isinstance(self.call(side.service.handle, ops.Drop(handle=self.random.randbytes(16))), Violation):
                self.check(asked == allowance, "an unknown handle is a violation too soon")
                self.saw("guess", "Violation")
                self._new_epoch()
                return
        self.fail("handles can be guessed without end")

    def _pass_time(self) -> None:
        self.now += self.random.choices((0.01, 1, 11, 61, 301, 4000), (10, 10, 10, 3, 1, 1))[0]
        for side in self.sides:
            if self.random.random() < 0.5:
                # too busy to look for what has expired
                continue
            before = side.entries()
            side.service.idle()
            self._compare(side, before, {})

    def _frame(self) -> None:
        side = self.random.choice(self.sides)
        message = self._request(side, oddity=0.01)
        self.spelled_out(message)
        admitted = self.spoilt_frame(message)
        if admitted is not None and self.random.random() < 0.3:
            self.ask(side, admitted[0])

    def _captured(self) -> None:
        side = self.random.choice(self.sides)
        self.ask(side, self._request(side, oddity=self.random.choices((0.0, 0.01, 0.3), (30, 15, 1))[0]))

    def _request(self, side: Side, oddity: float) -> Any:
        """Any operation, mostly on a handle whose state admits it."""
        random = self.random
        kind = random.choice(list(ANSWERS))
        entries = list(side.service._registry._entries.values())
        fixed: dict[str, Any] = {}
        fitting = [each for each in entries if (each.state, kind) in TABLE]
        if random.random() < 0.005:
            fitting = entries
        if fitting:
            # who has the most children is nearest to their quota
            begins = kind in (ops.QuickOffer, ops.QuickOpen)
            named = max(fitting, key=lambda each: len(each.children)) if begins else random.choice(fitting)
            handle = named.handle
            fixed = {"ike": handle, "quick": handle, "handle": handle}
        elif kind not in (ops.IkeOffer, ops.IkeAnswer):
            # no such handle: an unknown one, now and then
            unknown = random.randbytes(16)
            fixed = {"ike": unknown, "quick": unknown, "handle": unknown}
            if random.random() < 0.8:
                kind = random.choice((ops.IkeOffer, ops.IkeAnswer))
        fixed["suite"] = random.choice(IKE_SUITES if kind in (ops.IkeOffer, ops.IkeAnswer) else CHILD_SUITES)
        if random.random() < 0.1:
            fixed["next_payload"], fixed["payloads"] = random.choice(PLAIN)
        return self.generator.message(kind, oddity, **fixed)

    def _converse(self) -> None:
        """One step further in one of a few honest conversations; sometimes with a request that is not quite honest."""
        random = self.random
        if len(self.conversations) < 4:
            conversation = Talk(self.random, self.sides, self.check).begin()
            self.conversations.append((conversation, next(conversation)))
        at = random.randrange(len(self.conversations))
        conversation, (side, request) = self.conversations[at]
        named = side.service._registry._entries.get(handle_of(request) or b"")
        if named is not None and (named.state, type(request)) not in TABLE and random.random() < 0.9:
            # somebody else went on with this handle; insisting ends the epoch
            del self.conversations[at]
            return
        if random.random() < 0.03:
            request = self.generator.deviate(request)
        started = self.started
        reply = self.ask(side, request) if not isinstance(request, keymat.Redemption) else self._redeem(side, request)
        if random.random() < 0.005 and self.started == started and not isinstance(request, keymat.Redemption):
            # the worker asks twice
            self.ask(side, request)
        if self.started != started:
            return
        try:
            self.conversations[at] = (conversation, conversation.send(reply))
        except StopIteration:
            del self.conversations[at]

    # asking and checking

    def ask(self, side: Side, request: Any) -> Any:
        """Ask keyd as its worker; the reply, or the Violation after which another epoch has begun."""
        kind = type(request)
        request = self.through_the_channel(side.name, request)
        before = side.entries()
        named = before.get(handle_of(request) or b"")
        reply = self.call(side.service.handle, request)
        if isinstance(reply, Violation):
            self.saw(kind.__name__, "Violation")
            guessed = handle_of(request) is not None and named is None
            self.check(not guessed or side.unknown >= side.allowance, "an unknown handle is a violation too soon")
            self._new_epoch()
            return reply
        self._judge(side, request, named, reply)
        moved = {} if named is None else self._moves(side, request, named, reply)
        born = self._birth(side, before, request, reply)
        self._compare(side, before, moved, born)
        self._look_for_keys(reply)
        self.generator.learn(request)
        self.generator.learn(reply)
        self.saw(kind.__name__, reply.why.name if isinstance(reply, ops.Refused) else type(reply).__name__)
        return reply

    def _judge(self, side: Side, request: Any, named: Seen | None, reply: Any) -> None:
        """The answer is one that the handle's state admits."""
        kind = type(request)
        what = f"{kind.__name__} in state {named.state.name if named else 'unknown'}"
        refusal = reply.why if isinstance(reply, ops.Refused) else None
        self.check(refusal is not None or type(reply) is ANSWERS[kind], f"{what} is answered {type(reply).__name__}")
        if kind in (ops.IkeOffer, ops.IkeAnswer):
            return
        if refusal is None and kind in (ops.InfoOpen, ops.QuickOpen):
            used = (named.entry.handle if named else b"", request.message_id)
            self.check(used not in side.opened, "a message id is used twice")
            side.opened.add(used)
        if named is None:
            side.unknown += 1
            self.check(refusal is ops.Refusal.UNKNOWN_HANDLE, f"{what} is answered")
        else:
            self.check((named.state, kind) in TABLE, f"{what} is no violation")
            if named.expires <= self.now:
                self.check(refusal is ops.Refusal.EXPIRED, f"{what} is answered after its time")

    def _moves(self, side: Side, request: Any, named: Seen, reply: Any) -> dict[bytes, State]:
        """Where the request may have taken the entries, by handle."""
        kind, handle = type(request), named.entry.handle
        if not isinstance(reply, ops.Refused):
            moved = {handle: TABLE[named.state, kind]}
            if kind is ops.QuickConfirm:
                moved |= {each.handle: State.SENDABLE for each in (named.entry.keymat,) if each is not None}
            return moved
        if reply.why is ops.Refusal.EXPIRED:
            return {handle: State.GONE}
        if reply.why in REJECTIONS_OF.get(kind, ()):
            return {handle: REJECTED[named.state, kind]}
        return {}

    def _birth(self, side: Side, before: dict[bytes, Seen], request: Any, reply: Any) -> set[bytes]:
        """New handles: one, of the right kind, where the operation makes one."""
        born = set(side.service._registry._entries) - set(before)
        expected = BORN.get(type(request)) if not isinstance(reply, ops.Refused) else None
        self.check(len(born) == (expected is not None), "handles appear from nowhere, or do not")
        for handle in born:
            entry = side.service._registry._entries[handle]
            self.check(handle == born_handle(reply) and entry.state is expected, "a handle is born in another state")
            side.minted += 1
        return born

    def _compare(
        self, side: Side, before: dict[bytes, Seen], moved: dict[bytes, State], born: set[bytes] = frozenset()
    ) -> None:
        """Every entry is where the request took it, or where it was; what is gone had a reason and is wiped."""
        now = side.service._registry._entries
        crowded = self._crowded(before, now, moved, born)
        for handle, seen in before.items():
            after = now.get(handle)
            expected = moved.get(handle, seen.state)
            if after is not None:
                self.check(after.state is expected, f"{seen.state.name} has become {after.state.name}")
                continue
            orphan = seen.parent is not None and seen.parent.state is State.GONE
            due = expected is State.GONE or seen.expires <= self.now or orphan
            if not due and crowded == _pool(seen.entry, seen.state):
                self.saw("gave way", crowded)
                crowded, due = "", True
            self.check(due, f"{seen.state.name} has vanished")
            self.check(not any(secrets_of(seen.entry)), f"{seen.state.name} is gone and not wiped")
        for handle, entry in now.items():
            self.reached[entry.state.name] += handle in born or handle in moved
            self.check(entry.handle == handle, "an entry has another handle than its own")
            self.check(entry.parent is None or entry.parent.state is not State.GONE, "an entry outlives its parent")
            if handle in born or handle in moved:
                self.secrets.extend(each for each in secrets_of(entry) if each and each not in self.secrets)
        self._count(side, now)

    def _crowded(
        self, before: dict[bytes, Seen], now: dict[bytes, Entry], moved: dict[bytes, State], born: set[bytes]
    ) -> str:
        """The pool in which one has to give way for one more."""
        for handle in (*born, *moved):
            entry = now.get(handle)
            if entry is None or (handle in before and before[handle].state is entry.state):
                continue
            pool = _pool(entry, entry.state)
            others = [seen.entry for seen in before.values() if _pool(seen.entry, seen.state) == pool]
            if pool == "authenticated":
                of_it = [
                    each for each in others if (each.connection, each.identity) == (entry.connection, entry.identity)
                ]
                if len(of_it) >= OF_ONE_IDENTITY:
                    return pool
            if len(others) >= QUOTAS[pool] and entry not in others:
                return pool
        return ""

    def _count(self, side: Side, now: dict[bytes, Entry]) -> None:
        pools = Counter(_pool(each, each.state) for each in now.values())
        of_one = Counter((e.connection.name, e.identity) for e in now.values() if e.state is State.AUTHENTICATED)
        for pool, quota in QUOTAS.items():
            self.check(pools[pool] <= quota, f"more {pool} than their quota")
        self.check(max(of_one.values(), default=0) <= OF_ONE_IDENTITY, "more IKE SAs of an identity than its quota")
        for each in now.values():
            self.check(len(each.children) <= MAX_CHILDREN, "more children than their quota")
            if isinstance(each, IkeSa):
                self.check(len(each.message_ids) <= MAX_MESSAGE_IDS, "more message ids than their quota")
                self.check(each.state in IKE_STATES, f"an IKE SA in state {each.state.name}")
            if isinstance(each, Keymat):
                self.check(each.state in KEYMAT_STATES, f"keymat in state {each.state.name}")

    def _look_for_keys(self, reply: Any) -> None:
        """Neither the reply nor anything that it tells holds half a key."""
        frame = ops.REPLIES.encode(reply, 1)
        for secret in self.secrets:
            self.check(secret[:HALF_A_KEY] not in frame and secret[-HALF_A_KEY:] not in frame, "a reply holds a key")
        if len(frame) < 50000:
            self.check(ops.REPLIES.decode(frame)[0] == reply, "a reply is not of the table")

    def _redeem(self, side: Side, request: keymat.Redemption | None = None) -> Any:
        """Ask keyd as its monitor, for whatever the worker named."""
        if request is None:
            known = list(side.service._registry._entries) or [bytes(16)]
            keymats = [handle for handle in known if isinstance(side.service._registry._entries.get(handle), Keymat)]
            pool = keymats if keymats and self.random.random() < 0.6 else known
            request = self.random.choice((keymat.RedeemInbound, keymat.RedeemOutbound))(keymat=self.random.choice(pool))
        received, _ = keymat.REQUESTS.decode(keymat.REQUESTS.encode(request, 1))
        before = side.entries()
        named = before.get(request.keymat)
        reply = self.call(side.service.redeem, received)
        if isinstance(reply, Violation):
            self.check(named is None and side.unknown >= side.allowance, "a redemption is a violation")
            self._new_epoch()
            return reply
        side.unknown += named is None
        admitted = named is not None and (named.state, type(request)) in TABLE
        redeemable = admitted and named.expires > self.now
        yes = keymat.Redeemed if isinstance(request, keymat.RedeemInbound) else keymat.RedeemedOutbound
        self.check(isinstance(reply, yes) == redeemable, "keymat is redeemed against the table")
        following = TABLE[named.state, type(request)] if redeemable else State.GONE
        self._compare(side, before, {request.keymat: following} if admitted else {})
        self.saw(type(request).__name__, type(reply).__name__)
        return reply
