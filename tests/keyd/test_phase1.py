"""What keyd refuses in phase 1, that a refusal leaves the exchange as it was, and which connection is selected."""

import dataclasses
import ipaddress
import os

import pytest

from keyd import phase1
from keyd.groups import generate
from keyd.handles import Quota
from privsep.algorithms import IkeSuite
from privsep.errors import Violation
from privsep.iana import IdType, NotifyType, PayloadType
from privsep.payloads import join_chain
from privsep.schema import keyd as ops
from privsep.schema.keyd import Refusal
from privsep.types import Identity

LEFT, RIGHT = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")


def refused(why: Refusal) -> ops.Refused:
    return ops.Refused(why=why)


def seal_auth(side, ike, payloads=()):
    first, chain = join_chain(payloads)
    return side.do(ops.AuthSeal(ike=ike, next_payload=first, payloads=chain)).ciphertext


# IkeOffer, IkeAnswer, IkeAgree


def test_offering_an_unknown_connection_is_a_violation(world):
    with pytest.raises(Violation):
        world.left.do(world.offer(connection="london"))


def test_offering_a_suite_outside_the_proposals_is_refused(world):
    suite = IkeSuite.parse("3des-sha1-modp1024")
    assert world.left.do(world.offer(suite=suite)) == refused(Refusal.BAD_PROPOSAL)


def test_offering_to_addresses_outside_the_connection_is_refused(world):
    elsewhere = ipaddress.ip_address("203.0.113.9")
    assert world.left.do(world.offer(remote=elsewhere)) == refused(Refusal.NO_CONNECTION)
    assert world.left.do(world.offer(local=elsewhere)) == refused(Refusal.NO_CONNECTION)


def test_answering_strangers_or_foreign_suites_is_refused(world):
    ke, nonce = bytes(31) + b"\x09", bytes(16)
    elsewhere = ipaddress.ip_address("203.0.113.9")
    assert world.right.do(world.answer(ke, nonce, remote=elsewhere)) == refused(Refusal.NO_CONNECTION)
    suite = IkeSuite.parse("3des-sha1-modp1024")
    assert world.right.do(world.answer(ke, nonce, suite=suite)) == refused(Refusal.NO_CONNECTION)


def test_a_connection_without_a_pre_shared_key_is_refused(world, build):
    gateway = build.gateway(build.connection())
    side = build.Side(gateway, build.Secrets())
    assert side.do(world.offer()) == refused(Refusal.NO_PSK)
    answer = world.answer(bytes(31) + b"\x09", bytes(16), local=build.LEFT, remote=build.RIGHT)
    assert side.do(answer) == refused(Refusal.NO_PSK)


def test_a_bad_public_value_is_refused_by_the_responder(world):
    assert world.right.do(world.answer(bytes(32), bytes(16))) == refused(Refusal.BAD_PUBLIC_VALUE)
    assert world.right.do(world.answer(bytes(31), bytes(16))) == refused(Refusal.BAD_PUBLIC_VALUE)


def test_a_bad_public_value_does_not_end_the_initiators_exchange(world):
    ours = world.left.do(world.offer())
    theirs = world.right.do(world.answer(ours.ke, ours.nonce))
    for bad in (bytes(32), ours.ke, theirs.ke[:-1]):
        agree = ops.IkeAgree(ike=ours.ike, ke=bad, nonce=theirs.nonce)
        assert world.left.do(agree) == refused(Refusal.BAD_PUBLIC_VALUE)
    assert world.left.do(ops.IkeAgree(ike=ours.ike, ke=theirs.ke, nonce=theirs.nonce)) == ops.Done()


def test_half_open_ike_sas_are_bounded_and_the_oldest_of_an_address_goes(world, monkeypatch):
    monkeypatch.setattr(phase1, "HALF_OPEN", Quota(2))
    established = world.main_mode()
    ours = [world.left.do(world.offer()).ike for _ in range(3)]
    dropped = [world.left.do(ops.Drop(handle=each)) for each in ours]
    assert dropped == [refused(Refusal.UNKNOWN_HANDLE), ops.Done(), ops.Done()]
    assert world.left.do(ops.Drop(handle=established.left)) == ops.Done()


def test_an_identity_has_32_ike_sas_and_the_one_unused_for_longest_goes(world):
    """One authenticated peer opened IKE SAs until nobody else got in."""
    handles = [world.main_mode() for _ in range(32)]
    info = {"next_payload": 0, "payloads": b""}
    assert isinstance(world.right.do(ops.InfoSeal(ike=handles[0].right, **info)), ops.SealedNew)
    handles.append(world.main_mode())
    kept = [world.right.service._registry.get(each.right) is not None for each in handles]
    assert kept == [True, False] + 31 * [True]


