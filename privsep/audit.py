"""What the kernel says about a running process of ours, and where that is weaker than designed (DESIGN section 2).

Needs root. Everything is read from /proc except one fact that no kernel shows: the Landlock version, which the sandbox
writes into the process's name just before the filter takes away the means to change it.
"""

import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import prctl

from privsep.config.model import Layer, Users
from privsep.errors import OperatorError
from privsep.sandbox import capabilities, status
from privsep.sandbox.confine import SECCOMP_FILTER

MAX_THREADS = 64
MAX_DESCRIPTORS = 4096


class Kind(Enum):
    """Processes of ours."""

    MONITOR = "monitor"
    WORKER = "worker"
    KEYD = "keyd"
    USERSPACE = "userspace"


class AuditError(OperatorError):
    """The process cannot be looked at: it is gone, or we are not root."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Thread:
    """What is kept for each thread. Threads that agree appear once."""

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    permitted: int
    effective: int
    inheritable: int
    ambient: int
    bounding: int
    no_new_privs: int
    seccomp: int


@dataclass(slots=True, frozen=True, kw_only=True)
class Facts:
    """One process, now."""

    pid: int
    threads: int
    credentials: tuple[Thread, ...]
    """Different ones only; a well-kept process has one entry."""
    dumpable: bool
    core_limit: int
    """Octets of the hard limit; -1 without limit."""
    landlock: int | None
    """The version of the domain as the process reported it; None if it reported none."""
    root: str
    root_is_empty: bool
    empty_network: bool
    """Whether its network namespace is not ours and has neither route nor address."""
    locked_kb: int
    descriptors: Mapping[int, str]
    """Kind of each: socket, pipe, eventpoll, eventfd, pidfd, or the path of a device, file or directory."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Finding:
    """One fact that is weaker than designed."""

    what: str
    found: str
    expected: str


@dataclass(slots=True, frozen=True, kw_only=True)
class Expected:
    """The design, for one kind of process on this machine."""

    uid: int
    gid: int
    permitted: frozenset[int]
    effective: frozenset[int]
    empty_root: bool
    layers: frozenset[Layer]
    descriptors: frozenset[str]
    """Kinds that a descriptor may have."""


_USUAL = frozenset({"/dev/null", "socket", "pipe", "eventpoll", "eventfd"})
_FOR_CHILDREN = frozenset({prctl.CAP_SETUID, prctl.CAP_SETGID, prctl.CAP_SETPCAP, prctl.CAP_SYS_CHROOT})
_MONITOR = frozenset({prctl.CAP_NET_ADMIN, prctl.CAP_KILL})


def expected(kind: Kind, users: Users, absent: frozenset[Layer]) -> Expected:
    """The design. Written down a second time, apart from the sandboxes, so that a slip there is seen here."""
    present = frozenset(Layer) - absent
    if kind is Kind.MONITOR:
        layered = {Layer.NETNS: prctl.CAP_SYS_ADMIN, Layer.MLOCK: prctl.CAP_IPC_LOCK}
        return Expected(
            uid=0,
            gid=0,
            permitted=_MONITOR | _FOR_CHILDREN | {layered[layer] for layer in layered.keys() & present},
            effective=_MONITOR,
            empty_root=False,
            layers=frozenset(),
            descriptors=_USUAL | {"pidfd", "/dev/net/tun", "/memfd:gateway.toml (deleted)"},
        )
    uid, gid = {Kind.WORKER: users.worker, Kind.KEYD: users.keyd, Kind.USERSPACE: users.userspace}[kind]
    layers = present - {Layer.MLOCK} if kind is Kind.WORKER else present
    kept = frozenset({prctl.CAP_IPC_LOCK}) if Layer.MLOCK in layers else frozenset[int]()
    return Expected(
        uid=uid,
        gid=gid,
        permitted=kept,
        effective=kept,
        empty_root=True,
        layers=layers,
        descriptors=_USUAL | {"/dev/net/tun"} if kind is Kind.USERSPACE else _USUAL,
    )


def inspect(pid: int) -> Facts:
    """Read everything; AuditError if that is not possible."""
    proc = Path("/proc") / str(pid)
    try:
        main = status.parse((proc / "status").read_text())
        tasks = sorted((proc / "task").iterdir())[:MAX_THREADS]
        credentials = dict.fromkeys(_thread(status.parse((task / "status").read_text())) for task in tasks)
        return Facts(
            pid=pid,
            threads=main.threads,
            credentials=tuple(credentials),
            dumpable=_dumpable(proc, main),
            core_limit=_core_limit((proc / "limits").read_text()),
            landlock=_reported_landlock(main.name),
            root=os.readlink(proc / "root"),
            root_is_empty=not os.listdir(proc / "root") and os.path.samefile(proc / "cwd", proc / "root"),
            empty_network=_empty_network(proc),
            locked_kb=main.locked_kb,
            descriptors=_descriptors(proc / "fd"),
        )
    except (OSError, KeyError, ValueError) as error:
        raise AuditError(f"process {pid} cannot be inspected: {error}") from error


