"""What the kernel says about a running process, as one value: the eyes of the audit (proc(5)). Needs root.

Three things that the sandbox sets are not shown by any kernel, or not in full. The Landlock domain: the sandbox writes
its version into the process's name just before the filter takes away the means to change it. Securebits and what a
seccomp filter admits: `privsep/sandbox/confine.py` reads the first back, tests attack the second.

The command line and the environment lie in the process's own memory. They tell how it was started; after that, one that
was taken over shows there what it likes. It cannot touch the rest.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import prctl

from privsep.errors import OperatorError
from privsep.sandbox import capabilities, status

MAX_THREADS = 64
MAX_DESCRIPTORS = 4096

UNLIMITED = -1

_T = TypeVar("_T")
_GONE = (FileNotFoundError, ProcessLookupError)
"""How the kernel says that what was listed is no more: ENOENT when it is opened, ESRCH when it is read. What is
forbidden is another error (EACCES, EPERM), which nothing here takes for an end."""

_LIMITS = {
    "core": "Max core file size",
    "nofile": "Max open files",
    "nproc": "Max processes",
    "fsize": "Max file size",
    "memlock": "Max locked memory",
    "msgqueue": "Max msgqueue size",
    "as": "Max address space",
}
"""Ours for the names of setrlimit(2), the kernel's in /proc/PID/limits."""
_LIBRARIES = {"cryptography": "/cryptography/", "zmq": "/libzmq"}
"""What their files have in their paths."""


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
    filters: int | None
    """How many seccomp filters; None if the kernel does not count them."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Facts:
    """One process, now."""

    pid: int
    parent: int
    session: int
    command: str
    """The command line without the program's path. A value is N if a descriptor's number, else W: if a secret is among
    them, it goes no further."""
    environment: int
    """Octets."""
    threads: int
    credentials: tuple[Thread, ...]
    """Different ones only; a well-kept process has one entry."""
    dumpable: bool
    limits: Mapping[str, int]
    """Hard resource limits; the soft ones are never above them."""
    landlock: int | None
    """The version of the domain as the process reported it; None if it reported none."""
    root: str
    root_is_empty: bool
    network: str
    """Names the network namespace."""
    empty_network: bool
    """Whether that has neither route nor address."""
    locked_kb: int
    libraries: tuple[str, ...]
    """Which of those are mapped that not every process may use."""
    descriptors: Mapping[int, str]
    """Kind of each: pipe, eventpoll, eventfd, pidfd, a socket's protocol and port, or the path of anything else."""


def inspect(pid: int, monitor: int) -> Facts:
    """Read everything; AuditError if that is not possible. Inherited sockets are in the `monitor`'s network."""
    proc = Path("/proc") / str(pid)
    try:
        main = status.parse((proc / "status").read_text())
        tasks = sorted((proc / "task").iterdir())[:MAX_THREADS]
        facts = Facts(
            pid=pid,
            parent=main.parent,
            session=os.getsid(pid),
            command=_shape((proc / "cmdline").read_bytes()),
            environment=len((proc / "environ").read_bytes()),
            threads=main.threads,
            credentials=tuple(dict.fromkeys(thread for _, thread in _each(tasks, _thread))),
            dumpable=_dumpable(proc, main),
            limits=_limits((proc / "limits").read_text()),
            landlock=_reported_landlock(main.name),
            root=os.readlink(proc / "root"),
            root_is_empty=not os.listdir(proc / "root") and os.path.samefile(proc / "cwd", proc / "root"),
            network=os.readlink(proc / "ns/net"),
            empty_network=not any(_read(proc / "net" / name) for name in ("fib_trie", "if_inet6")),
            locked_kb=main.locked_kb,
            libraries=_libraries((proc / "maps").read_text()),
            descriptors=_descriptors(proc / "fd", _ports(Path("/proc") / str(monitor) / "net")),
        )
        # an exit takes the program away first: who still has one here lost nothing while it was looked at
        os.readlink(proc / "exe")
        return facts
    except (OSError, KeyError, ValueError) as error:
        raise AuditError(f"process {pid} cannot be inspected: {error}") from error


