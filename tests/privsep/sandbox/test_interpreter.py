"""Nothing is looked up late: imports, source lines, reports of faults."""

import re
import types

import pytest

from privsep.sandbox import interpreter, status

pytestmark = pytest.mark.root


def test_formatting_a_traceback_works_under_the_filter(sandbox):
    printed = sandbox.output(
        """
import traceback
confine_as("keyd")
try:
    {}["missing"]
except KeyError:
    print(traceback.format_exc())
"""
    )
    assert "KeyError: 'missing'" in printed


def test_what_is_not_loaded_cannot_be_imported(sandbox):
    """Not even what is part of the interpreter, and so no file."""
    code = """
for name in "fractions", "xxsubtype":
    try:
        __import__(name)
        print("imported")
    except ImportError:
        print("refused")
"""
    assert sandbox.output(code).split() == ["imported"] * 2
    assert sandbox.output("confine_as('worker')\n" + code).split() == ["refused"] * 2


def test_garbage_is_freed_once_and_what_is_alive_is_not_looked_at_again(sandbox):
    code = """
import gc, weakref
class Cycle:
    pass
cycle = Cycle()
cycle.itself = cycle
left = weakref.ref(cycle)
del cycle
{}
print(left() is None, gc.get_freeze_count() > 1000, gc.get_threshold()[0])
"""
    assert sandbox.output(code.format("gc.disable()")) == "False False 700"
    assert sandbox.output(code.format("gc.disable()\nconfine_as('worker')")) == "True True 10000"


def test_an_unhandled_exception_is_one_escaped_line_with_places_and_no_source(sandbox):
    result = sandbox.run("confine_as('worker')\nraise ValueError('two\\nlines\\x1b[2J')")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert r'message="two\nlines\u001b[2J"' in result.stderr
    assert "type=ValueError" in result.stderr
    assert "raise" not in result.stderr


def test_an_unhandled_exception_in_a_thread_is_reported_alike(sandbox):
    result = sandbox.run(
        """
go = threading.Event()
def fail():
    go.wait()
    raise ValueError("in a thread")
become("worker")
thread = threading.Thread(target=fail)
thread.start()
lock("worker")
go.set()
thread.join()
"""
    )
    assert result.stderr.startswith("error unhandled type=ValueError"), result.stderr


def test_places_are_named_innermost_first():
    try:
        _outer()
    except ZeroDivisionError as error:
        innermost, outer, *_ = interpreter.describe(error.__traceback__).split(" < ")
    lines = [place.rsplit(":", 1) for place in (innermost, outer)]
    assert {file for file, _ in lines} == {"sandbox/test_interpreter.py"}
    assert int(lines[0][1]) > int(lines[1][1])


def _outer():
    _inner()


def _inner():
    return 1 / 0


def test_a_deep_traceback_is_cut():
    def deep(n: int) -> None:
        if n == 0:
            raise ValueError
        deep(n - 1)

    trace: types.TracebackType | None = None
    try:
        deep(50)
    except ValueError as error:
        trace = error.__traceback__
    assert len(interpreter.describe(trace).split(" < ")) == interpreter.MAX_FRAMES


def test_status_is_read_as_the_kernel_prints_it():
    with open("/proc/self/status") as file:
        text = file.read()
    actual = status.parse(text)
    assert str(actual.filters) in re.findall(r"^Seccomp_filters:\t(.*)$", text, re.M)
    assert status.parse(re.sub("^Seccomp_filters.*\n", "", text, flags=re.M)).filters is None
    assert len(actual.uids) == len(actual.gids) == 4
    with pytest.raises(KeyError):
        status.parse("Name:\tx\n")
