"""What a piece of code costs, counted and not timed, so that a test of how it grows holds on a machine that is busy."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace


@contextmanager
def counted() -> Iterator[SimpleNamespace]:
    """`instructions` of the interpreter that functions take that are called meanwhile, loops of theirs included."""
    found = SimpleNamespace(instructions=0)

    def trace(frame, event, argument):
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        found.instructions += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield found
    finally:
        sys.settrace(before)


def instructions(call: Callable[[], object]) -> int:
    """Those of one call."""
    with counted() as found:
        call()
    return found.instructions
