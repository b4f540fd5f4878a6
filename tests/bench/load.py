"""An initiator that opens many tunnels: one engine for each, one keyd service in this process, one UDP socket.

The engines are the product's; only what surrounds them is simpler: no sandbox, and SAs are redeemed but not installed.
"""

import ipaddress
import os
import socket
import time
from dataclasses import dataclass, field

from keyd.credentials import Credentials
from keyd.service import Service
from privsep.config.loader import load
from privsep.config.model import Gateway
from privsep.iana import IdType
from privsep.schema import install
from privsep.schema.keymat import Redeemed, RedeemedOutbound, RedeemInbound, RedeemOutbound
from privsep.types import Endpoint, Identity
from worker.effects import AskKeyd, AskMonitor, Send, TellMonitor
from worker.engine import Engine

IKE_PORT = 500

GATEWAY = """
[gateway]
users = {{ worker = 64001, keyd = 64002, userspace = 64003 }}
[connection.peer]
version = "ikev1"
local = "{local}"
remote = "{remote}"
local_id = "{local}"
remote_id = "{remote}"
auth = "psk"
ike = ["{ike}"]
[connection.peer.child.net]
local_ts = ["{inner}/32"]
remote_ts = ["{other}/32"]
esp = ["{esp}"]
start = "wait"
"""


EARLIER = install.Adopted(
    connection="peer",
    child="net",
    identity=Identity(IdType.IPV4_ADDR, bytes((192, 0, 2, 2))),
    spi_in=256,
    spi_out=256,
    local=Endpoint(ipaddress.ip_address("192.0.2.1"), IKE_PORT),
    remote=Endpoint(ipaddress.ip_address("192.0.2.2"), IKE_PORT),
    left_s=3600,
)
"""A pair that makes an engine believe that it is not the first contact."""


@dataclass(slots=True)
class Tunnel:
    """One engine, and what became of its order."""

    engine: Engine
    sent: bytes = b""
    """The initiator cookie, by which answers find their engine."""
    outcome: install.Outcome | None = None
    text: str = ""
    receiving: dict[int, tuple[bytes, Redeemed]] = field(default_factory=dict)
    redeemed: list[tuple[Redeemed, RedeemedOutbound]] = field(default_factory=list)


def _silence(*_: object, **__: object) -> None:
    pass


class Load:
    """Tunnels from `local` to `remote`."""

    def __init__(self, *, local: str, remote: str, inner: str, other: str, ike: str, esp: str, psk: str) -> None:
        text = GATEWAY.format(local=local, remote=remote, inner=inner, other=other, ike=ike, esp=esp)
        self.gateway: Gateway = load(text, "gateway.toml")
        secrets = f'[[psk]]\nids = ["{local}", "{remote}"]\nsecret = "{psk}"\n'
        self.credentials = Credentials.parse(secrets, "secrets.toml", self.gateway)
        self.service = Service(self.gateway, self.credentials, time.monotonic, os.urandom)
        self.tunnels: list[Tunnel] = []
        self._by_cookie: dict[bytes, Tunnel] = {}
        connection = self.gateway.connections[0]
        self._local = Endpoint(connection.local, IKE_PORT)
        self._remote = Endpoint(connection.remote, IKE_PORT)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind((local, IKE_PORT))
        self._socket.connect((remote, IKE_PORT))

    def open(self) -> Tunnel:
        """Begin one more."""
        tunnel = Tunnel(Engine(self.gateway, os.urandom, log=_silence, now=time.monotonic()))
        # every tunnel is between the same identities: INITIAL-CONTACT would have the responder delete the earlier ones
        tunnel.engine._context.adopted.put(EARLIER)
        self.tunnels.append(tunnel)
        order = install.Up(order=1, connection="peer", child="net")
        tunnel.engine.monitor_message(order, 1, time.monotonic())
        self._carry_out(tunnel)
        return tunnel

    def turn(self, seconds: float) -> None:
        """Wait for one datagram, or wake the engines whose timers are due."""
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(65535)
        except (TimeoutError, ConnectionRefusedError):
            now = time.monotonic()
            for tunnel in self.tunnels:
                deadline = tunnel.engine.next_deadline()
                if deadline is not None and deadline <= now:
                    tunnel.engine.tick(now)
                    self._carry_out(tunnel)
            return
        tunnel = self._by_cookie.get(data[:8])
        if tunnel is not None:
            tunnel.engine.datagram(data, self._local, self._remote, time.monotonic())
            self._carry_out(tunnel)

    def open_many(self, number: int, *, at_once: int, seconds: float) -> float:
        """Open `number` tunnels, some at once; the seconds it took. RuntimeError when one fails."""
        began = time.monotonic()
        waiting: list[Tunnel] = []
        opened = 0
        while opened < number or waiting:
            while opened < number and len(waiting) < at_once:
                waiting.append(self.open())
                opened += 1
            self.turn(0.2)
            for tunnel in waiting:
                if tunnel.outcome is install.Outcome.FAILED:
                    raise RuntimeError(f"a tunnel failed: {tunnel.text}")
            waiting = [tunnel for tunnel in waiting if tunnel.outcome is None]
            if time.monotonic() - began > seconds:
                raise RuntimeError(f"{len(waiting)} tunnels are not open after {seconds} s")
        return time.monotonic() - began

    def _carry_out(self, tunnel: Tunnel) -> None:
        engine = tunnel.engine
        while effects := engine.take_effects():
            for effect in effects:
                now = time.monotonic()
                match effect:
                    case Send():
                        if not tunnel.sent:
                            tunnel.sent = effect.data[:8]
                            self._by_cookie[tunnel.sent] = tunnel
                        self._socket.send(effect.data)
                    case AskKeyd():
                        engine.keyd_reply(effect.sequence, self.service.handle(effect.request), now)
                    case AskMonitor():
                        engine.monitor_message(self._monitor(tunnel, effect.message), effect.sequence, now)
                    case TellMonitor(message=install.Completed() as completed):
                        tunnel.outcome, tunnel.text = completed.outcome, completed.text

    def _monitor(self, tunnel: Tunnel, message: install.WorkerRequest) -> install.MonitorReply:
        match message:
            case install.AllocateSpi():
                return install.Allocated(spi=256 + int.from_bytes(os.urandom(3)))
            case install.InstallInbound():
                redeemed = self.service.redeem(RedeemInbound(keymat=message.keymat))
                if not isinstance(redeemed, Redeemed):
                    return install.Denied(why=install.Denial.KEYMAT)
                tunnel.receiving[redeemed.spi_in] = message.keymat, redeemed
                return install.Installed(spi_in=redeemed.spi_in)
            case install.InstallOutbound():
                keymat, redeemed = tunnel.receiving.pop(message.spi_in)
                outbound = self.service.redeem(RedeemOutbound(keymat=keymat))
                if not isinstance(outbound, RedeemedOutbound):
                    return install.Denied(why=install.Denial.KEYMAT)
                tunnel.redeemed.append((redeemed, outbound))
                return install.Installed(spi_in=redeemed.spi_in)
            case _:
                return install.Removed()

    def close(self) -> None:
        self._socket.close()
