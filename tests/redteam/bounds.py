"""Gateways with and without bounds, and what is measured while a captured worker presses on them."""

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab import RIGHT_HOST
from world import Killed, Plan, World

from privsep.cli.control import ask

SHIPPED = Plan(captured=("worker", "keyd"))
"""keyd is honest until a scenario needs it slow."""
UNBOUNDED = SHIPPED.without(
    keyd="""
import resource
from keyd import handles, sandbox
from privsep import rpc
handles.UNKNOWN_MARGIN = handles.MAX_CHILDREN = rpc.HIGH_WATER = 2**30
handles.Registry.drop = lambda self, entry: None
sandbox.RLIMITS[resource.RLIMIT_AS] = 4 << 30
""",
    monitor="""
from monitor import commands, epoch, logpipe, sadb
from privsep import channel
epoch.MAX_OPEN = channel.MAX_QUEUED = epoch.MAX_DESCRIBED = 2**30
sadb.MAX_ALLOCATED = sadb.MAX_ALLOCATED_PER_CONNECTION = 2**30
logpipe.LINES_PER_SECOND = logpipe.READS_PER_SECOND = logpipe.MAX_LINE = 2**30
# on a busy machine many pages take longer than an operator waits
commands.STATUS_SECONDS = 60.0
# no line is made safe, none is labelled
logpipe._printable = lambda line: line.decode("latin-1")
logpipe.LogPipe._emit = lambda self, text, record=None: self._write(text, record)
# no page is compared with the one before
epoch._leads_back = lambda asked, answer: False
""",
)
PATIENCE = 5.0
"""Within which everybody else is served: a part of a second, but for a machine that is busy with other things. Who
is held up is so until a deadline, and those are longer."""
MEGABYTE = 1 << 20


def memory(pid: int, field: str = "VmHWM") -> int:
    """Octets; the greatest that it ever had, unless another field is named."""
    return int(re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M).group(1)) * 1024


@contextmanager
def growth(pid: int) -> Iterator[list[int]]:
    """Its sizes as long as it lives, the first one from before."""
    sizes, over = [memory(pid)], threading.Event()

    def watch() -> None:
        # whoever ends has no size any more
        with suppress(FileNotFoundError, ProcessLookupError, AttributeError):
            while not over.wait(0.002):
                sizes.append(memory(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield sizes
    finally:
        over.set()
        watcher.join()


@contextmanager
def others_are_served(world: World) -> Iterator[None]:
    """All the while the monitor answers its operator, and the bystander's packets pass."""
    left, late, over = world.network.left, [], threading.Event()

    def operate() -> None:
        while not over.wait(0.2):
            began = time.monotonic()
            ask(str(world.victim.run_dir), {"command": "audit"}, seconds=10)
            late.append(time.monotonic() - began)

    pings = subprocess.Popen(
        left.command("ping", "-n", "-q", "-i", "0.05", "-W", "1", "-I", left.inner, RIGHT_HOST),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    operator = threading.Thread(target=operate)
    operator.start()
    time.sleep(0.3)
    try:
        yield
    finally:
        over.set()
        operator.join()
        pings.send_signal(2)
        output, _ = pings.communicate(timeout=10)
    sent, received = map(int, re.search(r"(\d+) packets transmitted, (\d+) received", output).groups())
    assert received >= sent - 2, output
    assert late
    assert max(late) < PATIENCE


def ends(world: World, code: str, reason: str, **facts: object) -> float:
    """The code ends the epoch, for that reason; the seconds that this took."""
    mark, began = world.mark(), time.monotonic()
    try:
        outcome = world.attack(code, **facts)
        assert outcome in ("Lost: ", "ECONNRESET", "EPIPE"), outcome
    except Killed:
        pass
    assert world.logged(mark, reason), world.log_since(mark)
    seconds = time.monotonic() - began
    world.recover()
    return seconds


def violation(process: str, problem: str) -> str:
    prefix = "keyd: error epoch-ends reason=" if process == "keyd" else "error epoch-ends reason="
    where = "" if process == "keyd" else "(channel to worker: )?"
    return rf'^{prefix}"{where}{problem}'
