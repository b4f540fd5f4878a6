"""Which data plane carries ESP: what the configuration asks for, what this machine can do, and why in a sentence."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

from monitor.dataplane import Adopting, Dataplane, Events
from monitor.inheritance import interfaces as interfaces_of
from monitor.inheritance import renounce
from monitor.journal import Journal
from monitor.routes import Routes, clear_left
from monitor.sadb import fixed
from monitor.sockets import Plane
from monitor.userspace.client import UserspaceDataplane
from monitor.waiting import run
from monitor.xfrm.client import KernelDataplane, Later
from monitor.xfrm.events import XfrmEvents
from monitor.xfrm.interfaces import Interfaces, configured, remove_made
from monitor.xfrm.netlink import XfrmNetlink
from monitor.xfrm.probe import can_migrate, knows_direction, probe
from privsep.config.model import DataplaneChoice, Gateway
from privsep.config.names import RemoteName
from privsep.config.userspace import beyond_userspace
from privsep.errors import OperatorError
from privsep.log import Log
from privsep.loop import Loop

ABLE = "the kernel carries every configured suite"
NO_MIGRATION = "; it lacks CONFIG_XFRM_MIGRATE, so that the traffic of a peer that moves waits for its new pair"
MAX_TOLD = 8
"""Suites, shunts and keys that are named when a data plane cannot carry them."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Userspace:
    """What the ESP process needs from us."""

    dataplane: UserspaceDataplane
    tun: int
    """Descriptor of the TUN device."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Choice:
    """The data plane, and why this one."""

    dataplane: Dataplane
    reason: str
    userspace: Userspace | None
    kernel: Adopting | None
    """The data plane, if it outlives the daemon. The userspace ESP process does not, nor do its keys."""
    settle: Callable[[Mapping[str, int]], None]
    """Once every configured policy is placed: what an earlier instance left beside policies is not needed any more.

    It is given the XFRM interfaces that the earlier one had, as if_id by name.
    """
    close: Callable[[], None]
    """At the end of a daemon that leaves nothing: device, interfaces, routes, netlink sockets."""


def choose(gateway: Gateway, loop: Loop, events: Events, lost: Callable[[str], None]) -> Choice:
    """`auto` takes the kernel if it can carry every configured suite, else the userspace ESP process for all of them.

    OperatorError when the configuration insists on a kernel that cannot, or neither can carry all. Needs root; nothing
    is left behind by probing.
    """
    found = _decide(gateway)
    if isinstance(found, XfrmNetlink):
        return _kernel(gateway, found, loop, events)
    return _userspace(loop, events, lost, found)


def foresee(gateway: Gateway) -> tuple[Plane, str]:
    """What `choose` would take and why, without taking it. OperatorError where it would take none."""
    found = _decide(gateway)
    if isinstance(found, XfrmNetlink):
        with closing(found):
            return Plane.KERNEL, _able(gateway, found)
    return Plane.USERSPACE, found


def _decide(gateway: Gateway) -> XfrmNetlink | str:
    """The way to the kernel, or why it is the userspace ESP process."""
    if gateway.dataplane is DataplaneChoice.USERSPACE:
        return "the configuration says so"
    found = _able_kernel(gateway)
    if isinstance(found, XfrmNetlink):
        return found
    if gateway.dataplane is DataplaneChoice.KERNEL:
        raise OperatorError(f'dataplane = "kernel": {found}; {_instead(gateway)} would work')
    if beyond := _beyond(gateway):
        raise OperatorError(
            f'dataplane = "auto": {found}; the userspace data plane cannot carry {beyond}; '
            f"{_instead(gateway)} would work"
        )
    return found


def leave_kernel(journal: Journal, log: Log) -> None:
    """All goes that an earlier instance has left in the kernel by this journal."""
    try:
        netlink = XfrmNetlink()
    except OperatorError:
        # a kernel without XFRM has nothing of it
        return
    left = interfaces_of(journal)
    with closing(netlink):
        run(renounce(journal, KernelDataplane(netlink), log))
    remove_made(left)


def _instead(gateway: Gateway) -> str:
    """What would work without this kernel."""
    if not _beyond(gateway):
        return '"auto" or "userspace"'
    rights = dict.fromkeys(each.right for each in beyond_userspace(gateway) if each.right)
    return f"{' and '.join(rights)} in their place" if rights else "doing without them"


def _beyond(gateway: Gateway) -> str:
    """What userspace cannot carry, and whose it is; empty if there is nothing."""
    found = [each.named for each in beyond_userspace(gateway)]
    return ", ".join(found[:MAX_TOLD]) + (f" and {len(found) - MAX_TOLD} more" if len(found) > MAX_TOLD else "")


def _able_kernel(gateway: Gateway) -> XfrmNetlink | str:
    """The way to a kernel that can carry every configured suite, or what this one lacks."""
    try:
        netlink = XfrmNetlink()
    except OperatorError as error:
        return str(error)
    lacking = probe(netlink, gateway)
    if lacking is None:
        return netlink
    netlink.close()
    return lacking


def _able(gateway: Gateway, netlink: XfrmNetlink) -> str:
    """Why the kernel, and what it does worse than another one would."""
    remotes = [connection.remote for connection in gateway.connections]
    travels = any(fixed(remote) is None or isinstance(remote, RemoteName) for remote in remotes)
    return ABLE + (NO_MIGRATION if travels and not can_migrate(netlink) else "")


def _kernel(gateway: Gateway, netlink: XfrmNetlink, loop: Loop, events: Events) -> Choice:
    wanted = configured(gateway)
    interfaces = Interfaces(wanted) if wanted else None
    dataplane = KernelDataplane(netlink, Later(loop, events.expired), directed=knows_direction(netlink))
    reports = XfrmEvents(dataplane, events)
    loop.on_readable(reports.fileno(), reports.read_events)

    def close() -> None:
        loop.on_readable(reports.fileno(), None)
        reports.close()
        netlink.close()
        if interfaces is not None:
            interfaces.close()

    def settle(earlier: Mapping[str, int]) -> None:
        remove_made({name: if_id for name, if_id in earlier.items() if wanted.get(name) != if_id})
        clear_left()

    reason = _able(gateway, netlink)
    return Choice(dataplane=dataplane, reason=reason, userspace=None, kernel=dataplane, settle=settle, close=close)


def _userspace(loop: Loop, events: Events, lost: Callable[[str], None], reason: str) -> Choice:
    routes = Routes()
    dataplane = UserspaceDataplane(loop, routes, events, lost)
    userspace = Userspace(dataplane=dataplane, tun=routes.tun)

    def settle(_: Mapping[str, int]) -> None:
        routes.settle()

    return Choice(
        dataplane=dataplane, reason=reason, userspace=userspace, kernel=None, settle=settle, close=routes.close
    )
