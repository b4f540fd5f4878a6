"""A captured worker forges authentication: it asks keyd for what only a peer, or keyd itself, may say.

Whatever it tries is said to the real keyd by the worker's own channel; the peer is played in the test
(`counterpart.py`). Each control is the same code against a keyd, or monitor, with the layer named taken out.
"""

import ipaddress
from dataclasses import replace
from itertools import product

import msgpack
import pytest
from counterpart import BARE, FAST, Peer, Session
from lab import LEFT, RIGHT
from load import Load
from weakened import FREE, OPEN
from world import ESP, IKE, SECOND, SECOND_HOST, SECOND_PSK

from keyd import ikev1
from keyd.handles import State
from privsep.algorithms import Group, IkeSuite
from privsep.iana import PayloadType
from privsep.payloads import join_chain
from privsep.schema import install
from privsep.schema import keyd as ops
from privsep.schema.install import Denial
from privsep.schema.keyd import Refusal

MODP = IkeSuite.parse(IKE)
OTHERS_KEY = (2).to_bytes(Group.MODP_2048.public_octets)
"""A public value whose exponent everybody knows."""
NOT_OURS = "payloads to seal: a type that the worker may not add"


# what keyd has no words for


@pytest.mark.parametrize("number", [0, 15, 4])
def test_it_cannot_have_a_digest_of_its_own_signed(shipped, without, record, number):
    digest = bytes(range(32))
    ask = "me.raw_keyd(bytes.fromhex(frame))\nresult = me.wait(2**41, me._turn).ciphertext"

    def attack(worker, operation):
        s = Session(worker, Peer())
        s.respond()
        frame = msgpack.packb([operation, 2**41, s.ours, digest])
        return s, worker.answer(ask, frame=frame.hex())

    reason = "wrong number of fields" if number == 4 else "no such operation on this channel"
    with shipped.violates(reason):
        attack(shipped, number)
    s, signed = attack(without(OPEN), 15)
    assert signed == ikev1.prf(FAST.hash, s.peer.entry(s.theirs).skeyid_a, digest)
    record("table of operations", "with a Sign operation: prf(SKEYID_a, digest)")


ANY_SA = bytes.fromhex("00000001 00000001")
"""As far as it is read when it is opened (RFC 2408 section 3.4)."""
CHAINS = {
    "HASH": [(PayloadType.HASH, bytes(32))],
    "SIG": [(PayloadType.SIG, bytes(32))],
    "ID": [(PayloadType.ID, b"\x01\0\0\0" + bytes(4))],
    "KE": [(PayloadType.KE, OTHERS_KEY)],
    "nonce": [(PayloadType.NOTIFY, bytes(8)), (PayloadType.NONCE, bytes(32))],
    "SA and nonce": [(PayloadType.SA, ANY_SA), (PayloadType.NONCE, bytes(32))],
}


@pytest.mark.parametrize(
    ("operation", "chain"),
    [*(("AuthSeal", each) for each in ("HASH", "SIG", "ID")),
     *(("InfoSeal", each) for each in CHAINS if each != "SIG")],
)  # fmt: skip
def test_it_cannot_have_payloads_of_keyds_sealed(shipped, without, record, operation, chain):
    first, payloads = join_chain(CHAINS[chain])
    extras = {"next_payload": first, "payloads": payloads}

    def attack(worker):
        s = Session(worker, Peer())
        if operation == "AuthSeal":
            s.keyed_i()
            return s, worker.keyd(replace(s.seal(), **extras))
        s.respond()
        return s, worker.keyd(ops.InfoSeal(ike=s.ours, **extras))

    with shipped.violates(NOT_OURS):
        attack(shipped)
    s, sealed = attack(without(OPEN))
    assert isinstance(sealed, ops.Sealed | ops.SealedNew)
    if (operation, chain) == ("InfoSeal", "SA and nonce"):
        # a whole Quick Mode of the worker's composition, which the peer believes
        s.peer.do(ops.QuickOpen(ike=s.theirs, message_id=sealed.message_id, ciphertext=sealed.ciphertext))
    record("list of payload types", "sealed")


# in whose name


def test_it_cannot_claim_a_connection_at_anothers_address(shipped, without, record):
    def attack(worker):
        return worker.keyd(Session(worker, Peer(), MODP).offer("peer"))

    assert attack(shipped) == ops.Refused(why=Refusal.NO_CONNECTION)
    assert isinstance(attack(without(FREE)), ops.IkeKeys)
    record("keyd: addresses belong to the connection", "with any address: our KE for peer")


