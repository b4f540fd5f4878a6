"""What a piece of code costs, counted and not timed, so that a test of how it grows holds on a machine that is busy."""

import sys
from collections.abc import Callable


def instructions(call: Callable[[], object]) -> int:
    """Instructions of the interpreter that a call takes, loops inside comprehensions included."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
