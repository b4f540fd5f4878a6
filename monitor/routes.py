"""The TUN device of the userspace ESP process, and the routes that lead into it.

The routes stand in a table of their own, which a rule consults before the main table for every packet except those with
our mark: IKE and ESP carry it (`sockets.py`), so the outer packets never go into the tunnel, even where the peer's own
address is protected (transport mode, or a remote selector of everything). Nothing in the main table changes, no route
depends on where the peer is, and a change of uplink needs nothing from us.

Each selector also has an `unreachable` route of lower preference. While the device exists it does nothing; if the
monitor dies, the device goes and takes its own routes along, and traffic is refused instead of sent in the clear, until
the next start has placed its own policies or `privsep-ike clear` empties the table.

A remote selector that contains a local one (everything, most often) must not swallow traffic to our own networks: such
local networks get a `throw` route, which sends the look-up on to the main table. With strict reverse-path filtering,
a remote selector that covers the peer's outer address needs `rp_filter=2` on the uplink.
"""

import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from monitor.dataplane import DataplaneError, Policy
from privsep.config.model import Action, Shunt
from privsep.errors import OperatorError
from privsep.types import ANY_IPV4, ANY_IPV6, Address, Network

OUTER_MARK = 0x706B
"""Firewall mark of our outer packets ("pk"); excepted from `TABLE`."""
TABLE = 4500
"""Routing table of protected networks. strongSwan uses 220; both may run, in that order."""
RULE_PRIORITY = 4500
"""After the local table (0) and before the main one (32766)."""
TUN_NAME = "pike%d"
TUN_MTU = 1380
"""1500 less what ESP adds at worst: IPv6 40, UDP 8, ESP header 8, IV 16, ICV 32, trailer 2 and padding, with which 1380
becomes 1392. IPv6 asks for 1280 at least."""
TUN_QUEUE = 1000
"""Packets that wait for the ESP process."""

_RULE_INVERT = 2
"""<linux/fib_rules.h>: "not from all fwmark"."""
_MAX_RULES = 64
"""Leftover rules that are removed; on kernels that admit equal ones, each daemon that was killed leaves one."""

_CLONE_DEVICE = "/dev/net/tun"
# <linux/if_tun.h>, <linux/if_link.h>
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFREQ = struct.Struct("16sH22x")
_ADDR_GEN_MODE_NONE = 1


class _Kind(Enum):
    """What a route does, with its type and metric. Lower metrics win: the device while it exists, refusal after it."""

    PROTECT = ("unicast", 1)
    OURS = ("throw", 2)
    REFUSE = ("unreachable", 1 << 20)


_Entry = tuple[_Kind, Network]
_BY_METRIC = {kind.value[1]: kind for kind in _Kind}
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Routes:
    """Owns the device and the table; one instance in a network namespace. Netlink calls block, for microseconds."""

    def __init__(self) -> None:
        """Create the device; OperatorError where this machine has no TUN. What a killed daemon left refuses on."""
        self.tun, self.name = _open_tun()
        self._netlink = IPRoute()
        self._index: int = self._netlink.link_lookup(ifname=self.name)[0]
        # no link-local address, else the kernel solicits routers and reports groups into the tunnel
        quiet = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)]})]}
        self._netlink.link("set", index=self._index, IFLA_AF_SPEC=quiet)
        self._netlink.link("set", index=self._index, mtu=TUN_MTU, txqlen=TUN_QUEUE, state="up")
        self._uses: Counter[_Entry] = Counter()
        self._ruled: set[int] = set()

    def add(self, policy: Policy) -> None:
        """Lead the policy's remote networks into the device. DataplaneError if the kernel refuses."""
        self._add(_entries(policy), lambda entry: self._source_hint(policy, entry))

    def _add(self, entries: list[_Entry], hint: Callable[[_Entry], Address | None]) -> None:
        for entry in entries:
            if not self._uses[entry]:
                try:
                    self._require_rule(_family(entry[1]))
                    self._route("replace", entry, hint(entry))
                except NetlinkError as error:
                    raise DataplaneError(f"route to {entry[1]}: {os.strerror(error.code)}") from None
            self._uses[entry] += 1

    def remove(self, policy: Policy) -> None:
        """Undo `add`, except for networks that another policy leads here too."""
        self._remove(_entries(policy))

    def _remove(self, entries: list[_Entry]) -> None:
        for entry in entries:
            self._uses[entry] -= 1
            if not self._uses[entry]:
                _unless_absent(partial(self._route, "del", entry, None))

    def add_shunt(self, shunt: Shunt) -> None:
        """Let the rest of the routing tables decide about these networks, or refuse them, unless a longer prefix does.

        DataplaneError if the kernel refuses. That this is what was meant is checked where the configuration is.
        """
        self._add(_shunt_entries(shunt), lambda entry: None)

    def remove_shunt(self, shunt: Shunt) -> None:
        """Undo `add_shunt`."""
        self._remove(_shunt_entries(shunt))

    def settle(self) -> None:
        """Every policy is placed: remove the rest of what a daemon that was killed has left."""
        for family in _FAMILIES:
            for record in self._netlink.get_routes(family=family, table=TABLE):
                entry = _entry(family, record)
                if entry is not None and not self._uses[entry]:
                    _unless_absent(partial(self._route, "del", entry, None))
            if family not in self._ruled:
                _unrule(self._netlink, family)

    def close(self) -> None:
        """Remove everything: the daemon ends, and is to leave nothing."""
        _clear(self._netlink)
        self._netlink.close()
        os.close(self.tun)

    def _route(self, verb: str, entry: _Entry, hint: Address | None) -> None:
        kind, network = entry
        name, metric = kind.value
        extra: dict[str, Any] = {"oif": self._index} if kind is _Kind.PROTECT else {}
        if hint is not None:
            extra["prefsrc"] = str(hint)
        self._netlink.route(
            verb, dst=str(network), family=_family(network), type=name, table=TABLE, priority=metric, **extra
        )

    def _source_hint(self, policy: Policy, entry: _Entry) -> Address | None:
        """One of our addresses that the policy protects, so that the gateway's own traffic is within the selectors."""
        kind, network = entry
        if kind is not _Kind.PROTECT:
            return None
        protected = [selector.network for selector in policy.local_ts]
        for record in self._netlink.get_addr(family=_family(network)):
            address = ipaddress.ip_address(record.get("local") or record.get("address"))
            if any(address in each for each in protected):
                return address
        return None

    def _require_rule(self, family: int) -> None:
        """Consult the table, for a family that has routes there: a machine without IPv6 never hears of it."""
        if family not in self._ruled:
            try:
                _rule(self._netlink, "add", family)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
            self._ruled.add(family)


