"""A captured worker floods, does not read, takes all it can, dies again and again: it meets a bound, others go on.

The controls are the same code against a gateway whose bounds are lifted, or the honest form of the same conduct.
"""

import contextlib
import re
import threading
import time
from collections import Counter

import pytest
from bounds import MEGABYTE, PATIENCE, SHIPPED, UNBOUNDED, ends, growth, memory, others_are_served, violation
from captured import MAGIC
from counterpart import Peer, Session, Worker, wish
from lab import LEFT, wait_for
from world import IKE_PORT, SECOND, Plan, World

from keyd.handles import MAX_CHILDREN
from keyd.phase1 import HALF_OPEN, OF_ONE_IDENTITY
from monitor.epoch import MAX_DESCRIBED
from monitor.logpipe import LINES_PER_SECOND, MAX_LINE
from monitor.sadb import MAX_ALLOCATED_PER_CONNECTION
from privsep.cli.control import ask
from privsep.errors import OperatorError
from privsep.rate import TELL_SECONDS
from privsep.schema import install

# a reader that does not read

NOT_READING = """
def push(send, busy, frame):
    # the answers stay where they are; ZeroMQ's thread may take as many as its own bound admits
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            return send(frame)
        except busy:
            time.sleep(0.001)

if channel == "keyd":
    # refused at once: the suite is not proposed
    request = ops.IkeOffer(
        connection="peer", suite=algorithms.IkeSuite.parse("aes128-sha1-modp2048"), cky_i=b"i" * 8, cky_r=b"r" * 8,
        sai_b=b"x", local=ipaddress.ip_address("192.0.2.1"), remote=ipaddress.ip_address("192.0.2.2"),
    )
    sock, table, busy = me.shell._keyd._sock, ops.REQUESTS, zmq.Again
    send = lambda frame: sock.send(frame, zmq.NOBLOCK)
else:
    request, table, busy = install.Remove(spi_in=4711), install.FROM_WORKER, BlockingIOError
    send = me.shell._monitor._sock.send
numbers, taken = range(2**41, 2**41 + count), 0
for number in numbers:
    push(send, busy, table.encode(request, number))
    if read and (number % 256 == 0 or number == numbers[-1]):
        me.wait(number, me._turn)
        taken += 1
result = taken + len([number for number in numbers if number in me.answers])
me.answers.clear()
"""


@pytest.mark.parametrize(("channel", "count"), [("keyd", 40_000), ("monitor", 12_000)])
def test_it_cannot_fill_the_other_end_by_not_reading(worlds, record, channel, count):
    world = worlds(SHIPPED)
    process = world.pid(channel)
    with others_are_served(world), growth(process) as sizes:
        reason = violation(channel, "(channel to worker: )?the other end does not read")
        ends(world, NOT_READING, reason, channel=channel, count=count, read=False)
    swollen = max(sizes) - sizes[0]
    assert swollen < 32 * MEGABYTE
    assert world.bystander_works()
    answered = world.attack(NOT_READING, channel=channel, count=count, read=True)
    assert answered == count
    record(f"queue with a bound ({swollen >> 10} KiB)", f"reading: {answered} answered")


OPEN_AT_ONCE = """
busy = {"id": 0, "code": "time.sleep(2)", "facts": {}}
me.raw_keyd(b"\\x7fcaptured\\x7f" + json.dumps(busy).encode())
time.sleep(0.2)
ends = types.Endpoint(ipaddress.ip_address("192.0.2.1"), 500), types.Endpoint(ipaddress.ip_address("192.0.2.2"), 500)
request = install.InstallInbound(keymat=bytes(16), local=ends[0], remote=ends[1])
for number in range(2**41, 2**41 + 5000):
    frame = install.FROM_WORKER.encode(request, number)
    while True:
        try:
            me.raw_monitor(frame)
            break
        except BlockingIOError:
            time.sleep(0.001)
result = type(me.wait(number, me._turn)).__name__
"""


def test_it_cannot_leave_any_number_of_requests_open(worlds, record):
    world = worlds(SHIPPED)
    with others_are_served(world):
        ends(world, OPEN_AT_ONCE, violation("monitor", "violation: too many requests at once"))
    assert world.bystander_works()
    assert worlds(UNBOUNDED).attack(OPEN_AT_ONCE) == "Denied"
    record("open requests are bounded", "not bounded: all 5000 judged")


