"""Sessions step by step: the captured worker's keyd and monitor, asked one message at a time by the worker's own code,
and a counterpart's keyd in the test, which is as honest as the scenario lets it be.
"""

import ipaddress
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import randrange

from lab import LEFT, wait_for
from world import CONFIG, IKE_PORT, SECOND, SECOND_PSK, Killed, World

from keyd.ciphers import CbcChain
from keyd.handles import State
from keyd.secret import Secret
from keyd.service import Service
from privsep.algorithms import ChildSuite, Group, IkeSuite
from privsep.config.loader import load
from privsep.config.model import Connection
from privsep.schema import install
from privsep.schema import keyd as ops
from privsep.types import Endpoint, Identity, Mode, TrafficSelector

GATEWAY = load(CONFIG.format(worker=64001, keyd=64002, userspace=64003), "gateway.toml")
"""The victim's."""
FAST = IkeSuite.parse("aes128-sha256-curve25519")
CHILD_SUITE = ChildSuite.parse("aes256gcm16-modp2048")
BARE = {"next_payload": 0, "payloads": b""}
"""Nothing added."""
EVERYTHING = tuple(TrafficSelector(ipaddress.ip_network(each)) for each in ("0.0.0.0/0", "::/0"))
"""The peer is an accomplice, or does not care."""
ASK_KEYD = "result = ops.REPLIES.encode(me.keyd(ops.REQUESTS.decode(bytes.fromhex(frame))[0]), 0)"
ASK_MONITOR = """
result = install.FROM_MONITOR.encode(me.monitor(install.FROM_WORKER.decode(bytes.fromhex(frame))[0]), 0)
"""


class Ended(Exception):
    """No answer: the epoch ended."""


class Worker:
    """The captured worker's two channels."""

    def __init__(self, world: World) -> None:
        self.world = world

    def keyd(self, request: ops.Request) -> ops.Reply:
        """Have it ask keyd."""
        frame = ops.REQUESTS.encode(request, 0)
        return ops.REPLIES.decode(self.answer(ASK_KEYD, frame=frame.hex()))[0]

    def monitor(self, message: install.WorkerRequest) -> install.MonitorReply:
        """Have it ask the monitor."""
        frame = install.FROM_WORKER.encode(message, 0)
        return install.FROM_MONITOR.decode(self.answer(ASK_MONITOR, frame=frame.hex()))[0]

    def answer(self, code: str, **facts: object) -> bytes:
        """The octets that its code got; Ended if nothing came."""
        try:
            outcome = self.world.attack(code, **facts)
        except Killed as killed:
            raise Ended(killed.how) from None
        if not isinstance(outcome, dict):
            raise Ended(outcome)
        return bytes.fromhex(outcome["hex"])

    def harmed_nobody(self) -> bool:
        """Whether the other peer's tunnel carries packets; one may be lost where a new worker replaces an SA pair."""
        return any(self.world.bystander_works() for _ in range(3))

    @contextmanager
    def violates(self, reason: str) -> Iterator[None]:
        """What is asked inside must end the epoch, for that reason; a new one is waited for."""
        mark = self.world.mark()
        try:
            yield
        except Ended:
            pass
        else:
            raise AssertionError(f"answered, where {reason!r} was expected")
        line = rf'keyd: error epoch-ends reason="violation: {re.escape(reason)}"'
        assert self.world.logged(mark, line), self.world.log_since(mark)
        # the old pair may still be there for a moment
        assert wait_for(lambda: "notice epoch-began" in self.world.log_since(mark), 30), self.world.log_since(mark)
        self.world.recover()

    def refused(self, request: ops.Request) -> ops.Refusal:
        """Why keyd says no."""
        reply = self.keyd(request)
        assert isinstance(reply, ops.Refused), type(reply)
        return reply.why

    def allocate(self, connection: str = "second", at: str = SECOND, **said: object) -> int:
        """An inbound SPI of the connection's child; `said` is what the worker does not tell as `wish` has it."""
        reply = self.monitor(replace(wish(connection, "net", at), **said))
        assert isinstance(reply, install.Allocated), reply
        return reply.spi

    def installed(self, keymat: bytes, at: str = SECOND) -> install.MonitorReply:
        """Have a pair installed, both halves."""
        ends = {"local": _endpoint(LEFT), "remote": _endpoint(at)}
        reply = self.monitor(install.InstallInbound(keymat=keymat, **ends))
        if not isinstance(reply, install.Installed):
            return reply
        return self.monitor(install.InstallOutbound(spi_in=reply.spi_in))

    def receives(self, keymat: bytes, at: str = SECOND) -> int:
        """Have the inbound half installed; its SPI."""
        ends = {"local": _endpoint(LEFT), "remote": _endpoint(at)}
        reply = self.monitor(install.InstallInbound(keymat=keymat, **ends))
        assert isinstance(reply, install.Installed), reply
        return reply.spi_in

    def not_allocated(self, connection: str, at: str, **said: object) -> install.Denial:
        """Why the monitor gives no SPI, which it says before there are keys."""
        return self._why(lambda: self.monitor(replace(wish(connection, "net", at), **said)))

    def denied(self, keymat: bytes, **more: str) -> install.Denial:
        """Why the monitor does not install."""
        return self._why(lambda: self.installed(keymat, **more))

    def _why(self, ask: Callable[[], install.MonitorReply]) -> install.Denial:
        """Why the monitor says no; it logs the reason."""
        mark = self.world.mark()
        reply = ask()
        assert isinstance(reply, install.Denied), reply
        line = rf"^warning denied reason={reply.why.name.lower()}\b"
        assert self.world.logged(mark, line), self.world.log_since(mark)
        return reply.why


