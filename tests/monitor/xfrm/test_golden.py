"""Our messages against iproute2's octets, and the kernel's own against what iproute2 read in them.

The files stand in tests/golden/xfrm; the first line of each is the `ip` command, caught by strace.
"""

import shutil
import socket

import pytest

FLAGS = {"header.flags": (0x5, 0x605)}
"""We say CREATE and EXCL. XFRM looks at the message type only, which for NEWSA and NEWPOLICY means the same."""
NO_SOURCE = {
    "header.length": (60, 40),
    "attribute 13.order": (0, None),
    "attribute 13.rest": (bytes(16), None),
}
"""iproute2 adds an empty XFRMA_SRCADDR, which the kernel does not look at for ESP."""

NO_SOURCE_BUT_A_MARK = {
    "header.length": (72, 52),
    "attribute 13.order": (0, None),
    "attribute 13.rest": (bytes(16), None),
    "XFRMA_MARK.order": (1, 0),
}

REPORTS = {
    "header.length": (492, 500),
    "XFRMA_MTIMER_THRESH.order": (None, 4),
    "XFRMA_MTIMER_THRESH.seconds": (None, 1),
    "XFRMA_MTIMER_THRESH.rest": (None, b""),
}
"""iproute2 does not know the attribute."""

DIFFERENCES = {"updsa-in-cbc-sha256-udp": REPORTS, "delsa": NO_SOURCE, "delsa-ah": NO_SOURCE, "getsa": NO_SOURCE}
DIFFERENCES |= {"delsa-mark": NO_SOURCE_BUT_A_MARK, "getsa-mark": NO_SOURCE_BUT_A_MARK}
REQUEST, ACK = 0x1, 0x4
ANSWERED = ("allocspi", "allocspi-ah", "allocspi-ipcomp", "getsa", "getsa-mark", "getpolicy", "getpolicy-lane")
"""Answered with a message, not with an ACK."""


def names():
    return [
        "allocspi",
        "allocspi-ah",
        "allocspi-ipcomp",
        "delpolicy",
        "delpolicy-lane",
        "delpolicy-pass",
        "delsa",
        "delsa-ah",
        "delsa-mark",
        "getpolicy",
        "getpolicy-lane",
        "getsa",
        "getsa-mark",
        "newpolicy-fwd",
        "newpolicy-fwd-drop-ipv6",
        "newpolicy-fwd-lane",
        "newpolicy-in",
        "newpolicy-in-ah-transport",
        "newpolicy-in-drop",
        "newpolicy-in-ipcomp",
        "newpolicy-in-ipv6-in-ipv4",
        "newpolicy-out",
        "newpolicy-out-ah",
        "newpolicy-out-ipcomp",
        "newpolicy-out-ipv4-in-ipv6",
        "newpolicy-out-lane",
        "newpolicy-out-pass",
        "newpolicy-out-transport",
        "newsa-out-3des-aescmac",
        "newsa-out-aes128ccm8",
        "newsa-out-aes128gcm8",
        "newsa-out-aes192-md5",
        "newsa-out-aes192ccm12",
        "newsa-out-aes192gcm12",
        "newsa-out-aes256-sha1",
        "newsa-out-aes256-sha384",
        "newsa-out-aes256ccm16",
        "newsa-out-aes256ctr-sha512",
        "newsa-out-aes256gmac",
        "newsa-out-ah",
        "newsa-out-both-families",
        "newsa-out-camellia192-aesxcbc",
        "newsa-out-cbc-sha256-udp",
        "newsa-out-chacha20poly1305",
        "newsa-out-esn",
        "newsa-out-gcm",
        "newsa-out-ipcomp",
        "newsa-out-ipv6",
        "newsa-out-ipv6-in-ipv4",
        "newsa-out-lane",
        "newsa-out-limits",
        "newsa-out-null-sha256",
        "newsa-out-transport",
        "newsa-out-within-ipcomp",
        "updpolicy-out",
        "updpolicy-out-lane",
        "updsa-in-ah-ipv6",
        "updsa-in-cbc-sha256-udp",
        "updsa-in-esn-window-4096",
        "updsa-in-gcm",
        "updsa-in-ipcomp",
        "updsa-in-lane",
        "updsa-in-limits",
        "updsa-in-window-32",
    ]


def differing(theirs, ours):
    """Fields that are not the same: name, theirs, ours."""
    return {
        name: (theirs.get(name), ours.get(name))
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    }


def encoded(message, name):
    message["header"]["flags"] |= REQUEST if name in ANSWERED else REQUEST | ACK
    message.encode()
    return bytes(message.data)


def test_every_case_has_a_golden_message(kit):
    assert sorted(kit.cases) == names()


@pytest.mark.parametrize("name", names())
def test_a_message_has_the_fields_that_iproute2_sends(kit, name):
    ours = encoded(kit.cases[name].ours, name)
    expected = FLAGS if name.startswith("new") else DIFFERENCES.get(name, {})
    assert differing(kit.flatten(kit.golden(name)), kit.flatten(ours)) == expected


@pytest.mark.parametrize("name", [name for name in names() if name not in DIFFERENCES])
def test_a_message_has_the_octets_that_iproute2_sends(kit, name):
    theirs, ours = bytearray(kit.golden(name)), bytearray(encoded(kit.cases[name].ours, name))
    for masked in (slice(6, 8), slice(8, 16)):
        theirs[masked] = ours[masked]
    assert ours == theirs


def test_the_comparison_names_the_field_that_differs(kit):
    message = bytearray(kit.golden("newsa-out-gcm"))
    message[16 + 56 + 24 + 16] ^= 0xFF
    found = differing(kit.flatten(kit.golden("newsa-out-gcm")), kit.flatten(bytes(message)))
    assert list(found) == ["lft.soft_byte_limit"]


@pytest.mark.root
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("name", names())
def test_iproute2_still_sends_what_the_golden_file_has(kit, namespace, name):
    caught = kit.capture(namespace, kit.cases[name].ip)
    assert differing(kit.flatten(kit.golden(name)), kit.flatten(caught)) == {}


def decoded(kit, name):
    data = kit.golden(name)
    message = kit.kinds[int.from_bytes(data[4:6], "little")](bytearray(data))
    message.decode()
    return message


def address(octets):
    return socket.inet_ntoa(octets[:4])


def test_an_acquire_tells_packet_policy_and_template(kit):
    message = decoded(kit, "acquire")
    assert address(message["sel.saddr"]) == "10.1.0.1"
    assert address(message["sel.daddr"]) == "10.2.0.9"
    assert message["sel.proto"] == socket.IPPROTO_ICMP
    assert address(message["policy.sel.daddr"]) == "10.2.0.0"
    assert message["policy.priority"] == 4803269
    assert message["policy.dir"] == 1
    template = message.get_attr("XFRMA_TMPL")
    assert (template["reqid"], template["mode"], template["id.proto"]) == (7, 1, 50)
    assert (address(template["saddr"]), address(template["id.daddr"])) == ("192.0.2.1", "192.0.2.2")


def test_an_expire_tells_the_sa_and_that_it_is_gone(kit):
    message = decoded(kit, "expire-larval")
    assert address(message["state.saddr"]) == "192.0.2.2"
    assert address(message["state.id.daddr"]) == "192.0.2.1"
    assert message["state.id.spi"] == bytes.fromhex("00001000")
    assert message["hard"] == 1


def test_a_policy_expire_tells_the_policy(kit):
    message = decoded(kit, "polexpire")
    assert message["pol.priority"] == 4803269
    assert message["pol.sel.prefixlen_d"] == 16
    assert message["hard"] == 1
