"""The loop's side of the ESP process: a socket pair is the TUN device, a loopback socket the peer."""

import ipaddress
import select
import socket

import pytest

from monitor.userspace import database as database_module
from monitor.userspace.esp import Inbound, Outbound, transform
from monitor.userspace.forwarder import BATCH, Forwarder
from monitor.userspace.packet import ip_packet
from privsep.algorithms import ChildSuite
from privsep.channel import Channel, pair
from privsep.loop import Loop
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
    Trapped,
)
from privsep.types import Endpoint, Mode, Spi, TrafficSelector

LOOPBACK = ipaddress.ip_address("127.0.0.1")
SUITE = ChildSuite.parse("aes128gcm16")
KEY_IN, KEY_OUT = bytes(20), bytes(range(20))
HERE, THERE = (TrafficSelector(ipaddress.ip_network(text)) for text in ("10.1.0.0/16", "10.2.0.0/16"))
ADD_POLICY = AddPolicy(policy=1, local_ts=(HERE,), remote_ts=(THERE,))
ROUNDS = 4
"""An order is read in one, answered in the next; what comes of it has two."""


class Stage:
    def __init__(self, bind="127.0.0.1"):
        self.loop = Loop()
        # both ends keep packet boundaries, as the device does
        self.device, tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        tun.setblocking(False)
        self._keep = tun
        self.udp, self.peer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        self.udp.bind((bind, 0))
        self.peer.bind(("127.0.0.1", 0))
        self.forwarder = Forwarder(self.loop, tun.fileno(), [self.udp], [])
        ours, theirs = pair()
        self.said = []
        self.forwarder.attach(theirs, lambda _: None)
        self.monitor = Channel(
            ours,
            self.loop,
            incoming=REPLIES,
            outgoing=REQUESTS,
            handler=lambda message, sequence: self.said.append((message, sequence)),
            on_close=lambda _: None,
        )

    def ask(self, request):
        """A pair sends at once where nothing else is said."""
        reply = self.forwarder.handle(request)
        if isinstance(request, AddInbound) and reply == Ok():
            sending = AddOutbound(spi_in=request.spi_in, encryption_out=KEY_OUT, integrity_out=b"")
            assert self.forwarder.handle(sending) == Ok()
        return reply

    def turn(self):
        """Rounds of the loop, however long they take: in each it looks once at what is ready."""
        for _ in range(ROUNDS):
            self.loop.after(0.0, lambda: self.loop.after(0.0, self.loop.stop))
            self.loop.run()

    def order(self, spi_in=0x1001, spi_out=0x1002, lifetime=60, encap=True, local=LOOPBACK):
        return AddInbound(
            spi_in=spi_in,
            spi_out=spi_out,
            suite=SUITE,
            mode=Mode.TUNNEL,
            policy=1,
            encryption_in=KEY_IN,
            integrity_in=b"",
            local=Endpoint(local, 4500),
            remote=Endpoint(LOOPBACK, self.peer.getsockname()[1]),
            encap=encap,
            local_ts=(HERE,),
            remote_ts=(THERE,),
            replay_window=64,
            lifetime_s=lifetime,
        )


def packet(source="10.1.0.1", destination="10.2.0.1", payload=b"ports and more"):
    return ip_packet(ipaddress.ip_address(source), ipaddress.ip_address(destination), 17, payload)


def waiting(sock):
    received = []
    while select.select([sock], [], [], 0)[0]:
        received.append(sock.recv(65535))
    return received


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"], ids=["bound", "wildcard"])
def stage(request):
    return Stage(request.param)


def test_a_packet_from_the_device_leaves_as_esp_from_the_local_address(stage):
    stage.ask(ADD_POLICY)
    assert stage.ask(stage.order()) == Ok()
    stage.device.send(packet())
    stage.turn()
    datagram, source = stage.peer.recvfrom(65535)
    assert source == ("127.0.0.1", stage.udp.getsockname()[1])
    assert Inbound(transform(SUITE, KEY_OUT, b""), 64).open(datagram) == (4, packet())


def test_esp_from_the_peer_reaches_the_device(stage):
    stage.ask(ADD_POLICY)
    stage.ask(stage.order())
    back = packet("10.2.0.1", "10.1.0.1")
    sealed = Outbound(Spi(0x1001), transform(SUITE, KEY_IN, b"")).seal(4, back)
    to = ("127.0.0.1", stage.udp.getsockname()[1])
    for datagram in (sealed, sealed, b"", b"\xff", b"garbage of some length", sealed[:-1]):
        stage.peer.sendto(datagram, to)
    stage.turn()
    assert waiting(stage.device) == [back]
    assert stage.ask(ReadCounters(spi_in=0x1001)) == Counters(
        bytes_in=len(back), bytes_out=0, packets_in=1, packets_out=0
    )