# quotas

HELD = "result = sum(type(each).__name__ == kind for each in me.service._registry._entries.values())"
THERE = "result = bytes.fromhex(handle) in me.service._registry._entries"
OFFERS = """
request = ops.IkeOffer(
    connection="second", suite=algorithms.IkeSuite.parse("aes128-sha256-curve25519"), cky_i=b"i" * 8, cky_r=b"r" * 8,
    sai_b=b"x", local=ipaddress.ip_address("192.0.2.1"), remote=ipaddress.ip_address("192.0.2.4"),
)
result = {}
for _ in range(5):
    for answer in me.keyd_many([request] * 2000):
        kind = str(getattr(answer, "why", type(answer).__name__))
        result[kind] = result.get(kind, 0) + 1
"""


def test_it_cannot_exhaust_keyd_with_twenty_thousand_requests(worlds, record):
    world = worlds(SHIPPED)
    world.attempt("os._exit(0)")
    pid, answers, began = world.pid("keyd"), Counter(), time.monotonic()
    with others_are_served(world), growth(pid) as sizes:
        for _ in range(2):
            answers.update(world.attack(OFFERS))
    seconds = time.monotonic() - began
    assert answers == {"IkeKeys": 20_000}
    swollen = max(sizes) - sizes[0]
    assert swollen < 64 * MEGABYTE
    held = world.in_keyd(HELD, kind="IkeSa")
    assert HALF_OPEN.total <= held <= HALF_OPEN.total + 8
    # they are half-open ones: what authenticated peers have is theirs
    world.honest.cli("up", "peer/net")
    assert world.bystander_works()
    lax = worlds(UNBOUNDED)
    assert lax.attack(OFFERS) == {"IkeKeys": 10_000}
    assert lax.in_keyd(HELD, kind="IkeSa") >= 10_000
    record(f"half-open ones have a quota ({swollen >> 20} MiB, {seconds:.0f} s)", "nothing gives way: all 10000 held")


def test_one_peer_cannot_take_what_others_need(worlds, record):
    """An authenticated peer opened IKE SAs until nobody else got in, for an hour."""

    def attack(world: World) -> list[bool]:
        worker, sessions = Worker(world), []
        for _ in range(OF_ONE_IDENTITY.each + 4):
            sessions.append(Session(worker, Peer()))
            sessions[-1].respond()
        return [world.in_keyd(THERE, handle=each.ours.hex()) for each in sessions]

    world = worlds(SHIPPED)
    there = attack(world)
    assert there == [False] * 4 + [True] * OF_ONE_IDENTITY.each
    world.honest.cli("down", "peer")
    world.honest.cli("up", "peer/net")
    assert world.bystander_works()
    assert all(attack(worlds(UNBOUNDED)))
    record(f"an identity has {OF_ONE_IDENTITY.each} IKE SAs, its oldest goes", "nothing gives way: all held")


QUICK_OFFERS = """
local_ts, remote_ts = (types.TrafficSelector(ipaddress.ip_network(each)) for each in ("10.1.0.0/24", "10.4.0.0/24"))
request = ops.QuickOffer(
    ike=bytes.fromhex(ike), child="net", group=algorithms.Group.MODP_2048, encap=False, spi_in=300, cpi_in=None,
    local_ts=local_ts, remote_ts=remote_ts, originals=(),
)
result = [str(getattr(answer, "why", type(answer).__name__)) for answer in me.keyd_many([request] * count)]
"""


def test_it_cannot_begin_any_number_of_quick_modes(worlds, record):
    def begin(world: World) -> Counter:
        session = Session(Worker(world), Peer())
        session.initiate()
        return Counter(world.attack(QUICK_OFFERS, ike=session.ours.hex(), count=MAX_CHILDREN + 10))

    world = worlds(SHIPPED)
    assert begin(world) == {"QuickOffered": MAX_CHILDREN, "Refusal.QUOTA": 10}
    assert world.bystander_works()
    assert begin(worlds(UNBOUNDED)) == {"QuickOffered": MAX_CHILDREN + 10}
    record(f"Quick Modes of one IKE SA are bounded ({MAX_CHILDREN})", "not bounded: 10 more")


