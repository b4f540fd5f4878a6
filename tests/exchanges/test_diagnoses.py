"""A negotiation that comes to nothing is told as what it is: by whom it was refused, and what was offered."""

import dataclasses
import ipaddress
import struct

import pytest

from privsep.algorithms import ChildSuite, IkeSuite
from privsep.iana import ExchangeType
from privsep.log import Level
from privsep.schema.install import Outcome
from privsep.types import Endpoint

STRANGER = Endpoint(ipaddress.ip_address("203.0.113.9"), 500)
BASE, AGGRESSIVE, TRANSACTION, NEW_GROUP = 1, 4, 6, 33
FRAGMENT = 132
IKE_SA_INIT, INITIATOR, RESPONSE = 34, 0x08, 0x20
COOKIE = bytes(range(1, 9))


def header(exchange, *, first=1, version=0x10, flags=0, cky_r=bytes(8), size=200) -> bytes:
    """A datagram of that size: a header and what nobody reads."""
    return COOKIE + cky_r + struct.pack(">BBBBII", first, version, exchange, flags, 0, size) + bytes(size - 28)


def receive(make, site, data: bytes, remote: Endpoint | None = None) -> list:
    """What the site sends when it gets this; from the other gateway if nobody else is named."""
    local, peer = (make.LEFT, make.RIGHT) if site.name == "left" else (make.RIGHT, make.LEFT)
    site.carry_out()
    before = len(site.sent)
    site.engine.datagram(data, Endpoint(local, 500), remote or Endpoint(peer, 500), site.world.now)
    site.carry_out()
    return site.sent[before:]


# what we offered


def test_a_proposal_that_quick_mode_refuses_is_told_with_what_we_offered(make):
    ours = make.connection(children=(make.child(suites=(ChildSuite.parse("aes128gcm16"),)),))
    world = make.Pair(ours, make.mirrored(make.connection()))
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert "gw2.example.org answers NO_PROPOSAL_CHOSEN; we offered aes128gcm16" in done.text


def test_selectors_that_the_peer_refuses_are_told(make):
    ours = make.connection(children=(make.child(remote_ts=make.selectors("10.9.0.0/16")),))
    world = make.Pair(ours, make.mirrored(make.connection()))
    done = world.up()
    assert done.outcome is Outcome.FAILED
    expected = "gw2.example.org answers INVALID_ID_INFORMATION; we asked for 10.1.0.0/16 with 10.9.0.0/16"
    assert expected in done.text


def test_an_answer_that_is_not_of_our_offer_is_told_with_both(make):
    """RFC 2409 section 5: the responder has to take a transform as it is."""
    world = make.Pair(make.connection(suites=(IkeSuite.parse("aes128-sha256-modp2048"),)))
    transmit = world.transmit

    def changing(site, send):
        # KEY_LENGTH 128 becomes 256
        data = send.data.replace(b"\x80\x0e\x00\x80", b"\x80\x0e\x01\x00") if site is world.right else send.data
        transmit(site, dataclasses.replace(send, data=data))

    world.transmit = changing
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert "192.0.2.2 answers Main Mode 1/6 unacceptably: " in done.text
    assert "we offered aes128-sha256-modp2048, it answers aes256-sha256-modp2048" in done.text
    assert "does not answer" not in done.text


def test_a_malformed_answer_is_told_as_what_it_is(make):
    world = make.Pair()
    transmit = world.transmit

    def breaking(site, send):
        # the length of the first payload
        data = send.data[:30] + b"\x00\x02" + send.data[32:] if site is world.right else send.data
        transmit(site, dataclasses.replace(send, data=data))

    world.transmit = breaking
    done = world.up()
    assert done.outcome is Outcome.FAILED
    assert "192.0.2.2 answers Main Mode 1/6 unacceptably: " in done.text
    assert "does not answer" not in done.text
    assert len([step for step in world.left.monitor.progress if step.startswith("   192.0.2.2 answers")]) == 1


def test_junk_from_elsewhere_is_not_taken_for_the_peers_answer(make):
    world = make.Pair()
    world.fate = lambda site, send: []
    sequence = world.left.up()
    world.run(1.0)
    first = world.left.sent[0].data
    forged = first[:8] + COOKIE + first[16:30] + b"\x00\x02" + first[32:]
    assert receive(make, world.left, forged, STRANGER) == []
    assert world.run(120.0, lambda: world.left.outcome(sequence) is not None)
    assert world.left.outcome(sequence).text == "lan: 192.0.2.2 does not answer Main Mode 1/6"


# XAUTH


