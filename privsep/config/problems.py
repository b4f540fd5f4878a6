"""What is wrong in a configuration file, and where: all of it at once, so that one look at the file mends it."""

from collections.abc import Iterable
from dataclasses import dataclass

from privsep.errors import OperatorError

MAX_PROBLEMS = 100
"""Told of one file; whoever has more has one mistake many times."""
MAX_QUOTE = 60


@dataclass(slots=True, frozen=True, order=True)
class Problem:
    """`text` reads "what is wrong; what would be right"."""

    line: int
    text: str


class ConfigError(OperatorError):
    """A configuration file with all its problems; `str()` is one ``FILE:LINE: text`` a line."""

    def __init__(self, filename: str, problems: Iterable[Problem]) -> None:
        found = sorted(set(problems))
        self.filename = filename
        self.problems = tuple(found[:MAX_PROBLEMS])
        lines = [f"{filename}:{problem.line}: {problem.text}" for problem in self.problems]
        if len(found) > MAX_PROBLEMS:
            lines.append(f"{filename}: {len(found) - MAX_PROBLEMS} more problems; these first")
        super().__init__("\n".join(lines))


def quote(value: str) -> str:
    """What the operator wrote, on one line, printable and capped."""
    return repr(value if len(value) <= MAX_QUOTE else value[:MAX_QUOTE] + "...")