def _endpoint(address: str) -> Endpoint:
    return Endpoint(ipaddress.ip_address(address), IKE_PORT)


def wish(connection: str, name: str, at: str) -> install.AllocateSpi:
    """What gets an SPI for any child: an honest description of it, whatever shall be done with the SPI."""
    configured = GATEWAY.connection(connection)
    child = configured.child(name)
    local_ts, remote_ts = child.local_ts[0], child.remote_ts[0]
    if child.mode is Mode.TRANSPORT:
        local_ts, remote_ts = (TrafficSelector.of_host(ipaddress.ip_address(each)) for each in (LEFT, at))
    return install.AllocateSpi(
        connection=connection,
        child=name,
        identity=configured.remote_id or Identity.of_address(ipaddress.ip_address(at)),
        local=_endpoint(LEFT),
        remote=_endpoint(at),
        local_ts=local_ts,
        remote_ts=remote_ts,
    )


class Peer:
    """The other end's keyd, and its memory."""

    def __init__(self, connection: str = "second", at: str = SECOND, psk: str = SECOND_PSK) -> None:
        mirrored = GATEWAY.connection(connection)
        assert mirrored is not None
        address = ipaddress.ip_address(at)
        self.at, self.psk = address, Secret(psk.encode())
        self.connection = replace(
            mirrored,
            local=address,
            remote=ipaddress.ip_address(LEFT),
            local_id=Identity.of_address(address),
            remote_id=mirrored.local_id,
            children=tuple(replace(each, local_ts=EVERYTHING, remote_ts=EVERYTHING) for each in mirrored.children),
        )
        self.service = Service(replace(GATEWAY, connections=(self.connection,)), self, time.monotonic, os.urandom)

    def psk_for(self, _: Connection) -> Secret:
        """The one that it has."""
        return self.psk

    def do(self, request: ops.Request) -> ops.Reply:
        """Ask it; a refusal is the test's mistake."""
        reply = self.service.handle(request)
        assert not isinstance(reply, ops.Refused), reply
        return reply

    def entry(self, handle: bytes):
        """What a handle of it names."""
        return self.service._registry.get(handle)

    def hurry(self, ike: bytes, state: State) -> None:
        """Be further than the peer's messages have brought it, as an accomplice may."""
        entry = self.entry(ike)
        entry.state, entry.connection = state, self.connection

    def encryption(self, ike: bytes, iv: bytes = b"") -> Callable[[bytes], bytes]:
        """How any plaintext becomes a message under the IKE SA's key, the next of phase 1 if no IV is given."""
        chain = self.entry(ike).chain
        algorithm, iv = chain._algorithm, iv or chain.iv
        return lambda plaintext: CbcChain(algorithm, iv).seal(plaintext)


