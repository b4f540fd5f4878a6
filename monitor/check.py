"""`python -m monitor.check --config FILE`: what `privsep-ike check` asks of this machine.

Prints one JSON object: which data plane `run` would choose here and why, what would make `run` fail here (`obstacles`),
and what it would only warn of. What the kernel lacks goes by its build option.

What can be tried is tried, in a network namespace of this process's own: an instance that runs meanwhile notices
nothing, and nothing is left behind. Ports are not tried, because an instance that runs holds them rightly.
"""

import argparse
import json
import os
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field

import prctl

from monitor.egress import restrict
from monitor.lookup import LOOKUP_SECONDS, Resolvers
from monitor.names import MAX_RUNNING
from monitor.plane import MAX_TOLD, foresee
from monitor.resolver.ask import look_up
from monitor.routes import Routes
from monitor.sockets import Plane
from privsep.config import handover, loader
from privsep.config.model import Egress, Gateway, Layer
from privsep.config.names import RemoteName
from privsep.config.toml_lines import Document, Path
from privsep.errors import OperatorError
from privsep.loop import Loop
from privsep.sandbox import landlock, memory, namespaces
from privsep.schema.names import Answer, Found
from privsep.types import Address

UNASKED = "only root with CAP_NET_ADMIN may ask the kernel"
_TRIALS: dict[Layer, Callable[[], object]] = {
    Layer.LANDLOCK: landlock.abi,
    Layer.MLOCK: memory.lock,
    Layer.NETNS: namespaces.leave_network,
}
"""Applied to this process, which ends soon."""


_Found = tuple[Path, str]
"""Where in the configuration, and what is to be said of it."""


@dataclass(slots=True, frozen=True, kw_only=True)
class _Warning:
    """As `privsep-ike check --json` prints it."""

    file: str
    line: int
    text: str


@dataclass(slots=True, kw_only=True)
class _Report:
    """As printed."""

    dataplane: str
    obstacles: list[str] = field(default_factory=list)
    warnings: list[_Warning] = field(default_factory=list)


def main() -> int:
    """Always 0: a machine that cannot carry a configuration does not make it wrong."""
    parser = argparse.ArgumentParser("monitor.check", description="Tell what `run` would find on this machine.")
    parser.add_argument("--config", required=True)
    arguments = parser.parse_args()
    text = handover.read_file(arguments.config)
    gateway = loader.load(text, arguments.config)
    print(json.dumps(asdict(_report(gateway, text, arguments.config))))
    return 0


def _report(gateway: Gateway, text: str, filename: str) -> _Report:
    warnings = _warnings(gateway, text, filename)
    if os.geteuid() != 0 or not prctl.cap_effective.net_admin:
        return _Report(dataplane=f"cannot be told, because {UNASKED}", obstacles=[UNASKED], warnings=warnings)
    try:
        plane, why = foresee(gateway)
    except OperatorError as error:
        found = [str(error), *_obstacles(gateway, None)]
        return _Report(dataplane=f"none, because {error}", obstacles=found, warnings=warnings)
    found = list(_obstacles(gateway, plane))
    return _Report(dataplane=f"{plane.value}, because {why}", obstacles=found, warnings=warnings)


def _obstacles(gateway: Gateway, plane: Plane | None) -> Iterator[str]:
    """What would end `run`, or each child that it starts, beside the lack of a data plane."""
    for address in gateway.listen:
        if not _is_ours(address):
            yield f"no interface has {address}; `gateway.listen` must name addresses of this machine"
    lost = {layer: why for layer in Layer if layer not in gateway.absent and (why := _failure(_TRIALS[layer]))}
    yield from lost.values()
    if Layer.NETNS in gateway.absent | lost.keys():
        # what follows would be tried on the live network
        return
    if gateway.egress is Egress.RESTRICTED and (why := _failure(lambda: restrict(gateway).close())):
        yield why
    if plane is Plane.USERSPACE and (why := _failure(lambda: Routes().close())):
        yield why


def _failure(trial: Callable[[], object]) -> str:
    """Why it does not work here, empty if it does."""
    try:
        trial()
    except OperatorError as error:
        return str(error)
    return ""


def _warnings(gateway: Gateway, text: str, filename: str) -> list[_Warning]:
    """What may mend itself: `run` starts all the same."""
    found = [*_told(_elsewhere(gateway)), *_told(_unresolved(gateway))]
    if not found:
        return []
    document = Document.parse(text, filename)
    return [_Warning(file=filename, line=document.line_of(path), text=what) for path, what in found]


def _told(found: Iterable[_Found]) -> Iterator[_Found]:
    """The first of one kind, and how many more there are."""
    kind = list(found)
    yield from kind[:MAX_TOLD]
    if len(kind) > MAX_TOLD:
        yield (), f"{len(kind) - MAX_TOLD} more like the last line"


def _elsewhere(gateway: Gateway) -> Iterator[_Found]:
    """Connections that could send nothing now. It may come yet, by DHCP or failover."""
    foreign = {each.local for each in gateway.connections if each.local is not None and not _is_ours(each.local)}
    for connection in gateway.connections:
        if connection.local in foreign:
            what = (
                f"no interface of this machine has {connection.local}; until one has, the connection can send nothing"
            )
            yield ("connection", connection.name, "local"), what


def _unresolved(gateway: Gateway) -> Iterator[_Found]:
    """Connections whose peer nobody can find now."""
    remotes = {each.remote for each in gateway.connections if isinstance(each.remote, RemoteName)}
    answers = _look_up(gateway, remotes) if os.geteuid() == 0 else {each: _ask(each) for each in remotes}
    for connection in gateway.connections:
        if isinstance(connection.remote, RemoteName):
            name, answer = connection.remote.name, answers.get(connection.remote)
            if not isinstance(answer, Found):
                why = f"no answer within {LOOKUP_SECONDS:g} s" if answer is None else answer.why
                what = f"{name} does not resolve ({why}); its connection waits until it does"
                yield ("connection", connection.name, "remote"), what


def _ask(remote: RemoteName) -> Answer:
    """By whoever runs `check`, without privilege."""
    return look_up(remote.name, remote.version or 0)


def _look_up(gateway: Gateway, remotes: Collection[RemoteName]) -> dict[RemoteName, Answer]:
    """As `run` does it, by processes of nobody's; what takes too long is left out."""
    loop, answers, waiting = Loop(), dict[RemoteName, Answer](), list(remotes)
    resolvers = Resolvers(gateway.users, gateway.absent, loop, lambda line, record: print(line, file=sys.stderr))

    def ask_next() -> None:
        if waiting:
            remote = waiting.pop()
            resolvers.ask(remote.name, remote.version, lambda answer: answered(remote, answer))
        elif len(answers) == len(remotes):
            loop.stop()

    def answered(remote: RemoteName, answer: Answer) -> None:
        answers[remote] = answer
        ask_next()

    if remotes:
        loop.after(LOOKUP_SECONDS, loop.stop)
        for _ in range(MAX_RUNNING):
            ask_next()
        loop.run()
    return answers


def _is_ours(address: Address) -> bool:
    """Whether a socket can be bound to it, at any port."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((str(address), 0))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
