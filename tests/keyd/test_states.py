"""The table of states: every pair of a state and an operation that is not in it is a Violation (DESIGN section 2)."""

import itertools

import pytest

from keyd import handles
from keyd.handles import REJECTIONS, TRANSITIONS, Entry, Refuse, Registry, State
from privsep.errors import Violation
from privsep.schema import keyd as ops
from privsep.schema.keymat import NotRedeemable, RedeemInbound

IKE_STATES = [
    State.OFFERED,
    State.KEYED_I,
    State.CLAIMED,
    State.KEYED_R,
    State.PROVEN,
    State.AUTHENTICATED,
    State.DEAD,
]
QUICK_STATES = [State.QUICK_OFFERED, State.QUICK_FINISHED, State.QUICK_OPENED, State.QUICK_ANSWERED]
KEYMAT_STATES = [State.DERIVED, State.RECEIVING, State.CONFIRMED, State.SENDABLE]
IKE_OPERATIONS = [
    ops.IkeAgree,
    ops.AuthSeal,
    ops.AuthOpen,
    ops.InfoSeal,
    ops.InfoOpen,
    ops.QuickOffer,
    ops.QuickOpen,
    ops.Drop,
]
QUICK_OPERATIONS = [ops.QuickFinish, ops.QuickAccept, ops.QuickAnswer, ops.QuickConfirm, ops.Drop]


def request(world, build, operation, handle):
    """A well-formed request of that kind for the handle."""
    junk, nonce = bytes(64), bytes(16)
    return {
        ops.IkeAgree: lambda: ops.IkeAgree(ike=handle, ke=junk, nonce=nonce),
        ops.AuthSeal: lambda: ops.AuthSeal(ike=handle, next_payload=0, payloads=b""),
        ops.AuthOpen: lambda: ops.AuthOpen(ike=handle, ciphertext=junk),
        ops.InfoSeal: lambda: ops.InfoSeal(ike=handle, next_payload=0, payloads=b""),
        ops.InfoOpen: lambda: ops.InfoOpen(ike=handle, message_id=77, ciphertext=junk),
        ops.QuickOffer: lambda: world.quick_offer(handle, build.ESP),
        ops.QuickOpen: lambda: ops.QuickOpen(ike=handle, message_id=77, ciphertext=junk),
        ops.QuickFinish: lambda: ops.QuickFinish(quick=handle, ciphertext=junk),
        ops.QuickAccept: lambda: ops.QuickAccept(quick=handle),
        ops.QuickAnswer: lambda: world.quick_answer(handle, build.ESP),
        ops.QuickConfirm: lambda: ops.QuickConfirm(quick=handle, ciphertext=junk),
        ops.Drop: lambda: ops.Drop(handle=handle),
    }[operation]()


def reach(world, build, state):
    """A side that has an object in that state, and its handle."""
    left, right = world.left, world.right
    if state is State.OFFERED:
        return left, left.do(world.offer()).ike
    if state in (State.KEYED_I, State.CLAIMED, State.KEYED_R, State.PROVEN, State.DEAD):
        ike = world.keyed()
        if state is State.KEYED_I:
            return left, ike.left
        if state is State.KEYED_R:
            return right, ike.right
        fifth = left.do(ops.AuthSeal(ike=ike.left, next_payload=0, payloads=b""))
        if state is State.CLAIMED:
            return left, ike.left
        right.do(ops.AuthOpen(ike=ike.right, ciphertext=fifth.ciphertext))
        if state is State.DEAD:
            right.service._registry.get(ike.right).state = State.DEAD
        return right, ike.right
    ike = world.main_mode()
    if state is State.AUTHENTICATED:
        return left, ike.left
    first = left.do(world.quick_offer(ike.left, build.ESP))
    if state is State.QUICK_OFFERED:
        return left, first.quick
    opened = right.do(ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext))
    if state is State.QUICK_OPENED:
        return right, opened.quick
    second = right.do(world.quick_answer(opened.quick, build.ESP))
    if state is State.QUICK_ANSWERED:
        return right, opened.quick
    if state is State.DERIVED:
        return right, second.keymat
    if state is State.RECEIVING:
        right.redeem_inbound(second.keymat)
        return right, second.keymat
    left.do(ops.QuickFinish(quick=first.quick, ciphertext=second.ciphertext))
    if state is State.QUICK_FINISHED:
        return left, first.quick
    keymat = left.do(ops.QuickAccept(quick=first.quick)).keymat
    if state is State.SENDABLE:
        left.redeem_inbound(keymat)
    return left, keymat


