"""Two keyd services that talk Main Mode and Quick Mode to each other, in memory, with a clock that tests move."""

import dataclasses
import ipaddress
import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from keyd.secret import Secret
from keyd.service import Service
from privsep.algorithms import ChildSuite, IkeSuite
from privsep.config.model import Child, Connection, DataplaneChoice, Encap, Gateway, RemoteAny, Start, Users
from privsep.iana import IdType
from privsep.payloads import split_chain
from privsep.schema import keyd as ops
from privsep.schema import keymat
from privsep.types import Auth, Identity, Mode, TrafficSelector

LEFT = ipaddress.ip_address("192.0.2.1")
RIGHT = ipaddress.ip_address("192.0.2.2")
LEFT_ID = Identity(IdType.FQDN, b"gw1.example.org")
RIGHT_ID = Identity(IdType.FQDN, b"gw2.example.org")
LEFT_NET = TrafficSelector(ipaddress.ip_network("10.1.0.0/16"))
RIGHT_NET = TrafficSelector(ipaddress.ip_network("10.2.0.0/16"))
IKE = IkeSuite.parse("aes256-sha256-curve25519")
ESP = ChildSuite.parse("aes256gcm16")


class Secrets:
    """Pre-shared keys by connection name."""

    def __init__(self, **by_name: bytes) -> None:
        self.by_name = by_name

    def psk_for(self, connection: Connection) -> Secret | None:
        found = self.by_name.get(connection.name, self.by_name.get("default"))
        return None if found is None else Secret(found)


class Side:
    """One service, its clock, and shorthands for the requests of an honest worker."""

    def __init__(self, gateway: Gateway, secrets: Secrets) -> None:
        self.now = 1000.0
        self.gateway = gateway
        self.service = Service(gateway, secrets, lambda: self.now, os.urandom)

    def do(self, request):
        """Ask as the worker does: both ways through the channel's tables."""
        received, _ = ops.REQUESTS.decode(ops.REQUESTS.encode(request, 1))
        reply, _ = ops.REPLIES.decode(ops.REPLIES.encode(self.service.handle(received), 1))
        return reply

    def redeem_inbound(self, handle: bytes):
        """Ask as the monitor does, before message 2 or 3 leaves."""
        return self._redeem(keymat.RedeemInbound(keymat=handle))

    def redeem_outbound(self, handle: bytes):
        """Ask as the monitor does then, or when message 3 has come."""
        return self._redeem(keymat.RedeemOutbound(keymat=handle))

    def _redeem(self, request):
        received, _ = keymat.REQUESTS.decode(keymat.REQUESTS.encode(request, 1))
        reply, _ = keymat.REPLIES.decode(keymat.REPLIES.encode(self.service.redeem(received), 1))
        return reply


def child(name: str = "lan", suites: tuple[ChildSuite, ...] = (ESP,)) -> Child:
    return Child(
        name=name,
        local_ts=(LEFT_NET,),
        remote_ts=(RIGHT_NET,),
        mode=Mode.TUNNEL,
        suites=suites,
        lifetime=3600,
        start=Start.WAIT,
    )


def connection(name: str = "paris", **changes) -> Connection:
    values = {
        "name": name,
        "local": LEFT,
        "remote": RIGHT,
        "local_id": LEFT_ID,
        "remote_id": RIGHT_ID,
        "auth": Auth.PSK,
        "suites": (IKE,),
        "lifetime": 28800,
        "encap": Encap.AUTO,
        "children": (child(),),
    }
    return Connection(**(values | changes))


def gateway(*connections: Connection) -> Gateway:
    return Gateway(
        listen=(),
        dataplane=DataplaneChoice.AUTO,
        users=Users(worker=(1, 1), keyd=(2, 2), userspace=(3, 3)),
        absent=frozenset(),
        connections=connections,
    )


def mirrored(each: Connection) -> Connection:
    children = tuple(
        dataclasses.replace(each, local_ts=each.remote_ts, remote_ts=each.local_ts) for each in each.children
    )
    return dataclasses.replace(each, local=RIGHT, remote=LEFT, local_id=RIGHT_ID, remote_id=LEFT_ID, children=children)


