"""What a captured worker with real keymat tells the monitor.

`LIES` has one request for each way to be wrong, with the checks that say no to it, in order.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from itertools import count

from counterpart import GATEWAY, Peer, Session, Worker, wish
from lab import LEFT, LEFT_HOST, PSK, RIGHT, RIGHT_HOST
from switches import (
    KEYD_BELIEVES,
    KEYD_COVERS_ALL,
    KEYD_DOUBTS_AGAIN,
    KEYD_LOOKS_AGAIN,
    REMOVE_THERE,
    keyd_says,
)
from world import ATTACKER, IKE, SECOND, SECOND_PSK, World

from keyd.service import Service
from privsep.algorithms import IkeSuite
from privsep.config.identities import parse_identity
from privsep.schema import install, keyd
from privsep.schema.install import Denial
from privsep.types import Endpoint, Identity, TrafficSelector


def selectors(text: str) -> TrafficSelector:
    """10.1.0.0/24 or 10.1.0.0/24[6/443]."""
    network, protocol, port = re.fullmatch(r"([^[]+)(?:\[(\d+)/(\d+)])?", text).groups(default="0")
    return TrafficSelector(ip_network(network), int(protocol), int(port))


def endpoint(address: str, port: int = 500) -> Endpoint:
    return Endpoint(ip_address(address), port)


class NotAllocated(Exception):
    """The monitor says no before there are keys."""

    def __init__(self, why: Denial) -> None:
        super().__init__(why)
        self.why = why


class Attacker:
    """In the captured worker, with peers of his own to authenticate. Remembers what he got, to give it back."""

    def __init__(self, world: World) -> None:
        self.world, self.worker = world, Worker(world)
        self.pairs: list[int] = []
        self.halves: list[int] = []
        """What only receives."""
        self._sessions: dict[tuple[object, ...], Session] = {}

    def session(self, lie: "Lie") -> Session | keyd.Refused:
        connection = lie.child.split("/")[0]
        key = (connection, lie.address, lie.identity, self.world.pid("keyd"))
        if key not in self._sessions:
            peer = Peer(connection, lie.address, SECOND_PSK if connection == "second" else PSK)
            if lie.identity:
                pretend(peer, lie.identity)
            session = Session(self.worker, peer, IkeSuite.parse(IKE))
            believed = session.initiate(connection)
            if isinstance(believed, keyd.Refused):
                return believed
            self._sessions[key] = session
        return self._sessions[key]

    def keymat(self, session: Session, lie: "Lie", spis: tuple[int, int]) -> bytes | keyd.Refused:
        """Of a Quick Mode with the peer, for the SPIs and the selectors of the lie."""
        child = {"child": lie.child.split("/")[1], "encap": lie.encap}
        traffic = {"local_ts": selectors(lie.local_ts), "remote_ts": selectors(lie.remote_ts)}
        first = self.worker.keyd(session.quick_offer(session.ours, spis[0], **child, **traffic))
        if isinstance(first, keyd.Refused):
            return first
        theirs = session.peer.do(
            keyd.QuickOpen(ike=session.theirs, message_id=first.message_id, ciphertext=first.ciphertext)
        ).quick
        second = session.peer.do(session.quick_answer(theirs, spis[1], **child)).ciphertext
        session.peer.do(keyd.Drop(handle=theirs))
        self.worker.keyd(keyd.QuickFinish(quick=first.quick, ciphertext=second))
        keyed = self.worker.keyd(keyd.QuickAccept(quick=first.quick))
        return keyed if isinstance(keyed, keyd.Refused) else keyed.keymat

    def tell(self, lie: "Lie") -> str:
        """What becomes of it: INSTALLED, or who said no."""
        session = self.session(lie)
        if isinstance(session, keyd.Refused):
            return f"keyd: {session.why.name}"
        try:
            spis = lie.spis(self, lie)
        except NotAllocated as no:
            return no.why.name
        lie.meanwhile(self, lie)
        keymat = self.keymat(session, lie, spis)
        if isinstance(keymat, keyd.Refused):
            return f"keyd: {keymat.why.name}"
        answer = self.worker.monitor(
            install.InstallInbound(
                keymat=keymat,
                local=endpoint(lie.local, lie.local_port),
                remote=endpoint(lie.remote or lie.address, lie.remote_port),
            )
        )
        if isinstance(answer, install.Denied):
            return answer.why.name
        answer = self.worker.monitor(install.InstallOutbound(spi_in=answer.spi_in))
        if isinstance(answer, install.Denied):
            if answer.why is not Denial.DATAPLANE:
                # as `InstallOutbound` has it
                self.halves.append(spis[0])
            return answer.why.name
        self.pairs.append(spis[0])
        return "INSTALLED"

    def allocate(self, child: str, address: str, **said: object) -> int:
        """An SPI for that child, whatever shall be done with it; NotAllocated."""
        return self._allocated(replace(wish(*child.split("/"), address), **said))

    def foretell(self, lie: "Lie") -> str:
        """What becomes of it where the worker says all that with the allocation: ALLOCATED, or why not."""
        lie.meanwhile(self, lie)
        connection, child = lie.child.split("/")
        address = Identity.of_address(ip_address(lie.address))
        try:
            spi = self._allocated(
                install.AllocateSpi(
                    connection=connection,
                    child=child,
                    identity=parse_identity(lie.identity) if lie.identity else address,
                    local=endpoint(lie.local, lie.local_port),
                    remote=endpoint(lie.remote or lie.address, lie.remote_port),
                    local_ts=selectors(lie.local_ts),
                    remote_ts=selectors(lie.remote_ts),
                )
            )
        except NotAllocated as no:
            return no.why.name
        assert self.remove(spi) == install.Removed()
        return "ALLOCATED"

    def _allocated(self, said: install.AllocateSpi) -> int:
        answer = self.worker.monitor(said)
        if isinstance(answer, install.Denied):
            raise NotAllocated(answer.why)
        return answer.spi

    def remove(self, spi: int) -> install.MonitorReply:
        return self.worker.monitor(install.Remove(spi_in=spi))

    def withdraw(self) -> None:
        """Leave nothing behind for the next lie."""
        spis = [*self.pairs, *self.halves]
        for spi in spis:
            self.remove(spi)
        self.world.in_esp(REMOVE_THERE, spis=spis)
        self.pairs.clear()
        self.halves.clear()


def pretend(peer: Peer, name: str) -> None:
    """Claim another identity than the address, with the right secret."""
    peer.connection = replace(peer.connection, local_id=parse_identity(name))
    gateway = replace(GATEWAY, connections=(peer.connection,))
    peer.service = Service(gateway, peer, time.monotonic, os.urandom)


OUTBOUND = count(0x51530000)


def fresh_spis(attacker: Attacker, lie: "Lie") -> tuple[int, int]:
    return attacker.allocate(lie.child, lie.address, **lie.pretext), next(OUTBOUND)


def never_allocated(attacker: Attacker, lie: "Lie") -> tuple[int, int]:
    return 0xBAD00001, next(OUTBOUND)


def given_back(attacker: Attacker, lie: "Lie") -> tuple[int, int]:
    spi, other = fresh_spis(attacker, lie)
    assert attacker.remove(spi) == install.Removed()
    return spi, other


def of_another_child(attacker: Attacker, lie: "Lie") -> tuple[int, int]:
    return attacker.allocate("second/port", lie.address), next(OUTBOUND)


def of_another_connection(attacker: Attacker, lie: "Lie") -> tuple[int, int]:
    return attacker.allocate("peer/net", RIGHT), next(OUTBOUND)


def installed_already(attacker: Attacker, lie: "Lie") -> tuple[int, int]:
    assert attacker.tell(replace(lie, spis=fresh_spis)) == "INSTALLED"
    return attacker.pairs[-1], next(OUTBOUND)


def outbound_of_another(attacker: Attacker, lie: "Lie") -> tuple[int, int]:
    spi_in, spi_out = fresh_spis(attacker, lie)
    assert attacker.tell(replace(lie, spis=lambda *_: (spi_in, spi_out))) == "INSTALLED"
    return fresh_spis(attacker, lie)[0], spi_out


def nothing(attacker: Attacker, lie: "Lie") -> None:
    """An honest interval."""


def another_identity(attacker: Attacker, lie: "Lie") -> None:
    assert attacker.tell(replace(lie, address="192.0.2.10", meanwhile=nothing)) == "INSTALLED"


def two_more(attacker: Attacker, lie: "Lie") -> None:
    for _ in range(2):
        assert attacker.tell(replace(lie, meanwhile=nothing)) == "INSTALLED"


@dataclass(frozen=True, kw_only=True)
class Lie:
    """One request, true but for what is named, and who says no, in order: a check and its reason."""

    layers: tuple[tuple[str, Denial], ...]
    child: str = "second/net"
    address: str = SECOND
    identity: str = ""
    spis: Callable[[Attacker, "Lie"], tuple[int, int]] = fresh_spis
    pretext: dict[str, object] = field(default_factory=dict)
    """What is said to get the SPI, where the truth would be denied, or what `wish` says."""
    meanwhile: Callable[[Attacker, "Lie"], None] = nothing
    """What is installed between allocation and installation."""
    local: str = LEFT
    local_port: int = 500
    remote: str = ""
    remote_port: int = 500
    encap: bool = False
    local_ts: str = "10.1.0.0/24"
    remote_ts: str = "10.4.0.0/24"
    keyd: str = ""
    """Where an honest keyd refuses first: its refusal."""
    weaken: tuple[str, str] = ("", "")
    """To take keyd's check out, and back in."""
    facts: dict[str, object] = field(default_factory=dict)
    scaled: bool = False
    """With a limit lowered, as the shipped one takes too long to reach."""