def test_orders_are_answered_over_the_channel_by_number(stage):
    for sequence, request in enumerate((ADD_POLICY, stage.order(), stage.order(), RemovePair(spi_in=9999)), 1):
        stage.monitor.send(request, sequence)
    stage.turn()
    assert stage.said == [(Ok(), 1), (Ok(), 2), (Failed(), 3), (Ok(), 4)]


def test_a_pair_needs_a_policy_and_a_socket_of_its_kind():
    stage = Stage()
    assert stage.ask(stage.order()) == Failed()
    stage.ask(ADD_POLICY)
    assert stage.ask(stage.order(encap=False)) == Failed()
    assert stage.ask(stage.order(local=ipaddress.ip_address("192.0.2.77"))) == Failed()
    assert stage.ask(stage.order()) == Ok()


def test_a_trap_is_reported_once_a_second_for_each_policy(stage):
    stage.ask(ADD_POLICY)
    stage.ask(AddPolicy(policy=2, local_ts=(HERE,), remote_ts=(TrafficSelector(ipaddress.ip_network("10.3.0.0/16")),)))
    for _ in range(5):
        stage.device.send(packet())
        stage.device.send(packet(destination="10.3.0.1"))
    stage.turn()
    stage.turn()
    assert stage.said == [(Trapped(policy=1), 0), (Trapped(policy=2), 0)]
    assert waiting(stage.peer) == []


def test_a_lifetime_ends_the_pair_and_says_so(stage):
    stage.ask(ADD_POLICY)
    stage.ask(stage.order(lifetime=0))
    stage.turn()
    stage.turn()
    assert stage.said == [(PairExpired(spi_in=0x1001), 0)]
    assert stage.ask(ReadCounters(spi_in=0x1001)) == Failed()


def test_the_timer_of_a_removed_pair_does_not_end_its_successor(stage):
    stage.ask(ADD_POLICY)
    stage.ask(stage.order(lifetime=0))
    stage.ask(RemovePair(spi_in=0x1001))
    stage.ask(stage.order())
    stage.turn()
    stage.turn()
    assert stage.said == []
    assert isinstance(stage.ask(ReadCounters(spi_in=0x1001)), Counters)


def test_a_removed_policy_takes_its_pairs_along(stage):
    stage.ask(ADD_POLICY)
    stage.ask(stage.order())
    assert stage.ask(RemovePolicy(policy=1)) == Ok()
    assert stage.ask(ReadCounters(spi_in=0x1001)) == Failed()
    stage.device.send(packet())
    stage.turn()
    assert waiting(stage.peer) == []


def test_worn_sequence_numbers_are_reported_once_and_exhausted_ones_end_the_pair_rfc4303_3_3_3(stage, monkeypatch):
    monkeypatch.setattr(database_module, "WORN_SEQUENCE", 2)
    monkeypatch.setattr("monitor.userspace.esp.MAX_SEQUENCE", 4)
    stage.ask(ADD_POLICY)
    stage.ask(stage.order())
    for _ in range(6):
        stage.device.send(packet())
    stage.turn()
    stage.turn()
    assert stage.said[:2] == [(PairWorn(spi_in=0x1001), 0), (PairExpired(spi_in=0x1001), 0)]
    assert len(waiting(stage.peer)) == 4


def test_one_busy_source_leaves_the_loop_to_others_after_a_batch(stage):
    stage.ask(ADD_POLICY)
    stage.ask(stage.order())
    stage.device.setblocking(False)
    for _ in range(3 * BATCH):
        stage.device.send(packet())
    # another source of the same loop becomes ready with the first packet
    stage.loop.on_readable(stage.peer.fileno(), stage.loop.stop)
    stage.loop.run()
    assert BATCH <= len(waiting(stage.peer)) <= 2 * BATCH


def test_drops_are_counted_and_logged_in_summary(stage, capsys):
    for _ in range(3):
        stage.device.send(packet())
    stage.device.send(b"\x45 is no packet")
    stage.turn()
    stage.forwarder._log_drops()
    assert capsys.readouterr().err == "notice esp-packets-dropped no_policy=3 malformed=1\n"
