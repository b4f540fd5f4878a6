"""The kernel's last word on what the worker's descriptors send: from port 500 or 4500, to configured peers, or nothing.

Without it a captured worker can send UDP from those ports to anybody. With `egress = "restricted"` nftables drops, and
counts, whatever leaves this network namespace through a socket of the worker's user, unless it is plain UDP from one
of the two ports and, where no connection's remote is `any`, goes to a configured address. `nft list ruleset` shows:

    table inet privsep-ike-UID {
        flags owner
        set ports { type inet_service; elements = { 500, 4500 } }
        set remote4 { type ipv4_addr; flags interval; elements = { ... } }
        chain output {
            type filter hook output priority filter; policy accept;
            meta skuid UID ip version 4 ip hdrlength 5 udp sport @ports ip daddr @remote4 accept
            meta skuid UID counter drop
        }
    }

and the same for IPv6. "Plain" means without IP options and extension headers: with a source route, which needs no
privilege, the destination is a configured peer that is asked to send the packet on to somebody else.

*By user, not by mark.* nftables looks at the credentials with which a socket's file was made; `sockets.py` makes the
worker's as the worker's user. So the rule holds for the descriptors that the worker inherits and for any socket that it
might come to make. A mark would hold for the first alone. The ESP process's sockets are of another user.

*With an owner.* The table belongs to the netlink socket that made it (Linux 5.12): nobody else can change it,
`nft flush ruleset` leaves it alone, and the kernel removes it when the socket closes, however the monitor ends. The
worker ends with the monitor. Other people's rules apply as well, since our accept ends our chain only.

Messages are pyroute2's (<linux/netfilter/nf_tables.h>), sent over a plain socket as in `xfrm/netlink.py`.
"""

import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NLMSG_ERROR,
)
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink import nftsocket as nft
from pyroute2.netlink.nlsocket import AsyncNetlinkSocket
from pyroute2.nftables.expressions import genex, verdict

from monitor.sockets import IKE_PORT, NATT_PORT
from privsep.config.model import Connection, Gateway, RemoteAny
from privsep.config.names import RemoteName
from privsep.errors import OperatorError
from privsep.types import Address, Network

PORTS, CHAIN = "ports", "output"
ANSWER_SECONDS = 10.0
"""The kernel answers before `send` returns; longer only where it is busy with other people's rules."""
MAX_ANSWER = 65536
MAX_ELEMENTS = 1000
"""Of one message: an attribute has 65535 octets at most, an element takes 24 or 36."""

# <linux/netfilter/nfnetlink.h>, <linux/netfilter/nf_tables.h>, <linux/netfilter.h>: what pyroute2 has no names for
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_TABLE_F_OWNER = 2
_HOOK_OUTPUT = 3
_PRIORITY_FILTER = 0
_DROP, _ACCEPT = 0, 1
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_REGISTER = int(nft.Regs.NFT_REG_1)
_ANSWER = struct.Struct("=IHHIIi")
"""struct nlmsghdr and the errno of NLMSG_ERROR."""


@dataclass(slots=True, frozen=True, kw_only=True)
class _Family:
    """What differs between the IP versions."""

    version: int
    nfproto: int
    plain: tuple[int, int]
    """Offset and value of the octet that tells a header to which UDP follows at once."""
    daddr: tuple[int, int]
    """Offset and length in the header."""
    type: int
    """nft's number for such addresses, with which `nft list` prints them."""

    @property
    def remotes(self) -> str:
        """Name of the set."""
        return f"remote{self.version}"


_FAMILIES = (
    # version and header length: five words, no options (RFC 791 section 3.1)
    _Family(version=4, nfproto=nft.NFPROTO_IPV4, plain=(0, 0x45), daddr=(16, 4), type=nft.DATA_TYPE_IPADDR),
    # next header: UDP, no extension headers (RFC 8200 section 3)
    _Family(version=6, nfproto=nft.NFPROTO_IPV6, plain=(6, 17), daddr=(24, 16), type=nft.DATA_TYPE_IP6ADDR),
)


class _Elements(nft.nft_set_elem_list_msg):  # type: ignore[misc] # pyroute2 has no types
    """pyroute2's own class takes the number of the flag for its name."""

    class set_elem(nft.nft_set_elem_list_msg.set_elem):  # type: ignore[misc] # noqa: N801 - named by pyroute2's nla_map
        class set_elem_flags(nft.nft_flags_be32):  # type: ignore[misc] # noqa: N801
            ops = ("NFT_SET_ELEM_INTERVAL_END",)


def table_name(uid: int) -> str:
    """The table that confines this user. Two for one user would drop each other's packets, so the name allows one."""
    return f"privsep-ike-{uid}"


