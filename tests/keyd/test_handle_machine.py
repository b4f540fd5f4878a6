"""keyd's handles as one machine: random walks of two keyds and their workers, predicted by the table alone.

The model keeps for each handle a state, an end and a parent, moves them as `tests/redteam/handle_table.py` says, and
foretells for every request its outcome: the reply, the refusal's reason, or the violation. After each rule both
registries must hold exactly the model's handles in the model's states.
"""

import dataclasses
import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import hypothesis.strategies as st
import pytest
from handle_table import (
    ANSWERS,
    IKE_STATES,
    KEYMAT_STATES,
    QUICK_STATES,
    REJECTED,
    REJECTIONS_OF,
    TABLE,
    born_handle,
    handle_of,
)
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from keyd import guesses, handles, ikev1, phase1
from keyd.handles import State
from keyd.messages import put_hash
from keyd.phase1 import HALF_OPEN_LIFETIME, LIFETIME_MARGIN
from keyd.phase2 import KEYMAT_LIFETIME, QUICK_LIFETIME
from privsep.errors import Violation
from privsep.iana import IdType, PayloadType
from privsep.payloads import join_chain
from privsep.schema import keyd as ops
from privsep.schema.keymat import NotRedeemable, Redeemed, RedeemedOutbound, RedeemInbound, RedeemOutbound
from privsep.types import Identity

LIAR = ipaddress.ip_address("192.0.2.3")
MAX_CHILDREN = 3
IKE_LIFETIME = 28800
NOT_OPENED = {
    ops.AuthOpen: ops.Refusal.AUTHENTICATION_FAILED,
    **dict.fromkeys((ops.InfoOpen, ops.QuickOpen, ops.QuickFinish, ops.QuickConfirm), ops.Refusal.BAD_HASH),
}
REDEMPTIONS = {RedeemInbound: Redeemed, RedeemOutbound: RedeemedOutbound}
IKE_REQUESTS = [kind for kind in ANSWERS if "ike" in kind.__dataclass_fields__]
QUICK_REQUESTS = [kind for kind in ANSWERS if "quick" in kind.__dataclass_fields__]


@dataclass
class Known:
    """A handle as the model has it."""

    state: State
    expires: float
    parent: bytes | None = None
    peer: bytes | None = None
    """The other side's handle of the same IKE SA or Quick Mode."""
    keymat: bytes | None = None
    used_ids: set[int] = field(default_factory=lambda: {0})
    wrong: set[bytes] = field(default_factory=set)
    """Proofs of the other side's identity that were none."""
    offer: tuple[ops.IkeOffer | ops.IkeAnswer, ops.IkeKeys] | None = None


@dataclass(frozen=True)
class Letter:
    """A ciphertext and the one handle that can open it, by which operations, to which end."""

    side: int
    handle: bytes
    opens: tuple[type, ...]
    ciphertext: bytes
    message_id: int = 0
    spoilt: ops.Refusal | None = None
    """Its HASH is right and its content is not."""
    sender: bytes = b""


@dataclass
class Model:
    """One side's handles, its budget of unknown ones, and the time of the next sweep."""

    next_sweep: float
    known: dict[bytes, Known] = field(default_factory=dict)
    gone: list[bytes] = field(default_factory=list)
    unknown_allowed: int = handles.UNKNOWN_MARGIN

    def add(self, handle: bytes, entry: Known) -> None:
        self.known[handle] = entry
        self.unknown_allowed += handles.UNKNOWN_PER_HANDLE

    def children(self, handle: bytes) -> list[bytes]:
        return [each for each, entry in self.known.items() if entry.parent == handle]

    def drop(self, handle: bytes) -> None:
        for child in self.children(handle):
            self.drop(child)
        if self.known.pop(handle, None) is not None:
            self.gone.append(handle)


