"""A captured worker asks keyd as an oracle: it chooses what is opened and sealed, and learns from answers and time.

As in `test_forge.py`, the peer is played in the test; here it lends the attacker its keys, to make messages that are
wrong in exactly one way. Each control is the same code against a keyd that tells.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles

import pytest
from counterpart import BARE, FAST, Peer, Session, Worker
from lab import PSK
from weakened import HASTY, OPEN, PATIENT, TELLING
from world import IKE

from keyd import ikev1
from keyd.messages import put_hash
from privsep.algorithms import IkeSuite
from privsep.iana import PayloadType
from privsep.payloads import join_chain
from privsep.schema import keyd as ops
from privsep.schema.keyd import Refusal

MODP = IkeSuite.parse(IKE)
BLOCK = 16
OCTETS = 112
"""Of every plaintext."""


@dataclass(frozen=True)
class Lock:
    """An operation that opens ciphertexts, at the point where one is awaited."""

    request: Callable[[bytes], ops.Request]
    encrypt: Callable[[bytes], bytes]
    honest: bytes
    """What the peer has to say."""


def auth_open_by_the_responder(s):
    s.keyed_r()
    encrypt = s.peer.encryption(s.theirs)
    return Lock(lambda data: ops.AuthOpen(ike=s.ours, ciphertext=data), encrypt, s.proof())


def auth_open_by_the_initiator(s):
    fifth = s.claimed()
    s.peer.do(ops.AuthOpen(ike=s.theirs, ciphertext=fifth))
    encrypt = s.peer.encryption(s.theirs)
    return Lock(lambda data: ops.AuthOpen(ike=s.ours, ciphertext=data), encrypt, s.proof())


def quick_open(s, kind=ops.QuickOpen):
    s.respond()
    theirs = s.quick_offer(s.theirs) if kind is ops.QuickOpen else ops.InfoSeal(ike=s.theirs, **BARE)
    sealed = s.peer.do(theirs)
    sa = s.peer.entry(s.theirs)
    return Lock(
        lambda data: kind(ike=s.ours, message_id=sealed.message_id, ciphertext=data),
        s.peer.encryption(s.theirs, sa.chain.branch(FAST.hash, sealed.message_id).iv),
        sealed.ciphertext,
    )


def info_open(s):
    return quick_open(s, ops.InfoOpen)


def quick_finish(s):
    s.respond()
    first, second = s.quick_offered()
    encrypt = s.peer.encryption(s.theirs, first.ciphertext[-BLOCK:])
    return Lock(lambda data: ops.QuickFinish(quick=first.quick, ciphertext=data), encrypt, second)


def quick_confirm(s):
    s.respond()
    keyed, quick, third = s.quick_answered(s.worker.allocate(), received=True)
    encrypt = s.peer.encryption(s.theirs, keyed.ciphertext[-BLOCK:])
    return Lock(lambda data: ops.QuickConfirm(quick=quick, ciphertext=data), encrypt, third)


LOCKS = [auth_open_by_the_responder, auth_open_by_the_initiator, quick_open, info_open, quick_finish, quick_confirm]


def plaintexts(lock, peer) -> dict[str, bytes]:
    """All that can be wrong, each once; the HASH is wrong in all that have one."""
    us = b"\x01\0\0\0" + peer.at.packed
    if isinstance(lock.request(b""), ops.AuthOpen):

        def message(value=bytes(32), identity=us, *more):
            return join_chain([(PayloadType.ID, identity), (PayloadType.HASH, value), *more])[1]

        own = {
            "an identity of no type": message(identity=b"\xff\0\0\0" + bytes(4)),
            "an identity of a port": message(identity=b"\x01\x06\0\x16" + peer.at.packed),
            "nobody's identity": message(identity=b"\x02\0\0\0nobody.example.org"),
            "a second HASH": message(bytes(32), us, (PayloadType.HASH, bytes(32))),
            "no HASH": join_chain([(PayloadType.ID, us)])[1],
        }
    else:
        rest = join_chain([(PayloadType.SA, bytes(8)), (PayloadType.NONCE, bytes(16))])

        def message(value=bytes(32)):
            return put_hash(value, rest)

        own = {"no nonce": put_hash(bytes(32), (PayloadType.NONE, b""))}
    wrong = message()
    return {
        "a wrong HASH": wrong,
        "an empty HASH": message(b""),
        "a HASH too long": message(bytes(33)),
        "a wrong padding": wrong.ljust(OCTETS, b"\xff"),
        "a payload that is cut off": wrong[:2] + b"\xff\xff" + wrong[4:],
        "a reserved octet": wrong[:1] + b"\x01" + wrong[2:],
        "garbage": os.urandom(OCTETS),
    } | own


def ciphertexts(lock, peer) -> dict[str, bytes]:
    wrong = {name: lock.encrypt(text.ljust(OCTETS, b"\0")) for name, text in plaintexts(lock, peer).items()}
    return wrong | {"nothing": b"", "half a block": lock.honest[:-8], "one block": lock.honest[:BLOCK]}


# one answer


@pytest.fixture
def patient(without) -> Worker:
    """The captured worker before a keyd that does not count wrong proofs: an oracle as long as one likes."""
    return without(PATIENT)


@pytest.mark.parametrize("lock_of", LOCKS)
def test_it_cannot_learn_why_a_ciphertext_fails(patient, without, record, lock_of):
    def attack(worker):
        s = Session(worker, Peer())
        lock = lock_of(s)
        tried = ciphertexts(lock, s.peer)
        return {name: worker.refused(lock.request(data)) for name, data in tried.items()}

    reasons = attack(patient)
    expected = Refusal.AUTHENTICATION_FAILED if "auth" in lock_of.__name__ else Refusal.BAD_HASH
    assert set(reasons.values()) == {expected}, reasons
    assert len(set(attack(without(TELLING)).values())) > 1
    record(f"one refusal for {len(reasons)} faults", "a telling keyd: several")


@pytest.mark.parametrize("lock_of", LOCKS)
def test_it_cannot_break_an_exchange_with_a_forged_message(patient, without, record, lock_of):
    """A ciphertext that is refused moves no IV chain (RFC 2409 appendix B) and uses no message id up."""

    def attack(worker):
        s = Session(worker, Peer())
        lock = lock_of(s)
        for data in ciphertexts(lock, s.peer).values():
            worker.refused(lock.request(data))
        return worker.keyd(lock.request(lock.honest))

    assert not isinstance(attack(patient), ops.Refused)
    assert isinstance(attack(without(TELLING)), ops.Refused)
    record("chain and message id move after HASH", "a keyd that moves first: the true message fails")


# one guess after another


def test_it_cannot_guess_a_pre_shared_key(shipped, without, record):
    """RFC 2409 section 5.4: it plays a peer that does not have the key and tries one key after another."""

    def attack(worker, handshakes, guesses):
        answers = Counter()
        for _ in range(handshakes):
            s = Session(worker, Peer())
            try:
                s.keyed_r()
            except AssertionError:
                break
            for _ in range(guesses):
                reply = s.open(os.urandom(OCTETS))
                answers[reply.why] += 1
                if reply.why is Refusal.WRONG_TOO_OFTEN:
                    break
        return s, answers

    s, answers = attack(shipped, 20, 100)
    # the network's measure empties by one in 12 seconds
    assert 20 <= answers.total() <= 30, answers
    assert shipped.refused(ops.IkeAnswer(**s.fields, **s.here, ke=bytes(32), nonce=bytes(32))) is Refusal.HELD_OFF
    # in the patient world the last key that it tries is the right one
    s, answers = attack(without(PATIENT), 1, 200)
    assert answers == {Refusal.AUTHENTICATION_FAILED: 200}
    assert isinstance(s.open(s.proof()), ops.Authenticated)
    s = Session(shipped, Peer("lax", "192.0.2.9", PSK), MODP)
    s.keyed_r()
    with shipped.violates("AuthOpen in state DEAD"):
        for _ in range(100):
            s.open(os.urandom(OCTETS))
    record("5 wrong proofs an IKE SA, 20 a network, then the epoch ends", "not counted: 200 tried, then the right one")


# one time

MEASURE = """
def seconds(request):
    number = next(me._numbers)
    began = time.perf_counter()
    me.shell._keyd.send(request, number)
    while number not in me.answers:
        # not spinning: keyd may need this processor
        me.shell._keyd._sock.poll(50) and me._turn()
    took = time.perf_counter() - began
    assert isinstance(me.answers.pop(number), ops.Refused)
    return took