def test_it_cannot_pile_up_keymat(worlds, record):
    """Eight thousand would take a while: the bound is lowered in keyd itself."""
    world = worlds(SHIPPED)
    # a new worker replaces what it adopted, which takes keymat of its own
    assert wait_for(lambda: not world.victim.status()["adopted"], 30)
    worker = Worker(world)
    session = Session(worker, Peer())
    session.initiate()
    spi_in = worker.allocate()

    def pile() -> int:
        before = world.in_keyd(HELD, kind="Keymat")
        for _ in range(5):
            session.keyed(spi_in)
        return world.in_keyd(HELD, kind="Keymat") - before

    world.in_keyd("phase2.shipped = phase2.Keymat.quota\nphase2.Keymat.quota = type(phase2.shipped)(2)")
    assert pile() == 2
    world.in_keyd("phase2.Keymat.quota = phase2.shipped")
    assert pile() == 5
    worker.monitor(install.Remove(spi_in=spi_in))
    assert world.bystander_works()
    record("keymat that waits is bounded (of 5 the older 3 go)", "bound back at 8192: all 5 wait")


ALLOCATE = """
request = install.FROM_WORKER.decode(bytes.fromhex(frame))[0]
answers = [me.monitor(request) for _ in range(count)]
for spi in [answer.spi for answer in answers if isinstance(answer, install.Allocated)]:
    me.monitor(install.Remove(spi_in=spi))
result = [str(getattr(answer, "why", type(answer).__name__)) for answer in answers]
"""


def test_it_cannot_take_all_spis(worlds, record):
    frame = install.FROM_WORKER.encode(wish("second", "net", SECOND), 0)
    facts = {"frame": frame.hex(), "count": MAX_ALLOCATED_PER_CONNECTION + 10}
    world = worlds(SHIPPED)
    mark = world.mark()
    expected = {"Allocated": MAX_ALLOCATED_PER_CONNECTION, "Denial.QUOTA": 10}
    assert Counter(world.attack(ALLOCATE, **facts)) == expected
    assert world.logged(mark, r"^warning denied reason=quota connection=second child=net remote=")
    assert world.bystander_works()
    assert Counter(worlds(UNBOUNDED).attack(ALLOCATE, **facts)) == {"Allocated": facts["count"]}
    record(f"SPIs of a connection are bounded ({MAX_ALLOCATED_PER_CONNECTION})", "not bounded: 10 more")


# look-ups

COUNTED = """
from monitor import lookup
from privsep import log
from privsep.log import Level
ask = lookup.Resolvers.ask
def counted(self, name, version, told):
    log.event(Level.NOTICE, "name-resolved", name=name, to="a test that counts")
    ask(self, name, version, told)
lookup.Resolvers.ask = counted
"""
REMARKS = """
deadline, sent = time.monotonic() + 8, 0
while time.monotonic() < deadline:
    for name in ("named", "named", "peer", "nobody"):
        me.tell_monitor(install.Unanswered(connection=name))
        sent += 1
    time.sleep(0.002)
result = sent
"""


def test_it_cannot_make_a_storm_of_look_ups(worlds, record):
    """It may say that a peer named by the configuration does not answer, and the name is then looked up again."""

    def looked_up(plan: Plan) -> int:
        world = worlds(plan)
        assert world.logged(0, "^notice name-resolved name=localhost")
        mark = world.mark()
        assert world.attack(REMARKS) > 1000
        assert world.bystander_works()
        return len(re.findall("^notice name-resolved name=localhost", world.log_since(mark), re.M))

    paced = looked_up(SHIPPED.without(monitor=COUNTED))
    # one that was due all the same may be among them: the pauses begin with 5 s
    assert paced <= 3
    stormy = looked_up(SHIPPED.without(monitor=COUNTED + "from monitor import names\nnames.HASTE_SECONDS = 0.0"))
    assert stormy > 2 * paced + 3
    record(f"a name is looked up after a pause ({paced} in 8 s)", f"without the pause {stormy}")


# the log

FORGED = "notice installed connection=second child=net identity=192.0.2.4"
LINES = {
    "another line": b"innocent\n" + FORGED.encode() + b"\n",
    "another process": b'keyd: error epoch-ends reason="forged"\n',
    "carriage return": b"innocent\r" + FORGED.encode() + b"\n",
    "escapes": b"\x1b[2J\x1b]0;title\x07\x9b31m\n",
    "other newlines": "a\x85b\u2028c\x0bd\x0ce\n".encode(),
    "zero octets": b"a\x00b\n",
}