class Session:
    """One IKE SA of the captured worker with a peer; `ours` and `theirs` are its handles.

    The methods lead from the start to the state of `keyd.handles` that they are named for.
    """

    def __init__(self, worker: Worker, peer: Peer, suite: IkeSuite = FAST) -> None:
        self.worker, self.peer = worker, peer
        self.ours = self.theirs = b""
        self.fields = {"suite": suite, "cky_i": os.urandom(8), "cky_r": os.urandom(8), "sai_b": os.urandom(48)}
        self.here = {"local": ipaddress.ip_address(LEFT), "remote": peer.at}
        self.there = {"local": peer.at, "remote": ipaddress.ip_address(LEFT)}
        self.spi_out = randrange(0x1000, 0x10000000)

    # we are the initiator

    def offer(self, connection: str = "second", **changes: object) -> ops.IkeOffer:
        return ops.IkeOffer(**({"connection": connection} | self.fields | self.here | changes))

    def offered(self, connection: str = "second", **changes: object) -> ops.IkeKeys:
        reply = self.worker.keyd(self.offer(connection, **changes))
        assert isinstance(reply, ops.IkeKeys), reply
        self.ours = reply.ike
        return reply

    def keyed_i(self, connection: str = "second", **changes: object) -> None:
        keys = self.offered(connection)
        answer = self.peer.do(ops.IkeAnswer(**self.fields, **self.there, ke=keys.ke, nonce=keys.nonce))
        self.theirs = answer.ike
        self.agreement = ops.IkeAgree(ike=self.ours, ke=answer.ke, nonce=answer.nonce)
        assert self.worker.keyd(replace(self.agreement, **changes)) == ops.Done()

    def claimed(self, connection: str = "second", **changes: object) -> bytes:
        """Our message 5."""
        self.keyed_i(connection, **changes)
        return self.worker.keyd(self.seal()).ciphertext

    def initiate(self, connection: str = "second") -> ops.Reply:
        """To the end of phase 1; what keyd says of the peer's proof."""
        fifth = self.claimed(connection)
        self.peer.do(ops.AuthOpen(ike=self.theirs, ciphertext=fifth))
        return self.open(self.peer.do(ops.AuthSeal(ike=self.theirs, **BARE)).ciphertext)

    # we are the responder

    def keyed_r(self, **changes: object) -> None:
        keys = self.peer.do(ops.IkeOffer(connection=self.peer.connection.name, **self.fields, **self.there))
        self.theirs = keys.ike
        given = self.fields | self.here | {"ke": keys.ke, "nonce": keys.nonce}
        reply = self.worker.keyd(ops.IkeAnswer(**(given | changes)))
        assert isinstance(reply, ops.IkeKeys), reply
        self.ours = reply.ike
        self.peer.do(ops.IkeAgree(ike=self.theirs, ke=reply.ke, nonce=reply.nonce))

    def proof(self) -> bytes:
        """The peer's message 5."""
        return self.peer.do(ops.AuthSeal(ike=self.theirs, **BARE)).ciphertext

    def proven(self) -> ops.Reply:
        self.keyed_r()
        return self.open(self.proof())

    def respond(self) -> ops.Reply:
        """To the end of phase 1; what keyd says of the peer's proof."""
        proven = self.proven()
        sixth = self.worker.keyd(self.seal()).ciphertext
        self.peer.do(ops.AuthOpen(ike=self.theirs, ciphertext=sixth))
        return proven

    def open(self, ciphertext: bytes) -> ops.Reply:
        return self.worker.keyd(ops.AuthOpen(ike=self.ours, ciphertext=ciphertext))

    def seal(self) -> ops.AuthSeal:
        return ops.AuthSeal(ike=self.ours, **BARE)

    # Quick Mode

    def quick_offer(self, ike: bytes, spi_in: int = 0x1001, **changes: object) -> ops.QuickOffer:
        """Ours, or the peer's under its handle: for all that the child holds."""
        name = str(changes.get("child", "net"))
        child = GATEWAY.connection(self.peer.connection.name).child(name)
        selectors = (child.local_ts[0], child.remote_ts[0])
        local_ts, remote_ts = selectors if ike == self.ours else selectors[::-1]
        fields = {
            "child": name, "group": Group.MODP_2048, "encap": False, "cpi_in": None, "originals": (),
            "local_ts": local_ts, "remote_ts": remote_ts,
        }  # fmt: skip
        return ops.QuickOffer(**({"ike": ike, "spi_in": spi_in} | fields | changes))

    def quick_open(self, first: ops.QuickOffered) -> ops.QuickOpen:
        return ops.QuickOpen(ike=self.ours, message_id=first.message_id, ciphertext=first.ciphertext)

    def quick_answer(self, quick: bytes, spi_in: int, **changes: object) -> ops.QuickAnswer:
        choice = {"child": "net", "suite": CHILD_SUITE, "encap": False, "cpi_in": None, "originals": ()}
        return ops.QuickAnswer(**({"quick": quick, "spi_in": spi_in} | choice | changes))

    def quick_offered(
        self, spi_in: int = 0x1001, spi_out: int = 0, **changes: object
    ) -> tuple[ops.QuickOffered, bytes]:
        """Our Quick Mode, and the peer's message 2."""
        first = self.worker.keyd(self.quick_offer(self.ours, spi_in, **changes))
        assert isinstance(first, ops.QuickOffered), first
        theirs = ops.QuickOpen(ike=self.theirs, message_id=first.message_id, ciphertext=first.ciphertext)
        answer = self.quick_answer(self.peer.do(theirs).quick, spi_out or self.spi_out)
        return first, self.peer.do(answer).ciphertext

    def quick_finished(self, spi_in: int = 0x1001, spi_out: int = 0, **changes: object) -> bytes:
        first, second = self.quick_offered(spi_in, spi_out, **changes)
        reply = self.worker.keyd(ops.QuickFinish(quick=first.quick, ciphertext=second))
        assert isinstance(reply, ops.QuickAgreed), reply
        return first.quick

    def keyed(self, spi_in: int, spi_out: int = 0, **changes: object) -> bytes:
        """Keymat of a whole Quick Mode of ours."""
        reply = self.worker.keyd(ops.QuickAccept(quick=self.quick_finished(spi_in, spi_out, **changes)))
        assert isinstance(reply, ops.QuickKeyed), reply
        return reply.keymat

    def quick_opened(self) -> tuple[bytes, ops.QuickOffered]:
        """The peer's Quick Mode here, and what it is there."""
        first = self.peer.do(self.quick_offer(self.theirs, self.spi_out))
        opened = self.worker.keyd(self.quick_open(first))
        assert isinstance(opened, ops.QuickOpened), opened
        return opened.quick, first

    def quick_answered(self, spi_in: int, *, received: bool = False) -> tuple[ops.QuickKeyed, bytes, bytes]:
        """What keyd answered, our Quick Mode, and the peer's message 3; `received`: our inbound SA stands."""
        quick, first = self.quick_opened()
        keyed = self.worker.keyd(self.quick_answer(quick, spi_in))
        assert isinstance(keyed, ops.QuickKeyed), keyed
        if received:
            self.worker.receives(keyed.keymat)
        self.peer.do(ops.QuickFinish(quick=first.quick, ciphertext=keyed.ciphertext))
        third = self.peer.do(ops.QuickAccept(quick=first.quick))
        return keyed, quick, third.ciphertext
