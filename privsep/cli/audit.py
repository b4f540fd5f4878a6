"""`audit`: the daemon says which processes it runs, the kernel how each is confined, the design how it should be.

What the daemon says is not proof of anything, so all facts come from /proc (`privsep/procfs.py`), and a process that it
does not name is missing.
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import prctl

from privsep.audit import Finding, Kind, judge
from privsep.cli.control import Message, ask
from privsep.cli.exits import Exit
from privsep.cli.operate import STATUS_SECONDS, add_asking
from privsep.cli.render import Style, cell, table
from privsep.config.model import Layer, Users
from privsep.errors import OperatorError
from privsep.procfs import AuditError, Facts, inspect

SCHEMA_VERSION = 1
MAX_PROCESSES = 16
SETTLE_SECONDS = 3.0
"""A child that has just been started is not confined yet; it needs a part of a second."""
_ALWAYS = (Kind.MONITOR, Kind.WORKER, Kind.KEYD)
"""Those that every daemon has."""
_NAMES = {number: name for name, number in vars(prctl).items() if name.startswith("CAP_") and isinstance(number, int)}
_SECCOMP = ("off", "strict", "filter")
_HEADERS = [
    "PROCESS",
    "PID",
    "UID",
    "CAPABILITIES",
    "SECCOMP",
    "LANDLOCK",
    "ROOT",
    "NETWORK",
    "LOCKED",
    "FDS",
    "VERDICT",
]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "audit",
        help="is each running process confined as designed? (root)",
        description="Compare each running process with its design; exit 1 if any is weaker or missing.",
    )
    add_asking(parser)
    parser.set_defaults(run=run)


@dataclass(slots=True, frozen=True, kw_only=True)
class _Look:
    """What one look at all processes found."""

    seen: list[tuple[Kind, Facts, tuple[Finding, ...]]]
    missing: tuple[Kind, ...]
    absent: frozenset[Layer]

    @property
    def as_designed(self) -> bool:
        """Nothing weaker, nothing missing."""
        return not self.missing and not any(findings for _, _, findings in self.seen)


def run(arguments: argparse.Namespace) -> int:
    """Inspect and judge every process that the daemon names; again for a while if one is weaker, ends or is missing."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        last = time.monotonic() > deadline
        try:
            look = _look(arguments.run_dir)
        except AuditError:
            if last:
                raise
        else:
            if last or look.as_designed:
                break
        time.sleep(0.2)
    if arguments.json:
        sys.stdout.write(json.dumps(_document(look), indent=2) + "\n")
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        sys.stdout.write(_text(look, Style.of(sys.stdout), width))
    return Exit.DONE if look.as_designed else Exit.FAILED


def _look(run_dir: str) -> _Look:
    result = ask(run_dir, {"command": "audit"}, seconds=STATUS_SECONDS)
    if result["code"] != Exit.DONE:
        raise OperatorError(f"audit: {cell(result.get('text'))}")
    processes, users, absent = _parse(result)
    facts = {kind: inspect(pid, processes.get(Kind.MONITOR, pid)) for kind, pid in processes.items()}
    seen = [
        (kind, its, judge(kind, its, users, absent, {other: facts[other] for other in facts if other is not kind}))
        for kind, its in facts.items()
    ]
    return _Look(seen=seen, missing=tuple(kind for kind in _ALWAYS if kind not in facts), absent=absent)


def _parse(result: Message) -> tuple[dict[Kind, int], Users, frozenset[Layer]]:
    try:
        listed = {Kind(each["name"]): int(each["pid"]) for each in result["processes"][:MAX_PROCESSES]}
        users = Users(**{name: (int(uid), int(gid)) for name, (uid, gid) in result["users"].items()})
        return listed, users, frozenset(Layer(layer) for layer in result["absent"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OperatorError(f"audit: the daemon's answer is of another release ({error})") from None


def _document(look: _Look) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "absent": sorted(layer.value for layer in look.absent),
        "missing": [kind.value for kind in look.missing],
        "processes": [
            {
                "name": kind.value,
                **asdict(facts),
                "credentials": [_thread(thread) for thread in asdict(facts)["credentials"]],
                "weaker": [asdict(finding) for finding in findings],
            }
            for kind, facts, findings in look.seen
        ],
    }


def _thread(thread: dict[str, Any]) -> dict[str, Any]:
    """Capability sets by name; the rest as it is."""
    sets = ("permitted", "effective", "inheritable", "ambient", "bounding")
    return thread | {name: _capabilities(thread[name]) for name in sets}


def _capabilities(mask: int) -> list[str]:
    numbers = [number for number in range(mask.bit_length()) if mask >> number & 1]
    return [_NAMES.get(number, f"CAP_{number}") for number in numbers]


def _text(look: _Look, style: Style, width: int | None) -> str:
    parts = [table(_HEADERS, [_row(*each) for each in look.seen], style, width)]
    for kind, _, findings in look.seen:
        lines = [f"{kind.value}: {each.what} is {each.found}, designed is {each.expected}" for each in findings]
        parts.extend(f"{cell(line)}\n" for line in lines)
    parts.extend(f"{kind.value} is not running\n" for kind in look.missing)
    if look.absent:
        parts.append(f"named as absent by the configuration: {cell(sorted(layer.value for layer in look.absent))}\n")
    return "".join(parts)


def _row(kind: Kind, facts: Facts, findings: tuple[Finding, ...]) -> list[str]:
    """The weakest of all threads, where they differ: `judge` says which is not as designed."""
    threads = facts.credentials
    held = 0
    for thread in threads:
        held |= thread.permitted
    seccomp = min(thread.seccomp for thread in threads)
    return [
        kind.value,
        str(facts.pid),
        ",".join(sorted({str(uid) for thread in threads for uid in thread.uids})),
        " ".join(name.removeprefix("CAP_").lower() for name in _capabilities(held)) or "none",
        _SECCOMP[seccomp] if seccomp < len(_SECCOMP) else str(seccomp),
        "-" if facts.landlock is None else f"v{facts.landlock}",
        "empty" if facts.root_is_empty else cell(facts.root),
        "empty" if facts.empty_network else "host's",
        f"{facts.locked_kb} KB",
        str(len(facts.descriptors)),
        "WEAKER" if findings else "as designed",
    ]
