"""The design of each process (DESIGN section 2), and where what the kernel says of it (`privsep/procfs.py`) is weaker.

The design is written down here a second time, apart from the sandboxes, so that a slip there is seen here.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import prctl

from privsep.config.model import Layer, Users
from privsep.procfs import MAX_DESCRIPTORS, Facts
from privsep.sandbox import capabilities
from privsep.sandbox.confine import SECCOMP_FILTER


class Kind(Enum):
    """Processes of ours."""

    MONITOR = "monitor"
    WORKER = "worker"
    KEYD = "keyd"
    USERSPACE = "userspace"


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
    layers: frozenset[Layer]
    command: str
    """Matches `Facts.command`, where N will also do for W."""
    threads: int
    """At most."""
    limits: Mapping[str, int]
    """At most."""
    never: frozenset[str]
    """Libraries."""
    descriptors: Mapping[str, int]
    """How many of each kind at most; none of any other."""


_ANY = MAX_DESCRIPTORS
"""As many as there are addresses, operators or events."""
_FOR_CHILDREN = frozenset({prctl.CAP_SETUID, prctl.CAP_SETGID, prctl.CAP_SETPCAP, prctl.CAP_SYS_CHROOT})
_MONITOR = frozenset({prctl.CAP_NET_ADMIN, prctl.CAP_KILL})
_IKE = {"udp 500": _ANY, "udpv6 500": _ANY, "udp 4500": _ANY, "udpv6 4500": _ANY}
_ESP = {"udp 4500": _ANY, "udpv6 4500": _ANY, "raw 50": _ANY, "rawv6 50": _ANY}
_CHILD = {"/dev/null": 1, "pipe": 2, "eventpoll": _ANY}
"""Standard input; standard output and error, both the log; the loop."""
_ZEROMQ = {"eventfd": _ANY}
_CONFINED = {"core": 0, "nofile": 4, "nproc": 0, "fsize": 0, "msgqueue": 0, "as": 4 << 30}
_ISOLATED = "-I -B -m"


def expected(kind: Kind, users: Users, absent: frozenset[Layer]) -> Expected:
    """The design."""
    present = frozenset(Layer) - absent
    locking = frozenset({prctl.CAP_IPC_LOCK}) if Layer.MLOCK in present else frozenset[int]()
    match kind:
        case Kind.MONITOR:
            unsharing = frozenset({prctl.CAP_SYS_ADMIN}) if Layer.NETNS in present else frozenset[int]()
            return Expected(
                uid=0,
                gid=0,
                permitted=_MONITOR | _FOR_CHILDREN | unsharing | locking,
                effective=_MONITOR,
                layers=frozenset(),
                command=f"{_ISOLATED} monitor --config W --secrets W --run-dir W",
                threads=1,
                limits={"core": 0},
                never=frozenset({"cryptography", "zmq"}),
                descriptors=_IKE
                | _ESP
                | dict.fromkeys(("/dev/null", "pipe", "pidfd", "eventpoll", "unix", "netlink"), _ANY)
                | {"/dev/net/tun": 1, "/memfd:gateway.toml (deleted)": 1},
            )
        case Kind.WORKER:
            return Expected(
                uid=users.worker[0],
                gid=users.worker[1],
                permitted=frozenset(),
                effective=frozenset(),
                layers=present - {Layer.MLOCK},
                command=f"{_ISOLATED} worker --channel N --config-fd N --config W --workplace W --root W --udp( N)+",
                # its own, ZeroMQ's two
                threads=3,
                limits=_CONFINED | {"memlock": 0},
                never=frozenset({"cryptography"}),
                # the channel to the monitor, that to keyd
                descriptors=_CHILD | _ZEROMQ | _IKE | {"unix": 2},
            )
        case Kind.KEYD:
            return Expected(
                uid=users.keyd[0],
                gid=users.keyd[1],
                permitted=locking,
                effective=locking,
                layers=present,
                command=f"{_ISOLATED} keyd --channel N --config-fd N --config W --secrets W --workplace W --root W",
                threads=3,
                limits=_CONFINED | {"as": 1 << 30},
                never=frozenset(),
                # the channel to the monitor, that to the worker, and where the worker arrived
                descriptors=_CHILD | _ZEROMQ | {"unix": 3},
            )
        case Kind.USERSPACE:
            return Expected(
                uid=users.userspace[0],
                gid=users.userspace[1],
                permitted=locking,
                effective=locking,
                layers=present,
                command=f"{_ISOLATED} monitor.userspace --channel N --tun N --uid W --gid W --root W"
                "( --udp( N)+)?( --raw( N)+)?( --absent( W){1,3})?",
                threads=1,
                limits=_CONFINED,
                never=frozenset({"zmq"}),
                descriptors=_CHILD | _ESP | {"/dev/net/tun": 1, "unix": 1},
            )


def judge(
    kind: Kind, facts: Facts, users: Users, absent: frozenset[Layer], others: Mapping[Kind, Facts]
) -> tuple[Finding, ...]:
    """Where the process is weaker than designed, alone and beside the `others`; empty if nowhere."""
    verdict = _Verdict()
    want = expected(kind, users, absent)
    _credentials(verdict, want, facts)
    verdict.require("dumpable", facts.dumpable, False)
    for name, most in want.limits.items():
        verdict.at_most(f"{name} limit", facts.limits[name], most)
    verdict.at_most("threads", facts.threads, want.threads)
    as_designed = re.fullmatch(want.command.replace("W", "[NW]"), facts.command)
    verdict.require("command line", facts.command, want.command, holds=as_designed is not None)
    for name in sorted(want.never):
        verdict.require(f"library {name}", "mapped", "never", holds=name not in facts.libraries)
    _descriptors(verdict, kind, want, facts)
    if kind is not Kind.MONITOR:
        verdict.require("root", facts.root, "an empty directory", holds=facts.root_is_empty)
        verdict.require("environment, octets", facts.environment, 0)
        verdict.require("session", facts.session, facts.pid)
        _layers(verdict, want, facts, others)
        if Kind.MONITOR in others:
            _inherited(verdict, facts, others[Kind.MONITOR])
    for other, its in others.items():
        shared = _uids(facts) & _uids(its)
        verdict.require(f"uid shared with {other.value}", sorted(shared), "none", holds=not shared)
    return tuple(verdict.findings)


class _Verdict:
    """Collects findings."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def require(self, what: str, actual: object, wanted: object, *, holds: bool | None = None) -> None:
        """`holds` where equality is not what is required."""
        if not (actual == wanted if holds is None else holds):
            self.findings.append(Finding(what=what, found=str(actual), expected=str(wanted)))

    def at_most(self, what: str, actual: int, most: int) -> None:
        """For numbers; a negative one is no limit."""
        self.require(what, actual, f"at most {most}", holds=0 <= actual <= most)


