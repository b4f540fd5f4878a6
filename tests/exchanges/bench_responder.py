"""The engine's own processor time for each handshake (Main Mode and Quick Mode) as responder.

Run as a script: ``python tests/exchanges/bench_responder.py [HANDSHAKES] [--profile] [--memory]``. keyd, the monitor
and the network stand outside of what is measured.
"""

import argparse
import cProfile
import importlib.util
import ipaddress
import pstats
import sys
import time
import tracemalloc
from pathlib import Path

_spec = importlib.util.spec_from_file_location("exchanges", Path(__file__).with_name("conftest.py"))
exchanges = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(exchanges)


class Measured:
    """An engine whose verbs are timed."""

    def __init__(self, engine, profile) -> None:
        self._engine, self._profile = engine, profile
        self.seconds = 0.0

    def _timed(self, verb, *arguments):
        if self._profile:
            self._profile.enable()
        start = time.process_time_ns()
        result = verb(*arguments)
        self.seconds += (time.process_time_ns() - start) / 1e9
        if self._profile:
            self._profile.disable()
        return result

    def datagram(self, *arguments):
        self._timed(self._engine.datagram, *arguments)

    def keyd_reply(self, *arguments):
        self._timed(self._engine.keyd_reply, *arguments)

    def monitor_message(self, *arguments):
        self._timed(self._engine.monitor_message, *arguments)

    def tick(self, *arguments):
        self._timed(self._engine.tick, *arguments)

    def take_effects(self):
        return self._engine.take_effects()

    def next_deadline(self):
        return self._engine.next_deadline()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("handshakes", type=int, nargs="?", default=300)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--memory", action="store_true", help="distorts the times")
    arguments = parser.parse_args()
    world = exchanges.World()
    ours = exchanges.connection()
    theirs = exchanges.dataclasses.replace(exchanges.mirrored(ours), remote=exchanges.RemoteAny(), remote_id=None)
    right = world.add("right", exchanges.gateway(theirs), exchanges.RIGHT)
    profile = cProfile.Profile() if arguments.profile else None
    right.engine = measured = Measured(right.engine, profile)
    before = None
    for number in range(arguments.handshakes + 1):
        if number == 1:
            measured.seconds = 0.0
            if arguments.memory:
                tracemalloc.start()
                before = tracemalloc.take_snapshot()
        address = ipaddress.ip_address(f"198.51.{number // 250}.{number % 250 + 1}")
        left = world.add(
            "left",
            exchanges.gateway(
                exchanges.dataclasses.replace(ours, local=address, local_id=exchanges.Identity.of_address(address))
            ),
            address,
        )
        order = left.up()
        world.run(5.0, lambda left=left, order=order: left.outcome(order) is not None)
        world.run(0.1)
        del world.sites[address]
    done = len(right.pairs) - 1
    print(f"{done} handshakes, {measured.seconds / done * 1e6:.0f} us each")
    if before is not None:
        # what lingers for duplicates is gone by then
        world.run(120.0)
        changes = tracemalloc.take_snapshot().compare_to(before, "filename")
        kept = sum(each.size_diff for each in changes if "/worker/" in each.traceback[0].filename)
        print(f"{kept / done:.0f} octets allocated in worker/ for each")
    if profile:
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(30)
    return 0


if __name__ == "__main__":
    sys.exit(main())
