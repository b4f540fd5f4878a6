"""XFRM interfaces: what the operator, or a routing daemon, routes into one belongs to the children with its if_id.

Nothing that goes into one leaves in clear: the kernel drops what no policy of that if_id protects. Addresses and routes
are not ours. An interface that we made bears our alias, by which a later instance knows it; others are used and left.
"""

import errno
import os
from collections.abc import Mapping
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from privsep.config.model import Gateway
from privsep.errors import OperatorError

ALIAS = "privsep-ike"
KIND = "xfrm"
_PROBED = "pike-probe"
_NO_MTU = 1
"""Less than any link may have."""


def configured(gateway: Gateway) -> dict[str, int]:
    """if_id by name."""
    return {
        child.kernel.interface: child.kernel.lane.if_id_out
        for _, child in gateway.children()
        if child.kernel.interface is not None
    }


def needed(gateway: Gateway) -> bool:
    """Whether any child has an if_id, be the interface ours or the operator's."""
    return any(child.kernel.lane.if_ids != {0} for _, child in gateway.children())


def possible() -> bool:
    """Whether the kernel has the kind. Asked for a link with an MTU that none may have, so that none is made."""
    netlink = IPRoute()
    try:
        netlink.link("add", ifname=_PROBED, kind=KIND, xfrm_if_id=1, mtu=_NO_MTU)
    except NetlinkError as error:
        return bool(error.code != errno.EOPNOTSUPP)
    finally:
        netlink.close()
    return True


class Interfaces:
    """Those of the configuration, in the network namespace in which this was made."""

    def __init__(self, wanted: dict[str, int]) -> None:
        """Make them and set them up; OperatorError where a name or an if_id is taken."""
        self._netlink = IPRoute()
        self._wanted = wanted
        made: dict[str, int] = {}
        try:
            for name, if_id in wanted.items():
                if self._require(name, if_id):
                    made[name] = if_id
        except (NetlinkError, OperatorError):
            # not those that were there: traffic is routed into them, which must not find another way
            self._remove(made)
            self._netlink.close()
            raise

    def _require(self, name: str, if_id: int) -> bool:
        """Whether it had to be made."""
        link = _find(self._netlink, name)
        if link is None:
            self._make(name, if_id)
            return True
        if _if_id(link) != if_id:
            what = f"has if_id {_if_id(link)}" if _if_id(link) is not None else "is no XFRM interface"
            raise OperatorError(f"interface {name} exists and {what}; another name, or if_id {if_id}, would be right")
        self._netlink.link("set", index=link["index"], state="up")
        return False

    def _make(self, name: str, if_id: int) -> None:
        try:
            self._netlink.link("add", ifname=name, kind=KIND, xfrm_if_id=if_id)
        except NetlinkError as error:
            why = f"if_id {if_id} is another's" if error.code == errno.EEXIST else os.strerror(error.code)
            raise OperatorError(f"interface {name} cannot be made: {why}; it needs CONFIG_XFRM_INTERFACE") from None
        for index in self._netlink.link_lookup(ifname=name):
            self._netlink.link("set", index=index, ifalias=ALIAS, state="up")

    def close(self) -> None:
        """Remove those that are ours."""
        self._remove(self._wanted)
        self._netlink.close()

    def _remove(self, wanted: Mapping[str, int]) -> None:
        for name, if_id in wanted.items():
            _remove(self._netlink, name, if_id)


def remove_made(earlier: Mapping[str, int]) -> None:
    """Of those that an earlier instance had, by name with their if_id, remove those that one of ours made."""
    if earlier:
        with IPRoute() as netlink:
            for name, if_id in earlier.items():
                _remove(netlink, name, if_id)


def _remove(netlink: IPRoute, name: str, if_id: int) -> None:
    link = _find(netlink, name)
    if link is None or link.get_attr("IFLA_IFALIAS") != ALIAS or _if_id(link) != if_id:
        return
    try:
        netlink.link("del", index=link["index"])
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise


def _find(netlink: IPRoute, name: str) -> Any:
    index = netlink.link_lookup(ifname=name)
    return next(iter(netlink.get_links(index[0])), None) if index else None


def _if_id(link: Any) -> int | None:
    """None if it is no XFRM interface."""
    information = link.get_attr("IFLA_LINKINFO")
    if information is None or information.get_attr("IFLA_INFO_KIND") != KIND:
        return None
    found: int | None = information.get_attr("IFLA_INFO_DATA").get_attr("IFLA_XFRM_IF_ID")
    return found
