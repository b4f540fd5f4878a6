"""A captured ESP process: it has traffic keys, the TUN device and ESP's sockets; it gets nothing of IKE and no say.

Where it is ended the daemon ends, as an SA without the process would be a promise without anybody: then traffic is
refused, never in the clear. Code arrives as an ESP packet of an SPI that is not ours.
"""

import contextlib
import statistics
import time
from dataclasses import dataclass

import pytest
from bounds import PATIENCE
from lab import RIGHT_HOST, Wiretap, run, wait_for
from load import Load
from memory import open_session, search, traffic_keys, turn
from reach import COMMON, PREPARED, SHIPPED, TRUSTING, facts, negotiate, pairs, reach, second_peer
from test_reach_out import Attempt
from world import PSK, SECOND_PSK, Killed, World

from privsep.cli.control import ask
from privsep.iana import ExchangeType

pytestmark = pytest.mark.filterwarnings("ignore:Diffie-Hellman over finite fields")

KINDS = ("find the secrets", "open the secrets", "execute a program", "fork", "make a socket for XFRM",
         "read another's memory", "make a system call of i386")  # fmt: skip
ATTEMPTS = {name: COMMON[name] for name in KINDS} | {
    "keep the TUN device beyond the daemon": Attempt(
        "call(16, me.forwarder._tun, 0x400454CB, 1)\ncall(16, me.forwarder._tun, 0x400454CB, 0)",
        "succeeded",
        shipped="ENOTTY",
    )
}


def clear_text(world: World) -> int:
    """How many packets of a ping to the protected network leave in the clear."""
    tap = Wiretap(world.network)
    try:
        assert world.network.left.ping(RIGHT_HOST, count=1) == 0
        return tap.counts()["cleartext"]
    finally:
        tap.close()


def ended(world: World) -> None:
    """The daemon has failed, traffic is refused, and a new start brings everything back."""
    assert world.victim.process.wait(20) == 1
    assert clear_text(world) == 0
    world.victim.launch()
    world.connect()


def one(world: World, code: str) -> str:
    """What becomes of the code; with the process, the daemon ends."""
    mark, pid = world.mark(), world.pid("userspace")
    try:
        outcome = world.in_esp(PREPARED + code, **facts(world, "keyd"))
    except Killed as killed:
        outcome = killed.how
        assert world.logged(mark, f'^error process-ended process=userspace pid={pid} how="{outcome}"$')
        ended(world)
    assert world.bystander_works()
    return outcome


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_captured_esp_process_cannot(worlds, record, name):
    stopped_by = reach(worlds, ATTEMPTS[name], one)
    record(stopped_by, f"unconfined: {ATTEMPTS[name].bare}")


def test_the_clear_text_that_the_others_look_for_is_seen_once_the_refusing_routes_are_gone(worlds, record):
    world = worlds(SHIPPED)
    with pytest.raises(Killed):
        world.in_esp("os.fork()")
    assert world.victim.process.wait(20) == 1
    assert clear_text(world) == 0
    run("ip", "-n", world.network.left.namespace, "route", "flush", "table", "4500")
    assert clear_text(world) > 0
    world.victim.launch()
    world.connect()
    record("routes that refuse outlive the daemon", "routes flushed: the ping leaves in the clear")


# secrets

SECRETS = {"PSK": SECOND_PSK.encode(), "PSK of the bystander": PSK.encode()}


def test_what_remains_it_has_the_traffic_keys_and_no_secret_of_ike(worlds, record):
    world = worlds(SHIPPED)
    with second_peer(world) as load:
        secrets = SECRETS | open_session(load)
        assert wait_for(lambda: "KEYMAT in, cipher" in search(world.pid("userspace"), "userspace", secrets))
    traffic = {name for name in secrets if name.startswith("KEYMAT")}
    assert search(world.pid("userspace"), "userspace", secrets) == traffic
    assert search(world.pid("keyd"), "keyd", secrets) >= {*SECRETS, "SKEYID_d", "SKEYID_a", "the cipher's key"}
    record("IKE's secrets never come there", "the same search finds them in keyd")