def test_a_peer_that_wants_xauth_is_told_by_name(make):
    """It asks for it right after Main Mode and never answers Quick Mode."""
    world = make.Pair()
    world.fate = lambda site, send: [] if send.data[18] == ExchangeType.QUICK_MODE else [make.LATENCY]
    sequence = world.left.up()
    assert world.run(10.0, lambda: bool(world.left.logged("ike-established")))
    world.run(1.0)
    (sa,) = world.left.established()
    asks = sa.cky_i + sa.cky_r + struct.pack(">BBBBII", 8, 0x10, TRANSACTION, 1, 77, 60) + bytes(32)
    assert receive(make, world.left, asks) == []
    assert world.run(120.0, lambda: world.left.outcome(sequence) is not None)
    assert "the peer wants XAUTH or Mode Config (a Transaction exchange, type 6)" in world.left.outcome(sequence).text
    (report,) = world.left.logged("not-spoken")
    assert report["wants"] == "XAUTH or Mode Config (a Transaction exchange, type 6)"


# what we do not speak

SPOKEN_ELSEWHERE = {
    "the Base exchange": header(BASE),
    "Aggressive Mode": header(AGGRESSIVE),
    "New Group Mode": header(NEW_GROUP),
    "fragmentation of IKE messages": header(ExchangeType.MAIN_MODE, first=FRAGMENT),
    "IKEv2": header(IKE_SA_INIT, first=33, version=0x20, flags=INITIATOR),
}


@pytest.mark.parametrize("what", SPOKEN_ELSEWHERE)
def test_what_we_do_not_speak_is_one_line_about_a_configured_peer_and_none_about_a_stranger(make, what):
    world = make.Pair()
    receive(make, world.right, SPOKEN_ELSEWHERE[what])
    ((level, _, fields),) = [each for each in world.right.log if each[1] == "not-spoken"]
    assert level is Level.WARNING
    assert (fields["connection"], fields["wants"]) == ("paris", what)
    assert receive(make, world.right, SPOKEN_ELSEWHERE[what], STRANGER) == []
    assert len(world.right.logged("not-spoken")) == 1


def test_whom_only_a_connection_for_everybody_admits_is_no_warning(make):
    ours = make.connection()
    world = make.Pair(ours, dataclasses.replace(make.mirrored(ours), remote=make.RemoteAny()))
    receive(make, world.right, SPOKEN_ELSEWHERE["IKEv2"], STRANGER)
    assert [level for level, code, _ in world.right.log if code == "not-spoken"] == [Level.INFO]


@pytest.mark.parametrize("exchange", [BASE, AGGRESSIVE, NEW_GROUP])
def test_another_exchange_is_answered_with_unsupported_exchange_type_rfc2408_5_2(make, exchange):
    world = make.Pair()
    (answer,) = receive(make, world.right, header(exchange))
    assert answer.data[18] == ExchangeType.INFORMATIONAL
    # Notify: next payload and length, DOI, protocol, SPI size, type
    assert struct.unpack(">H", answer.data[38:40])[0] == 29
    assert receive(make, world.right, header(exchange, cky_r=COOKIE)) == []
    assert receive(make, world.right, header(exchange, size=28)) == [], "an answer is never longer than what it answers"


def test_ikev2_is_answered_with_invalid_major_version_rfc7296_2_5(make):
    """RFC 7296 section 1.5: SPI, message id and exchange of the request; the flag says that it is a response."""
    world = make.Pair()
    (answer,) = receive(make, world.right, SPOKEN_ELSEWHERE["IKEv2"])
    fields = struct.pack(">BBBBII", 41, 0x20, IKE_SA_INIT, RESPONSE, 0, 36)
    assert answer.data == COOKIE + bytes(8) + fields + bytes((0, 0, 0, 8, 0, 0, 0, 5))
    # neither a response nor what belongs to an SA, nor what is shorter
    for data in (
        header(IKE_SA_INIT, version=0x20, flags=INITIATOR | RESPONSE),
        header(IKE_SA_INIT, version=0x20),
        header(IKE_SA_INIT, version=0x20, flags=INITIATOR, cky_r=COOKIE),
        header(35, version=0x20, flags=INITIATOR),
        header(IKE_SA_INIT, version=0x30, flags=INITIATOR),
        header(IKE_SA_INIT, version=0x20, flags=INITIATOR, size=35),
        header(IKE_SA_INIT, version=0x20, flags=INITIATOR)[:20],
        answer.data,
    ):
        assert receive(make, world.right, data) == []


def test_what_we_do_not_speak_gets_few_answers_and_few_lines(make):
    world = make.Pair()
    sent = [len(receive(make, world.right, SPOKEN_ELSEWHERE["IKEv2"])) for _ in range(500)]
    assert sum(sent) <= 50
    assert len(world.right.logged("not-spoken")) <= 20
