"""The status document as text for people: pure functions, everything that came from outside escaped."""

import os
from dataclasses import dataclass
from typing import Any, Self, TextIO

from privsep.log import escape

_GREEN, _YELLOW, _RED, _BOLD, _PLAIN = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[1m", "\x1b[0m"
_COLOURS = {"established": _GREEN, "installed": _GREEN, "as designed": _GREEN, "down": _YELLOW, "WEAKER": _RED}
_GAP = "  "


@dataclass(slots=True, frozen=True)
class Style:
    """Whether escape sequences are welcome."""

    colour: bool

    @classmethod
    def of(cls, stream: TextIO) -> Self:
        """Only on a terminal that can, and if NO_COLOR is unset or empty (no-color.org)."""
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(colour=stream.isatty() and not plain)

    def paint(self, text: str, colour: str) -> str:
        """The text in that colour, trailing blanks left alone."""
        bare = text.rstrip()
        return f"{colour}{bare}{_PLAIN}{text[len(bare) :]}" if self.colour and bare else text


def status_text(document: dict[str, Any], style: Style, width: int | None = None) -> str:
    """What `status` prints. A table that is wider than `width` becomes a list of records; nothing is cut off."""
    reason = document.get("dataplane_reason")
    heading = f"data plane: {cell(document.get('dataplane'))}" + (f" ({cell(reason)})" if reason else "")
    if "worker" in document:
        heading += f"; worker: {cell(document['worker'])}"
    parts = [heading + "\n"]
    for headers, rows in (_ike_sas(document), _children(document)):
        parts.append(table(headers, rows, style, width) if rows else f"no {headers[0].lower()}\n")
    if document.get("shunts"):
        parts.append(table(*_shunts(document), style, width))
    return "\n".join(parts)


def table(headers: list[str], rows: list[list[str]], style: Style, width: int | None = None) -> str:
    """Aligned columns, or records where they would not fit."""
    widths = [max(len(row[column]) for row in (headers, *rows)) for column in range(len(headers))]
    if width is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        return _records(headers, rows, style)
    lines = [_GAP.join(style.paint(text.ljust(size), _BOLD) for text, size in zip(headers, widths, strict=True))]
    for row in rows:
        cells = [_painted(text.ljust(size), style) for text, size in zip(row, widths, strict=True)]
        lines.append(_GAP.join(cells))
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _records(headers: list[str], rows: list[list[str]], style: Style) -> str:
    size = max(map(len, headers))
    blocks = []
    for row in rows:
        lines = [f"{style.paint(row[0], _BOLD)}\n"]
        for name, text in list(zip(headers, row, strict=True))[1:]:
            lines.append(f"{_GAP}{name.lower().ljust(size)}{_GAP}{_painted(text, style)}\n")
        blocks.append("".join(lines))
    return "\n".join(blocks)


def _painted(text: str, style: Style) -> str:
    colour = _COLOURS.get(text.rstrip())
    return style.paint(text, colour) if colour else text


def _ike_sas(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    headers = ["CONNECTION", "STATE", "LOCAL", "REMOTE", "PEER", "ROLE", "PROPOSAL", "NAT", "AGE", "REKEY IN"]
    sas = document.get("ike_sas", [])
    rows = [
        [
            *(cell(sa.get(key)) for key in ("connection", "state", "local", "remote", "remote_id", "role", "proposal")),
            cell(sa.get("nat")),
            span(sa.get("established_s")),
            span(sa.get("rekey_in_s")),
        ]
        for sa in sas
    ]
    busy = {sa.get("connection") for sa in sas}
    for connection in document.get("connections", []):
        if connection.get("name") not in busy:
            known = [cell(connection.get(key)) for key in ("name", "state", "local", "remote", "remote_id")]
            rows.append(known + ["-"] * (len(headers) - len(known)))
    return headers, sorted(rows)


def _children(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    headers = ["CHILD", "STATE", "LOCAL TS", "REMOTE TS", "PROPOSAL", "SPI IN", "SPI OUT", "IN", "OUT", "EXPIRES IN"]
    pairs = [(sa.get("connection"), child) for sa in document.get("ike_sas", []) for child in sa.get("children", [])]
    pairs += [(child.get("connection"), child) for child in document.get("adopted", [])]
    busy = {(connection, child.get("name")) for connection, child in pairs}
    for connection in document.get("connections", []):
        name = connection.get("name")
        pairs += [(name, child) for child in connection.get("children", []) if (name, child.get("name")) not in busy]
    rows = [
        [
            f"{cell(connection)}/{cell(child.get('name'))}",
            *(cell(child.get(key)) for key in ("state", "local_ts", "remote_ts")),
            # the keyword of an AH proposal looks like one of integrity alone
            ("AH " if child.get("protocol") == "ah" else "")
            + cell(child.get("proposal"))
            + (" IPComp" if child.get("ipcomp") is True else ""),
            *(cell(child.get(key)) for key in ("spi_in", "spi_out")),
            size(child.get("bytes_in")),
            size(child.get("bytes_out")),
            span(child.get("expires_in_s")),
        ]
        for connection, child in pairs
    ]
    return headers, sorted(rows)


def _shunts(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    keys = ("name", "action", "order", "local_ts", "remote_ts")
    rows = [[cell(shunt.get(key)) for key in keys] for shunt in document["shunts"]]
    return ["SHUNT", "ACTION", "ORDER", "LOCAL TS", "REMOTE TS"], rows


def cell(value: object) -> str:
    """One value, escaped; a list is its elements."""
    if isinstance(value, list):
        return ", ".join(map(cell, value)) or "-"
    return "-" if value is None or value == "" else escape(str(value))


def span(seconds: object) -> str:
    """Seconds in the two largest units: 7h46m."""
    if not isinstance(seconds, int):
        return "-"
    for unit, length, rest, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= length:
            return f"{seconds // length}{unit}{seconds % length // part:02}{rest}"
    return f"{seconds}s"


def size(octets: object) -> str:
    """Octets in the unit that leaves few digits: 1.4 MiB."""
    if not isinstance(octets, int):
        return "-"
    if octets < 1024:
        return f"{octets} B"
    value = float(octets)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} PiB"