PAIRS = list(itertools.product(IKE_STATES, IKE_OPERATIONS)) + list(itertools.product(QUICK_STATES, QUICK_OPERATIONS))


@pytest.mark.parametrize(("state", "operation"), [pair for pair in PAIRS if pair not in TRANSITIONS])
def test_an_operation_that_the_table_does_not_admit_is_a_violation(world, build, state, operation):
    side, handle = reach(world, build, state)
    assert side.service._registry.get(handle).state is state
    with pytest.raises(Violation):
        side.do(request(world, build, operation, handle))


@pytest.mark.parametrize(("state", "operation"), [pair for pair in PAIRS if pair in TRANSITIONS])
def test_an_operation_that_the_table_admits_is_answered(world, build, state, operation):
    side, handle = reach(world, build, state)
    reply = side.do(request(world, build, operation, handle))
    entry = side.service._registry.get(handle)
    if isinstance(reply, ops.Refused):
        assert entry.state is state
    else:
        reached = State.GONE if entry is None else entry.state
        assert reached is TRANSITIONS[state, operation]


@pytest.mark.parametrize("half", ["inbound", "outbound"])
@pytest.mark.parametrize("state", [*IKE_STATES, *QUICK_STATES, *KEYMAT_STATES])
def test_a_half_of_keymat_is_handed_over_in_its_states_and_no_others(world, build, state, half):
    side, handle = reach(world, build, state)
    admitted = {"inbound": (State.DERIVED, State.CONFIRMED), "outbound": (State.SENDABLE,)}[half]
    reply = getattr(side, f"redeem_{half}")(handle)
    assert (reply == NotRedeemable()) is (state not in admitted)
    if state not in admitted:
        assert side.service._registry.get(handle).state is state


@pytest.mark.parametrize(
    ("state", "operation"),
    [
        *itertools.product([*QUICK_STATES, *KEYMAT_STATES], [o for o in IKE_OPERATIONS if o != ops.Drop]),
        *itertools.product([*IKE_STATES, *KEYMAT_STATES], [o for o in QUICK_OPERATIONS if o != ops.Drop]),
    ],
)
def test_a_handle_of_another_kind_is_a_violation(world, build, state, operation):
    side, handle = reach(world, build, state)
    with pytest.raises(Violation):
        side.do(request(world, build, operation, handle))


@pytest.mark.parametrize("operation", sorted({*IKE_OPERATIONS, *QUICK_OPERATIONS}, key=lambda each: each.__name__))
def test_an_unknown_handle_is_refused_and_guessing_is_a_violation(world, build, operation):
    unknown = request(world, build, operation, b"?" * 16)
    for _ in range(handles.UNKNOWN_MARGIN):
        assert world.left.do(unknown) == ops.Refused(why=ops.Refusal.UNKNOWN_HANDLE)
    with pytest.raises(Violation):
        world.left.do(unknown)


def test_guessing_by_way_of_the_monitor_counts_too(world):
    for _ in range(handles.UNKNOWN_MARGIN):
        assert world.left.redeem_inbound(b"?" * 16) == NotRedeemable()
    with pytest.raises(Violation):
        world.left.redeem_inbound(b"?" * 16)


def test_handles_that_were_minted_excuse_some_ignorance(world):
    ike = world.left.do(world.offer()).ike
    for _ in range(handles.UNKNOWN_MARGIN + handles.UNKNOWN_PER_HANDLE):
        world.left.redeem_inbound(b"?" * 16)
    assert world.left.do(ops.Drop(handle=ike)) == ops.Done()


def test_the_table_and_the_rejections_speak_of_the_same_pairs():
    assert set(REJECTIONS) <= set(TRANSITIONS)
    assert all(state is not State.GONE for state, _ in TRANSITIONS)
    assert {state for state, operation in TRANSITIONS if operation is ops.Drop} == set(State) - {State.GONE}
    # every state but the first ones of each kind and the end can be reached by the tables
    reached = set(TRANSITIONS.values()) | set(REJECTIONS.values())
    first = {State.OFFERED, State.KEYED_R, State.QUICK_OFFERED, State.QUICK_OPENED, State.DERIVED, State.CONFIRMED}
    assert reached | first == set(State)


