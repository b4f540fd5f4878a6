"""An interpreter that no longer looks at the file system.

Late imports and the source lines of tracebacks would fail under the filter in confusing places; they are ended before.
"""

import gc
import importlib
import linecache
import sys
import threading
import traceback
from types import TracebackType

from privsep.log import Level, event

_PRELOADED = (
    "atexit",  # weakref.finalize, with which pyseccomp frees a filter
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.unicode_escape",  # log.escape
    "encodings.idna",  # host names given to the socket module
    "tracemalloc",  # warnings asks it for the place of an allocation
    "warnings",
)
"""Modules that the standard library imports on first use; loaded with this one, while there are files."""
for _name in _PRELOADED:
    importlib.import_module(_name)

GARBAGE_THRESHOLD = 10_000
"""Containers allocated and not freed before the youngest are searched for cycles; some MB at most."""
MAX_FRAMES = 8
"""Of an unhandled exception's traceback: the innermost, where the fault is."""


def describe(trace: TracebackType | None) -> str:
    """Where an exception came from: ``keyd/handles.py:88 < keyd/service.py:120``, the innermost first, no source."""
    frames = list(traceback.walk_tb(trace))[: -MAX_FRAMES - 1 : -1]
    return " < ".join(f"{'/'.join(f.f_code.co_filename.split('/')[-2:])}:{line}" for f, line in frames)


def _report(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    event(Level.ERROR, "unhandled", type=kind.__name__, message=error, at=describe(trace))


def report_unhandled() -> None:
    """Log an unhandled exception as one event, escaped and capped, and never read a source file for it."""
    sys.excepthook = _report
    sys.unraisablehook = lambda args: _report(args.exc_type, args.exc_value, args.exc_traceback)
    threading.excepthook = lambda args: _report(args.exc_type, args.exc_value, args.exc_traceback)


def seal_interpreter() -> None:
    """No import of anything that is not loaded, no source lines."""
    sys.meta_path.clear()
    linecache.updatecache = _no_lines


def settle() -> None:
    """What is alive now is not garbage, and what is allocated later is mostly none either: look for cycles rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


def _no_lines(filename: str, module_globals: object = None) -> list[str]:
    return []
