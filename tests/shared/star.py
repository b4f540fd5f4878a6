"""One gateway of ours with a wire to each kind of peer, and a NAT with a wire to everybody: where the matrix runs.

Each case has addresses of its own, so that daemons serve all cases at once and a packet tells whose it is.
"""

import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cases import AH, Case, Peer, parsed
from lab import PSK, Site

from privsep.algorithms import ChildSuite

PEERS: tuple[Peer, ...] = ("ourselves", "strongSwan", "libreswan")
IKE = "aes256-sha256-modp2048"
NAT_WIRE = 9
FIRST_PORTS, LATER_PORTS = range(20000, 30000), range(30000, 40000)

OURS = """
[connection.{name}]
local = "{local}"
remote = "{remote}"
remote_id = "{remote_id}"
ike = ["{ike}"]
encap = "{encap}"
[connection.{name}.child.net]
mode = "{mode}"
local_ts = ["{inner}"]
remote_ts = ["{other}"]
{protocol} = ["{suite}"]
start = "{start}"
{lane}ipcomp = {compresses}
"""
STRONGSWAN = """
connections {{ {name} {{
  version = 1
  proposals = {ike}
  encap = {force}
  local_addrs = {local}
  remote_addrs = {remote}
  local {{ auth = psk
           id = {local} }}
  remote {{ auth = psk
            id = {remote_id} }}
  children {{ {name} {{
    mode = {mode}
    local_ts = {inner}
    remote_ts = {other}
    ipcomp = {compresses}
    {protocol}_proposals = {suite} }} }} }} }}
"""
LIBRESWAN = """
conn {name}
\tleft={local}
\tright={remote}
\trightid={remote_id}
\t{subnets}
\ttype={mode}
\tikev2=no
\tauthby=secret
\tleftupdown=%disabled
\tencapsulation={force}
\tike=aes256-sha2_256;modp2048
\tphase2={protocol}
\tphase2alg={suite}
\tpfs={pfs}
\tauto=add
"""


_SAID = re.compile(r"(?m)^\t(ike|phase2|phase2alg|pfs)=.*\n")


@dataclass(frozen=True)
class Placed:
    """A case with its number, of which its addresses are made; on the left are we."""

    number: int
    case: Case

    @property
    def name(self) -> str:
        return f"c{self.number}"

    def outer(self, end: int) -> str:
        return f"198.18.{self.number}.{end}" if self.case.outer == 4 else f"2001:db8:{self.number}::{end}"

    def inner(self, end: int) -> str:
        if self.case.mode == "transport":
            return self.outer(end)
        return f"10.{end}.{self.number}.1" if self.case.inner == 4 else f"fd00:{end}::{self.number}"

    def seen(self, end: int) -> str:
        """The address under which the other end knows this one."""
        hidden = self.case.nat and end == self.inside
        return nat_address(self.case.peer, 3 - end) if hidden else self.outer(end)

    @property
    def inside(self) -> int:
        """The end behind the NAT, if there is one."""
        return 2 if self.case.initiator == "peer" else 1

    @property
    def interface(self) -> str:
        """Of a case whose left end is one."""
        return f"xfrm{self.number}"

    @property
    def addresses(self) -> set[str]:
        return {self.outer(1), self.outer(2), self.inner(1), self.inner(2)}

    def values(self, end: int) -> dict[str, str]:
        """What fills the templates of that end."""
        other, case = 3 - end, self.case
        suite = parsed(case.suite)
        return {
            "name": self.name,
            "local": self.outer(end),
            "remote": self.seen(other),
            "remote_id": self.outer(other),
            "inner": self.inner(end),
            "other": self.inner(other),
            "ike": "default" if case.silent else IKE,
            "encap": case.encap,
            "force": "yes" if case.encap == "force" else "no",
            "mode": case.mode,
            "protocol": suite.protocol.name.lower(),
            "suite": "default" if case.silent else case.suite.removeprefix(AH),
            "start": "trap" if case.initiator == "trap" and end == 1 else "wait",
            "lane": f'if_id = {self.number}\ninterface = "{self.interface}"\n' if case.routed and end == 1 else "",
            "compresses": "true" if case.ipcomp == "both" or (case.ipcomp and end == 1) else "false",
        }


