"""A captured worker guesses handles, sends frames that are none, and octets below ZeroMQ: its epoch ends.

The controls are the same code against a gateway without the bound, or the honest form of the same request.
"""

import os
import re
from pathlib import Path

import msgpack
import pytest
from bounds import MEGABYTE, PATIENCE, SHIPPED, UNBOUNDED, ends, growth, memory, others_are_served, violation
from counterpart import Peer, Session, Worker
from lab import wait_for
from proc import open_descriptors
from world import World

from keyd.handles import UNKNOWN_MARGIN, UNKNOWN_PER_HANDLE
from privsep.schema import keyd

# handles

GUESS = """
guessed = 0
while guessed < limit:
    me.keyd_many([ops.Drop(handle=os.urandom(16)) for _ in range(32)])
    guessed += 32
    os.write(2, b"guessed %d\\n" % guessed)
result = guessed
"""


def test_it_cannot_guess_handles(worlds, record):
    world = worlds(SHIPPED)
    world.attempt("os._exit(0)")
    mark = world.mark()
    seconds = ends(world, GUESS, violation("keyd", "violation: handles are being guessed"), limit=2**20)
    guessed = max(map(int, re.findall(r"^worker: guessed (\d+)$", world.log_since(mark), re.M)))
    # the bystander's own negotiation has minted a few
    assert UNKNOWN_MARGIN <= guessed + 32 <= UNKNOWN_MARGIN + 32 * UNKNOWN_PER_HANDLE
    assert world.bystander_works()
    assert worlds(UNBOUNDED).attack(GUESS, limit=4096) == 4096
    record(f"guesses are counted ({guessed} of 2^20 went through, {seconds:.1f} s)", "not counted: 4096 answered")


def test_it_cannot_use_a_handle_for_something_else(worlds, record):
    worker = Worker(worlds(SHIPPED))
    session = Session(worker, Peer())
    session.offered()
    with worker.violates("QuickFinish with a handle of another kind"):
        worker.keyd(keyd.QuickFinish(quick=session.ours, ciphertext=bytes(64)))
    assert worker.world.bystander_works()
    session = Session(worker, Peer())
    session.keyed_i()
    record("handles are typed", "the operation of its kind: done")


def test_it_cannot_use_a_handle_of_an_earlier_epoch(worlds, record):
    worker = Worker(worlds(SHIPPED))
    session = Session(worker, Peer())
    session.initiate()
    handle = session.ours
    seal = keyd.InfoSeal(ike=handle, next_payload=0, payloads=b"")
    assert isinstance(worker.keyd(seal), keyd.SealedNew)
    worker.world.attempt("os._exit(0)")
    assert worker.refused(seal) is keyd.Refusal.UNKNOWN_HANDLE
    assert worker.world.bystander_works()
    record("handles end with their epoch", "before the restart: done")


def test_it_cannot_use_a_handle_that_was_dropped(worlds, record):
    def after_drop(world: World) -> keyd.Reply:
        worker = Worker(world)
        session = Session(worker, Peer())
        session.initiate()
        assert worker.keyd(keyd.Drop(handle=session.ours)) == keyd.Done()
        return worker.keyd(keyd.InfoSeal(ike=session.ours, next_payload=0, payloads=b""))

    world = worlds(SHIPPED)
    assert after_drop(world) == keyd.Refused(why=keyd.Refusal.UNKNOWN_HANDLE)
    assert world.bystander_works()
    assert isinstance(after_drop(worlds(UNBOUNDED)), keyd.SealedNew)
    record("a dropped handle is forgotten (UNKNOWN_HANDLE)", "nothing forgotten: sealed")


# frames

CHANNELS = {
    "keyd": ("raw_keyd", [14, 2**41, bytes(16)]),
    "monitor": ("raw_monitor", [3, 2**41, 4711]),
}
"""How it sends, and an honest request: Drop and Remove of what is not there."""
SEND = "getattr(me, send)(bytes.fromhex(frame))\nresult = plain(me.wait(number, me._turn))"


def inside(honest: list, item: bytes) -> bytes:
    """The honest frame with that for its last field."""
    return b"\x93" + b"".join(map(msgpack.packb, honest[:2])) + item


FRAMES = {
    "a depth of 30000": lambda honest: b"\x91" * 30000 + b"\xc0",
    "a string of 4 GiB": lambda honest: inside(honest, b"\xdb\xff\xff\xff\xff"),
    "octets of 4 GiB": lambda honest: inside(honest, b"\xc6\xff\xff\xff\xff"),
    "an array of 4 Gi": lambda honest: b"\xdd\xff\xff\xff\xff" + msgpack.packb(honest)[1:],
    "a map of 4 Gi": lambda honest: inside(honest, b"\xdf\xff\xff\xff\xff"),
    "a key twice": lambda honest: inside(honest, b"\x82\xa1k\x01\xa1k\x02"),
    "an extension": lambda honest: inside(honest, msgpack.packb(msgpack.ExtType(5, bytes(16)))),
    "true for a number": lambda honest: msgpack.packb([honest[0], True, *honest[2:]]),
    "a fraction for a number": lambda honest: msgpack.packb([float(honest[0]), *honest[1:]]),
    "an octet after the end": lambda honest: msgpack.packb(honest) + b"\x00",
}