def test_a_connection_whose_peers_take_all_leaves_room_for_others(build, world, monkeypatch):
    """Of `remote_id = "any"` somebody proves one identity after the other."""
    monkeypatch.setattr(phase1, "IKE_SAS", Quota(8))
    paris = build.connection()
    values = {name: getattr(paris, name) for name in paris.__slots__}
    road = type(paris)(**values | {"name": "road", "remote": build.ANY, "remote_id": None})
    side = build.Side(build.gateway(paris, road), build.Secrets(default=b"same"))

    def peer(identity, remote):
        theirs = dataclasses.replace(build.mirrored(paris), local=remote, local_id=identity)
        far = build.Side(build.gateway(theirs), build.Secrets(default=b"same"))
        here = {"local": build.LEFT, "remote": remote}
        reply, ike, _ = authenticate(far, side, world, offer={"local": remote, "remote": build.LEFT}, **here)
        seal_auth(side, ike)
        return reply.connection, ike

    name, honest = peer(build.RIGHT_ID, build.RIGHT)
    assert name == "paris"
    for number in range(50):
        assert peer(Identity(IdType.FQDN, b"%d.example.org" % number), build.RIGHT + 7)[0] == "road"
    assert len(side.service._registry) == 8
    assert side.service._registry.get(honest) is not None
    assert peer(build.RIGHT_ID, build.RIGHT)[0] == "paris"


# AuthOpen


def test_a_wrong_pre_shared_key_fails_alike_on_both_sides_rfc2409_5_4(make_world):
    world = make_world(psks=(b"this one", b"that one"))
    ike = world.keyed()
    fifth = seal_auth(world.left, ike.left)
    opened = world.right.do(ops.AuthOpen(ike=ike.right, ciphertext=fifth))
    assert opened == refused(Refusal.AUTHENTICATION_FAILED)


@pytest.mark.parametrize("position", [0, 20, -1])
def test_a_forged_message_5_is_refused_and_the_true_one_still_accepted(world, build, position):
    ike = world.keyed()
    fifth = seal_auth(world.left, ike.left)
    forged = bytearray(fifth)
    forged[position] ^= 1
    # the last octet is padding, which no HASH covers: cut a block instead
    forged = bytes(forged) if position != -1 else fifth[:-16]
    for bad in (forged, b"", fifth[:-1], os.urandom(64), fifth[16:]):
        opened = world.right.do(ops.AuthOpen(ike=ike.right, ciphertext=bad))
        assert opened == refused(Refusal.AUTHENTICATION_FAILED)
    assert world.right.do(ops.AuthOpen(ike=ike.right, ciphertext=fifth)).identity == build.LEFT_ID


def test_what_does_not_parse_is_refused_as_late_as_a_wrong_hash(world, monkeypatch):
    hash_i, made = phase1.ikev1.hash_i, []
    monkeypatch.setattr(phase1.ikev1, "hash_i", lambda *args, **more: made.append(hash_i(*args, **more)) or made[-1])
    ike = world.keyed()
    forged = ops.AuthOpen(ike=ike.right, ciphertext=os.urandom(96))
    assert world.right.do(forged) == refused(Refusal.AUTHENTICATION_FAILED)
    assert len(made) == 1


def test_our_own_message_5_sent_back_does_not_authenticate_rfc2409_5(world):
    ike = world.keyed()
    fifth = seal_auth(world.left, ike.left)
    assert world.left.do(ops.AuthOpen(ike=ike.left, ciphertext=fifth)) == refused(Refusal.AUTHENTICATION_FAILED)


@pytest.mark.parametrize("changed", ["sai_b", "cky_i", "cky_r"])
def test_hash_covers_cookies_and_the_sa_offer_rfc2409_5(world, changed):
    ours = world.left.do(world.offer())
    theirs = world.right.do(world.answer(ours.ke, ours.nonce, **{changed: b"modified"}))
    world.left.do(ops.IkeAgree(ike=ours.ike, ke=theirs.ke, nonce=theirs.nonce))
    fifth = seal_auth(world.left, ours.ike)
    opened = world.right.do(ops.AuthOpen(ike=theirs.ike, ciphertext=fifth))
    assert opened == refused(Refusal.AUTHENTICATION_FAILED)