def _thread(actual: status.Status) -> Thread:
    return Thread(
        uids=actual.uids,
        gids=actual.gids,
        groups=actual.groups,
        permitted=actual.permitted,
        effective=actual.effective,
        inheritable=actual.inheritable,
        ambient=actual.ambient,
        bounding=actual.bounding,
        no_new_privs=actual.no_new_privs,
        seccomp=actual.seccomp,
    )


def _dumpable(proc: Path, actual: status.Status) -> bool:
    """proc(5): what is not dumpable belongs to root. What is root's anyway is asked whether it can be traced."""
    if actual.uids[1] != 0:
        # the directory itself is the user's always
        return (proc / "environ").stat().st_uid != 0
    answers: list[bool] = []

    def ask() -> None:
        # capabilities belong to threads: this one gives up those that would let it trace everything
        mine = status.parse(Path("/proc/thread-self/status").read_text()).effective & ~(1 << prctl.CAP_SYS_PTRACE)
        held = frozenset(number for number in range(64) if mine >> number & 1)
        capabilities.limit(held, held)
        # who holds more than the asker cannot be traced in any case; the worse is assumed
        answers.append(bool(actual.permitted & ~mine) or _traceable(proc))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    if not answers:
        raise AuditError("capabilities cannot be lowered to ask whether a process is dumpable")
    return answers[0]


def _traceable(proc: Path) -> bool:
    try:
        os.close(os.open(proc / "mem", os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        return False
    return True


def _empty_network(proc: Path) -> bool:
    """Fall-back tunnel devices may exist in it, and loopback does; without route and address they reach nothing."""
    if os.readlink(proc / "ns/net") == os.readlink("/proc/self/ns/net"):
        return False
    _heading, *routes = (proc / "net/route").read_text().splitlines() or [""]
    addresses = proc / "net/if_inet6"
    return not routes and not (addresses.exists() and addresses.read_text())


def _core_limit(limits: str) -> int:
    found = re.search(r"^Max core file size +\S+ +(\S+)", limits, re.MULTILINE)
    if found is None:
        raise ValueError("no core limit")
    return -1 if found[1] == "unlimited" else int(found[1])


def _reported_landlock(name: str) -> int | None:
    found = re.search(r":L(\d{1,3})$", name)
    return None if found is None else int(found[1])


def _descriptors(directory: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for number in sorted(map(int, os.listdir(directory)))[:MAX_DESCRIPTORS]:
        try:
            target = os.readlink(directory / str(number))
        except FileNotFoundError:
            # closed since it was listed
            continue
        # "socket:[123]" and "anon_inode:[eventpoll]" name a kind, the rest is a path
        kind = re.fullmatch(r"(?:anon_inode:\[?(\w+)\]?|(\w+):\[\d+\])", target)
        found[number] = target if kind is None else kind[1] or kind[2]
    return found


def judge(kind: Kind, facts: Facts, users: Users, absent: frozenset[Layer]) -> tuple[Finding, ...]:
    """Where the process is weaker than designed; empty if nowhere."""
    want = expected(kind, users, absent)
    found: list[Finding] = []

    def require(what: str, actual: object, wanted: object, *, holds: bool | None = None) -> None:
        if not (actual == wanted if holds is None else holds):
            found.append(Finding(what=what, found=str(actual), expected=str(wanted)))

    permitted, effective = capabilities.mask(want.permitted), capabilities.mask(want.effective)
    for thread in facts.credentials:
        require("uid", thread.uids, (want.uid,) * 4)
        require("gid", thread.gids, (want.gid,) * 4)
        require("supplementary groups", thread.groups, ())
        require("no_new_privs", thread.no_new_privs, 1)
        require("seccomp mode", thread.seccomp, SECCOMP_FILTER)
        for name, actual, most in (
            ("permitted", thread.permitted, permitted),
            ("effective", thread.effective, effective),
            ("bounding", thread.bounding, permitted),
            ("inheritable", thread.inheritable, 0),
            ("ambient", thread.ambient, 0),
        ):
            require(f"{name} capabilities", f"{actual:#x}", f"at most {most:#x}", holds=not actual & ~most)
    require("dumpable", facts.dumpable, False)
    require("core file limit", facts.core_limit, 0)
    if want.empty_root:
        require("root", facts.root, "an empty directory", holds=facts.root_is_empty)
    if Layer.LANDLOCK in want.layers:
        require("Landlock (reported)", facts.landlock, "a version", holds=facts.landlock is not None)
    if Layer.NETNS in want.layers:
        require("empty network namespace", facts.empty_network, True)
    if Layer.MLOCK in want.layers:
        require("locked memory, KB", facts.locked_kb, "more than 0", holds=facts.locked_kb > 0)
    for number, target in facts.descriptors.items():
        # the monitor's standard streams are whatever the operator or systemd gave it
        usual = target in want.descriptors or (kind is Kind.MONITOR and number <= 2)
        require(f"descriptor {number}", target, " or ".join(sorted(want.descriptors)), holds=usual)
    return tuple(found)