@pytest.mark.parametrize("channel", CHANNELS)
def test_it_cannot_confuse_or_swell_a_decoder(worlds, record, channel):
    world = worlds(SHIPPED)
    send, honest = CHANNELS[channel]
    monitor = world.pid("monitor")
    before = memory(monitor)
    slowest, most = 0.0, 0
    for name, make in FRAMES.items():
        facts = {"send": send, "frame": make(honest).hex(), "number": 0}
        with growth(world.pid(channel)) as sizes:
            seconds = ends(world, SEND, violation(channel, "violation: "), **facts)
        swollen = max(sizes) - sizes[0]
        assert seconds < PATIENCE, name
        assert swollen < 8 * MEGABYTE, name
        slowest, most = max(slowest, seconds), max(most, swollen)
    assert memory(monitor) - before < 8 * MEGABYTE
    assert world.bystander_works()
    answer = world.attack(SEND, send=send, frame=msgpack.packb(honest).hex(), number=2**41)
    assert answer["kind"] in ("Refused", "Denied")
    record(f"decoder with bounds and types (at most {slowest:.2f} s, {most >> 10} KiB)", "the honest frame: answered")


WRITE = """
for octets in pieces:
    view = memoryview(bytes.fromhex(octets))
    for _ in range(times):
        rest = view
        while rest:
            try:
                rest = rest[os.write(fd, rest):]
            except BlockingIOError:
                time.sleep(0.0005)
result = plain(me.wait(number, me._turn)) if number else "written"
"""


def zeromq_fd(world: World) -> int:
    """The one stream socket of the worker: ZeroMQ's to keyd."""
    pid = world.pid("worker")
    rows = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    streams = {f"socket:[{row[6]}]" for row in rows if row[4] == "0001"}
    (found,) = [number for number, target in open_descriptors(pid).items() if target in streams]
    return found


def short(body: bytes, *, more: bool = False) -> bytes:
    """A ZMTP frame (RFC 37/ZMTP, framing)."""
    return bytes((more, len(body))) + body


HONEST_DROP = msgpack.packb(CHANNELS["keyd"][1])
GARBAGE = {
    "random octets": (b"\x02" + os.urandom(4095), 1),
    "a frame of 2^63 octets": (b"\x02" + b"\x7f" + b"\xff" * 7, 1),
    "half a message": (b"\x00" + bytes([250]) + b"half", 1),
    "ten thousand half messages": (short(bytes(200), more=True), 10_000),
}


def test_it_cannot_break_or_swell_keyd_below_its_channel(worlds, record):
    """Octets on ZeroMQ's own socket, past the library."""
    world = worlds(SHIPPED)
    for name, (octets, times) in GARBAGE.items():
        pid = world.pid("keyd")
        facts = {"fd": zeromq_fd(world), "pieces": [octets.hex()], "times": times, "number": 0}
        with others_are_served(world), growth(pid) as sizes:
            # then something honest, for what waits for more
            world.attempt(WRITE + "me.keyd_many([ops.Drop(handle=bytes(16))] * 80)", **facts)
            assert wait_for(lambda pid=pid: world.victim.processes().get("keyd") not in (None, pid)), name
        assert max(sizes) - sizes[0] < 16 * MEGABYTE, name
        world.recover()
    assert world.bystander_works()
    frame = short(HONEST_DROP).hex()
    answer = world.attack(WRITE, fd=zeromq_fd(world), pieces=[frame], times=1, number=2**41)
    assert answer["kind"] == "Refused"
    record("ZeroMQ's bounds, the schema, keyd's end", "an honest frame written alike: answered")


def test_it_cannot_fill_the_machine_with_half_messages(worlds, record):
    """ZeroMQ counts whole messages; what bounds the parts of one that never ends is keyd's address space."""
    part = b"\x03" + (30_000).to_bytes(8, "big") + bytes(30_000)

    def write(world: World) -> tuple[object, int]:
        facts = {"fd": zeromq_fd(world), "pieces": [part.hex()], "times": 40_000, "number": 0}
        with others_are_served(world), growth(world.pid("keyd")) as sizes:
            return world.attempt(WRITE, **facts), max(sizes)

    world = worlds(SHIPPED)
    mark = world.mark()
    outcome, most = write(world)
    assert outcome != "written"
    assert world.logged(mark, r'^keyd: info epoch-ends reason="the other end is gone"')
    assert most < 1024 * MEGABYTE
    world.recover()
    assert world.bystander_works()
    lax = worlds(UNBOUNDED)
    assert write(lax)[0] == "written"
    swollen = memory(lax.pid("keyd"))
    assert swollen > 1024 * MEGABYTE
    lax.attempt("os._exit(0)")
    record(f"RLIMIT_AS of keyd ({most >> 20} MiB of 1.2 GB)", f"of 4 GiB: {swollen >> 20} MiB taken")
