"""Keys of a child that only the kernel's data plane knows: marks, if_id, interface, priority, reqid, an SA's limits."""

import re

from privsep.config.lanes import ANY_MARK, MAX_U32, KernelOptions, Lane, Mark
from privsep.config.model import Gateway, Remote
from privsep.config.names import RemoteName
from privsep.config.problems import quote
from privsep.config.reader import Reader, Section
from privsep.types import Address

MIN_REQID = 65536
"""Below are the numbers of policies, which reqids are by default."""
MIN_LIFE_PACKETS, MIN_LIFE_BYTES = 100, 64 << 10
"""With less an SA would be used up before its successor is negotiated."""
MAX_LIFE = 1 << 62
MAX_INTERFACE = 15
"""Characters of a network interface's name (IFNAMSIZ)."""

_NUMBER = "0x[0-9a-fA-F]{1,8}|[0-9]{1,10}"
_MARK = re.compile(rf"({_NUMBER})(?:/({_NUMBER}))?", re.ASCII)
_INTERFACE = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{MAX_INTERFACE - 1}}}", re.ASCII)
_AMOUNT = re.compile(r"([0-9]{1,15})([KMG]?)", re.ASCII)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def read(section: Section, remote: Remote | None) -> KernelOptions:
    """The options of a child's table."""
    options = KernelOptions(
        lane=_lane(section),
        interface=section.optional("interface", _interface, None),
        priority=section.number("priority", 0, low=1, high=MAX_U32) or None,
        reqid=section.number("reqid", 0, low=MIN_REQID, high=MAX_U32) or None,
        life_bytes=_amount(section, "life_bytes", MIN_LIFE_BYTES),
        life_packets=_amount(section, "life_packets", MIN_LIFE_PACKETS),
    )
    if options.interface is not None and (options.lane.if_ids == {0} or len(options.lane.if_ids) > 1):
        section.problem("interface", "an XFRM interface has one if_id for both directions; add if_id = 1, or another")
    if options.reqid is not None and not isinstance(remote, Address | RemoteName | None):
        section.problem("reqid", "a fixed reqid is for one remote address, as each peer has SAs of its own; drop it")
    return options


def _lane(section: Section) -> Lane:
    both = section.number("if_id", 0, low=1, high=MAX_U32)
    if_ids = [section.number(key, both, low=1, high=MAX_U32) for key in ("if_id_in", "if_id_out")]
    if both and (section.has("if_id_in") or section.has("if_id_out")):
        section.problem("if_id", "if_id is both if_id_in and if_id_out; either it or those two would be right")
    return Lane(
        mark_in=_mark(section, "mark_in"),
        mark_out=_mark(section, "mark_out"),
        if_id_in=if_ids[0],
        if_id_out=if_ids[1],
    )


def _mark(section: Section, key: str) -> Mark:
    value = section.text_or_number(key, low=0, high=MAX_U32)
    if value is None:
        return ANY_MARK
    if isinstance(value, int):
        return Mark(value)
    match = _MARK.fullmatch(value)
    number, mask = (_number(match[1]), _number(match[2] or hex(MAX_U32))) if match else (0, 0)
    if not 0 < mask <= MAX_U32 or number & ~mask:
        section.problem(key, f'{quote(value)} is no mark; 32 bits within a mask, as in "0x10/0xff", would be right')
        return ANY_MARK
    return Mark(number, mask)


def _number(text: str) -> int:
    return int(text, 16 if text.startswith("0x") else 10)


def _interface(text: str) -> str:
    if not _INTERFACE.fullmatch(text):
        raise ValueError(f"{quote(text)} is no name of an interface; 1 to {MAX_INTERFACE} characters would be right")
    return text


def _amount(section: Section, key: str, low: int) -> int | None:
    text = section.text_or_number(key, low=low, high=MAX_LIFE)
    if not isinstance(text, str):
        return text
    match = _AMOUNT.fullmatch(text)
    value = int(match[1]) * _UNITS[match[2]] if match else 0
    if not low <= value <= MAX_LIFE:
        section.problem(key, f'{quote(text)} is no amount; {low} or more, as in "500M" or "10G", would be right')
        return None
    return value


def check(gateway: Gateway, reader: Reader) -> None:
    """A reqid is one child's; an interface has one if_id, and an if_id one interface."""
    reqids: dict[int, str] = {}
    interfaces: dict[int, str] = {}
    if_ids: dict[str, int] = {}
    for connection, child in gateway.children():
        path = ("connection", connection.name, "child", child.name)
        name, options = ".".join(path), child.kernel
        if options.reqid is not None and (other := reqids.setdefault(options.reqid, name)) != name:
            reader.problem((*path, "reqid"), f"also the reqid of [{other}]; another would be right")
        if options.interface is not None:
            interface, if_id = options.interface, options.lane.if_id_out
            known = interfaces.setdefault(if_id, interface), if_ids.setdefault(interface, if_id)
            if known != (interface, if_id):
                reader.problem(
                    (*path, "interface"),
                    f"{interface} has if_id {if_ids[interface]}, and if_id {if_id} is {interfaces[if_id]}'s; "
                    f"one if_id for one interface would be right",
                )