def lax(**more: object) -> Lie:
    true = {"child": "lax/net", "address": "192.0.2.11", "local_ts": "10.1.7.0/24", "remote_ts": "10.8.7.0/24"}
    return Lie(**(true | {"pretext": STRANGER} | more))


def host(**more: object) -> Lie:
    true = {"child": "host/net", "address": "198.51.100.7", "local_ts": f"{LEFT}/32", "remote_ts": "198.51.100.7/32"}
    return Lie(**(true | more))


STRANGER = {
    "identity": parse_identity("stranger.example.org"),
    "local_ts": selectors("10.1.255.0/24"),
    "remote_ts": selectors("10.8.255.0/24"),
}
"""Of whom nothing is known, and whose traffic is nobody's."""

D = Denial
INSIDE = (("_selectors_inside", D.SELECTORS),)
OUTSIDE = {"keyd": "BAD_SELECTORS", "weaken": (KEYD_COVERS_ALL, KEYD_LOOKS_AGAIN)}
OUTER = (("_spi_addresses", D.ADDRESSES), ("_outer_addresses", D.ADDRESSES))
NOT_OURS = (("_spi_is_ours", D.SPI), ("_spi_addresses", D.ADDRESSES), ("reserved", D.DATAPLANE))
ESP_REFUSES = ("esp", D.DATAPLANE)