def test_a_ke_in_the_middle_does_not_authenticate(world):
    """Whoever swaps the public values learns g^xy but not the PSK."""
    ours = world.left.do(world.offer())
    middle = generate(world.suite.group)
    other = world.right.do(world.answer(middle.public, ours.nonce))
    world.left.do(ops.IkeAgree(ike=ours.ike, ke=middle.public, nonce=other.nonce))
    fifth = seal_auth(world.left, ours.ike)
    opened = world.right.do(ops.AuthOpen(ike=other.ike, ciphertext=fifth))
    assert opened == refused(Refusal.AUTHENTICATION_FAILED)


def test_a_public_value_of_any_sa_of_ours_is_no_peers(world):
    """A captured worker that joins two of our own handles would have us authenticate to ourselves."""
    first = world.left.do(world.offer())
    reflected = world.left.do(world.answer(first.ke, first.nonce, local=LEFT, remote=RIGHT))
    assert reflected == refused(Refusal.BAD_PUBLIC_VALUE)
    second = world.left.do(world.answer(generate(world.suite.group).public, first.nonce, local=LEFT, remote=RIGHT))
    crossed = world.left.do(ops.IkeAgree(ike=first.ike, ke=second.ke, nonce=second.nonce))
    assert crossed == refused(Refusal.BAD_PUBLIC_VALUE)


@pytest.mark.parametrize("kind", [PayloadType.HASH, PayloadType.ID, PayloadType.SA, PayloadType.NONCE, PayloadType.KE])
def test_the_worker_may_not_have_what_is_keyds_sealed(world, build, kind):
    first, chain = join_chain([(kind, b"composed by the worker")])
    ike = world.keyed()
    with pytest.raises(Violation):
        world.left.do(ops.AuthSeal(ike=ike.left, next_payload=first, payloads=chain))
    ike = world.main_mode()
    with pytest.raises(Violation):
        world.left.do(ops.InfoSeal(ike=ike.left, next_payload=first, payloads=chain))


def test_a_chain_to_seal_that_is_none_is_a_violation(world):
    ike = world.main_mode()
    for first, chain in ((11, b""), (0, b"surplus"), (11, b"\0\0\0\x03"), (11, b"\0\0\xff\xff")):
        with pytest.raises(Violation):
            world.left.do(ops.InfoSeal(ike=ike.left, next_payload=first, payloads=chain))


# which connection


def authenticate(left, right, world, **answer):
    """Message 3 to 5 between sides of one's own; the reply to AuthOpen at the right, its IKE handle, the left's."""
    ours = left.do(world.offer(**answer.pop("offer", {})))
    theirs = right.do(world.answer(ours.ke, ours.nonce, **answer))
    left.do(ops.IkeAgree(ike=ours.ike, ke=theirs.ke, nonce=theirs.nonce))
    fifth = seal_auth(left, ours.ike)
    return right.do(ops.AuthOpen(ike=theirs.ike, ciphertext=fifth)), theirs.ike, ours.ike


def test_an_identity_that_no_connection_accepts_ends_the_ike_sa(world, build):
    imposter = Identity(IdType.FQDN, b"gw3.example.org")
    left = build.Side(build.gateway(build.connection(local_id=imposter)), build.Secrets(default=b"same"))
    reply, ike, _ = authenticate(left, world.right, world)
    assert reply == ops.Refused(
        why=Refusal.UNKNOWN_IDENTITY,
        detail="the peer proved to be gw3.example.org, paris expects gw1.example.org",
        notify=NotifyType.INVALID_ID_INFORMATION,
    )
    with pytest.raises(Violation):
        world.right.do(ops.AuthSeal(ike=ike, next_payload=0, payloads=b""))
    assert world.right.do(ops.Drop(handle=ike)) == ops.Done()


@pytest.mark.parametrize(
    ("body", "accepted"),
    [
        (b"\x02\0\0\0gw1.example.org", True),
        (b"\x02\x11\x01\xf4gw1.example.org", True),
        (b"\x02\x11\0\0gw1.example.org", True),
        (b"\x02\x11\x11\x94gw1.example.org", True),  # RFC 3947 section 4
        (b"\x02\0\0\0GW1.Example.org", True),  # RFC 4945 section 3.1.2
        (b"\x03\0\0\0gw1.example.org", False),
        (b"\x02\x11\x01\xf5gw1.example.org", False),
        (b"\x02\0\x01\xf4gw1.example.org", False),
        (b"\x02\x06\0\0gw1.example.org", False),
        (b"\x63\0\0\0gw1.example.org", False),
        (b"\x02\0\0\0", False),
        (b"\x02", False),
        (b"\x01\0\0\0gw1", False),
    ],
)
def test_ids_of_other_ports_types_or_lengths_are_an_error_rfc2407_4_6_2_rfc3947_4(world, monkeypatch, body, accepted):
    ike = world.keyed()
    monkeypatch.setattr(phase1, "id_body", lambda identity: body)
    fifth = seal_auth(world.left, ike.left)
    reply = world.right.do(ops.AuthOpen(ike=ike.right, ciphertext=fifth))
    assert isinstance(reply, ops.Authenticated) if accepted else reply.why is Refusal.UNKNOWN_IDENTITY