def test_it_cannot_speak_for_others_in_the_log(worlds, record):
    def write(world: World, octets: bytes) -> str:
        mark = world.mark()
        world.attack("os.write(2, bytes.fromhex(octets) + b'that was all\\n')", octets=octets.hex())
        assert world.logged(mark, "that was all$")
        return world.log_since(mark)

    world, lax = worlds(SHIPPED), worlds(UNBOUNDED)
    for name, octets in LINES.items():
        for line in write(world, octets).splitlines():
            assert line.startswith("worker: "), name
            assert line.isascii(), name
            assert line.isprintable(), name
    assert world.bystander_works()
    assert any(line == FORGED for line in write(lax, LINES["another line"]).splitlines())
    assert "\x1b[2J" in write(lax, LINES["escapes"])
    record("the log pipe names and escapes", "neither: the forged line and the escapes stand there")


def test_it_cannot_speak_for_the_monitor_in_events(worlds, record):
    """What it writes in the form of an event reaches those who follow, as its own word."""
    world = worlds(SHIPPED)
    forms = ("{} process=monitor mark=forged\n", "monitor: {} mark=forged\n", '{} reason="x\\u000a" mark=forged\n')
    lines = "".join(form.format(FORGED) for form in forms)
    seen: list[dict] = []

    def follow() -> None:
        with contextlib.suppress(OperatorError):
            ask(str(world.victim.run_dir), {"command": "events"}, seconds=10, told=seen.append)

    follower = threading.Thread(target=follow)
    follower.start()
    mark, run_dir = world.mark(), str(world.victim.run_dir)
    # what the monitor itself tells, which shows that the follower is there
    assert wait_for(lambda: ask(run_dir, {"command": "log", "level": "info"}, seconds=10) and seen, 10)
    world.attack("os.write(2, bytes.fromhex(octets) + b'that was all\\n')", octets=lines.encode().hex())
    assert world.logged(mark, "that was all$")
    assert world.bystander_works()
    follower.join()
    forged = [each for each in seen if each["fields"].get("mark") == "forged"]
    assert [each["process"] for each in forged] == ["worker", "worker"]
    assert forged[0]["fields"]["process"] == "monitor"
    assert {each["event"] for each in seen if each["process"] == "monitor"} == {"level-set"}
    record("an event is of the process whose pipe it came by", "the monitor's own events say that they are")


FLOOD = """
def say(octets):
    # the pipe never blocks it; it loses what it says while the pipe is full
    try:
        return os.write(2, octets)
    except BlockingIOError:
        time.sleep(0.001)
        return 0

end, count = time.monotonic() + 2, 0
while time.monotonic() < end:
    count += say(b"flood\\n" * 100) // 6
# then one long line, in a second that has lines left
time.sleep(1.5)
rest = memoryview(b"x" * 2**20 + b"\\nthat was all\\n")
while rest:
    rest = rest[say(rest):]
result = count
"""


def test_it_cannot_drown_the_log(worlds, record):
    def flood(world: World) -> tuple[int, int, int]:
        """Lines written, lines that arrived, octets of a line of 1 MiB that arrived."""
        mark = world.mark()
        with others_are_served(world):
            written = world.attack(FLOOD)
            assert wait_for(lambda: "that was all" in world.log_since(mark), 20)
        text = world.log_since(mark)
        return written, text.count("flood"), max(map(len, text.splitlines()))

    world = worlds(SHIPPED)
    began, mark = time.monotonic(), world.mark()
    written, arrived, longest = flood(world)
    assert arrived <= LINES_PER_SECOND * (time.monotonic() - began + 1)
    assert longest < MAX_LINE + 100
    dropped = re.compile(r"^worker: \((\d+) lines dropped\)$", re.M)
    assert wait_for(
        lambda: arrived + sum(map(int, dropped.findall(world.log_since(mark)))) >= written - LINES_PER_SECOND,
        2 * TELL_SECONDS,
    )
    assert world.logged(mark, rf"^worker: x{{{MAX_LINE}}}\.\.\. \(\d+ octets more\)$")
    assert world.bystander_works()
    lax_written, lax_arrived, lax_longest = flood(worlds(UNBOUNDED))
    assert (lax_arrived, lax_longest) == (lax_written, 2**20)
    record(f"rate and length of lines ({arrived} of {written} arrived)", f"neither: {lax_arrived} of {lax_written}")


