"""A captured worker forges authentication with values: public values that are none, its own reflected, roles exchanged,
SPIs and message ids repeated, handles used twice, a laxer connection named. As `test_forge.py`.
"""

import ipaddress
from dataclasses import replace

import pytest
from counterpart import BARE, FAST, Peer, Session
from lab import LEFT, PSK, RIGHT
from weakened import FREE, FREE_MONITOR, OPEN
from world import IKE, SECOND, SECOND_PSK

from keyd import agreement
from keyd.groups.modp import PRIMES
from keyd.handles import State
from privsep.algorithms import Group, IkeSuite
from privsep.iana import IdType
from privsep.schema import install
from privsep.schema import keyd as ops
from privsep.schema.install import Denial
from privsep.schema.keyd import Refusal
from privsep.types import Identity, TrafficSelector

MODP = IkeSuite.parse(IKE)
ECP = IkeSuite.parse("aes128-sha256-ecp256")
LAX_ONLY = IkeSuite.parse("aes128-sha1-modp2048")
"""A suite of the connection lax and of no stricter one."""
P, OCTETS = PRIMES[Group.MODP_2048], Group.MODP_2048.public_octets
G_X = bytes.fromhex(
    "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)
"""P-256's generator, which is a public value."""
ORDER_8 = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"
BAD_VALUES = {
    "0": (MODP, bytes(OCTETS)),
    "1": (MODP, (1).to_bytes(OCTETS)),
    "p - 1": (MODP, (P - 1).to_bytes(OCTETS)),
    "p": (MODP, P.to_bytes(OCTETS)),
    "p + 1": (MODP, (P + 1).to_bytes(OCTETS)),
    "2, too short": (MODP, b"\x02"),
    "2, too long": (MODP, (2).to_bytes(OCTETS + 1)),
    "a point off the curve": (ECP, G_X[:-1] + b"\xf4"),
    "the point 0, 0": (ECP, bytes(64)),
    "a point too long": (ECP, G_X + b"\0"),
    "zero of X25519": (FAST, bytes(32)),
    "one of X25519": (FAST, b"\x01" + bytes(31)),
    "order 8 of X25519": (FAST, bytes.fromhex(ORDER_8)),
    "p of X25519": (FAST, (2**255 - 19).to_bytes(32, "little")),
    "X25519, too short": (FAST, b"\x09" + bytes(30)),
}
GOOD_VALUES = {MODP: (2).to_bytes(OCTETS), ECP: G_X, FAST: b"\x09" + bytes(31)}


# public values


@pytest.mark.parametrize("name", BAD_VALUES)
def test_it_cannot_agree_on_a_public_value_that_is_none(shipped, without, record, name):
    """RFC 6989 sections 2.1 and 2.3, RFC 7748 section 6.1."""
    suite, value = BAD_VALUES[name]

    def attack(worker, value):
        s = Session(worker, Peer(), suite)
        ike = s.offered().ike
        return [
            worker.keyd(ops.IkeAgree(ike=ike, ke=value, nonce=bytes(32))),
            worker.keyd(ops.IkeAnswer(**s.fields, **s.here, ke=value, nonce=bytes(32))),
        ]

    assert attack(shipped, value) == [ops.Refused(why=Refusal.BAD_PUBLIC_VALUE)] * 2
    for replies in (attack(without(FREE), value), attack(shipped, GOOD_VALUES[suite])):
        assert [type(each) for each in replies] == [ops.Done, ops.IkeKeys]
    record("checks of the group", "unchecked: keys; the generator: keys")


def test_it_cannot_reflect_our_value_into_the_same_handle(shipped, without, record):
    def attack(worker):
        s = Session(worker, Peer())
        ours = s.offered()
        return worker.keyd(ops.IkeAgree(ike=ours.ike, ke=ours.ke, nonce=ours.nonce))

    assert attack(shipped) == ops.Refused(why=Refusal.BAD_PUBLIC_VALUE)
    assert attack(without(FREE)) == ops.Done()
    record("our own value is no peer's", "unchecked: keys")


def test_it_cannot_join_two_handles_of_ours(shipped, without, record):
    """It answers our own initiator with our own responder, and so becomes a peer that needs no secret."""

    def attack(worker):
        s = Session(worker, Peer("peer", RIGHT, PSK), MODP)
        initiator = s.offered("peer")
        responder = worker.keyd(ops.IkeAnswer(**s.fields, **s.here, ke=initiator.ke, nonce=initiator.nonce))
        if isinstance(responder, ops.Refused):
            return responder
        worker.keyd(ops.IkeAgree(ike=initiator.ike, ke=responder.ke, nonce=responder.nonce))
        proof = worker.keyd(s.seal()).ciphertext
        return worker.keyd(ops.AuthOpen(ike=responder.ike, ciphertext=proof))

    assert attack(shipped) == ops.Refused(why=Refusal.BAD_PUBLIC_VALUE)
    assert attack(without(OPEN)).why is Refusal.UNKNOWN_IDENTITY
    joined = attack(without(FREE))
    assert (joined.connection, joined.identity) == ("lax", Identity.of_address(ipaddress.ip_address(LEFT)))
    record("our own value is no peer's, behind it our own identity", "both off: authenticated as lax")


# roles


def agree_as_responder(s):
    s.keyed_r()
    return ops.IkeAgree(ike=s.ours, ke=GOOD_VALUES[FAST], nonce=bytes(32))


def open_before_our_own_proof(s):
    """RFC 2409 section 5.4: HASH_I comes before HASH_R."""
    s.keyed_i()
    s.peer.hurry(s.theirs, State.PROVEN)
    return ops.AuthOpen(ike=s.ours, ciphertext=s.proof())


def accept_the_peers_offer(s):
    """QuickAccept gives keymat at once, where a responder must wait for HASH(3)."""
    s.respond()
    return ops.QuickAccept(quick=s.quick_answered(0x1001)[1])


ROLES = {
    agree_as_responder: ("IkeAgree in state KEYED_R", ops.Done),
    open_before_our_own_proof: ("AuthOpen in state KEYED_I", ops.Authenticated),
    accept_the_peers_offer: ("QuickAccept in state QUICK_ANSWERED", ops.QuickKeyed),
}


@pytest.mark.parametrize("request_of", ROLES)
def test_it_cannot_flip_roles(shipped, without, record, request_of):
    def attack(worker):
        s = Session(worker, Peer())
        return worker.keyd(request_of(s))

    reason, control = ROLES[request_of]
    with shipped.violates(reason):
        attack(shipped)
    reply = attack(without(OPEN))
    assert isinstance(reply, control), reply
    record("table of states", control.__name__)


# SPIs


def test_it_cannot_give_both_directions_one_key(shipped, without, record, monkeypatch):
    """KEYMAT of the two directions differs only in the SPI (RFC 2409 section 5.5); the peer is an accomplice."""
    monkeypatch.setattr(agreement, "_keys_differ", lambda ours, theirs: True)

    def keymat(worker):
        s = Session(worker, Peer())
        s.initiate()
        spi = worker.allocate()
        first, second = s.quick_offered(spi, spi)
        reply = worker.keyd(ops.QuickFinish(quick=first.quick, ciphertext=second))
        return reply if isinstance(reply, ops.Refused) else worker.keyd(ops.QuickAccept(quick=first.quick))

    assert keymat(shipped).why is Refusal.BAD_MESSAGE
    half, bare = without(FREE), without(FREE_MONITOR)
    assert half.denied(keymat(half).keymat) is Denial.SPI
    assert isinstance(bare.installed(keymat(bare).keymat), install.Installed)
    record("keyd: SPIs differ, behind it the monitor's", "both off: installed")


def test_it_cannot_exchange_the_spis_of_the_directions(shipped, without, record):
    def keymat(worker, *, exchanged):
        s = Session(worker, Peer())
        s.initiate()
        spis = worker.allocate(), s.spi_out
        return s.keyed(*(reversed(spis) if exchanged else spis))

    assert shipped.denied(keymat(shipped, exchanged=True)) is Denial.SPI
    assert isinstance(shipped.installed(keymat(shipped, exchanged=False)), install.Installed)
    bare = without(FREE_MONITOR)
    assert bare.denied(keymat(bare, exchanged=True)) is Denial.DATAPLANE
    record("monitor: the inbound SPI is one that it allocated, behind it the data plane's", "in order: installed")


# repetition


def test_it_cannot_reuse_a_message_id_of_the_peer(shipped, without, record):
    """RFC 2408 section 3.1, RFC 2409 section 5.5: a replayed message 1 begins nothing."""

    def attack(worker):
        s = Session(worker, Peer())
        s.respond()
        _, first = s.quick_opened()
        info = s.peer.do(ops.InfoSeal(ike=s.theirs, **BARE))
        message = {"ike": s.ours, "message_id": info.message_id, "ciphertext": info.ciphertext}
        assert worker.keyd(ops.InfoOpen(**message)) == ops.Opened(**BARE)
        return [worker.keyd(s.quick_open(first)), worker.keyd(ops.InfoOpen(**message))]

    assert attack(shipped) == [ops.Refused(why=Refusal.REUSED_MESSAGE_ID)] * 2
    assert [type(each) for each in attack(without(FREE))] == [ops.QuickOpened, ops.Opened]
    record("message ids once", "forgotten: opened again")


def test_it_cannot_be_its_own_peer_in_phase_2(shipped, without, record):
    """HASH(1) has no direction (RFC 2409 section 5.5): what keyd sealed would open."""

    def attack(worker):
        s = Session(worker, Peer())
        s.respond()
        info = worker.keyd(ops.InfoSeal(ike=s.ours, **BARE))
        first = worker.keyd(s.quick_offer(s.ours))
        back = ops.InfoOpen(ike=s.ours, message_id=info.message_id, ciphertext=info.ciphertext)
        return [worker.keyd(back), worker.keyd(s.quick_open(first))]

    assert attack(shipped) == [ops.Refused(why=Refusal.REUSED_MESSAGE_ID)] * 2
    assert [type(each) for each in attack(without(FREE))] == [ops.Opened, ops.QuickOpened]
    record("message ids once, ours included", "forgotten: a Quick Mode with ourselves")


def accept_twice(s):
    s.initiate()
    quick = s.quick_finished()
    s.worker.keyd(ops.QuickAccept(quick=quick))
    return s.worker.keyd(ops.QuickAccept(quick=quick))


def confirm_twice(s):
    s.respond()
    _, quick, third = s.quick_answered(s.worker.allocate(), received=True)
    s.worker.keyd(ops.QuickConfirm(quick=quick, ciphertext=third))
    return s.worker.keyd(ops.QuickConfirm(quick=quick, ciphertext=third))


@pytest.mark.parametrize(("attack", "control"), [(accept_twice, ops.QuickKeyed), (confirm_twice, ops.Done)])
def test_it_cannot_finish_a_quick_mode_twice(shipped, without, record, attack, control):
    assert attack(Session(shipped, Peer())) == ops.Refused(why=Refusal.UNKNOWN_HANDLE)
    assert isinstance(attack(Session(without(OPEN), Peer())), control)
    record("the handle is gone", control.__name__)


def test_it_cannot_agree_twice(shipped, without, record):
    """A second g^xy under one secret exponent and one nonce."""

    def attack(worker):
        s = Session(worker, Peer())
        s.keyed_i()
        return worker.keyd(replace(s.agreement, ke=GOOD_VALUES[FAST]))

    with shipped.violates("IkeAgree in state KEYED_I"):
        attack(shipped)
    assert attack(without(OPEN)) == ops.Done()
    record("table of states", "keys")


def test_it_cannot_redeem_keymat_twice(shipped, without, record):
    def attack(worker):
        s = Session(worker, Peer())
        s.initiate()
        keymat = s.keyed(worker.allocate())
        assert isinstance(worker.installed(keymat), install.Installed)
        return worker.denied(keymat)

    assert attack(shipped) is Denial.KEYMAT
    # keyd hands it out again, and the monitor finds its SPI used
    assert attack(without(OPEN)) is Denial.SPI
    record("redeemed once, behind it the monitor's SPI", "redeemed again")


# a laxer connection than the peer's


STRANGER = Identity(IdType.FQDN, b"stranger.example.org")
"""Of whom nothing is known: as such the worker gets an SPI of lax, where the monitor believes it for want of keys."""


def narrow(remote_ts):
    """A part of what the child holds."""
    local, remote = (TrafficSelector(ipaddress.ip_network(each)) for each in ("10.1.0.0/24", remote_ts))
    return {"local_ts": local, "remote_ts": remote}


def test_it_cannot_ask_a_strict_peer_as_a_laxer_connection(shipped, without, record):
    """The bystander's peer, proven, under the connection for anybody in its network who has the same secret."""
    traffic = narrow("10.8.0.0/24")

    def attack(worker, **said):
        s = Session(worker, Peer("peer", RIGHT, PSK), MODP)
        reply = s.initiate("lax")
        if isinstance(reply, ops.Refused):
            return reply
        return s.keyed(worker.allocate("lax", RIGHT, **traffic, **said), **traffic)

    assert attack(shipped).why is Refusal.UNKNOWN_IDENTITY
    half, bare = without(FREE), without(FREE_MONITOR)
    assert half.not_allocated("lax", RIGHT, **traffic) is Denial.IDENTITY
    assert half.denied(attack(half, identity=STRANGER), at=RIGHT) is Denial.IDENTITY
    assert isinstance(bare.installed(attack(bare), at=RIGHT), install.Installed)
    record("keyd: the most specific, behind it the monitor's, before and with keys", "all off: installed under lax")


def test_it_cannot_answer_a_strict_peer_as_a_laxer_connection(shipped, record):
    """keyd chooses: the worker has no word for the connection."""
    selected = [
        Session(shipped, Peer(connection, at, psk), MODP).respond().connection
        for connection, at, psk in (
            ("peer", RIGHT, PSK), ("second", SECOND, SECOND_PSK), ("lax", "192.0.2.77", PSK),
        )
    ]  # fmt: skip
    assert selected == ["peer", "second", "lax"]
    record("keyd selects", "a peer that lax alone describes: lax")


@pytest.mark.parametrize("how", ["initiate", "respond"])
def test_it_cannot_install_a_strict_peer_under_a_laxer_connection(shipped, without, record, how):
    """Where keyd finds only lax, by its suite or by its secret, the monitor still knows who lives at that address."""

    # somebody at the address of second who has the secret of lax; the bystander's peer, with a suite only lax has
    at, traffic = (SECOND, narrow("10.8.1.0/24")) if how == "initiate" else (RIGHT, narrow("10.8.0.0/24"))

    def attack(worker, **said):
        s = Session(worker, Peer("lax", at, PSK), LAX_ONLY)
        proven = s.initiate("lax") if how == "initiate" else s.respond()
        assert proven.connection == "lax"
        return s.keyed(worker.allocate("lax", at, **traffic, **said), **traffic)

    assert shipped.not_allocated("lax", at, **traffic) is Denial.IDENTITY
    assert shipped.denied(attack(shipped, identity=STRANGER), at=at) is Denial.IDENTITY
    bare = without(FREE_MONITOR)
    assert isinstance(bare.installed(attack(bare), at=at), install.Installed)
    record("monitor: the most specific, before and with keys", "off: installed under lax")