class World:
    """An initiator on the left, a responder on the right."""

    def __init__(self, suite: IkeSuite, child_suites: tuple[ChildSuite, ...], psks: tuple[bytes, bytes]) -> None:
        ours = connection(suites=(suite,), children=(child(suites=child_suites),))
        self.suite = suite
        self.left = Side(gateway(ours), Secrets(default=psks[0]))
        self.right = Side(gateway(mirrored(ours)), Secrets(default=psks[1]))
        self.cky_i, self.cky_r = os.urandom(8), os.urandom(8)
        self.sai_b = os.urandom(48)

    def offer(self, **changes) -> ops.IkeOffer:
        values = {
            "connection": "paris",
            "suite": self.suite,
            "cky_i": self.cky_i,
            "cky_r": self.cky_r,
            "sai_b": self.sai_b,
            "local": LEFT,
            "remote": RIGHT,
        }
        return ops.IkeOffer(**(values | changes))

    def answer(self, ke: bytes, nonce: bytes, **changes) -> ops.IkeAnswer:
        values = {
            "suite": self.suite,
            "cky_i": self.cky_i,
            "cky_r": self.cky_r,
            "sai_b": self.sai_b,
            "local": RIGHT,
            "remote": LEFT,
            "ke": ke,
            "nonce": nonce,
        }
        return ops.IkeAnswer(**(values | changes))

    def keyed(self) -> SimpleNamespace:
        """Messages 3 and 4: both sides have SKEYID."""
        ours = self.left.do(self.offer())
        theirs = self.right.do(self.answer(ours.ke, ours.nonce))
        done = self.left.do(ops.IkeAgree(ike=ours.ike, ke=theirs.ke, nonce=theirs.nonce))
        if done != ops.Done():
            raise ValueError(done)
        return SimpleNamespace(left=ours.ike, right=theirs.ike, ke_i=ours.ke, ke_r=theirs.ke)

    def main_mode(self) -> SimpleNamespace:
        """The IKE handles of both sides after message 6, and what each learned."""
        ike = self.keyed()
        fifth = self.left.do(ops.AuthSeal(ike=ike.left, next_payload=0, payloads=b""))
        at_right = self.right.do(ops.AuthOpen(ike=ike.right, ciphertext=fifth.ciphertext))
        sixth = self.right.do(ops.AuthSeal(ike=ike.right, next_payload=0, payloads=b""))
        at_left = self.left.do(ops.AuthOpen(ike=ike.left, ciphertext=sixth.ciphertext))
        return SimpleNamespace(left=ike.left, right=ike.right, at_left=at_left, at_right=at_right)

    def quick_offer(self, ike: bytes, suite: ChildSuite, **changes) -> ops.QuickOffer:
        values = {
            "ike": ike,
            "child": "lan",
            "group": suite.group,
            "encap": False,
            "spi_in": 0x1001,
            "cpi_in": None,
            "local_ts": LEFT_NET,
            "remote_ts": RIGHT_NET,
            "originals": (),
        }
        return ops.QuickOffer(**(values | changes))

    def quick_answer(self, quick: bytes, suite: ChildSuite, **changes) -> ops.QuickAnswer:
        values = {
            "quick": quick,
            "child": "lan",
            "suite": suite,
            "encap": False,
            "spi_in": 0x2002,
            "cpi_in": None,
            "originals": (),
        }
        return ops.QuickAnswer(**(values | changes))

    def quick_mode(self, ike: SimpleNamespace, suite: ChildSuite) -> SimpleNamespace:
        """A whole Quick Mode, begun by the left; keymat handles of both sides and the opened chains."""
        first = self.left.do(self.quick_offer(ike.left, suite))
        opened = self.right.do(ops.QuickOpen(ike=ike.right, message_id=first.message_id, ciphertext=first.ciphertext))
        second = self.right.do(self.quick_answer(opened.quick, suite))
        right_in = self.right.redeem_inbound(second.keymat)
        finished = self.left.do(ops.QuickFinish(quick=first.quick, ciphertext=second.ciphertext))
        third = self.left.do(ops.QuickAccept(quick=first.quick))
        confirmed = self.right.do(ops.QuickConfirm(quick=opened.quick, ciphertext=third.ciphertext))
        if confirmed != ops.Done():
            raise ValueError(confirmed)
        return SimpleNamespace(
            left=third.keymat,
            right=second.keymat,
            right_in=right_in,
            agreed=finished,
            at_right=split_chain(opened.next_payload, opened.payloads),
            at_left=split_chain(finished.next_payload, finished.payloads),
        )


@pytest.fixture
def make_world() -> Callable[..., World]:
    """A factory: (IKE suite, child suites, PSKs of left and right)."""

    def make(
        ike: str = str(IKE), children: tuple[str, ...] = (str(ESP),), psks: tuple[bytes, bytes] = (b"same", b"same")
    ) -> World:
        return World(IkeSuite.parse(ike), tuple(ChildSuite.parse(each) for each in children), psks)

    return make


@pytest.fixture
def world(make_world) -> World:
    return make_world()


@pytest.fixture
def build() -> SimpleNamespace:
    """The pieces, for tests that arrange gateways of their own."""
    return SimpleNamespace(
        child=child,
        connection=connection,
        gateway=gateway,
        mirrored=mirrored,
        Side=Side,
        Secrets=Secrets,
        World=World,
        LEFT=LEFT,
        RIGHT=RIGHT,
        LEFT_ID=LEFT_ID,
        RIGHT_ID=RIGHT_ID,
        LEFT_NET=LEFT_NET,
        RIGHT_NET=RIGHT_NET,
        ANY=RemoteAny(),
        IKE=IKE,
        ESP=ESP,
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`keyd.groups.modp` filters this one itself; pytest resets filters for each test."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore:Diffie-Hellman over finite fields"))