class Holding:
    """The initiator's socket, which keeps back the last message of Quick Mode."""

    def __init__(self, sock) -> None:
        self._sock, self._quick = sock, []

    def send(self, data: bytes) -> None:
        if data[18] == ExchangeType.QUICK_MODE and data not in self._quick:
            self._quick.append(data)
        if data not in self._quick[1:]:
            self._sock.send(data)

    def release(self) -> None:
        self._sock.send(self._quick.pop())

    def __getattr__(self, name: str):
        return getattr(self._sock, name)


def keys_of_a_held_pair(load: Load) -> dict[str, bytes]:
    load._socket = Holding(load._socket)
    tunnel = load.open()
    turn(load, lambda: tunnel.outcome is not None)
    return traffic_keys(tunnel)


def test_it_does_not_have_the_key_to_send_by_before_the_peer_has_confirmed(worlds, record):
    """What receives it has before message 2 leaves, judged by the monitor; what sends with message 3, which is held."""
    world = worlds(SHIPPED)
    with second_peer(world) as load:
        keys = keys_of_a_held_pair(load)
        assert search(world.pid("keyd"), "keyd", keys) == keys.keys()
        # the peer's, who began: it sends by what we receive
        assert search(world.pid("userspace"), "userspace", keys) == {"KEYMAT out, cipher"}
        mark = world.mark()
        load._socket.release()
        assert world.logged(mark, "^notice installed connection=second")
    assert search(world.pid("userspace"), "userspace", keys) == keys.keys()
    record("keys come with the order to install", "once it is installed the same search finds them")


# what is no answer