def restrict(gateway: Gateway) -> socket.socket:
    """Confine the worker's user for as long as the returned socket is open. Needs CAP_NET_ADMIN.

    OperatorError if this kernel cannot, or if another instance confines the same user.
    """
    uid, _ = gateway.users.worker
    sock = _open()
    try:
        for sequence, messages in enumerate(_batches(uid, gateway.connections)):
            _transact(sock, sequence, messages)
    except OSError as error:
        sock.close()
        raise _refused(error, uid) from None
    return sock


def readmit(sock: socket.socket, gateway: Gateway) -> None:
    """A name has another address: the sets are filled anew, in one transaction. OSError with the kernel's reason.

    `sock` is what `restrict` returned.
    """
    if _anywhere(gateway.connections):
        return
    table = table_name(gateway.users.worker[0])
    messages: list[Any] = []
    for family in _FAMILIES:
        messages += [_flush(table, family.remotes), *_remotes(table, family, gateway.connections)]
    _transact(sock, 0, messages)


def _open() -> socket.socket:
    try:
        sock: socket.socket = AsyncNetlinkSocket(family=NETLINK_NETFILTER).setup_socket()
    except OSError as error:
        raise _refused(error, 0) from None
    sock.settimeout(ANSWER_SECONDS)
    sock.bind((0, 0))
    return sock


def _refused(error: OSError, uid: int) -> OperatorError:
    match error.errno:
        case errno.EEXIST | errno.EPERM:
            why = (
                f"{os.strerror(error.errno)}; either CAP_NET_ADMIN is missing, or another instance confines uid {uid} "
                "and `gateway.users` must name a worker for each"
            )
        case _:
            why = (
                f"{error.strerror or error}; it needs nftables in the kernel: "
                "CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET and Linux 5.12"
            )
    return OperatorError(f'egress = "restricted" cannot be had: {why}; "open" would work')


def _batches(uid: int, connections: tuple[Connection, ...]) -> Iterator[list[Any]]:
    """Transactions, in this order: the rules last, so that nothing is confined by half of them."""
    table = table_name(uid)
    yield [_message(nft.nft_table_msg(), nft.NFT_MSG_NEWTABLE, TABLE_NAME=table, TABLE_FLAGS=_TABLE_F_OWNER)]
    yield [_set(table, PORTS, nft.DATA_TYPE_INET_SERVICE, 2)]
    yield [_elements(table, PORTS, [(port.to_bytes(2, "big"), ()) for port in (IKE_PORT, NATT_PORT)])]
    anywhere = _anywhere(connections)
    if not anywhere:
        for family in _FAMILIES:
            yield [_set(table, family.remotes, family.type, family.daddr[1], "NFT_SET_INTERVAL")]
            for message in _remotes(table, family, connections):
                yield [message]
    user = [*_load("meta", key=int(nft.Meta.NFT_META_SKUID)), *_equals(uid.to_bytes(4, sys.byteorder))]
    yield [
        _chain(table),
        *(_rule(table, [*user, *_to_peer(family, anywhere), *verdict(_ACCEPT)]) for family in _FAMILIES),
        _rule(table, [*user, genex("counter", {}), *verdict(_DROP)]),
    ]


def _anywhere(connections: tuple[Connection, ...]) -> bool:
    return any(isinstance(each.remote, RemoteAny) for each in connections)


def _remotes(table: str, family: _Family, connections: tuple[Connection, ...]) -> Iterator[Any]:
    """Messages that fill the set of this IP version. A name without an address adds nothing."""
    remotes: list[Address | Network] = []
    for connection in connections:
        match connection.remote:
            case RemoteAny():
                continue
            case RemoteName():
                remotes += [] if connection.remote.address is None else [connection.remote.address]
            case _:
                remotes.append(connection.remote)
    elements = list(_bounds(_ranges(remotes, family.version), family.daddr[1]))
    for start in range(0, len(elements), MAX_ELEMENTS):
        yield _elements(table, family.remotes, elements[start : start + MAX_ELEMENTS])


def _to_peer(family: _Family, anywhere: bool) -> Iterator[Any]:
    """Plain UDP of this IP version from one of our ports, to a configured remote."""
    offset, value = family.plain
    yield from _load("meta", key=int(nft.Meta.NFT_META_NFPROTO))
    yield from _equals(bytes([family.nfproto]))
    yield from _load("payload", base=_NETWORK_HEADER, offset=offset, len=1)
    yield from _equals(bytes([value]))
    yield from _load("meta", key=int(nft.Meta.NFT_META_L4PROTO))
    yield from _equals(bytes([socket.IPPROTO_UDP]))
    yield from _load("payload", base=_TRANSPORT_HEADER, offset=0, len=2)
    yield genex("lookup", {"set": PORTS, "sreg": _REGISTER})
    if not anywhere:
        offset, length = family.daddr
        yield from _load("payload", base=_NETWORK_HEADER, offset=offset, len=length)
        yield genex("lookup", {"set": family.remotes, "sreg": _REGISTER})


