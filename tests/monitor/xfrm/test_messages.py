"""<linux/xfrm.h>: the structs' sizes, and that no key is where it need not be."""

import sys

import pytest
from pyroute2.netlink import nla, nlmsg

from monitor.xfrm import messages, policy, sa, structs
from monitor.xfrm.present import PresentSa, is_as_described
from privsep.iana import ProtocolId

SIZES = {
    messages.NewSa: 224,
    messages.UpdSa: 224,
    messages.Counters: 224,
    messages.AllocSpi: 232,
    messages.DelSa: 24,
    messages.GetSa: 24,
    messages.NewPolicy: 168,
    messages.UpdPolicy: 168,
    messages.DelPolicy: 64,
    messages.GetPolicy: 64,
    messages.Migrate: 64,
    messages.Acquire: 280,
    messages.Expire: 232,
    messages.PolExpire: 176,
    messages.Mapping: 64,
    structs.Template: 64,
    structs.EncapTemplate: 24,
    structs.Migration: 76,
    structs.Crypt: 68,
    structs.AuthTrunc: 72,
    structs.Aead: 72,
    structs.Compression: 68,
    structs.Seconds: 4,
    structs.ReplayState: 24,
}
"""As `sizeof` has them on 64-bit Linux."""


@pytest.mark.parametrize("record", SIZES)
def test_a_struct_is_as_long_as_the_kernels(record):
    assert record.layout.size == SIZES[record]
    assert issubclass(record, nlmsg | nla)


@pytest.mark.parametrize("kind", [messages.NewSa, messages.NewPolicy, messages.DelSa, messages.AllocSpi])
def test_decoding_gives_what_was_encoded(kind):
    values = {
        name: bytes([at]) * len(kind.read(bytes(kind.layout.size), 0)[name]) if default == b"" else at % 256
        for at, (name, default) in enumerate(kind.slots, 1)
    }
    message = kind.request(1, values)
    message.encode()
    found = kind(message.data)
    found.decode()
    assert {name: found[name] for name in values} == values


def test_an_array_of_templates_comes_back_whole(kit):
    (entry,) = (entry for entry in policy.entries(kit.policy(ipcomp=True)) if entry.key["dir"] == 0)
    message = messages.NewPolicy.request(0, entry.values, entry.attributes)
    message.encode()
    found = messages.NewPolicy(message.data)
    found.decode()
    first = found.get_attr("XFRMA_TMPL")
    assert (first["id.proto"], first["optional"]) == (108, 1)
    assert (first["next"]["id.proto"], first["next"]["optional"], "next" in first["next"]) == (50, 0, False)


def test_a_message_does_not_show_its_keys(kit):
    message = messages.NewSa.request(0, *sa.outbound(kit.pair(encryption_out=b"sesame" * 6)))
    message.encode()
    assert b"sesame" in message.data
    assert "sesame" not in f"{message!r} {message!s}"


def test_wiping_a_message_leaves_no_key_in_it(kit):
    message = messages.NewSa.request(0, *sa.outbound(kit.pair(encryption_out=b"sesame" * 6)))
    message.encode()
    message.wipe()
    assert not any(message.data)


def test_the_answer_to_getsa_is_decoded_without_its_keys(kit):
    message = messages.NewSa.request(0, *sa.outbound(kit.pair(encryption_out=b"sesame" * 6)))
    message.encode()
    found = messages.Counters(message.data)
    found.decode()
    assert "attrs" not in found
    assert not any(value == b"sesame" * 6 for value in found.values())


@pytest.mark.parametrize("natted", [False, True])
def test_of_an_sa_that_is_adopted_the_encapsulation_is_read_and_no_key(kit, natted):
    pair = kit.pair(encryption_out=b"sesame" * 6, **(kit.natted if natted else {}))
    message = messages.NewSa.request(0, *sa.outbound(pair))
    message.encode()
    found = PresentSa(message.data)
    found.decode()
    assert is_as_described(found, pair, ProtocolId.ESP, pair.local, pair.remote)
    assert not is_as_described(found, pair, ProtocolId.ESP, pair.remote, pair.local)
    assert (found["encap"] is not None) is natted
    assert b"sesame" not in b"".join(value for value in found.values() if isinstance(value, bytes))
    assert "attrs" not in found


@pytest.mark.parametrize("length", [0, 1, 3, 5, 0xFFFF])
def test_an_answer_with_attributes_of_any_length_ends(kit, length):
    message = messages.NewSa.request(0, *sa.outbound(kit.pair()))
    message.encode()
    message.data[240:242] = length.to_bytes(2, sys.byteorder)
    found = PresentSa(message.data)
    found.decode()
    assert found["encap"] is None


def test_the_kernels_explanation_is_decoded():
    text = b"Requested type not found\0"
    body = (-93).to_bytes(4, "little", signed=True) + bytes(16)
    attribute = (4 + len(text)).to_bytes(2, "little") + (1).to_bytes(2, "little") + text
    header = (16 + len(body) + len(attribute)).to_bytes(4, "little") + bytes([2, 0, 0, 3]) + bytes(8)
    found = messages.Refusal(bytearray(header + body + attribute + bytes(3)))
    found.decode()
    assert found["error"] == -93
    assert found.get_attr("NLMSGERR_ATTR_MSG") == "Requested type not found"
