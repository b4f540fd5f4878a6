"""What the kernel reports unasked, from the golden messages and from nonsense."""

import errno
import ipaddress

import pytest

from monitor.xfrm import events
from monitor.xfrm.events import EVENTS_AT_ONCE, XfrmEvents
from monitor.xfrm.messages import Expire, Mapping
from monitor.xfrm.sa import SaId
from privsep.iana import ProtocolId
from privsep.types import Spi


class FakeSocket:
    def __init__(self):
        self.waiting = []

    def setblocking(self, blocking):
        assert not blocking

    def setsockopt(self, *option):
        self.option = option

    def fileno(self):
        return 99

    def recvfrom(self, octets):
        if not self.waiting:
            raise BlockingIOError
        found = self.waiting.pop(0)
        if isinstance(found, OSError):
            raise found
        return found if isinstance(found, tuple) else (found, (0, 2))


class FakePlane:
    """Owns the SA of the golden EXPIRE; its inbound SPI is 0x77."""

    def __init__(self):
        self.asked = []
        self.gone = []
        self.numbers = {(7, 4803269): 3}

    def owner(self, name):
        self.asked.append(("owner", str(name.destination), name.spi))
        known = SaId(ipaddress.ip_address("192.0.2.1"), ProtocolId.ESP, Spi(0x1000))
        return Spi(0x77) if name == known else None

    def ended(self, name):
        owner = self.owner(name)
        self.asked[-1] = ("ended", *self.asked[-1][1:])
        return owner

    def vanished(self):
        return self.gone

    def requiring(self, reqid, priority):
        self.asked.append(("requiring", reqid, priority))
        return self.numbers.get((reqid, priority))


class Bench:
    def __init__(self, kit):
        self.socket, self.plane, self.reported = FakeSocket(), FakePlane(), []
        self.events = XfrmEvents(
            self.plane,
            kit.recording(self.reported),
        )

    def read(self, *datagrams):
        self.socket.waiting += datagrams
        self.events.read_events()
        return self.reported


@pytest.fixture
def bench(kit, monkeypatch):
    made = FakeSocket()
    monkeypatch.setattr(events, "open_socket", lambda groups: made)
    bench = Bench(kit)
    bench.socket = made
    return bench


def changed(data, **fields):
    message = Expire(bytearray(data))
    message.decode()
    message.update({name.replace("__", "."): value for name, value in fields.items()})
    message["attrs"] = []
    message.encode()
    return bytes(message.data)


def test_an_acquire_is_reported_with_the_number_of_its_policy(kit, bench):
    assert bench.read(kit.golden("acquire")) == [("acquired", 3)]


def test_an_acquire_of_somebody_elses_policy_is_ignored(kit, bench):
    ours, theirs = (4803269).to_bytes(4, "little"), (100).to_bytes(4, "little")
    assert bench.read(kit.golden("acquire").replace(ours, theirs)) == []


def test_an_acquire_in_a_lane_is_reported_with_the_number_of_its_policy(kit, bench):
    marked = attribute(21, (0x10).to_bytes(4, "little") + (0xFF).to_bytes(4, "little"))
    data = kit.golden("acquire") + marked + attribute(31, (42).to_bytes(4, "little"))
    assert bench.read(len(data).to_bytes(4, "little") + data[4:]) == [("acquired", 3)]


def attribute(number, value):
    return (4 + len(value)).to_bytes(2, "little") + number.to_bytes(2, "little") + value


def test_a_hard_expiry_ends_the_pair(kit, bench):
    assert bench.read(kit.golden("expire-larval")) == [("expired", 0x77, True)]
    assert bench.plane.asked == [("ended", "192.0.2.1", 0x1000)]


def test_a_soft_expiry_leaves_it(kit, bench):
    assert bench.read(changed(kit.golden("expire-larval"), hard=0)) == [("expired", 0x77, False)]
    assert bench.plane.asked == [("owner", "192.0.2.1", 0x1000)]


def test_the_expiry_of_a_strangers_sa_is_ignored(kit, bench):
    assert bench.read(changed(kit.golden("expire-larval"), state__id__spi=bytes(4))) == []
    assert bench.read(changed(kit.golden("expire-larval"), state__id__proto=51)) == []
    assert len(bench.plane.asked) == 2
    assert bench.read(changed(kit.golden("expire-larval"), state__id__proto=60)) == []
    assert len(bench.plane.asked) == 2, "nothing of destination options is ours"


def test_an_ipv6_address_is_read_whole(kit, bench):
    bench.read(changed(kit.golden("expire-larval"), state__family=10, state__id__daddr=bytes(15) + b"\1"))
    assert bench.plane.asked == [("ended", "::1", 0x1000)]


MOVED = {
    "id.daddr": bytes([192, 0, 2, 1]),
    "id.spi": (0x1000).to_bytes(4),
    "id.family": 2,
    "id.proto": 50,
    "old_saddr": bytes([192, 0, 2, 2]),
    "new_saddr": bytes([192, 0, 2, 3]),
    "old_sport": (4500).to_bytes(2),
    "new_sport": (40001).to_bytes(2),
}


def mapping(**changes):
    message = Mapping.request(0, MOVED | changes)
    message.encode()
    return bytes(message.data)


def test_a_new_mapping_is_reported_with_where_the_packet_came_from_rfc3948_3(bench):
    assert bench.read(mapping()) == [("moved", 0x77, "192.0.2.3[40001]")]
    assert bench.plane.asked == [("owner", "192.0.2.1", 0x1000)]


@pytest.mark.parametrize("change", [{"id.spi": bytes(4)}, {"id.proto": 51}, {"id.proto": 60}])
def test_a_new_mapping_of_a_strangers_sa_is_ignored(bench, change):
    assert bench.read(mapping(**change)) == []


def test_a_policy_expiry_is_nothing_of_ours(kit, bench):
    assert bench.read(kit.golden("polexpire")) == []


@pytest.mark.parametrize("name", ["acquire", "expire-larval", "mapping"])
def test_a_message_cut_off_anywhere_reports_nothing_wrong(kit, bench, name):
    whole = mapping() if name == "mapping" else kit.golden(name)
    for length in range(len(whole)):
        assert bench.read(whole[:length]) == []


def test_what_does_not_come_from_the_kernel_is_ignored(kit, bench):
    assert bench.read((kit.golden("acquire"), (4711, 1))) == []


def test_one_call_reads_a_bounded_number(kit, bench):
    bench.socket.waiting += [kit.golden("acquire")] * (EVENTS_AT_ONCE + 1)
    bench.events.read_events()
    assert len(bench.reported) == EVENTS_AT_ONCE


def test_after_an_overrun_pairs_that_vanished_are_reported(kit, bench):
    bench.plane.gone = [Spi(0x11), Spi(0x12)]
    reported = bench.read(OSError(errno.ENOBUFS, "No buffer space available"), kit.golden("acquire"))
    assert reported == [("expired", 0x11, True), ("expired", 0x12, True), ("acquired", 3)]


def test_another_error_of_the_socket_is_not_hidden(bench):
    with pytest.raises(OSError, match="bad"):
        bench.read(OSError(errno.EBADF, "bad"))
