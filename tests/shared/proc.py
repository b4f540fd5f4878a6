"""What /proc lists of a live process. Whatever has ended or was closed between listing and reading is left out."""

import os
from contextlib import suppress
from pathlib import Path

GONE = (FileNotFoundError, ProcessLookupError)
"""ENOENT to whoever opens, ESRCH to whoever reads."""


def open_descriptors(pid: int) -> dict[int, str]:
    """Number and target of each."""
    found: dict[int, str] = {}
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(*GONE):
            found[int(each.name)] = os.readlink(each)
    return found


def thread_names(pid: int) -> list[str]:
    """Of each of its threads."""
    found: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(*GONE):
            found.append((task / "comm").read_text().strip())
    return found