def test_the_most_specific_connection_is_selected_whatever_the_order(world, build):
    peers = build.mirrored(build.connection())
    lax = build.mirrored(build.connection("lax", remote_id=None))
    lax = type(lax)(**{name: getattr(lax, name) for name in lax.__slots__} | {"remote_id": None})
    wide = type(lax)(**{name: getattr(lax, name) for name in lax.__slots__} | {"name": "wide", "remote": build.ANY})
    for order in ((wide, lax, peers), (peers, lax, wide), (lax, wide, peers)):
        right = build.Side(build.gateway(*order), build.Secrets(default=b"same"))
        reply, _, _ = authenticate(world.left, right, world)
        assert reply.connection == "paris"
    right = build.Side(build.gateway(wide, lax), build.Secrets(default=b"same"))
    assert authenticate(world.left, right, world)[0].connection == "lax"


def test_a_connection_with_another_pre_shared_key_is_not_selected(world, build):
    """The address selects `outer` and its key; the identity fits `paris`, but that has a key the peer did not prove."""
    peers = build.mirrored(build.connection())
    values = {name: getattr(peers, name) for name in peers.__slots__}
    outer = type(peers)(**values | {"name": "outer", "remote_id": Identity(IdType.FQDN, b"somebody")})
    right = build.Side(build.gateway(outer, peers), build.Secrets(default=b"unproved", outer=b"same"))
    reply, _, _ = authenticate(world.left, right, world)
    assert reply.why is Refusal.UNKNOWN_IDENTITY


def test_a_connection_without_the_suite_is_not_selected(world, build):
    """The address and suite select `outer`; the identity fits `paris`, but that does not propose the suite."""
    peers = build.mirrored(build.connection())
    values = {name: getattr(peers, name) for name in peers.__slots__}
    outer = type(peers)(**values | {"name": "outer", "remote_id": Identity(IdType.FQDN, b"somebody")})
    strict = type(peers)(**values | {"suites": (IkeSuite.parse("aes256-sha512-ecp384"),)})
    right = build.Side(build.gateway(outer, strict), build.Secrets(default=b"same"))
    reply, _, _ = authenticate(world.left, right, world)
    assert reply.why is Refusal.UNKNOWN_IDENTITY


def test_phase_1_leaves_nothing_behind_that_phase_2_does_not_need(world):
    ike = world.keyed()
    fifth = seal_auth(world.left, ike.left)
    world.right.do(ops.AuthOpen(ike=ike.right, ciphertext=fifth))
    sa = world.right.service._registry.get(ike.right)
    skeyid = sa.main.skeyid
    assert len(skeyid) == 32
    seal_auth(world.right, ike.right)
    assert (sa.main, skeyid) == (None, b"")


def test_the_initiator_refuses_a_peer_that_fits_another_connection_than_the_one_it_claims_to_be(world, build):
    """`paris` was begun, with `lax`'s identity of ours; the peer proves to be who only `other` expects."""
    other_id = Identity(IdType.FQDN, b"gw9.example.org")
    left = build.Side(
        build.gateway(build.connection(remote_id=None), build.connection("other", remote_id=other_id)),
        build.Secrets(default=b"same"),
    )
    peer = build.mirrored(build.connection())
    values = {name: getattr(peer, name) for name in peer.__slots__}
    right = build.Side(build.gateway(type(peer)(**values | {"local_id": other_id})), build.Secrets(default=b"same"))
    _, theirs, ours = authenticate(left, right, world)
    sixth = seal_auth(right, theirs)
    assert left.do(ops.AuthOpen(ike=ours, ciphertext=sixth)).why is Refusal.UNKNOWN_IDENTITY


def test_of_connections_as_specific_the_initiator_keeps_the_one_it_named(world, build):
    left = build.Side(build.gateway(build.connection(), build.connection("second")), build.Secrets(default=b"same"))
    _, theirs, ours = authenticate(left, world.right, world, offer={"connection": "second"})
    sixth = seal_auth(world.right, theirs)
    assert left.do(ops.AuthOpen(ike=ours, ciphertext=sixth)).connection == "second"