DEAF = "me.forwarder._loop.on_readable(me.forwarder.channel.fileno(), None)\n"
"""It does not hear that the channel has ended."""
FRAMES = {
    "an answer to nothing": ("esp.REPLIES.encode(esp.Ok(), 2**40)", "violation: an answer to nothing"),
    "a request for keys": (
        "keymat.REQUESTS.encode(keymat.RedeemInbound(keymat=bytes(16)), 1)",
        "violation: wrong number of",
    ),
    "an oversize frame": ("bytes(70000)", "violation: frame too long"),
    "no msgpack": ("b'\\xc1' * 64", "violation: not one msgpack value"),
    "a policy that is no number": ("msgpack.packb([4, 0, True])", "violation: field policy is out of bounds"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_it_is_ended_with_the_daemon_when_it_says(worlds, record, name):
    frame, reason = FRAMES[name]
    say = f"me.forwarder.channel.send({frame})"
    world = worlds(SHIPPED)
    mark, pid = world.mark(), world.pid("userspace")
    # its end may be quicker than its answer
    with contextlib.suppress(Killed):
        world.in_esp(DEAF + say)
    assert world.logged(mark, f'^error dataplane-lost reason="{reason}')
    assert world.end_of(pid) == "killed by SIGKILL"
    ended(world)

    trusting = worlds(TRUSTING)
    pid = trusting.pid("userspace")
    trusting.in_esp(say)
    assert not wait_for(lambda: trusting.victim.process.poll() is not None, 0.5)
    assert trusting.pid("userspace") == pid
    assert trusting.bystander_works()
    record("a violation ends process and daemon", "where it ends nothing, the process carries on")


def test_a_wrong_answer_to_an_order_is_no_success(worlds, record):
    world = worlds(SHIPPED)
    say = """
honest = type(me.forwarder).handle
me.forwarder.handle = lambda order: {wrong} if isinstance(order, {orders}) else honest(me.forwarder, order)
"""
    try:
        for wrong in ("esp.Failed()", "esp.Trapped(policy=1)", "esp.PairExpired(spi_in=order.spi_in)",
                      "esp.Counters(bytes_in=1, bytes_out=1, packets_in=1, packets_out=1)"):  # fmt: skip
            world.in_esp(say.format(wrong=wrong, orders="esp.AddInbound"))
            assert negotiate(world).startswith("warning denied reason=dataplane")
        world.in_esp(say.format(wrong="esp.Ok()", orders="esp.AddInbound | esp.AddOutbound"))
        before = pairs(world)
        assert negotiate(world).startswith("notice installed")
        assert pairs(world) == before
    finally:
        world.in_esp("del me.forwarder.handle")
    assert world.bystander_works()
    record("success is Ok and nothing else", "Ok: believed; the traffic then finds no pair")


# events


@dataclass(frozen=True)
class Event:
    """A report about what is not there, or is, and what the monitor then logs."""

    report: str
    absent: str
    present: str
    logged: str


EVENTS = {
    "traffic for a policy": Event("Trapped(policy={})", "65535", "max(me.database._policies)", "^info acquire "),
    "a worn pair": Event("PairWorn(spi_in={})", "256", "max(me.database._by_spi)", "^info expires "),
    "an expired pair": Event("PairExpired(spi_in={})", "256", "max(me.database._by_spi)", "^notice expired "),
}


@pytest.mark.parametrize("name", EVENTS)
def test_a_report_about_what_is_not_there_has_no_effect(worlds, record, name):
    world, event = worlds(SHIPPED), EVENTS[name]
    mark, before = world.mark(), world.victim.processes()
    report = "me.forwarder._report(esp." + event.report + ")"
    for _ in range(10):
        world.in_esp(report.format(event.absent))
    # an answer to this comes after whatever they caused
    assert ask(str(world.victim.run_dir), {"command": "status"}, seconds=10)["status"]
    assert world.log_since(mark) == ""
    assert world.victim.processes() == before
    assert world.bystander_works()

    trusting = worlds(TRUSTING)
    assert negotiate(trusting).startswith("notice installed")
    mark = trusting.mark()
    trusting.in_esp(report.format(event.present))
    assert trusting.logged(mark, event.logged)
    record("the monitor's own tables", f"of what is there: logged {event.logged[1:]}")


def test_false_counters_show_in_status_and_nowhere_else(worlds, record):
    world = worlds(SHIPPED)
    most = 2**63 - 1
    mark = world.mark()
    counted = [child["bytes_in"] for child in world.victim.children()]
    assert counted
    assert most not in counted
    numbers = ", ".join(f"{name}={most}" for name in ("bytes_in", "bytes_out", "packets_in", "packets_out"))
    world.in_esp(f"me.forwarder._counters = lambda pair: esp.Counters({numbers})")
    assert {child["bytes_in"] for child in world.victim.children()} == {most}
    world.in_esp("del me.forwarder._counters")
    assert world.log_since(mark) == ""
    assert world.bystander_works()
    record("counters are for people only", "status shows them")


FLOOD = """
frames = [esp.REPLIES.encode(esp.Trapped(policy=each), 0) for each in me.database._policies]
frames += [esp.REPLIES.encode(esp.PairWorn(spi_in=each), 0) for each in me.database._by_spi]
until, me.sent = time.monotonic() + seconds, 0

def pour():
    try:
        while True:
            for frame in frames:
                me.forwarder.channel.send(frame)
                me.sent += 1
    except BlockingIOError:
        if time.monotonic() < until:
            me.forwarder._loop.after(0.0, pour)

pour()
"""


def flooded(world: World, seconds: float) -> tuple[int, str, float, float]:
    """How many reports were sent, the log, the usual wait for a status meanwhile, the seconds that the log is of."""
    mark, began, waits = world.mark(), time.monotonic(), []
    world.in_esp(FLOOD, seconds=seconds)
    while time.monotonic() - began < seconds:
        asked = time.monotonic()
        ask(str(world.victim.run_dir), {"command": "status"}, seconds=10)
        waits.append(time.monotonic() - asked)
    time.sleep(1)
    sent, log = world.in_esp("result = me.sent"), world.log_since(mark)
    return sent, log, statistics.median(waits), time.monotonic() - began


def test_a_flood_of_reports_fills_no_log_ends_no_epoch_and_does_not_hold_up_the_operator(worlds, record):
    world = worlds(SHIPPED)
    policies, installed = world.in_esp("result = [len(me.database._policies), len(me.database._by_spi)]")
    sent, log, wait, lasted = flooded(world, 3.0)
    assert sent > 10000
    # twice a second for each policy, once for each pair
    assert policies <= log.count("info acquire") <= policies * 2 * (lasted + 1)
    assert log.count("info expires") == installed
    assert "epoch-ends" not in log
    assert wait < PATIENCE
    assert world.bystander_works()
    sent, log, *_ = flooded(worlds(TRUSTING), 0.3)
    assert log.count("info acquire") > 1000
    record("a report counts once in a while", f"no rate: {log.count('info acquire')} lines in 0.3 s")