def nat_address(peer: Peer, end: int) -> str:
    """The NAT's own address on its wire to us (1) or to the peer (2)."""
    return f"198.19.{NAT_WIRE}.254" if end == 1 else f"198.19.{NAT_WIRE + 1 + PEERS.index(peer)}.254"


def ours(placed: Iterable[Placed], end: int, uid: int) -> tuple[str, str]:
    """gateway.toml and secrets.toml of one of our gateways."""
    values = [each.values(end) for each in placed]
    users = f"{{ worker = {uid}, keyd = {uid + 1}, userspace = {uid + 2} }}"
    gateway = f'[gateway]\ndataplane = "kernel"\non_stop = "remove"\nusers = {users}\n'
    secrets = (f'[[psk]]\nconnection = "{each["name"]}"\nsecret = "{PSK}"\n' for each in values)
    return gateway + "".join(_without_defaults(OURS.format(**each)) for each in values), "".join(secrets)


def _without_defaults(text: str) -> str:
    """strongSwan has a word for it; others have to be told nothing."""
    return re.sub(r"(?m)^.*\bdefault\b.*\n", "", text)


def strongswan(placed: Iterable[Placed]) -> str:
    """swanctl.conf."""
    connections = "".join(STRONGSWAN.format(**each.values(2)) for each in placed)
    return f'{connections}secrets {{ ike-peer {{ secret = "{PSK}" }} }}\n'


def libreswan(placed: Iterable[Placed]) -> tuple[str, str]:
    """ipsec.conf and ipsec.secrets."""
    text = "version 2.0\nconfig setup\n\tuniqueids=no\n\tikev1-policy=accept\n"
    for each in placed:
        values = each.values(2)
        suite = parsed(each.case.suite)
        values["suite"] = _libreswans(suite)
        values["pfs"] = "yes" if suite.group else "no"
        values["subnets"] = (
            f"leftsubnet={_host(values['inner'])}\n\trightsubnet={_host(values['other'])}"
            if each.case.mode == "tunnel"
            else ""
        )
        values["force"] = "yes" if each.case.encap == "force" else "auto"
        conn = LIBRESWAN.format(**values)
        text += _SAID.sub("", conn) if each.case.silent else conn
    return text, f': PSK "{PSK}"\n'


def _libreswans(suite: ChildSuite) -> str:
    """Its names, such as aes_gcm_c_256 and aes128-sha2_256;modp2048."""
    cipher = suite.cipher.keyword if suite.cipher else ""
    if "gcm16" in cipher:
        cipher = f"aes_gcm_c_{suite.cipher.key_bits}"
    integrity = suite.integrity.keyword.replace("sha2", "sha2_2").replace("sha5", "sha2_5") if suite.integrity else ""
    group = f";{suite.group.keyword}" if suite.group else ""
    return "-".join(filter(None, (cipher, integrity))) + group


