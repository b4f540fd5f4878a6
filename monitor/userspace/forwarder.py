"""The moving parts: packets between the TUN device and the sockets, the monitor's orders, lifetimes, reports.

Outer headers are the kernel's: TTL is its default; DSCP and ECN start at zero (RFC 6040 section 4.1, compatibility
mode; no inner bits leak); DF is clear, so the network may fragment what is too long (RFC 4301 section 8.1), which the
TUN device's MTU makes rare. Inner headers stay as they are: the kernel routes in and out of the TUN device, decrements
TTL and answers "too big".
"""

import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.userspace.database import Database, NoSa, Outer, Pair
from monitor.userspace.drops import Dropped, Reason
from monitor.userspace.esp import SequenceExhausted
from monitor.userspace.packet import IPV4
from privsep.channel import Channel
from privsep.log import Level, event
from privsep.loop import Loop, Timer
from privsep.schema.esp import (
    REPLIES,
    REQUESTS,
    AddInbound,
    AddOutbound,
    AddPolicy,
    Counters,
    Failed,
    Ok,
    PairExpired,
    PairWorn,
    ReadCounters,
    RemovePair,
    RemovePolicy,
    Reply,
    Request,
    Trapped,
)
from privsep.types import Address

BATCH = 64
"""Packets of one source before the loop looks at the others."""
MAX_PACKET = 65535
TRAP_INTERVAL = 1.0
"""Seconds between two reports of one policy."""
DROPS_INTERVAL = 60.0
"""Seconds between two log lines about drops."""

_IPV4_HEADER = 20
_IN_PKTINFO = struct.Struct("=i4s4s")
_IN6_PKTINFO = struct.Struct("=16si")
_IP_PKTINFO = 8
"""<linux/in.h>; the socket module has no name for it."""

Ancillary = list[tuple[int, int, bytes]]
Path = tuple[Callable[..., int], Ancillary]
"""A socket's sendmsg, and the source address where the socket is bound to none."""


@dataclass(slots=True)
class _Sending:
    """What the loop knows of a pair: how its packets leave, when it ends, whether its wear was reported."""

    path: Path
    timer: Timer
    worn: bool = False