LIES = {
    "wider selectors of the peer": Lie(layers=INSIDE, **OUTSIDE, remote_ts="10.4.0.0/16"),
    "wider selectors of ours": Lie(layers=INSIDE, **OUTSIDE, local_ts="10.1.0.0/23"),
    "everything": Lie(
        layers=(*INSIDE, ("_no_overlap", D.OVERLAP)), **OUTSIDE, local_ts="0.0.0.0/0", remote_ts="0.0.0.0/0"
    ),
    "the other family": Lie(layers=INSIDE, **OUTSIDE, local_ts="fd01::/64", remote_ts="fd04::/64"),
    "another port": Lie(
        layers=INSIDE, **OUTSIDE, child="second/port", local_ts=f"{LEFT_HOST}/32[6/22]", remote_ts="10.5.0.0/24[6/0]"
    ),
    "another protocol": Lie(
        layers=INSIDE, **OUTSIDE, child="second/port", local_ts=f"{LEFT_HOST}/32[17/443]", remote_ts="10.5.0.0/24[6/0]"
    ),
    "any protocol": Lie(
        layers=INSIDE, **OUTSIDE, child="second/port", local_ts=f"{LEFT_HOST}/32[6/443]", remote_ts="10.5.0.0/24"
    ),
    "two families in one pair": Lie(
        layers=(*INSIDE, ("_families_agree", D.SELECTORS)), **OUTSIDE, local_ts="fd01::/64"
    ),
    "a network in transport mode": host(
        layers=(*INSIDE, ("_transport_selectors", D.SELECTORS)), **OUTSIDE, remote_ts="198.51.100.0/24"
    ),
    "the bystander's addresses and selectors": Lie(
        layers=(*OUTER, *INSIDE, ("_no_overlap", D.OVERLAP)),
        **OUTSIDE,
        remote=RIGHT,
        local_ts=f"{LEFT_HOST}/32",
        remote_ts=f"{RIGHT_HOST}/32",
    ),
    "an SPI that nobody allocated": Lie(layers=NOT_OURS, spis=never_allocated),
    "an SPI that was given back": Lie(layers=NOT_OURS, spis=given_back),
    "an SPI of another child": Lie(layers=NOT_OURS[:1], spis=of_another_child),
    "an SPI of another connection": Lie(layers=NOT_OURS[:2], spis=of_another_connection),
    "an SPI that is installed": Lie(layers=(*NOT_OURS, ESP_REFUSES), spis=installed_already),
    "an outbound SA that exists": Lie(layers=(("_outbound_is_new", D.EXISTS), ESP_REFUSES), spis=outbound_of_another),
    "one SPI for both directions, with keyd's help": Lie(
        layers=(("_spis_differ", D.SPI),), weaken=keyd_says("spi_out=true.spi_in")
    ),
    "a suite that is not proposed, with keyd's help": Lie(
        layers=(("_suite", D.ALGORITHMS),),
        weaken=keyd_says(
            "suite=algorithms.ChildSuite.parse('aes128-sha1-modp2048'), "
            "encryption_in=bytes(16), integrity_in=bytes(20)",
            "encryption_out=bytes(16), integrity_out=bytes(20)",
        ),
    ),
    "another mode, with keyd's help": Lie(layers=(("_mode", D.MODE),), weaken=keyd_says("mode=types.Mode.TRANSPORT")),
    "a key cut short, with keyd's help": Lie(
        layers=(("_key_lengths", D.ALGORITHMS), ESP_REFUSES),
        weaken=keyd_says("encryption_in=true.encryption_in[:20]"),
    ),
    "a key to send with cut short, with keyd's help": Lie(
        layers=(("with_outbound", D.ALGORITHMS), ESP_REFUSES),
        weaken=keyd_says("", "encryption_out=true.encryption_out[:20]"),
    ),
    "an identity that is not the connection's": Lie(
        layers=(("_identity", D.IDENTITY),),
        identity="mallory.example.org",
        keyd="UNKNOWN_IDENTITY",
        weaken=(KEYD_BELIEVES, KEYD_DOUBTS_AGAIN),
    ),
    "a laxer connection than the peer's own": lax(layers=(("_most_specific", D.IDENTITY),), address=SECOND),
    "the attacker's address": Lie(layers=OUTER, remote=ATTACKER),
    "another peer of the same connection": lax(layers=OUTER[:1], remote=ATTACKER),
    "another address of ours": Lie(layers=OUTER, local="10.1.0.1"),
    "another port of ours": Lie(layers=(("_ports", D.PORTS),), local_port=600),
    "no port of the peer": Lie(layers=(("_ports", D.PORTS),), remote_port=0),
    "encapsulation from the wrong port": Lie(layers=(("_ports", D.PORTS),), encap=True, remote_port=53),
    "encapsulation where it is off": host(
        layers=(("_encapsulation", D.ENCAPSULATION),), encap=True, local_port=4500, remote_port=4500
    ),
    "another identity's traffic": lax(layers=(("_no_overlap", D.OVERLAP),), meanwhile=another_identity),
    "a part of another identity's traffic": lax(
        layers=(("_no_overlap", D.OVERLAP),),
        meanwhile=lambda attacker, lie: another_identity(attacker, replace(lie, remote_ts="10.8.0.0/16")),
    ),
    "the traffic of a peer that is down": lax(
        layers=(*INSIDE, ("_not_reserved", D.OVERLAP)), **OUTSIDE, local_ts="10.1.0.0/24", remote_ts="10.4.0.128/25"
    ),
    "the traffic of a peer that is down, in its name but by another secret": lax(
        layers=(*INSIDE, ("_not_reserved", D.OVERLAP)),
        **OUTSIDE,
        identity=SECOND,
        local_ts="10.1.0.0/24",
        remote_ts="10.4.0.128/25",
    ),
    "more pairs than the quota": Lie(layers=(("_quota", D.QUOTA),), meanwhile=two_more, scaled=True),
}