def _load(what: str, **arguments: int) -> list[Any]:
    return [genex(what, {"dreg": _REGISTER, **arguments})]


def _equals(value: bytes) -> list[Any]:
    data = {"attrs": [("NFTA_DATA_VALUE", value)]}
    return [genex("cmp", {"sreg": _REGISTER, "op": int(nft.Cmp.NFT_CMP_EQ), "data": data})]


def _ranges(remotes: Iterable[Address | Network], version: int) -> list[tuple[int, int]]:
    """First addresses of what is configured and of what is not any more, in order, without overlap or touch."""
    ranges: list[tuple[int, int]] = []
    networks = [ipaddress.ip_network(remote) for remote in remotes if remote.version == version]
    for first, end in sorted((int(each.network_address), int(each.broadcast_address) + 1) for each in networks):
        if ranges and first <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((first, end))
    return ranges


def _bounds(ranges: Iterable[tuple[int, int]], length: int) -> Iterator[tuple[bytes, tuple[str, ...]]]:
    """As an interval set wants them: where each begins and, unless that is the end of all addresses, where it ended."""
    for first, end in ranges:
        yield first.to_bytes(length, "big"), ()
        if end < 1 << 8 * length:
            yield end.to_bytes(length, "big"), ("NFT_SET_ELEM_INTERVAL_END",)


def _set(table: str, name: str, kind: int, length: int, *flags: str) -> Any:
    return _message(
        nft.nft_set_msg(),
        nft.NFT_MSG_NEWSET,
        SET_TABLE=table,
        SET_NAME=name,
        SET_FLAGS=flags,
        SET_KEY_TYPE=kind,
        SET_KEY_LEN=length,
        SET_ID=1,
    )


def _elements(table: str, name: str, elements: Iterable[tuple[bytes, tuple[str, ...]]]) -> Any:
    return _message(
        _Elements(),
        nft.NFT_MSG_NEWSETELEM,
        SET_ELEM_LIST_TABLE=table,
        SET_ELEM_LIST_SET=name,
        SET_ELEM_LIST_ELEMENTS=[
            {
                "attrs": [
                    ("NFTA_SET_ELEM_KEY", {"attrs": [("NFTA_DATA_VALUE", key)]}),
                    ("NFTA_SET_ELEM_FLAGS", flags),
                ]
            }
            for key, flags in elements
        ],
    )


def _flush(table: str, name: str) -> Any:
    """Without a list of elements: all of them."""
    return _message(_Elements(), nft.NFT_MSG_DELSETELEM, SET_ELEM_LIST_TABLE=table, SET_ELEM_LIST_SET=name)


def _chain(table: str) -> Any:
    hook = {"attrs": [("NFTA_HOOK_HOOKNUM", _HOOK_OUTPUT), ("NFTA_HOOK_PRIORITY", _PRIORITY_FILTER)]}
    return _message(
        nft.nft_chain_msg(),
        nft.NFT_MSG_NEWCHAIN,
        CHAIN_TABLE=table,
        CHAIN_NAME=CHAIN,
        CHAIN_HOOK=hook,
        CHAIN_POLICY=_ACCEPT,
        CHAIN_TYPE="filter",
    )


def _rule(table: str, expressions: list[Any]) -> Any:
    return _message(
        nft.nft_rule_msg(), nft.NFT_MSG_NEWRULE, RULE_TABLE=table, RULE_CHAIN=CHAIN, RULE_EXPRESSIONS=expressions
    )


def _message(message: Any, kind: int, **attributes: object) -> Any:
    message["attrs"] = [(f"NFTA_{name}", value) for name, value in attributes.items()]
    message["nfgen_family"] = nft.NFPROTO_INET
    message["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | kind
    # a rule without APPEND would go before the earlier ones
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND | NLM_F_ACK
    return message


def _border(kind: int) -> Any:
    message = nfgen_msg()
    message["res_id"] = NFNL_SUBSYS_NFTABLES
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST
    return message


def _transact(sock: socket.socket, sequence: int, messages: list[Any]) -> None:
    """All of them or none; OSError with the kernel's reason."""
    octets = bytearray()
    for message in (_border(_BATCH_BEGIN), *messages, _border(_BATCH_END)):
        message["header"]["sequence_number"] = sequence
        message.encode()
        octets += message.data
    sock.send(octets)
    acknowledged = 0
    while acknowledged < len(messages):
        data, (sender, _) = sock.recvfrom(MAX_ANSWER)
        if sender != 0 or len(data) < _ANSWER.size:
            continue
        _, kind, _, answered, _, code = _ANSWER.unpack_from(data)
        if kind != NLMSG_ERROR or answered != sequence:
            continue
        if code:
            raise OSError(-code, os.strerror(-code))
        acknowledged += 1
