"""`audit`: the daemon says which processes it runs, the kernel how each is confined, the design how it should be.

What the daemon says is not proof of anything, so all facts come from /proc (`privsep/audit.py`).
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict
from typing import Any

import prctl

from privsep.audit import Facts, Finding, Kind, inspect, judge
from privsep.cli.control import Message, ask
from privsep.cli.exits import Exit
from privsep.cli.operate import STATUS_SECONDS, add_asking
from privsep.cli.render import Style, cell, table
from privsep.config.model import Layer, Users
from privsep.errors import OperatorError

SCHEMA_VERSION = 1
MAX_PROCESSES = 16
SETTLE_SECONDS = 3.0
"""A child that has just been started is not confined yet; it needs a part of a second."""
_Seen = list[tuple[Kind, Facts, tuple[Finding, ...]]]
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
        description="Compare each running process with its design; exit 1 if any is weaker.",
    )
    add_asking(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Inspect and judge every process that the daemon names; again for a while if one is weaker."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        seen, absent = _look(arguments.run_dir)
        if time.monotonic() > deadline or not any(findings for _, _, findings in seen):
            break
        time.sleep(0.2)
    if arguments.json:
        sys.stdout.write(json.dumps(_document(seen, absent), indent=2) + "\n")
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        sys.stdout.write(_text(seen, absent, Style.of(sys.stdout), width))
    return Exit.FAILED if any(findings for _, _, findings in seen) else Exit.DONE


def _look(run_dir: str) -> tuple[_Seen, frozenset[Layer]]:
    result = ask(run_dir, {"command": "audit"}, seconds=STATUS_SECONDS)
    if result["code"] != Exit.DONE:
        raise OperatorError(f"audit: {cell(result.get('text'))}")
    processes, users, absent = _parse(result)
    return [(kind, facts := inspect(pid), judge(kind, facts, users, absent)) for kind, pid in processes], absent


def _parse(result: Message) -> tuple[list[tuple[Kind, int]], Users, frozenset[Layer]]:
    try:
        listed = [(Kind(each["name"]), int(each["pid"])) for each in result["processes"][:MAX_PROCESSES]]
        users = Users(**{name: (int(uid), int(gid)) for name, (uid, gid) in result["users"].items()})
        return listed, users, frozenset(Layer(layer) for layer in result["absent"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OperatorError(f"audit: the daemon's answer is of another release ({error})") from None


def _document(seen: _Seen, absent: frozenset[Layer]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "absent": sorted(layer.value for layer in absent),
        "processes": [
            {
                "name": kind.value,
                **asdict(facts),
                "credentials": [_thread(thread) for thread in asdict(facts)["credentials"]],
                "weaker": [asdict(finding) for finding in findings],
            }
            for kind, facts, findings in seen
        ],
    }


def _thread(thread: dict[str, Any]) -> dict[str, Any]:
    """Capability sets by name; the rest as it is."""
    sets = ("permitted", "effective", "inheritable", "ambient", "bounding")
    return thread | {name: _capabilities(thread[name]) for name in sets}


def _capabilities(mask: int) -> list[str]:
    numbers = [number for number in range(mask.bit_length()) if mask >> number & 1]
    return [_NAMES.get(number, f"CAP_{number}") for number in numbers]


def _text(seen: _Seen, absent: frozenset[Layer], style: Style, width: int | None) -> str:
    parts = [table(_HEADERS, [_row(kind, facts, findings) for kind, facts, findings in seen], style, width)]
    for kind, _, findings in seen:
        lines = [f"{kind.value}: {each.what} is {each.found}, designed is {each.expected}" for each in findings]
        parts.extend(f"{cell(line)}\n" for line in lines)
    missing = {Kind.MONITOR, Kind.WORKER, Kind.KEYD} - {kind for kind, _, _ in seen}
    parts.extend(f"{kind.value} is not running\n" for kind in sorted(missing, key=lambda kind: kind.value))
    if absent:
        parts.append(f"named as absent by the configuration: {cell(sorted(layer.value for layer in absent))}\n")
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
