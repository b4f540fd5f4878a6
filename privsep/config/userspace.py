"""What the userspace data plane cannot carry, and the kernel can: suites, IPComp, keys of the kernel, some shunts."""

from collections.abc import Iterator
from dataclasses import dataclass

from privsep.config import shunts
from privsep.config.model import Gateway
from privsep.config.reader import Reader
from privsep.iana import ProtocolId


@dataclass(slots=True, frozen=True, kw_only=True)
class Beyond:
    """One of them."""

    path: tuple[str | int, ...]
    """Where it stands in the configuration."""
    named: str
    """What and whose: "IPComp of paris/lan"."""
    problem: str
    """What the userspace data plane does not do."""
    right: str = ""
    """What it would carry in its place, if anything."""


def beyond_userspace(gateway: Gateway) -> Iterator[Beyond]:
    """All of them."""
    for connection, child in gateway.children():
        path = ("connection", connection.name, "child", child.name)
        owner = f"{connection.name}/{child.name}"
        for number, suite in enumerate(child.suites):
            if not suite.in_userspace:
                yield Beyond(
                    path=(*path, "ah" if suite.protocol is ProtocolId.AH else "esp", number),
                    named=f"{suite.described} of {owner}",
                    problem=f"cannot carry {suite.described}",
                    right='esp = ["aes256gcm16"]',
                )
        if child.ipcomp:
            yield Beyond(
                path=(*path, "ipcomp"),
                named=f"IPComp of {owner}",
                problem="cannot carry IPComp",
                right="ipcomp = false",
            )
        for key in child.kernel.configured():
            yield Beyond(path=(*path, key), named=f"{key} of {owner}", problem=f"has no {key}")
    for shunt in gateway.shunts:
        reason = shunts.beyond_routes(gateway, shunt)
        if reason is not None:
            yield Beyond(
                path=("shunt", shunt.name, "remote_ts"),
                named=f"shunt {shunt.name} ({reason})",
                problem=f"cannot tell this traffic apart: {reason}",
            )


def check(gateway: Gateway, reader: Reader) -> None:
    """For a configuration that insists on it."""
    for each in beyond_userspace(gateway):
        instead = f" or {each.right}" if each.right else ""
        reader.problem(
            each.path, f'the userspace data plane {each.problem}; dataplane = "kernel"{instead} would be right'
        )
