"""`python -m monitor.clear --run-dir DIR`: what `privsep-ike clear` does. Nothing is protected or refused any more.

Where `on_stop` is "block", policies outlive a stop; whoever wants them gone without another start says so here.
"""

import argparse
import os
import sys

from monitor import control
from monitor.directories import Directories
from monitor.journal import NAME, Journal
from monitor.plane import leave_kernel
from monitor.routes import clear_left
from privsep import log
from privsep.errors import OperatorError
from privsep.loop import Loop


def main() -> int:
    """0 when nothing of that instance is left, 1 and a sentence where it runs or its journal is not to be believed."""
    parser = argparse.ArgumentParser("monitor.clear", description="Remove what a daemon that has ended left.")
    parser.add_argument("--run-dir", required=True)
    run_dir = parser.parse_args().run_dir
    try:
        if os.path.isdir(run_dir):
            _clear(Directories(run_dir))
        clear_left()
    except OperatorError as error:
        print(f"clear: {error}", file=sys.stderr)
        return 1
    return 0


def _clear(directories: Directories) -> None:
    """By the journal, while no instance can start there."""
    path = directories.run_dir / NAME
    held = control.listen(directories.run_dir)
    try:
        journal = Journal(path, Loop(), log.event)
        if journal.problem is not None:
            raise OperatorError(f"{path}: {journal.problem}; `ip xfrm policy` shows what is there")
        leave_kernel(journal, log.event)
        journal.remove()
    finally:
        control.forget(held)


if __name__ == "__main__":
    sys.exit(main())