def _each(paths: Iterable[Path], read: Callable[[Path], _T]) -> Iterator[tuple[Path, _T]]:
    """What `read` makes of each path that was listed; what ended or was closed since then is left out."""
    for path in paths:
        try:
            yield path, read(path)
        except _GONE:
            continue


def _thread(task: Path) -> Thread:
    actual = status.parse((task / "status").read_text())
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
        filters=actual.filters,
    )


def _read(path: Path) -> str:
    """Empty where the kernel is built without what the file is about."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _shape(command: bytes) -> str:
    words = command.rstrip(b"\0").decode(errors="replace").split("\0")
    return " ".join(_shown(word, before) for before, word in itertools.pairwise(words))


def _shown(word: str, before: str) -> str:
    if before == "-m" or re.fullmatch(r"--?[a-zA-Z-]+", word):
        return word
    return "N" if re.fullmatch(r"[0-9]{1,3}", word) else "W"


def _dumpable(proc: Path, actual: status.Status) -> bool:
    """proc(5): what is not dumpable belongs to root. What is root's anyway is asked whether it can be traced."""
    if actual.uids[1] != 0:
        # the directory itself is the user's always
        return (proc / "environ").stat().st_uid != 0

    def ask() -> bool:
        # capabilities belong to threads: this one gives up those that would let it trace everything
        mine = status.parse(Path("/proc/thread-self/status").read_text()).effective & ~(1 << prctl.CAP_SYS_PTRACE)
        held = frozenset(number for number in range(64) if mine >> number & 1)
        capabilities.limit(held, held)
        # who holds more than the asker cannot be traced in any case; the worse is assumed
        return bool(actual.permitted & ~mine) or _traceable(proc)

    with ThreadPoolExecutor(1) as one:
        return one.submit(ask).result()


def _traceable(proc: Path) -> bool:
    try:
        os.close(os.open(proc / "mem", os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        return False
    return True


def _limits(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, label in _LIMITS.items():
        line = re.search(rf"^{label} +\S+ +(\S+)", text, re.MULTILINE)
        if line is None:
            raise ValueError(f"no {name} limit")
        found[name] = UNLIMITED if line[1] == "unlimited" else int(line[1])
    return found


def _reported_landlock(name: str) -> int | None:
    found = re.search(r":L(\d{1,3})$", name)
    return None if found is None else int(found[1])


def _libraries(maps: str) -> tuple[str, ...]:
    return tuple(name for name, part in _LIBRARIES.items() if part in maps)


def _ports(net: Path) -> dict[int, int]:
    """Inode to local port of each UDP socket, to protocol of each raw one."""
    found: dict[int, int] = {}
    for table in ("udp", "udp6", "raw", "raw6"):
        for line in _read(net / table).splitlines()[1:]:
            fields = line.split()
            found[int(fields[9])] = int(fields[1].rpartition(":")[2], 16)
    return found


def _descriptors(directory: Path, ports: Mapping[int, int]) -> dict[int, str]:
    listed = [directory / str(number) for number in sorted(map(int, os.listdir(directory)))[:MAX_DESCRIPTORS]]
    return {int(path.name): kind for path, kind in _each(listed, lambda path: _kind(path, ports))}


def _kind(descriptor: Path, ports: Mapping[int, int]) -> str:
    # held by a descriptor of our own: the number may be closed, and mean another thing, between two questions
    held = os.open(descriptor, os.O_PATH | os.O_CLOEXEC)
    try:
        return _described(f"/proc/self/fd/{held}", ports)
    finally:
        os.close(held)


def _described(descriptor: str, ports: Mapping[int, int]) -> str:
    target = os.readlink(descriptor)
    # "socket:[123]" and "anon_inode:[eventpoll]" name a kind, the rest is a path
    named = re.fullmatch(r"(?:anon_inode:\[?(\w+)\]?|(\w+):\[(\d+)\])", target)
    if named is None:
        return target
    if named[2] != "socket":
        return named[1] or named[2]
    # of every family and in whatever namespace, where /proc/net shows few and only one's own
    protocol = os.getxattr(descriptor, "system.sockprotoname").rstrip(b"\0").decode().lower()
    if protocol == "unix-stream":
        # older kernels make no difference
        return "unix"
    inode = int(named[3])
    return f"{protocol} {ports[inode]}" if inode in ports else protocol