def _host(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


class Star:
    """The namespaces: `left` is ours, `sites` the peers', `nat` a router that changes addresses and ports."""

    def __init__(self, directory: Path, mark: str, placed: tuple[Placed, ...]) -> None:
        mark = f"{mark}{os.getpid()}"
        self.placed = placed
        self.left = Site(f"{mark}w", "", "", directory / "left")
        self.sites = {peer: Site(f"{mark}{peer[0]}", "", "", directory / peer) for peer in PEERS}
        self.nat = Site(f"{mark}n", "", "", directory / "nat")

    @property
    def gateways(self) -> tuple[Site, ...]:
        return self.left, *self.sites.values()

    def of(self, peer: Peer) -> list[Placed]:
        return [each for each in self.placed if each.case.peer == peer]

    def site(self, placed: Placed, end: int) -> Site:
        return self.left if end == 1 else self.sites[placed.case.peer]

    def up(self) -> None:
        for site in (*self.gateways, self.nat):
            _batch([], f"netns add {site.namespace}")
        left, nat = self.left.namespace, self.nat.namespace
        _batch([], f"link add wire{NAT_WIRE} netns {left} type veth peer name in netns {nat}")
        lines = {site.namespace: ["link set lo up"] for site in (*self.gateways, self.nat)}
        lines[left] += _interface(f"wire{NAT_WIRE}", f"198.19.{NAT_WIRE}.1/24")
        lines[nat] += _interface("in", f"198.19.{NAT_WIRE}.254/24")
        for number, (peer, site) in enumerate(self.sites.items()):
            outside = NAT_WIRE + 1 + number
            right = site.namespace
            _batch([], f"link add wire{number} netns {left} type veth peer name wire{number} netns {right}")
            _batch([], f"link add out{number} netns {nat} type veth peer name wire{outside} netns {right}")
            lines[nat] += _interface(f"out{number}", f"198.19.{outside}.254/24")
            lines[right] += _interface(f"wire{outside}", f"198.19.{outside}.1/24")
            for end, namespace in ((1, left), (2, right)):
                hops = f"{hop(number, 4, end)}/24", f"{hop(number, 6, end)}/64"
                lines[namespace] += _interface(f"wire{number}", *hops)
            for each in self.of(peer):
                self._place(each, number, lines[left], lines[right], lines[nat])
        for namespace, batch in lines.items():
            _batch(["-n", namespace], *batch)
        self.nat.enter(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
        self.translate(FIRST_PORTS)

    def _place(self, placed: Placed, number: int, left: list[str], right: list[str], nat: list[str]) -> None:
        for end, lines in ((1, left), (2, right)):
            local, other = placed.outer(end), placed.outer(3 - end)
            if placed.case.nat:
                lines.append(f"address add {local}/32 dev lo")
                wire = NAT_WIRE if end == 1 else NAT_WIRE + 1 + number
                lines.append(f"route add {other} via 198.19.{wire}.254")
                nat.append(f"route add {local} via 198.19.{wire}.1")
            else:
                lines.append(f"address add {local}/{24 if placed.case.outer == 4 else 64} dev wire{number} nodad")
            if placed.case.mode == "tunnel":
                lines.append(f"address add {_host(placed.inner(end))} dev lo")
                if placed.case.routed and end == 1:
                    lines.append(f"link add {placed.interface} type xfrm dev lo if_id {placed.number}")
                    lines.append(f"link set {placed.interface} up")
                    lines.append(f"route add {_host(placed.inner(2))} dev {placed.interface}")
                    continue
                # a packet that escapes the tunnel shows on the wire
                lines.append(f"route add {_host(placed.inner(3 - end))} via {hop(number, placed.case.inner, 3 - end)}")

    def translate(self, ports: range) -> None:
        """Everything that the NAT forwards comes from its own address and one of these ports."""
        rules = (
            "add table ip nat; flush table ip nat;"
            " add chain ip nat out { type nat hook postrouting priority srcnat; };"
            f" add rule ip nat out meta l4proto udp masquerade to :{ports[0]}-{ports[-1]}"
        )
        _run(self.nat.command("nft", rules))

    def down(self) -> None:
        for site in (*self.gateways, self.nat):
            subprocess.run(["ip", "netns", "del", site.namespace], check=False)


def hop(number: int, family: int, end: int) -> str:
    """A gateway's address on a wire that is no case's."""
    return f"198.19.{number}.{end}" if family == 4 else f"2001:db8:ffff:{number}::{end}"


def _interface(name: str, *addresses: str) -> list[str]:
    return [*(f"address add {address} dev {name} nodad" for address in addresses), f"link set {name} up"]


def _batch(options: list[str], *lines: str) -> None:
    _run(["ip", *options, "-batch", "-"], "\n".join(lines) + "\n")


def _run(words: list[str], text: str = "") -> None:
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{text}{done.stderr}"
