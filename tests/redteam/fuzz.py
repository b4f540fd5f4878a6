"""Fuzz keyd's and the monitor's dispatchers for as long as you like: python tests/redteam/fuzz.py --seconds 3600.

It asks what a captured worker could ask, in the order that honest exchanges have and in any other, and checks after
every step what `fuzz_keyd` and `fuzz_monitor` promise. A failure prints the seed that repeats it.
"""

import argparse
import resource
import secrets
import sys
import time

from fuzz_base import Finding, Fuzzer
from fuzz_keyd import KeydFuzzer
from fuzz_monitor import MonitorFuzzer

FUZZERS: dict[str, type[Fuzzer]] = {"keyd": KeydFuzzer, "monitor": MonitorFuzzer}


def main() -> int:
    """1 if there is a finding."""
    parser = argparse.ArgumentParser("fuzz")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each of the two")
    parser.add_argument("--steps", type=int, default=10**12, help="stop after so many, to look at one that failed")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--which", choices=sorted(FUZZERS))
    arguments = parser.parse_args()
    failed = False
    for name in [arguments.which] if arguments.which else sorted(FUZZERS):
        print(f"{name}: seed {arguments.seed}", flush=True)
        fuzzer = FUZZERS[name](arguments.seed)
        began = time.monotonic()
        try:
            fuzzer.run(seconds=arguments.seconds, steps=arguments.steps)
        except Finding as finding:
            failed = True
            print(finding)
        report(fuzzer, time.monotonic() - began)
    return 1 if failed else 0


def report(fuzzer: Fuzzer, seconds: float) -> None:
    """What was done, how fast, how far it came."""
    print(f"{fuzzer.steps} steps, {fuzzer.steps / seconds:.0f} a second, trace {fuzzer.trace[:16]}")
    for what, counted in (("answers", fuzzer.answered), ("reached", fuzzer.reached)):
        print(f"{what}:")
        for name, count in sorted(counted.items()):
            print(f"  {count:9} {name}")
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    sys.exit(main())