def clear_left() -> None:
    """What an instance that runs no more has left here. While one does run, its device has routes, and all stays."""
    with IPRoute() as netlink:
        records = [each for family in _FAMILIES for each in netlink.get_routes(family=family, table=TABLE)]
        if not any(record.get("priority") == _Kind.PROTECT.value[1] for record in records):
            _clear(netlink)


def _clear(netlink: IPRoute) -> None:
    """Empty the table and remove its rules."""
    for family in _FAMILIES:
        _unless_absent(partial(netlink.flush_routes, table=TABLE, family=family))
        _unrule(netlink, family)


def _unrule(netlink: IPRoute, family: int) -> None:
    for _ in range(_MAX_RULES):
        if not _unless_absent(partial(_rule, netlink, "del", family)):
            break


def _rule(netlink: IPRoute, verb: str, family: int) -> None:
    netlink.rule(verb, family=family, table=TABLE, priority=RULE_PRIORITY, fwmark=OUTER_MARK, flags=_RULE_INVERT)


def _entries(policy: Policy) -> list[_Entry]:
    """The routes that a policy needs."""
    remote = [selector.network for selector in policy.remote_ts]
    ours = [
        selector.network
        for selector in policy.local_ts
        if any(_strictly_inside(selector.network, network) for network in remote)
    ]
    return list(
        dict.fromkeys(
            [(_Kind.REFUSE, network) for network in remote]
            + [(_Kind.OURS, network) for network in ours]
            + [(_Kind.PROTECT, network) for network in remote]
        )
    )


def _shunt_entries(shunt: Shunt) -> list[_Entry]:
    kind = _Kind.OURS if shunt.action is Action.PASS else _Kind.REFUSE
    return list(dict.fromkeys((kind, selector.network) for selector in shunt.remote_ts))


def _entry(family: int, record: Any) -> _Entry | None:
    """The route that a netlink record is, if it is of a kind that we make."""
    kind = _BY_METRIC.get(record.get("priority"))
    if kind is None:
        return None
    if not record["dst_len"]:
        return kind, ANY_IPV4 if family == socket.AF_INET else ANY_IPV6
    return kind, ipaddress.ip_network(f"{record.get('dst')}/{record['dst_len']}")


def _strictly_inside(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.prefixlen > outer.prefixlen and inner.network_address in outer


def _family(network: Network) -> int:
    return socket.AF_INET if network.version == 4 else socket.AF_INET6


def _unless_absent(call: Callable[[], object]) -> bool:
    """Delete what may not be there; whether it was."""
    try:
        call()
    except NetlinkError as error:
        if error.code in (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _open_tun() -> tuple[int, str]:
    """A new device and its descriptor; it lives as long as the descriptor."""
    try:
        tun = os.open(_CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OperatorError(
            f"{_CLONE_DEVICE}: {error.strerror}; ESP in userspace needs the kernel's TUN driver (`modprobe tun`)"
        ) from None
    try:
        reply = fcntl.ioctl(tun, _TUNSETIFF, _IFREQ.pack(TUN_NAME.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        os.close(tun)
        raise OperatorError(f"a TUN device cannot be made: {error.strerror}; it needs CAP_NET_ADMIN") from None
    return tun, _IFREQ.unpack(reply)[0].rstrip(b"\0").decode()
