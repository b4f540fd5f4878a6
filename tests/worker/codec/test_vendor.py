"""Vendor IDs: octets that are said to be an MD5 are one."""

import hashlib

import pytest

from worker.codec.vendor import OURS, Vendor, recognise


@pytest.mark.parametrize("vendor", [vendor for vendor in Vendor if vendor.text])
def test_a_vendor_id_is_the_md5_of_its_text(vendor):
    assert vendor.data == hashlib.md5(vendor.text.encode(), usedforsecurity=False).digest()


def test_xauth_is_the_first_eight_octets_of_its_drafts_md5():
    digest = hashlib.md5(b"draft-ietf-ipsra-isakmp-xauth-06.txt", usedforsecurity=False).digest()
    assert digest[:8] == Vendor.XAUTH.data


def test_each_vendor_id_is_recognised():
    for vendor in Vendor:
        assert recognise(vendor.data) is vendor


def test_fragmentation_is_recognised_with_its_capability_bits():
    assert recognise(Vendor.FRAGMENTATION.data + b"\x80\0\0\0") is Vendor.FRAGMENTATION


def test_anything_else_is_not_recognised():
    for data in (b"", b"x" * 16, Vendor.RFC_3947.data[:-1], Vendor.RFC_3947.data + b"\0\0\0\0"):
        assert recognise(data) is None


def test_we_announce_rfc_3947_and_dead_peer_detection_only():
    assert OURS == (Vendor.RFC_3947, Vendor.DPD)