def test_it_cannot_answer_a_peer_by_another_peers_secret(shipped, record):
    """RFC 2409 section 5.4: the address decides which secret applies; the worker states it, the proof must fit."""
    refused = {}
    for address in (RIGHT, SECOND):
        s = Session(shipped, Peer(), MODP)
        s.keyed_r(remote=ipaddress.ip_address(address))
        refused[address] = s.open(s.proof())
    assert refused[RIGHT] == ops.Refused(why=Refusal.AUTHENTICATION_FAILED)
    assert refused[SECOND].connection == "second"
    record("the proof needs the secret of the address", "address of its own: authenticated")


def test_it_cannot_sign_twice_on_one_sa(shipped, without, record):
    def attack(worker):
        s = Session(worker, Peer())
        return s.claimed(), worker.keyd(s.seal()).ciphertext

    with shipped.violates("AuthSeal in state CLAIMED"):
        attack(shipped)
    once, twice = attack(without(OPEN))
    assert once != twice
    record("table of states", "two sealed proofs")


def test_it_cannot_answer_before_the_peer_is_verified(shipped, without, record):
    def attack(worker):
        s = Session(worker, Peer())
        s.keyed_r()
        return worker.keyd(s.seal())

    with shipped.violates("AuthSeal in state KEYED_R"):
        attack(shipped)
    assert isinstance(attack(without(OPEN)), ops.Sealed)
    record("table of states", "HASH_R for a stranger")


# before authentication


def info_seal(s):
    return ops.InfoSeal(ike=s.ours, **BARE)


def quick_offer(s):
    return s.quick_offer(s.ours)


def quick_open(s):
    s.peer.hurry(s.theirs, State.AUTHENTICATED)
    return s.quick_open(s.peer.do(s.quick_offer(s.theirs)))


@pytest.mark.parametrize(
    ("state", "request_of"),
    [*product(("keyed_i", "claimed", "keyed_r", "proven"), (info_seal, quick_offer)),
     *product(("keyed_i", "keyed_r"), (quick_open,))],
)  # fmt: skip
def test_it_cannot_use_keys_before_authentication(shipped, without, record, state, request_of):
    def attack(worker):
        s = Session(worker, Peer())
        getattr(s, state)()
        return worker.keyd(request_of(s))

    operation = request_of.__name__.title().replace("_", "")
    with shipped.violates(f"{operation} in state {state.upper()}"):
        attack(shipped)
    reply = attack(without(OPEN))
    assert isinstance(reply, ops.SealedNew | ops.QuickOffered | ops.QuickOpened), reply
    record("table of states", type(reply).__name__)


@pytest.mark.parametrize("state", ["claimed", "respond"])
def test_it_cannot_install_without_the_peers_answer(shipped, without, record, state):
    """KEYMAT without HASH(2), on an IKE SA whose peer is not verified and on one whose peer is."""

    def attack(worker):
        s = Session(worker, Peer())
        getattr(s, state)()
        spi = worker.allocate()
        quick = worker.keyd(s.quick_offer(s.ours, spi)).quick
        return worker.installed(worker.keyd(ops.QuickAccept(quick=quick)).keymat)

    reason = "QuickOffer in state CLAIMED" if state == "claimed" else "QuickAccept in state QUICK_OFFERED"
    with shipped.violates(reason):
        attack(shipped)
    assert isinstance(attack(without(OPEN)), install.Installed)
    record("table of states", "installed")


def test_it_cannot_send_before_the_peer_confirms(shipped, without, record):
    """KEYMAT without HASH(3): it could be a replay of message 1 (RFC 2409 section 5.5). We may receive by then."""

    def attack(worker):
        s = Session(worker, Peer())
        s.respond()
        spi = worker.receives(s.quick_answered(worker.allocate())[0].keymat)
        reply = worker.monitor(install.InstallOutbound(spi_in=spi))
        worker.monitor(install.Remove(spi_in=spi))
        return reply

    assert attack(shipped) == install.Denied(why=Denial.KEYMAT)
    assert isinstance(attack(without(OPEN)), install.Installed)
    record("keymat is RECEIVING, not SENDABLE", "installed")


