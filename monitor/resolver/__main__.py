"""The resolver: started by the monitor for one name, confined before it asks anybody, ended by its one answer.

Whoever takes it over, by an answer that breaks the C library say, can name an address for this one name; so can any
name server on the way. Whether the peer is there is for IKE to find out.
"""

import argparse
import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence

from monitor.resolver.ask import VERSIONS, look_up
from monitor.resolver.sandbox import confinement, modules, read_nsswitch
from privsep.config.model import Layer
from privsep.sandbox.confine import become_user, begin, lock_down
from privsep.sandbox.interpreter import seal_interpreter
from privsep.schema.names import ANSWERS


def main(arguments: Sequence[str]) -> int:
    """Answer on the descriptor that was given, and end."""
    begin()
    options = _parser().parse_args(arguments)
    confined = confinement(options.uid, options.gid, frozenset(map(Layer, options.absent)))
    become_user(confined)
    for module in modules(read_nsswitch()):
        # what is part of the C library, or is missing, is the C library's to know
        with contextlib.suppress(OSError):
            ctypes.CDLL(module)
    seal_interpreter()
    lock_down(confined)
    os.write(options.answer, ANSWERS.encode(look_up(options.name, options.version), 0))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="monitor.resolver", allow_abbrev=False)
    parser.add_argument("--answer", type=int, required=True, metavar="FD", help="a pipe to the monitor")
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", type=int, choices=VERSIONS, required=True, help="of IP; 0: either")
    parser.add_argument("--uid", type=int, required=True)
    parser.add_argument("--gid", type=int, required=True)
    parser.add_argument("--absent", nargs="*", default=[], metavar="LAYER", help="sandbox steps this machine lacks")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