# the supervisor

DEADLY = b'{"id": 0, "facts": {}, "code": "ctypes.string_at(0)"}'


def pauses(world: World, number: int) -> list[float]:
    """So many restarts of a worker that is killed as soon as it listens."""
    mark = world.mark()

    def seen() -> list[float]:
        return [float(each) for each in re.findall(r"^notice restart after_s=(\S+)$", world.log_since(mark), re.M)]

    with others_are_served(world):
        for shots in range(number):
            assert wait_for(lambda shots=shots: world.log_since(mark).count("epoch-began") >= shots, 30)
            # it waits in the socket for whoever reads next
            world.attacker.sendto(MAGIC + DEADLY, (LEFT, IKE_PORT))
            assert wait_for(lambda shots=shots: len(seen()) > shots, 10), world.log_since(mark)
    world.recover()
    return seen()


def test_it_cannot_keep_the_supervisor_busy_by_dying(worlds, record):
    world = worlds(Plan(weaken=()))
    assert pauses(world, 5) == [0.2, 0.4, 0.8, 1.6, 3.2]
    assert world.bystander_works()
    assert pauses(worlds(Plan()), 5) == [0.2] * 5
    record("the pause between epochs doubles", "an epoch counts as healthy at once: 0.2 s each")


# status

TALES = """
suite = algorithms.ChildSuite.parse("aes128-sha1")
selector = types.TrafficSelector(ipaddress.ip_network("10.1.0.0/24"))
end = types.Endpoint(ipaddress.ip_address("192.0.2.1"), 500)
child = install.ChildStatus(
    name="n", state="s", suite=suite, spi_in=256, spi_out=256, local_ts=(selector,), remote_ts=(selector,), encap=False,
    age_s=0,
)
sa = install.IkeStatus(
    connection="", role=types.Role.INITIATOR, mode="m", state="s", local=end, remote=end, local_id=None, remote_id=None,
    cky_i=bytes(8), cky_r=bytes(8), suite=None, nat="n", established_s=0, rekey_in_s=0, children=(child,) * 60,
)
honest, told = me.shell._monitor._handler, 0

def tale(message, sequence):
    global told
    if not isinstance(message, install.Describe):
        return honest(message, sequence)
    told += 1
    cursor = 0 if told >= most else 1 if back else message.cursor + 1
    me.tell_monitor(install.Described(cursor=cursor, ike_sas=() if back else (sa,) * 16), sequence)

me.shell._monitor._handler = tale
"""
TRUTH = "me.shell._monitor._handler = honest\nresult = told"


def status(world: World) -> tuple[dict, float]:
    """What the operator is told, and after how many seconds."""
    began = time.monotonic()
    answer = ask(str(world.victim.run_dir), {"command": "status"}, seconds=60)
    return answer, time.monotonic() - began


def test_it_cannot_lead_a_status_in_circles(worlds, record):
    world = worlds(SHIPPED)
    mark = world.mark()
    world.attack(TALES, back=True, most=500)
    answer, seconds = status(world)
    assert answer["status"]["worker"] == "restarting"
    assert seconds < PATIENCE
    assert world.logged(mark, violation("monitor", "violation: a description that does not go on"))
    world.recover()
    assert world.bystander_works()
    lax = worlds(UNBOUNDED)
    lax.attack(TALES, back=True, most=500)
    assert status(lax)[0]["status"]["worker"] == "running"
    assert lax.attack(TRUTH) == 500
    record("each page goes on from the last, or the epoch ends", "not compared: 500 pages taken")


def test_it_cannot_swell_the_monitor_with_a_status(worlds, record):
    world = worlds(SHIPPED)
    before = memory(world.pid("monitor"))
    world.attack(TALES, back=False, most=10_000)
    _, seconds = status(world)
    pages, swollen = world.attack(TRUTH), memory(world.pid("monitor")) - before
    assert pages <= MAX_DESCRIBED // (16 * 61) + 1
    assert swollen < 256 * MEGABYTE
    assert world.bystander_works()
    lax = worlds(UNBOUNDED)
    lax.attack(TALES, back=False, most=pages + 50)
    status(lax)
    assert lax.attack(TRUTH) == pages + 50
    record(
        f"SAs of a description are bounded ({pages} pages, {swollen >> 20} MiB, {seconds:.1f} s)",
        "not bounded: all pages",
    )
