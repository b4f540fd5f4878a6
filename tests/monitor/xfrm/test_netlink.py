"""Asking the kernel: only the answer to our question counts, refusals are told in words, no key stays behind."""

import contextlib
import errno
import logging
import struct

import pytest

from monitor.dataplane import DataplaneError
from monitor.xfrm import netlink, sa
from monitor.xfrm.messages import Counters, DelSa, GetSa, NewSa
from monitor.xfrm.netlink import MAX_STALE, KernelError, XfrmNetlink
from privsep.errors import OperatorError
from privsep.iana import ProtocolId
from privsep.types import Spi

ERROR = 2


class FakeSocket:
    """Answers with what `reply` makes of the sequence number; each entry is (octets, sender)."""

    def __init__(self):
        self.sent = []
        self.reply = lambda sequence: [(answer(sequence), 0)]
        self.waiting = []

    def settimeout(self, seconds):
        self.timeout = seconds

    def send(self, data):
        self.sent.append(bytes(data))
        (sequence,) = struct.unpack_from("=I", data, 8)
        self.waiting += self.reply(sequence)

    def recvfrom_into(self, buffer):
        if not self.waiting:
            raise TimeoutError("timed out")
        data, sender = self.waiting.pop(0)
        buffer[: len(data)] = data
        return len(data), (sender, 0)


def answer(sequence, code=0, kind=ERROR, text=b""):
    attribute = struct.pack("=HH", 5 + len(text), 1) + text + bytes(4 - len(text) % 4) if text else b""
    body = struct.pack("=i16x", code) + attribute
    return struct.pack("=IHHII", 16 + len(body), kind, 0x300, sequence, 0) + body


def sa_answer(sequence, key=b""):
    found = NewSa.request(0, {"curlft.bytes": 840}, [("XFRMA_ALG_AEAD", {"name": b"x", "key": key})])
    found["header"]["sequence_number"] = sequence
    found.encode()
    return bytes(found.data)


@pytest.fixture
def fake(monkeypatch):
    sock = FakeSocket()
    monkeypatch.setattr(netlink, "open_socket", lambda groups=0: sock)
    return sock


@pytest.fixture
def kernel(fake):
    return XfrmNetlink()


def delete(kit):
    return DelSa.request(0, sa.key(sa.SaId(kit.endpoint("192.0.2.1").address, ProtocolId.ESP, Spi(0x1000))))


def get(kit):
    return GetSa.request(0, sa.key(sa.SaId(kit.endpoint("192.0.2.1").address, ProtocolId.ESP, Spi(0x1000))))


def test_an_acknowledged_request_returns(kit, fake, kernel):
    kernel.do(delete(kit))
    assert struct.unpack_from("=H", fake.sent[0], 6) == (0x5,)
    assert fake.timeout == netlink.ANSWER_SECONDS


def test_a_refusal_has_the_errnos_name_and_the_kernels_words(kit, fake, kernel):
    fake.reply = lambda sequence: [(answer(sequence, -errno.EPROTONOSUPPORT, text=b"Requested type not found"), 0)]
    with pytest.raises(KernelError, match=r"^DELSA: EPROTONOSUPPORT \(Requested type not found\)$") as caught:
        kernel.do(delete(kit))
    assert caught.value.number == errno.EPROTONOSUPPORT


def test_answers_to_earlier_questions_and_other_senders_are_skipped(kit, fake, kernel):
    fake.reply = lambda sequence: [
        (answer(sequence - 1, -errno.EPERM), 0),
        (answer(sequence, -errno.EPERM), 4711),
        (b"short", 0),
        (answer(sequence), 0),
    ]
    kernel.do(delete(kit))


def test_stale_answers_are_skipped_up_to_a_bound(kit, fake, kernel):
    fake.reply = lambda sequence: [(answer(sequence + 7), 0)] * (MAX_STALE + 1)
    with pytest.raises(DataplaneError, match="does not answer"):
        kernel.do(delete(kit))
    assert len(fake.waiting) == 1


def test_silence_is_an_error_in_time(kit, fake, kernel):
    fake.reply = lambda sequence: []
    with pytest.raises(KernelError, match="DELSA: ETIMEDOUT"):
        kernel.do(delete(kit))


def test_a_message_of_another_kind_is_no_answer(kit, fake, kernel):
    with pytest.raises(DataplaneError, match="message type 2"):
        kernel.ask(get(kit), Counters)


def test_only_an_acknowledgement_is_success(kit, fake, kernel):
    fake.reply = lambda sequence: [(sa_answer(sequence), 0)]
    with pytest.raises(DataplaneError, match="message type 16"):
        kernel.do(delete(kit))


def test_a_cut_off_answer_is_refused(kit, fake, kernel):
    fake.reply = lambda sequence: [(sa_answer(sequence)[:100], 0)]
    with pytest.raises(DataplaneError, match="cut off"):
        kernel.ask(get(kit), Counters)


def test_an_answer_leaves_counters_and_no_key(kit, fake, kernel):
    fake.reply = lambda sequence: [(sa_answer(sequence, b"sesame"), 0)]
    found = kernel.ask(get(kit), Counters)
    assert found["curlft.bytes"] == 840
    assert not any(kernel._buffer)
    assert b"sesame" not in found.data


@pytest.mark.parametrize("code", [0, -errno.EEXIST])
def test_a_request_is_wiped_whether_accepted_or_refused(kit, fake, kernel, code):
    fake.reply = lambda sequence: [(answer(sequence, code), 0)]
    message = NewSa.request(0, *sa.outbound(kit.pair(encryption_out=b"sesame" * 6)))
    with contextlib.suppress(KernelError):
        kernel.do(message)
    assert b"sesame" in fake.sent[0]
    assert b"sesame" not in message.data


def test_sequence_numbers_are_not_repeated(kit, fake, kernel):
    for _ in range(3):
        kernel.do(delete(kit))
    assert len({struct.unpack_from("=I", data, 8) for data in fake.sent}) == 3


def test_pyroute2_logs_nothing(caplog):
    with caplog.at_level(logging.DEBUG):
        for name in ("pyroute2", "pyroute2.netlink", "pyroute2.netlink.core", "pyroute2.netlink.nlsocket"):
            logging.getLogger(name).error("a value that did not pack")
    assert caplog.records == []


def test_a_kernel_without_xfrm_netlink_is_named(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(netlink.AsyncNetlinkSocket, "setup_socket", refuse)
    with pytest.raises(OperatorError, match="CONFIG_XFRM_USER"):
        netlink.open_socket()