def test_it_cannot_confirm_what_the_monitor_has_not_judged(shipped, record):
    """Message 2 is not for the peer before our inbound SA stands."""
    s = Session(shipped, Peer())
    s.respond()
    spi = shipped.allocate()
    _, quick, third = s.quick_answered(spi)
    with shipped.violates("QuickConfirm in state DERIVED"):
        shipped.keyd(ops.QuickConfirm(quick=quick, ciphertext=third))
    honest = Session(shipped, Peer())
    honest.respond()
    _, quick, third = honest.quick_answered(shipped.allocate(), received=True)
    assert shipped.keyd(ops.QuickConfirm(quick=quick, ciphertext=third)) == ops.Done()
    record("table of states", "in order: confirmed")


# other values than the peer's

SWAPS = {
    "KE": {"ke": OTHERS_KEY},
    "nonce": {"nonce": bytes(32)},
    "cookie of the initiator": {"cky_i": bytes(8)},
    "cookie of the responder": {"cky_r": bytes(8)},
    "SA": {"sai_b": b"another offer"},
}


@pytest.mark.parametrize("name", SWAPS)
def test_it_cannot_swap_a_value_under_the_peers_proof(shipped, record, name):
    """RFC 2409 section 5: HASH_I covers KE, nonces, cookies and SAi_b."""
    outcomes = []
    for changes in (SWAPS[name], {}):
        s = Session(shipped, Peer(), MODP)
        s.keyed_r(**changes)
        outcomes.append(s.open(s.proof()))
    assert outcomes[0] == ops.Refused(why=Refusal.AUTHENTICATION_FAILED)
    assert isinstance(outcomes[1], ops.Authenticated)
    record("HASH_I", "unswapped: authenticated")


@pytest.mark.parametrize("name", ["KE", "nonce"])
def test_it_cannot_get_between_us_and_the_peer_we_ask(shipped, record, name):
    """RFC 2409 section 5: the peer does not recognise our HASH_I, keyd not the peer's HASH_R."""
    s = Session(shipped, Peer(), MODP)
    fifth = s.claimed(**SWAPS[name])
    assert s.peer.service.handle(ops.AuthOpen(ike=s.theirs, ciphertext=fifth)) == ops.Refused(
        why=Refusal.AUTHENTICATION_FAILED
    )
    s.peer.hurry(s.theirs, State.PROVEN)
    assert s.open(s.proof()) == ops.Refused(why=Refusal.AUTHENTICATION_FAILED)
    honest = Session(shipped, Peer(), MODP)
    assert honest.initiate().connection == "second"
    record("HASH_I, HASH_R", "unswapped: authenticated")


@pytest.mark.parametrize("name", ["KE", "nonce"])
def test_it_cannot_swap_a_value_in_a_session_of_the_engine(shipped, record, name):
    """The same on the wire, between the worker's own engine and a whole peer."""
    world = shipped.world
    load = world.network.right.enter(
        lambda: Load(local=SECOND, remote=LEFT, inner=SECOND_HOST, other="10.1.0.1", ike=IKE, esp=ESP, psk=SECOND_PSK)
    )
    field, value = next(iter(SWAPS[name].items()))
    swap = "me.rewrite[ops.IkeAnswer] = lambda request: dataclasses.replace(request, **{field: bytes.fromhex(value)})"
    try:
        mark = world.mark()
        assert world.attack(swap, field=field, value=value.hex()) == "succeeded"
        with pytest.raises(RuntimeError, match=r"not open|failed"):
            load.open_many(1, at_once=1, seconds=3)
        assert world.attack("me.rewrite.clear()") == "succeeded"
        assert world.logged(mark, r"^worker: warning authentication-failed .*connection=second")
        load.tunnels.clear()
        assert load.open_many(1, at_once=1, seconds=15) > 0
        assert world.logged(mark, r"^notice installed .*connection=second")
    finally:
        load.close()
    record("HASH_I", "unswapped: installed")


def test_it_cannot_relay_a_proof_to_another_handle(shipped, without, record):
    """The same peer, the same message 3 and cookies; keyd's own KE and nonce are all that differs."""

    def attack(worker):
        s = Session(worker, Peer())
        s.keyed_r()
        theirs = s.peer.entry(s.theirs).main
        again = ops.IkeAnswer(**s.fields, **s.here, ke=theirs.g_xi, nonce=theirs.ni_b)
        second = worker.keyd(again).ike
        proof = s.proof()
        return worker.keyd(ops.AuthOpen(ike=second, ciphertext=proof)), s.open(proof)

    relayed, direct = attack(shipped)
    assert relayed == ops.Refused(why=Refusal.AUTHENTICATION_FAILED)
    assert isinstance(direct, ops.Authenticated)
    assert isinstance(attack(without(FREE))[0], ops.Authenticated)
    record("fresh KE and nonce in keyd", "with a stale keyd: authenticated")
