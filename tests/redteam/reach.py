"""What a captured keyd and a captured ESP process reach out for: one attempt of each kind, in three worlds, as
`test_reach_out.py` does for the worker; and the worlds that both files share.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from lab import LEFT, LEFT_HOST
from load import Load
from memory import turn
from test_reach_out import (
    ANYWHERE,
    BARE_MONITOR,
    DONE,
    FILES,
    MEMORY,
    NO_FILTER,
    PROGRAMS,
    SOCKETS,
    SURROUNDINGS,
    Attempt,
)
from world import ESP, IKE, SECOND, SECOND_HOST, SECOND_PSK, Plan, World

BARE_KEYD = """
entry.begin = lambda: None
entry.become_user = lambda confinement, workplace: os.chdir(workplace)
entry.lock_down = lambda confinement: None
"""
BARE_ESP = """
entry.begin = lambda: None
entry.become_user = entry.lock_down = lambda confinement: None
"""
TRUSTING_MONITOR = """
import monitor.authorize, monitor.userspace.client, privsep.rate
from monitor.supervisor import Supervisor
from privsep.channel import Channel

def find_child(gateway, connection, child, find=monitor.authorize.find_child):
    return find(gateway, connection, child) or find(gateway, "second", "net")

def unless_violated(method):
    return lambda self, reason: None if "violation" in reason else method(self, reason)

monitor.authorize.CHECKS = monitor.authorize.FORESEEABLE = ()
monitor.authorize.find_child = find_child
monitor.authorize._lengths_fit = lambda suite, encryption, integrity: True
privsep.rate.LINES_PER_SECOND, monitor.userspace.client.TRAP_SECONDS = 10**9, 0.0
Supervisor.end_epoch = unless_violated(Supervisor.end_epoch)
Channel.close = unless_violated(Channel.close)
"""
"""No second opinion, no rate, and a violation has no consequence."""

SHIPPED = Plan(("worker", "keyd", "monitor.userspace"))
"""All three, so that a world serves every scenario: the worker carries the code to keyd."""
UNFILTERED = SHIPPED.without(monitor=NO_FILTER, keyd=NO_FILTER, esp=NO_FILTER)
BARE = SHIPPED.without(monitor=BARE_MONITOR, keyd=BARE_KEYD, esp=BARE_ESP)
TRUSTING = SHIPPED.without(monitor=TRUSTING_MONITOR)

PREPARED = (
    ANYWHERE
    + """

def through_a_new_socket(family, kind, work):
    # the limit on descriptors counts: whoever closes one may have another
    os.close(0)
    try:
        with socket.socket(family, kind) as sock:
            work(sock)
    finally:
        os.dup2(1, 0)
"""
)

COMMON = {
    "find the secrets": FILES["find the secrets"],
    "open the secrets": FILES["open the secrets"],
    "write a file": FILES["write a file"],
    "execute a program": PROGRAMS["execve"],
    "fork": PROGRAMS["fork"],
    "make a socket for XFRM": SOCKETS["a socket of family NETLINK, XFRM"],
    "trace another": Attempt("trace(other)", "EPERM"),
    "read another's memory": Attempt(
        "target = ctypes.create_string_buffer(16)\n"
        "ours = struct.pack('<2Q', ctypes.addressof(target), 16)\ntheirs = struct.pack('<2Q', address, 16)\n"
        "call(310, other, ours, 1, theirs, 1, 0)",
        "EPERM",
    ),
    "signal the monitor": Attempt("os.kill(monitor, signal.SIGCONT)", "EPERM"),
    "enter a user namespace": SURROUNDINGS["a user namespace"],
    "make memory executable": MEMORY["make memory executable"],
    "make a system call of i386": MEMORY["a system call of i386"],
}


def facts(world: World, other: str) -> dict[str, object]:
    """What an attacker may know: names of files, numbers of processes, an address that is mapped in the other one."""
    pid = world.pid(other)
    heap = next(line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "[heap]" in line)
    planted = world.victim.site.directory / "place"
    planted.mkdir(exist_ok=True)
    return {
        "other": pid,
        "monitor": world.pid("monitor"),
        "address": int(heap.split("-")[0], 16),
        "secrets": str(world.victim.secrets),
        "directory": str(planted),
        "control": str(world.victim.run_dir / "control.sock"),
    }


def reach(worlds, attempt: Attempt, one: Callable[[World, str], str]) -> str:
    """Try in all three worlds, each time by `one`; what stopped it where it is stopped."""
    outcomes = {
        "shipped": one(worlds(SHIPPED), attempt.code),
        "unfiltered": one(worlds(UNFILTERED), attempt.code),
        "bare": one(worlds(BARE), attempt.code),
    }
    assert outcomes == {"shipped": attempt.shipped, "unfiltered": attempt.unfiltered, "bare": attempt.bare}
    behind = "" if attempt.unfiltered == DONE else f", behind it {attempt.unfiltered}"
    return f"system call filter ({attempt.shipped}){behind}"


@contextlib.contextmanager
def second_peer(world: World, psk: str = SECOND_PSK) -> Iterator[Load]:
    """The peer `second`, played here: it negotiates with the victim and installs nothing."""
    ends = {"local": SECOND, "remote": LEFT, "inner": SECOND_HOST, "other": LEFT_HOST}
    load = world.network.right.enter(lambda: Load(**ends, ike=IKE, esp=ESP, psk=psk))
    try:
        yield load
    finally:
        load.close()


def negotiate(world: World, psk: str = SECOND_PSK, seconds: float = 10) -> str:
    """Have `second` open a tunnel; what the monitor then logs of it: installed, denied or, in that time, nothing."""
    mark = world.mark()
    verdict = re.compile(r"^\w+ (?:installed|denied) .*$", re.M)
    with second_peer(world, psk) as load:
        load.open()
        turn(load, lambda: verdict.search(world.log_since(mark)), seconds)
    found = verdict.search(world.log_since(mark))
    return found.group() if found is not None else ""


def pairs(world: World) -> int:
    """How many pairs the ESP process has."""
    return world.in_esp("result = len(me.database._by_spi)")