class Forwarder:
    """Owns the descriptors and the database of this process."""

    def __init__(
        self,
        loop: Loop,
        tun: int,
        udp: Sequence[socket.socket],
        raw: Sequence[socket.socket],
    ) -> None:
        self._loop = loop
        self._tun = tun
        self._database = Database()
        self._sockets = {(True, *_bound(sock)): sock for sock in udp} | {(False, *_bound(sock)): sock for sock in raw}
        self._sending: dict[int, _Sending] = {}
        self._trapped: dict[int, float] = {}
        self._drops: Counter[Reason] = Counter()
        self._report: Callable[[Reply], None] = _unheard
        loop.on_readable(tun, self._tun_readable)
        for sock in udp:
            self._watch(sock, self._udp_datagram)
        for sock in raw:
            self._watch(sock, self._ipv4_packet if sock.family == socket.AF_INET else self._esp_packet)

    def attach(self, sock: socket.socket, on_close: Callable[[str], None]) -> None:
        """Take orders from the monitor."""
        channel: Channel[Request, Reply] = Channel(
            sock,
            self._loop,
            incoming=REQUESTS,
            outgoing=REPLIES,
            handler=lambda message, sequence: channel.send(self.handle(message), sequence),
            on_close=on_close,
        )
        self._report = channel.send

    # orders

    def handle(self, order: Request) -> Reply:
        """Carry out one order of the monitor."""
        match order:
            case AddInbound():
                return self._add_inbound(order)
            case AddOutbound():
                try:
                    self._database.add_outbound(order)
                except ValueError:
                    return Failed()
            case RemovePair():
                self._remove(self._database.remove_pair(order.spi_in))
            case AddPolicy():
                try:
                    self._database.add_policy(order)
                except ValueError:
                    return Failed()
            case RemovePolicy():
                for pair in self._database.remove_policy(order.policy):
                    self._remove(pair)
                self._trapped.pop(order.policy, None)
            case ReadCounters():
                return self._counters(self._database.pair(order.spi_in))
        return Ok()

    def _add_inbound(self, order: AddInbound) -> Reply:
        path = self._path(order.encap, order.local.address)
        if path is None:
            return Failed()
        try:
            pair = self._database.add_inbound(order)
        except ValueError:
            return Failed()
        self._sending[pair.spi_in] = _Sending(path, self._loop.after(order.lifetime_s, lambda: self._expire(pair)))
        return Ok()

    def _remove(self, pair: Pair | None) -> None:
        if pair is not None:
            # a cancelled timer lets go of the pair and its keys at once
            self._sending.pop(pair.spi_in).timer.cancel()

    def _expire(self, pair: Pair) -> None:
        """A lifetime or the sequence numbers ended."""
        self._remove(self._database.remove_pair(pair.spi_in))
        self._report(PairExpired(spi_in=pair.spi_in))

    def _counters(self, pair: Pair | None) -> Reply:
        if pair is None:
            return Failed()
        return Counters(
            bytes_in=pair.bytes_in,
            bytes_out=pair.bytes_out,
            packets_in=pair.packets_in,
            packets_out=pair.packets_out,
        )

    def _path(self, encap: bool, local: Address) -> Path | None:
        """How to send from a local address: a socket bound to it, else the wildcard one told the address each time."""
        bound = self._sockets.get((encap, local.version, str(local)))
        if bound is not None:
            return bound.sendmsg, []
        if local.version == IPV4:
            wildcard = self._sockets.get((encap, local.version, "0.0.0.0"))  # noqa: S104 - the name of a socket, no bind
            packed = _IN_PKTINFO.pack(0, local.packed, bytes(4))
            ancillary = [(socket.IPPROTO_IP, _IP_PKTINFO, packed)]
        else:
            wildcard = self._sockets.get((encap, local.version, "::"))
            ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.pack(local.packed, 0))]
        return None if wildcard is None else (wildcard.sendmsg, ancillary)

    # packets out

    def _tun_readable(self) -> None:
        for _ in range(BATCH):
            try:
                packet = os.read(self._tun, MAX_PACKET)
            except OSError:
                return
            try:
                self._protect(packet)
            except NoSa as nosa:
                self._drop(nosa.reason)
                self._trap(nosa.policy)
            except Dropped as dropped:
                self._drop(dropped.reason)

    def _protect(self, packet: bytes) -> None:
        pair = self._database.outbound(packet)
        try:
            sealed = pair.seal(packet)
        except SequenceExhausted:
            self._expire(pair)
            return
        sending = self._sending[pair.spi_in]
        sendmsg, ancillary = sending.path
        try:
            sendmsg((sealed,), ancillary, 0, pair.destination)
        except OSError:
            # a full buffer, no route: IP loses packets, and so do we
            raise Dropped(Reason.SEND_FAILED) from None
        if pair.worn and not sending.worn:
            sending.worn = True
            self._report(PairWorn(spi_in=pair.spi_in))

    def _trap(self, policy: int) -> None:
        now = self._loop.now()
        if now - self._trapped.get(policy, -TRAP_INTERVAL) >= TRAP_INTERVAL:
            self._trapped[policy] = now
            self._report(Trapped(policy=policy))

    # packets in

    def _watch(self, sock: socket.socket, handler: Callable[[bytes, Outer], None]) -> None:
        def readable() -> None:
            for _ in range(BATCH):
                try:
                    datagram, source = sock.recvfrom(MAX_PACKET)
                except OSError:
                    return
                handler(datagram, source)

        sock.setblocking(False)
        self._loop.on_readable(sock.fileno(), readable)

    def _udp_datagram(self, datagram: bytes, source: Any) -> None:
        """ESP in UDP (RFC 3948 section 2.1). IKE and keepalives went to the worker's socket."""
        self._deliver(datagram, source[:2])

    def _ipv4_packet(self, packet: bytes, _: Outer) -> None:
        """ESP from a raw IPv4 socket, which hands out the IP header too (raw(7))."""
        header = (packet[0] & 0x0F) * 4 if packet else _IPV4_HEADER
        self._deliver(packet[header:], None)

    def _esp_packet(self, packet: bytes, _: Outer) -> None:
        """ESP from a raw IPv6 socket, which hands out the payload only (RFC 3542 section 3)."""
        self._deliver(packet, None)

    def _deliver(self, datagram: bytes, source: Outer | None) -> None:
        try:
            _, packet = self._database.inbound(datagram, source)
            os.write(self._tun, packet)
        except Dropped as dropped:
            self._drop(dropped.reason)
        except OSError:
            self._drop(Reason.SEND_FAILED)

    def _drop(self, reason: Reason) -> None:
        """Count; the log gets a summary, so that a flood of bad packets is no flood of lines (RFC 4303 section 5)."""
        if not self._drops:
            self._loop.after(DROPS_INTERVAL, self._log_drops)
        self._drops[reason] += 1

    def _log_drops(self) -> None:
        counts = {reason.value.replace("-", "_"): count for reason, count in self._drops.items()}
        self._drops.clear()
        event(Level.NOTICE, "esp-packets-dropped", **counts)


def _bound(sock: socket.socket) -> tuple[int, str]:
    """IP version and local address of a socket."""
    return 4 if sock.family == socket.AF_INET else 6, sock.getsockname()[0]


def _unheard(_: Reply) -> None:
    """Until a monitor is attached there are no policies, hence no reports."""