class Thing(Entry):
    """An entry with a quota of three."""

    __slots__ = ("of", "wiped")
    quota = handles.Quota(3)

    def __init__(self, expires: float, of: str = "somebody") -> None:
        super().__init__(State.AUTHENTICATED, expires)
        self.of = of
        self.wiped = False

    @property
    def owner(self) -> str:
        return self.of

    def wipe(self) -> None:
        self.wiped = True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def registry() -> tuple[Registry, Clock]:
    clock, numbers = Clock(), itertools.count(1)
    return Registry(clock, lambda size: next(numbers).to_bytes(size, "big")), clock


def test_a_quota_bounds_each_kind_and_what_was_unused_for_longest_goes():
    entries, _ = registry()
    first, second, third = (entries.mint(Thing(expires=100.0)) for _ in range(3))
    entries.find(first.handle, Thing, ops.InfoOpen)
    fourth = entries.mint(Thing(expires=100.0))
    assert [each.wiped for each in (first, second, third, fourth)] == [False, True, False, False]
    assert (len(entries), entries.get(second.handle)) == (3, None)


def test_what_has_expired_goes_before_what_has_not():
    entries, clock = registry()
    first, second = entries.mint(Thing(expires=100.0)), entries.mint(Thing(expires=20.0))
    entries.mint(Thing(expires=100.0))
    clock.now = 21.0
    entries.mint(Thing(expires=100.0))
    assert (first.wiped, second.wiped) == (False, True)


def test_whoever_has_most_gives_way_to_others():
    entries, _ = registry()
    many = [entries.mint(Thing(100.0, "many")) for _ in range(3)]
    few = [entries.mint(Thing(100.0, "few")) for _ in range(2)]
    assert [each.wiped for each in many] == [True, True, False]
    entries.mint(Thing(100.0, "few"))
    assert [each.wiped for each in few] == [True, False]
    assert not many[2].wiped


def test_a_parent_has_a_bounded_number_of_children(monkeypatch):
    monkeypatch.setattr(Thing, "quota", handles.Quota(10**6))
    entries, _ = registry()
    parent = entries.mint(Thing(100.0))
    for _ in range(handles.MAX_CHILDREN):
        entries.room(parent)
        entries.mint(Thing(100.0), parent)
    with pytest.raises(Refuse) as caught:
        entries.room(parent)
    assert caught.value.why is ops.Refusal.QUOTA


def test_dropping_wipes_all_descendants_but_not_what_was_detached():
    entries, _ = registry()
    parent = entries.mint(Thing(100.0))
    child = entries.mint(Thing(100.0), parent)
    grandchild = entries.mint(Thing(100.0), child)
    entries.detach(grandchild)
    entries.drop(parent)
    assert (parent.wiped, child.wiped, grandchild.wiped) == (True, True, False)
    assert entries.get(grandchild.handle) is grandchild
    assert entries.get(child.handle) is None
    assert child.state is State.GONE


def test_what_has_expired_is_noticed_when_used_and_wiped():
    entries, clock = registry()
    thing = entries.mint(Thing(5.0))
    clock.now = 4.9
    assert entries.find(thing.handle, Thing, ops.InfoOpen) is thing
    clock.now = 5.0
    with pytest.raises(Refuse) as caught:
        entries.find(thing.handle, Thing, ops.InfoOpen)
    assert caught.value.why is ops.Refusal.EXPIRED
    assert thing.wiped


def test_who_expired_is_looked_for_every_so_often():
    entries, clock = registry()
    entries.mint(Thing(5.0))
    for now, dropped in ((9.9, False), (handles.SWEEP_EVERY, True), (handles.SWEEP_EVERY + 9.9, False)):
        clock.now = now
        assert entries.sweep() is dropped
        entries.mint(Thing(handles.SWEEP_EVERY + 5.0))
    clock.now = 2 * handles.SWEEP_EVERY
    assert entries.sweep()
    assert len(entries) == 0


def test_a_refusal_says_why():
    assert str(Refuse(ops.Refusal.QUOTA)) == ops.Refusal.QUOTA.value


def test_a_random_source_that_repeats_itself_is_fatal():
    entries = Registry(Clock(), bytes)
    entries.mint(Thing(1.0))
    with pytest.raises(Violation):
        entries.mint(Thing(1.0))


def test_an_entry_advances_only_along_the_table():
    thing = Thing(1.0)
    with pytest.raises(Violation):
        thing.advance(RedeemInbound)
    thing.advance(ops.Drop)
    assert thing.state is State.GONE