requests = {name: ops.REQUESTS.decode(bytes.fromhex(frame))[0] for name, frame in frames.items()}
result = {name: [] for name in requests}
for _ in range(rounds):
    for name in random.sample(list(requests), len(requests)):
        result[name].append(round(seconds(requests[name]) * 1e6, 1))
"""
RUNS, ROUNDS = 4, 500
TOLERANCE = 0.04
"""Of the time of a request: the walk along the payloads is left, some two hundredths. An early return is eight."""


def leak(worker, lock_of) -> list[float]:
    """How much sooner the answer to a plaintext that does not parse comes than to a wrong HASH, in each run.

    The tenth percentile of interleaved trials: below it nobody else had the processor. What really differs does so in
    every run.
    """
    s = Session(worker, Peer())
    lock = lock_of(s)
    tried = ciphertexts(lock, s.peer)
    requests = {name: lock.request(tried[name]) for name in ("a wrong HASH", "garbage", "a payload that is cut off")}
    frames = {name: ops.REQUESTS.encode(request, 0).hex() for name, request in requests.items()}
    leaks = []
    for _ in range(RUNS):
        times = worker.world.attack(MEASURE, frames=frames, rounds=ROUNDS)
        fast = {name: quantiles(taken, n=10)[0] for name, taken in times.items()}
        leaks.append(max(abs(1 - each / fast["a wrong HASH"]) for each in fast.values()))
    return leaks


@pytest.mark.parametrize("lock_of", [auth_open_by_the_responder, quick_open])
def test_it_cannot_measure_whether_a_plaintext_parses(shipped, without, record, lock_of):
    """Which ciphertexts parse would decrypt, as wrong paddings do: a HASH is computed even where there is none."""
    ours, hasty = leak(shipped, lock_of), leak(without(HASTY), lock_of)
    assert min(ours) < TOLERANCE < min(hasty), (ours, hasty)
    record(f"as late as a wrong HASH: {min(ours):.1%} of {TOLERANCE:.1%}", f"early return: {min(hasty):.1%}")


# no function of keyd's keys


class Overheard(Worker):
    """Keeps every octet that the worker is given."""

    def __init__(self, world) -> None:
        super().__init__(world)
        self.frames: list[bytes] = []

    def answer(self, code: str, **facts: object) -> bytes:
        self.frames.append(super().answer(code, **facts))
        return self.frames[-1]


def test_it_is_never_given_a_prf_output(shipped, without, record, monkeypatch):
    """RFC 2409 sections 5 and 5.5: whatever it says, in every field that takes octets, no HASH, SKEYID or KEYMAT comes.

    The peer derives and verifies all that keyd does; its prf is watched. What keyd would give away is among that.
    """
    outputs, prf = set(), ikev1.prf

    def watched(hash_, key, message):
        outputs.add(prf(hash_, key, message))
        return prf(hash_, key, message)

    monkeypatch.setattr(ikev1, "prf", watched)
    chosen = b"octets of the attacker's choosing"
    notify = join_chain([(PayloadType.NOTIFY, b"\0\0\0\x01\x01\0\x60\x02" + chosen)])
    extras = {"next_payload": notify[0], "payloads": notify[1]}

    def attack(world):
        worker = Overheard(world)
        for lead in ("initiate", "respond"):
            s = Session(worker, Peer())
            s.fields["sai_b"] = chosen
            getattr(s, lead)()
            s.keyed(0x1001)
            _, quick, third = s.quick_answered(worker.allocate(), received=True)
            worker.keyd(ops.QuickConfirm(quick=quick, ciphertext=third))
            worker.keyd(s.quick_offer(s.ours, int.from_bytes(chosen[:4])))
            sealed = worker.keyd(ops.InfoSeal(ike=s.ours, **extras))
            keys = s.peer.entry(s.theirs)
            for key in (s.peer.psk, keys.skeyid_a, keys.skeyid_d, keys.cipher_key):
                for message in (chosen, notify[1]):
                    watched(FAST.hash, key, message)
                    ikev1.hash_1(FAST.hash, key, sealed.message_id, message)
        return [value for value in outputs if any(value[:BLOCK] in frame for frame in worker.frames)]

    assert attack(shipped.world) == []
    watched_values = len(outputs)
    assert len(attack(without(TELLING).world)) == 2
    record(f"none of {watched_values} prf outputs in any reply", "Informational in clear: HASH(1)")


def test_it_cannot_have_one_plaintext_sealed_twice_alike(shipped, without, record):
    """Equal blocks would compare plaintexts that it does not have (RFC 2409 appendix B: the IV comes of the M-ID)."""

    def attack(worker):
        s = Session(worker, Peer())
        s.respond()
        return [worker.keyd(ops.InfoSeal(ike=s.ours, **BARE)) for _ in range(2)]

    def blocks(sealed):
        return {sealed.ciphertext[start : start + BLOCK] for start in range(0, len(sealed.ciphertext), BLOCK)}

    one, other = attack(shipped)
    assert one.message_id != other.message_id
    assert not blocks(one) & blocks(other)
    one, other = attack(without(TELLING))
    assert one == other
    record("a new message id each time", "one for all: the same octets")


def test_it_cannot_have_a_ciphertext_opened_elsewhere(shipped, without, record):
    """In another exchange, under another message id, in another IKE SA (RFC 2409 section 5.5: M-ID in IV and HASH)."""

    def attack(worker):
        s = Session(worker, Peer())
        s.keyed_r()
        fifth = s.proof()
        authenticated = s.open(fifth)
        s.peer.do(ops.AuthOpen(ike=s.theirs, ciphertext=worker.keyd(s.seal()).ciphertext))
        _, first = s.quick_opened()
        other = Session(worker, Peer())
        other.respond()
        fields = {"message_id": 77, "ciphertext": first.ciphertext}
        elsewhere = [
            ops.InfoOpen(ike=s.ours, message_id=78, ciphertext=fifth),
            ops.QuickOpen(ike=other.ours, **fields),
            ops.QuickOpen(ike=s.ours, **fields),
            ops.InfoOpen(ike=s.ours, **fields),
        ]
        return authenticated, [worker.keyd(each) for each in elsewhere]

    authenticated, replies = attack(shipped)
    assert isinstance(authenticated, ops.Authenticated)
    assert replies == [ops.Refused(why=Refusal.BAD_HASH)] * 4
    assert [type(each) for each in attack(without(OPEN))[1][2:]] == [ops.QuickOpened, ops.Opened]
    record("HASH(1) and IV of the message id", "in its place: opened; any message id: opened")