class HandleMachine(RuleBasedStateMachine):
    """Two keyds; `build` is the fixture of that name."""

    build = None

    @initialize()
    def epoch(self) -> None:
        build = self.build
        paris = build.connection(lifetime=IKE_LIFETIME)
        liar = build.connection(
            "liar", remote=LIAR, remote_id=Identity(IdType.FQDN, b"honest.example.org"), lifetime=IKE_LIFETIME
        )
        mirrored = dataclasses.replace(build.mirrored(liar), local=LIAR)
        secrets = build.Secrets(default=b"the same on both sides")
        self.sides = (
            build.Side(build.gateway(paris, liar), secrets),
            build.Side(build.gateway(build.mirrored(paris), mirrored), secrets),
        )
        self.models = tuple(Model(side.now + handles.SWEEP_EVERY) for side in self.sides)
        self.letters: list[Letter] = []
        # with nothing established most of the table is out of reach
        for _ in self.main_mode(0, "paris"):
            pass

    # honest exchanges, to be left after any of their steps

    def main_mode(self, at: int, name: str) -> Iterator[None]:
        build, theirs = self.build, 1 - at
        there = LIAR if name == "liar" else build.RIGHT
        ours = self.ask(
            at,
            ops.IkeOffer(
                connection=name,
                suite=build.IKE,
                cky_i=os.urandom(8),
                cky_r=os.urandom(8),
                sai_b=os.urandom(16),
                local=there if at else build.LEFT,
                remote=build.LEFT if at else there,
            ),
        )
        yield
        answer = self.ask(theirs, self.answer_to(self.models[at].known[ours.ike]))
        yield
        self.ask(at, ops.IkeAgree(ike=ours.ike, ke=answer.ke, nonce=answer.nonce))
        yield
        for sender, seals, opens in ((at, ours.ike, answer.ike), (theirs, answer.ike, ours.ike)):
            sealed = self.ask(sender, self.request(sender, ops.AuthSeal, seals))
            yield
            reply = self.ask(1 - sender, ops.AuthOpen(ike=opens, ciphertext=sealed.ciphertext))
            if isinstance(reply, ops.Refused):
                return
            yield

    def quick_mode(self, at: int, ike: bytes, peer: bytes) -> Iterator[None]:
        first = self.ask(at, self.request(at, ops.QuickOffer, ike))
        if isinstance(first, ops.Refused):
            return
        yield
        opened = self.ask(1 - at, ops.QuickOpen(ike=peer, message_id=first.message_id, ciphertext=first.ciphertext))
        if isinstance(opened, ops.Refused):
            return
        yield
        second = self.ask(1 - at, self.request(1 - at, ops.QuickAnswer, opened.quick))
        yield
        self.ask(1 - at, RedeemInbound(keymat=second.keymat))
        yield
        self.ask(at, ops.QuickFinish(quick=first.quick, ciphertext=second.ciphertext))
        yield
        third = self.ask(at, self.request(at, ops.QuickAccept, first.quick))
        yield
        self.ask(1 - at, ops.QuickConfirm(quick=opened.quick, ciphertext=third.ciphertext))
        yield
        self.ask(at, RedeemInbound(keymat=third.keymat))
        yield
        for side, handle in ((at, third.keymat), (1 - at, second.keymat)):
            self.ask(side, RedeemOutbound(keymat=handle))
            yield

    # what is sensible to do next

    def moves(self) -> list[tuple[int, object]]:
        """Requests of honest workers, as (side, request)."""
        found: list[tuple[int, object]] = [(letter.side, self.opening(letter)) for letter in self.letters[-6:]]
        for at, model in enumerate(self.models):
            other = self.models[1 - at]
            for handle, known in model.known.items():
                match known.state:
                    case State.OFFERED:
                        found.append((1 - at, self.answer_to(known)))
                        found += [
                            (at, ops.IkeAgree(ike=handle, ke=entry.offer[1].ke, nonce=entry.offer[1].nonce))
                            for entry in other.known.values()
                            if entry.peer == handle and entry.state is State.KEYED_R and entry.offer is not None
                        ]
                    case State.KEYED_I | State.PROVEN:
                        found.append((at, self.request(at, ops.AuthSeal, handle)))
                    case State.AUTHENTICATED:
                        found += [(at, self.request(at, kind, handle)) for kind in (ops.QuickOffer, ops.InfoSeal)]
                    case State.QUICK_OPENED:
                        found.append((at, self.request(at, ops.QuickAnswer, handle)))
                    case State.QUICK_FINISHED:
                        found.append((at, self.request(at, ops.QuickAccept, handle)))
                    case State.DERIVED | State.CONFIRMED:
                        found.append((at, RedeemInbound(keymat=handle)))
                    case State.SENDABLE:
                        found.append((at, RedeemOutbound(keymat=handle)))
        return found

    def answer_to(self, known: Known) -> ops.IkeAnswer:
        offer, keys = known.offer
        names = ("suite", "cky_i", "cky_r", "sai_b")
        return ops.IkeAnswer(
            **{name: getattr(offer, name) for name in names},
            local=offer.remote,
            remote=offer.local,
            ke=keys.ke,
            nonce=keys.nonce,
        )

    def opening(self, letter: Letter) -> object:
        return self.request(letter.side, letter.opens[0], letter.handle, letter)

    def request(
        self, at: int, kind: type, handle: bytes, letter: Letter | None = None, equal_spis: bool = False
    ) -> object:
        """A well-formed request of any kind for any handle."""
        values = {
            "ike": handle,
            "quick": handle,
            "handle": handle,
            "ciphertext": letter.ciphertext if letter else os.urandom(64),
            "message_id": letter.message_id if letter else 77,
            "ke": bytes(32),
            "nonce": bytes(16),
            "child": "lan",
            "group": None,
            "encap": False,
            "suite": self.build.ESP,
            "spi_in": 0x1001 if equal_spis or kind is ops.QuickOffer else 0x2002,
            "cpi_in": None,
            "local_ts": self.build.RIGHT_NET if at else self.build.LEFT_NET,
            "remote_ts": self.build.LEFT_NET if at else self.build.RIGHT_NET,
            "originals": (),
            "next_payload": 0,
            "payloads": b"",
        }
        return kind(**{name: values[name] for name in kind.__dataclass_fields__})

    # rules

    @rule(at=st.integers(0, 1), name=st.sampled_from(["paris", "liar"]), steps=st.integers(1, 7))
    def begin_main_mode(self, at, name, steps):
        for _ in islice(self.main_mode(at, name), steps):
            pass

    @rule(at=st.integers(0, 1), pick=st.integers(0, 10**6), steps=st.integers(1, 8))
    def begin_quick_mode(self, at, pick, steps):
        now, models = self.sides[at].now, self.models
        pairs = [
            (handle, known.peer)
            for handle, known in models[at].known.items()
            if known.state is State.AUTHENTICATED
            and known.peer in models[1 - at].known
            and models[1 - at].known[known.peer].state is State.AUTHENTICATED
            and min(known.expires, models[1 - at].known[known.peer].expires) > now
        ]
        if pairs:
            for _ in islice(self.quick_mode(at, *pairs[pick % len(pairs)]), steps):
                pass

    @precondition(lambda self: self.moves())
    @rule(steps=st.lists(st.integers(0, 10**6), min_size=1, max_size=6))
    def go_on(self, steps):
        for pick in steps:
            moves = [(at, request) for at, request in self.moves() if self.expect(at, request) is not Violation]
            if moves:
                self.ask(*moves[pick % len(moves)])

    @rule(
        at=st.integers(0, 1),
        picks=st.lists(st.tuples(st.integers(0, 10**6), st.booleans(), st.booleans()), min_size=1, max_size=8),
    )
    def lawful_but_odd(self, at, picks):
        """Operations that the states admit, with whatever content is at hand."""
        for pick, with_letter, equal_spis in picks:
            pairs = [
                (handle, kind)
                for handle, known in self.models[at].known.items()
                for kind in ANSWERS
                if (known.state, kind) in TABLE
                and (kind is not ops.Drop or pick % 4 == 0)
                and (kind is not ops.QuickConfirm or self.is_received(at, known))
            ]
            if pairs:
                handle, kind = pairs[pick % len(pairs)]
                letter = self.letters[pick % len(self.letters)] if with_letter and self.letters else None
                self.ask(at, self.request(at, kind, handle, letter, equal_spis))

    @rule(at=st.integers(0, 1))
    def nothing_else(self, at):
        """All that the states of all handles do not admit; the first of them already ends the epoch."""
        side, model = self.sides[at], self.models[at]
        for handle, known in model.known.items():
            for kind in (*IKE_REQUESTS, *QUICK_REQUESTS):
                if (known.state, kind) not in TABLE:
                    with pytest.raises(Violation):
                        side.do(self.request(at, kind, handle))
            for kind in REDEMPTIONS:
                if (known.state, kind) not in TABLE:
                    assert side.service.redeem(kind(keymat=handle)) == NotRedeemable()
            self.the_registries_are_as_the_model_has_them()
        self.epoch()

    @rule(
        at=st.integers(0, 1),
        pick=st.integers(0, 10**6),
        freed=st.integers(0, 5),
        kind=st.sampled_from([*ANSWERS, *REDEMPTIONS]),
    )
    def anything(self, at, pick, freed, kind):
        """Any operation on any handle, known or freed."""
        model = self.models[at]
        pool = model.gone if freed == 0 and model.gone else list(model.known)
        if not pool or kind in (ops.IkeOffer, ops.IkeAnswer):
            return
        handle = pool[pick % len(pool)]
        self.ask(at, kind(keymat=handle) if kind in REDEMPTIONS else self.request(at, kind, handle))

    @precondition(lambda self: any(model.known for model in self.models))
    @rule(at=st.integers(0, 1), pick=st.integers(0, 10**6))
    def drop(self, at, pick):
        pool = list(self.models[at].known)
        if pool:
            self.ask(at, ops.Drop(handle=pool[pick % len(pool)]))

    @rule(
        at=st.integers(0, 1),
        count=st.sampled_from([1, 5, 10**6]),
        kind=st.sampled_from([ops.Drop, ops.InfoOpen, *REDEMPTIONS]),
    )
    def guess(self, at, count, kind):
        for _ in range(min(count, self.models[at].unknown_allowed + 1)):
            handle = os.urandom(16)
            self.ask(at, kind(keymat=handle) if kind in REDEMPTIONS else self.request(at, kind, handle))

    @rule(seconds=st.sampled_from([1.0, 11.0, 30.0, 61.0, 301.0, IKE_LIFETIME + LIFETIME_MARGIN]))
    def time_passes(self, seconds):
        for side in self.sides:
            side.now += seconds

    @rule(at=st.integers(0, 1), pick=st.integers(0, 10**6), early=st.sampled_from([0.0, 0.5]))
    def at_its_end(self, at, pick, early):
        """The moment at which a handle expires, or the one before."""
        model, now = self.models[at], self.sides[at].now
        states = list(dict.fromkeys(known.state for known in model.known.values() if known.expires > now + early))
        if not states:
            return
        state = states[pick % len(states)]
        handle, known = next(each for each in model.known.items() if each[1].state is state)
        for side in self.sides:
            side.now = max(now, known.expires - early)
        kinds = [kind for kind in (*ANSWERS, *REDEMPTIONS) if (state, kind) in TABLE]
        kind = kinds[pick % len(kinds)]
        self.ask(at, kind(keymat=handle) if kind in REDEMPTIONS else self.request(at, kind, handle))

    @rule(at=st.integers(0, 1))
    def keyd_is_idle(self, at):
        side, model = self.sides[at], self.models[at]
        side.service.idle()
        if side.now >= model.next_sweep:
            model.next_sweep = side.now + handles.SWEEP_EVERY
            for handle, known in list(model.known.items()):
                if known.expires <= side.now:
                    model.drop(handle)

    @rule(pick=st.integers(0, 10**6))
    def a_peer_breaks_quick_mode(self, pick):
        """Message 2 with a right HASH(2) and no nonce (RFC 2409 section 5.5), from a peer that has the keys."""
        waiting = [
            (at, handle, known.peer)
            for at, model in enumerate(self.models)
            for handle, known in model.known.items()
            if known.state is State.QUICK_OPENED and known.peer in self.models[1 - at].known
        ]
        if not waiting:
            return
        at, handle, peer = waiting[pick % len(waiting)]
        quick = self.sides[at].service._registry._entries[handle]
        rest = join_chain([(PayloadType.SA, b"choice")])
        value = ikev1.hash_2(quick.sa.suite.hash, quick.sa.skeyid_a, quick.message_id, quick.ni_b, rest[1])
        chain = type(quick.chain)(quick.chain._algorithm, quick.chain.iv)
        ciphertext = chain.seal(put_hash(value, rest))
        letter = Letter(1 - at, peer, (ops.QuickFinish,), ciphertext, spoilt=ops.Refusal.BAD_MESSAGE)
        self.letters.append(letter)
        if (self.models[1 - at].known[peer].state, ops.QuickFinish) in TABLE:
            self.ask(1 - at, self.opening(letter))

    # prediction

    def ask(self, at: int, request: object) -> object:
        """Ask, compare with the prediction, move the model on; after a violation (None) a new epoch begins."""
        side, model = self.sides[at], self.models[at]
        expected = self.expect(at, request)
        try:
            reply = side.service.redeem(request) if isinstance(request, tuple(REDEMPTIONS)) else side.do(request)
        except Violation:
            assert expected is Violation, f"{type(request).__name__} is a violation instead of {expected}"
            self.the_registries_are_as_the_model_has_them()
            self.epoch()
            return None
        outcome = reply.why if isinstance(reply, ops.Refused) else type(reply)
        assert outcome == expected, f"{type(request).__name__} is answered {outcome} instead of {expected}"
        handle = request.keymat if isinstance(request, tuple(REDEMPTIONS)) else handle_of(request)
        if handle is not None and handle not in model.known:
            model.unknown_allowed -= 1
        elif isinstance(reply, Redeemed | RedeemedOutbound):
            known = model.known[handle]
            known.state = TABLE[known.state, type(request)]
            if known.state is State.GONE:
                model.drop(handle)
        elif isinstance(reply, NotRedeemable):
            if (model.known[handle].state, type(request)) in TABLE:
                # its time is over
                model.drop(handle)
        elif isinstance(reply, ops.Refused):
            self.refused(at, request, reply.why)
        else:
            self.succeeded(at, request, reply)
        return reply

    def expect(self, at: int, request: object) -> object:
        """The reply's type, the reason of a refusal, or Violation."""
        side, model, kind = self.sides[at], self.models[at], type(request)
        if kind in (ops.IkeOffer, ops.IkeAnswer):
            return ops.IkeKeys
        handle = request.keymat if kind in REDEMPTIONS else handle_of(request)
        known = model.known.get(handle)
        if known is None:
            if model.unknown_allowed == 0:
                return Violation
            return NotRedeemable if kind in REDEMPTIONS else ops.Refusal.UNKNOWN_HANDLE
        expired = known.expires <= side.now
        if kind in REDEMPTIONS:
            return REDEMPTIONS[kind] if (known.state, kind) in TABLE and not expired else NotRedeemable
        if (known.state, kind) not in TABLE:
            return Violation
        if expired:
            return ops.Refusal.EXPIRED
        return self.expect_content(at, handle, known, request)

    def expect_content(self, at: int, handle: bytes, known: Known, request: object) -> object:
        """The handle is right; what of the rest?"""
        kind = type(request)
        full = len(self.models[at].children(handle)) >= MAX_CHILDREN
        if kind in (ops.QuickOffer, ops.QuickOpen) and full:
            return ops.Refusal.QUOTA
        if kind is ops.IkeAgree and request.ke == bytes(32):
            return ops.Refusal.BAD_PUBLIC_VALUE
        if kind is ops.QuickAnswer and request.spi_in == 0x1001:
            return ops.Refusal.BAD_PROPOSAL
        if kind in (ops.InfoOpen, ops.QuickOpen) and request.message_id in known.used_ids:
            return ops.Refusal.REUSED_MESSAGE_ID
        if kind in NOT_OPENED:
            letter = self.letter_of(at, request)
            if letter is None:
                guessed = kind is ops.AuthOpen and len(known.wrong | {request.ciphertext}) == guesses.MAX_WRONG
                return ops.Refusal.WRONG_TOO_OFTEN if guessed else NOT_OPENED[kind]
            if letter.spoilt is not None:
                return letter.spoilt
            if kind is ops.QuickOpen and letter.opens == (ops.InfoOpen, ops.QuickOpen):
                return ops.Refusal.BAD_MESSAGE
            if kind is ops.QuickConfirm and known.keymat not in self.models[at].known:
                return ops.Refusal.UNKNOWN_HANDLE
            if kind is ops.QuickConfirm and not self.is_received(at, known):
                return Violation
        return ANSWERS[kind]

    def is_received(self, at: int, known: Known) -> bool:
        """Whether the monitor has the inbound half, so that message 2 may have left; true where there is no keymat."""
        keymat = self.models[at].known.get(known.keymat)
        return keymat is None or keymat.state is State.RECEIVING

    def letter_of(self, at: int, request: object) -> Letter | None:
        """The letter that a request delivers to whom it is for."""
        found = [
            letter
            for letter in self.letters
            if (letter.side, letter.handle, letter.ciphertext) == (at, handle_of(request), request.ciphertext)
            and type(request) in letter.opens
            and letter.message_id == getattr(request, "message_id", letter.message_id)
        ]
        return found[0] if found else None

    def refused(self, at: int, request: object, why: ops.Refusal) -> None:
        model, kind, handle = self.models[at], type(request), handle_of(request)
        known = model.known[handle]
        if why is ops.Refusal.EXPIRED:
            model.drop(handle)
        elif why is ops.Refusal.AUTHENTICATION_FAILED:
            known.wrong.add(request.ciphertext)
        elif why in REJECTIONS_OF.get(kind, ()):
            known.state = REJECTED[known.state, kind]
            if known.state is State.GONE:
                model.drop(handle)
        elif kind is ops.QuickOpen and why is ops.Refusal.BAD_MESSAGE:
            # its HASH was right, so its message id is used up
            known.used_ids.add(request.message_id)

    def succeeded(self, at: int, request: object, reply: object) -> None:
        side, model, kind, handle = self.sides[at], self.models[at], type(request), handle_of(request)
        if kind in (ops.IkeOffer, ops.IkeAnswer):
            known = Known(State.OFFERED, side.now + HALF_OPEN_LIFETIME, offer=(request, reply))
            if kind is ops.IkeAnswer:
                known.state = State.KEYED_R
                known.peer = self.who_offered(1 - at, request.ke)
            model.add(reply.ike, known)
            return
        known = model.known[handle]
        known.state = TABLE[known.state, kind]
        if kind is ops.IkeAgree:
            known.peer = self.who_offered(1 - at, request.ke)
        elif kind in (ops.AuthSeal, ops.AuthOpen) and known.state is State.AUTHENTICATED:
            known.expires = side.now + IKE_LIFETIME + LIFETIME_MARGIN
        elif kind in (ops.InfoSeal, ops.QuickOffer, ops.InfoOpen, ops.QuickOpen):
            known.used_ids.add(getattr(reply, "message_id", None) or request.message_id)
        if kind in (ops.QuickOffer, ops.QuickOpen):
            quick = Known(State.QUICK_OFFERED, side.now + QUICK_LIFETIME, parent=handle)
            if kind is ops.QuickOpen:
                quick.state = State.QUICK_OPENED
                quick.peer = self.letter_of(at, request).sender
                if quick.peer in self.models[1 - at].known:
                    self.models[1 - at].known[quick.peer].peer = reply.quick
            model.add(reply.quick, quick)
        elif kind is ops.QuickAnswer:
            known.keymat = reply.keymat
            model.add(reply.keymat, Known(State.DERIVED, known.expires, parent=handle))
        elif kind is ops.QuickAccept:
            model.add(reply.keymat, Known(State.CONFIRMED, side.now + KEYMAT_LIFETIME))
        elif kind is ops.QuickConfirm:
            keymat = model.known[known.keymat]
            keymat.state, keymat.parent, keymat.expires = State.SENDABLE, None, side.now + KEYMAT_LIFETIME
        self.post(at, known, request, reply)
        if known.state is State.GONE:
            model.drop(handle)

    def post(self, at: int, known: Known, request: object, reply: object) -> None:
        """What the reply says to the other side."""
        if known.peer is None or not hasattr(reply, "ciphertext"):
            return
        opens = {
            ops.AuthSeal: (ops.AuthOpen,),
            ops.InfoSeal: (ops.InfoOpen, ops.QuickOpen),
            ops.QuickOffer: (ops.QuickOpen, ops.InfoOpen),
            ops.QuickAnswer: (ops.QuickFinish,),
            ops.QuickAccept: (ops.QuickConfirm,),
        }[type(request)]
        lies = type(request) is ops.AuthSeal and at == 1 and LIAR in (known.offer[0].local, known.offer[0].remote)
        self.letters.append(
            Letter(
                1 - at,
                known.peer,
                opens,
                reply.ciphertext,
                getattr(reply, "message_id", 0),
                ops.Refusal.UNKNOWN_IDENTITY if lies else None,
                born_handle(reply) if type(request) is ops.QuickOffer else b"",
            )
        )

    def who_offered(self, at: int, ke: bytes) -> bytes | None:
        found = [h for h, each in self.models[at].known.items() if each.offer is not None and each.offer[1].ke == ke]
        return found[0] if found else None

    @invariant()
    def the_registries_are_as_the_model_has_them(self) -> None:
        if not hasattr(self, "sides"):
            return
        for side, model in zip(self.sides, self.models, strict=True):
            entries = side.service._registry._entries
            held = {
                handle: (entry.state, entry.expires, entry.parent.handle if entry.parent else None)
                for handle, entry in entries.items()
            }
            assert held == {handle: (each.state, each.expires, each.parent) for handle, each in model.known.items()}


# shrinking a failure takes minutes
@pytest.mark.timeout(600)
def test_keyd_and_the_table_walk_together(build, monkeypatch):
    """RFC 2409 sections 5.4, 5.5 and 5.7 in any order, with every handle in every state."""
    monkeypatch.setattr(handles, "MAX_CHILDREN", MAX_CHILDREN)
    # test_guesses.py holds networks off, test_phase1.py has one of many IKE SAs give way
    monkeypatch.setattr(phase1, "OF_ONE_IDENTITY", handles.Quota())
    monkeypatch.setattr(guesses, "_MEASURES", {4: (), 6: ()})
    HandleMachine.build = build
    run_state_machine_as_test(
        HandleMachine,
        settings=settings(
            max_examples=180,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_table_speaks_of_every_state():
    assert IKE_STATES | QUICK_STATES | KEYMAT_STATES | {State.GONE} == set(State)
    from_keyd = {pair for pair in handles.TRANSITIONS if pair != (State.RECEIVING, ops.QuickConfirm)}
    assert {pair: handles.TRANSITIONS[pair] for pair in from_keyd} == TABLE
    assert handles.REJECTIONS == REJECTED