def _credentials(verdict: _Verdict, want: Expected, facts: Facts) -> None:
    permitted, effective = capabilities.mask(want.permitted), capabilities.mask(want.effective)
    for thread in facts.credentials:
        verdict.require("uid", thread.uids, (want.uid,) * 4)
        verdict.require("gid", thread.gids, (want.gid,) * 4)
        verdict.require("supplementary groups", thread.groups, ())
        verdict.require("no_new_privs", thread.no_new_privs, 1)
        verdict.require("seccomp mode", thread.seccomp, SECCOMP_FILTER)
        for name, actual, most in (
            ("permitted", thread.permitted, permitted),
            ("effective", thread.effective, effective),
            ("bounding", thread.bounding, permitted),
            ("inheritable", thread.inheritable, 0),
            ("ambient", thread.ambient, 0),
        ):
            verdict.require(f"{name} capabilities", f"{actual:#x}", f"at most {most:#x}", holds=not actual & ~most)


def _descriptors(verdict: _Verdict, kind: Kind, want: Expected, facts: Facts) -> None:
    # the monitor's standard streams are whatever the operator or systemd gave it
    held = {number: each for number, each in facts.descriptors.items() if kind is not Kind.MONITOR or number > 2}
    for number, each in held.items():
        verdict.require(
            f"descriptor {number}", each, " or ".join(sorted(want.descriptors)), holds=each in want.descriptors
        )
    for each, count in Counter(held.values()).items():
        verdict.at_most(f"number of {each} descriptors", count, want.descriptors.get(each, _ANY))


def _layers(verdict: _Verdict, want: Expected, facts: Facts, others: Mapping[Kind, Facts]) -> None:
    if Layer.LANDLOCK in want.layers:
        verdict.require("Landlock (reported)", facts.landlock, "a version", holds=facts.landlock is not None)
    if Layer.NETNS in want.layers:
        alone = facts.network not in {other.network for other in others.values()}
        what = "no other's, without address and route"
        verdict.require("empty network namespace", facts.network, what, holds=facts.empty_network and alone)
    if Layer.MLOCK in want.layers:
        verdict.require("locked memory, KB", facts.locked_kb, "more than 0", holds=facts.locked_kb > 0)


def _inherited(verdict: _Verdict, facts: Facts, monitor: Facts) -> None:
    """A child of the monitor's has its filter, too: only one more is the child's own."""
    verdict.require("parent", facts.parent, monitor.pid)
    theirs = monitor.credentials[0].filters
    for thread in facts.credentials:
        if thread.filters is not None and theirs is not None:
            more = f"more than the monitor's {theirs}"
            verdict.require("seccomp filters", thread.filters, more, holds=thread.filters > theirs)


def _uids(facts: Facts) -> set[int]:
    return {uid for thread in facts.credentials for uid in thread.uids}
