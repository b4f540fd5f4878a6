"""NAT detection (RFC 3947 section 3.2)."""

import hashlib
import ipaddress

import pytest

from privsep.algorithms import Hash
from privsep.isakmp.payloads import NatDiscovery
from privsep.types import Cookie, Endpoint
from worker.nat import Nat, detect, nat_d

CKY_I, CKY_R = Cookie(b"initiate"), Cookie(b"response")
HERE = Endpoint(ipaddress.ip_address("192.0.2.1"), 500)
THERE = Endpoint(ipaddress.ip_address("2001:db8::2"), 4500)
ELSEWHERE = Endpoint(ipaddress.ip_address("203.0.113.9"), 1024)


@pytest.mark.parametrize(
    ("hash_", "name"),
    [(Hash.SHA1, "sha1"), (Hash.SHA2_256, "sha256"), (Hash.SHA2_384, "sha384"), (Hash.SHA2_512, "sha512")],
)
def test_the_hash_is_over_cookies_address_and_port_with_the_negotiated_hash(hash_, name):
    octets = b"initiate" + b"response" + bytes.fromhex("20010db8000000000000000000000002") + b"\x11\x94"
    assert nat_d(hash_, CKY_I, CKY_R, THERE).data == hashlib.new(name, octets).digest()


@pytest.mark.parametrize(
    ("sent_to", "sent_from", "expected"),
    [
        (HERE, [THERE], Nat.NONE),
        (ELSEWHERE, [THERE], Nat.LOCAL),
        (HERE, [ELSEWHERE], Nat.REMOTE),
        (ELSEWHERE, [ELSEWHERE], Nat.BOTH),
        (HERE, [ELSEWHERE, THERE], Nat.NONE),
    ],
)
def test_who_is_behind_a_nat(sent_to, sent_from, expected):
    received = [nat_d(Hash.SHA2_256, CKY_I, CKY_R, end) for end in (sent_to, *sent_from)]
    assert detect(Hash.SHA2_256, CKY_I, CKY_R, HERE, THERE, received) is expected


@pytest.mark.parametrize("received", [[], [NatDiscovery(b"x" * 32)]])
def test_a_peer_that_takes_no_part_is_behind_no_nat(received):
    assert detect(Hash.SHA2_256, CKY_I, CKY_R, HERE, THERE, received) is Nat.NONE
