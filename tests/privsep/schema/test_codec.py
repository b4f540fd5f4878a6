"""The typed messages between our processes: what is not exactly one message of the table is refused."""

import dataclasses
import ipaddress
from typing import get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep.algorithms import ChildSuite, Group, IkeSuite
from privsep.iana import IdType, ProtocolId
from privsep.schema import esp, install, keyd, keymat
from privsep.schema.codec import MAX_FRAME, MAX_ITEMS, MAX_SEQUENCE, Blob, SchemaError, Table
from privsep.types import Endpoint, Identity, TrafficSelector

DROP = keyd.Drop(handle=b"h" * 16)
OFFER = keyd.IkeOffer(
    connection="paris",
    suite=IkeSuite.parse("aes256-sha256-modp2048"),
    cky_i=b"i" * 8,
    cky_r=b"r" * 8,
    sai_b=b"sa",
    local=ipaddress.ip_address("192.0.2.1"),
    remote=ipaddress.ip_address("2001:db8::1"),
)
INSTALL = install.InstallInbound(
    keymat=b"k" * 16,
    local=Endpoint(ipaddress.ip_address("192.0.2.1"), 500),
    remote=Endpoint(ipaddress.ip_address("192.0.2.2"), 500),
)
AUTHENTICATED = keyd.Authenticated(
    connection="paris", identity=Identity(IdType.FQDN, b"gw.example.org"), next_payload=0, payloads=b""
)
QUICK_OFFER = keyd.QuickOffer(
    ike=b"i" * 16,
    child="lan",
    group=Group.MODP_2048,
    encap=False,
    spi_in=300,
    cpi_in=None,
    local_ts=TrafficSelector(ipaddress.ip_network("10.1.0.0/16")),
    remote_ts=TrafficSelector(ipaddress.ip_network("2001:db8::/32"), 6, 443),
    originals=(ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")),
)
ANSWER = keyd.QuickAnswer(
    quick=b"q" * 16,
    child="lan",
    suite=ChildSuite.parse("aes256gcm16-modp2048"),
    encap=True,
    spi_in=2**32 - 1,
    cpi_in=300,
    originals=(),
)
ANSWER_AH = dataclasses.replace(ANSWER, suite=ChildSuite.parse("sha256-modp2048-esn", ProtocolId.AH))

CASES = [
    (keyd.REQUESTS, DROP),
    (keyd.REQUESTS, OFFER),
    (keyd.REQUESTS, QUICK_OFFER),
    (keyd.REQUESTS, ANSWER),
    (keyd.REQUESTS, ANSWER_AH),
    (keyd.REPLIES, AUTHENTICATED),
    (keyd.REPLIES, keyd.Refused(why=keyd.Refusal.BAD_HASH)),
    (install.FROM_WORKER, INSTALL),
    (keymat.REQUESTS, keymat.RedeemInbound(keymat=b"k" * 16)),
]


def frame_of(table: Table, message: object, sequence: int = 7) -> list:
    return msgpack.unpackb(table.encode(message, sequence), use_list=True)


@pytest.mark.parametrize(("table", "message"), CASES)
def test_a_message_comes_back_equal(table, message):
    assert table.decode(table.encode(message, 41)) == (message, 41)


@pytest.mark.parametrize(("table", "message"), CASES)
def test_a_truncated_or_lengthened_frame_is_refused(table, message):
    frame = table.encode(message, 1)
    for cut in range(len(frame)):
        with pytest.raises(SchemaError):
            table.decode(frame[:cut])
    with pytest.raises(SchemaError):
        table.decode(frame + b"\xc0")


@pytest.mark.parametrize(("table", "message"), CASES)
def test_a_surplus_or_missing_field_is_refused(table, message):
    values = frame_of(table, message)
    with pytest.raises(SchemaError):
        table.decode(msgpack.packb([*values, None]))
    with pytest.raises(SchemaError):
        table.decode(msgpack.packb(values[:-1]))


@pytest.mark.parametrize(
    "suite", [[2, "aes256gcm16"], [3, "sha256"], [1, "sha256"], [4, "sha256"], ["2", "sha256"], [2], [2, b"sha256"]]
)
def test_a_child_suite_is_of_its_protocol(suite):
    values = frame_of(keyd.REQUESTS, ANSWER_AH)
    position = [field.name for field in dataclasses.fields(ANSWER_AH)].index("suite") + 2
    assert values[position] == [2, "sha256-modp2048-esn"]
    values[position] = suite
    with pytest.raises(SchemaError):
        keyd.REQUESTS.decode(msgpack.packb(values))


@pytest.mark.parametrize(("cpi", "fits"), [(255, False), (256, True), (61439, True), (61440, False), (None, True)])
def test_a_cpi_is_one_that_is_negotiated_rfc2393_3_3(cpi, fits):
    values = frame_of(keyd.REQUESTS, ANSWER)
    values[-2] = cpi
    frame = msgpack.packb(values)
    if fits:
        assert keyd.REQUESTS.decode(frame)[0].cpi_in == cpi
    else:
        with pytest.raises(SchemaError):
            keyd.REQUESTS.decode(frame)


def stranger_fits(name: str, stranger: object) -> bool:
    return (
        (name == "encap" and type(stranger) is bool)
        or (name in ("cpi_in", "group", "notify") and stranger is None)
        or (name == "detail" and type(stranger) is str)
        or (name == "originals" and stranger == ())
        or (name == "child" and stranger == "text")
        or (name == "connection" and stranger == "text")
        or (name in ("sai_b", "payloads") and type(stranger) is bytes)
        or (name == "next_payload" and type(stranger) is int and 0 <= stranger < 256)
    )


@pytest.mark.parametrize("stranger", [None, True, 1, -1, 2**40, 1.5, "text", "x" * 65, b"", b"b" * 17, (), (1, 2), {}])
def test_a_field_of_another_type_or_size_is_refused(stranger):
    """`True` is not 1, text is not bytes, and nothing is coerced (DESIGN section 2)."""
    for table, message in CASES:
        for position, field in enumerate(dataclasses.fields(message)):
            values = frame_of(table, message)
            if stranger_fits(field.name, stranger):
                continue
            values[position + 2] = stranger
            with pytest.raises(SchemaError):
                table.decode(msgpack.packb(values))


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x91" * 2000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        msgpack.packb([14, 1, msgpack.ExtType(1, b"x" * 16)]),
        msgpack.packb([14, 1, msgpack.Timestamp(1)]),
        msgpack.packb({14: 1}),
        msgpack.packb([14, 1, b"h" * 16]) * 2,
        msgpack.packb([14.0, 1, b"h" * 16]),
        msgpack.packb([14, True, b"h" * 16]),
        msgpack.packb([14, -1, b"h" * 16]),
        msgpack.packb([14, MAX_SEQUENCE + 1, b"h" * 16]),
        msgpack.packb([99, 1, b"h" * 16]),
        b"",
        b"\xc1",
        bytes(MAX_FRAME + 1),
    ],
)
def test_bombs_and_strangers_are_refused(bomb):
    with pytest.raises(SchemaError):
        keyd.REQUESTS.decode(bomb)


def test_arrays_are_bounded_before_they_are_built():
    """In any place, also where no field would take one: half a megabyte of tuples for a frame of zeros."""
    most, more = (0,) * MAX_ITEMS, (0,) * (MAX_ITEMS + 1)
    for values, problem in (
        ([14, 1, most], "field handle"),
        ([14, 1, more], "within limits"),
        ([14, 1, *most[2:]], "wrong number of fields"),
        ([14, 1, *more], "within limits"),
        ([14, 1, [[more]]], "within limits"),
    ):
        with pytest.raises(SchemaError, match=problem):
            keyd.REQUESTS.decode(msgpack.packb(values))


@dataclasses.dataclass(frozen=True)
class Long:
    """A message that may be longer than a frame."""

    one: Blob
    other: Blob


def test_a_frame_too_long_is_refused_whatever_is_in_it():
    table = Table({1: Long})
    around = len(table.encode(Long(b"x" * 50000, b"y" * 10000), 1)) - 60000
    fits = Long(b"x" * 50000, b"y" * (MAX_FRAME - 50000 - around))
    frame = table.encode(fits, 1)
    assert len(frame) == MAX_FRAME
    assert table.decode(frame) == (fits, 1)
    longer = dataclasses.replace(fits, other=fits.other + b"z")
    with pytest.raises(SchemaError, match="frame too long"):
        table.encode(longer, 1)
    with pytest.raises(SchemaError, match="frame too long"):
        table.decode(msgpack.packb([1, 1, longer.one, longer.other]))


@pytest.mark.parametrize(
    ("kind", "octets", "taken"),
    [
        *((IdType.IPV4_ADDR, octets, octets == 4) for octets in (1, 3, 4, 5, 8, 16)),
        *((IdType.IPV6_ADDR, octets, octets == 16) for octets in (4, 15, 16, 17, 32)),
        *((IdType.FQDN, octets, 1 <= octets <= 1024) for octets in (0, 1, 4, 1024, 1025)),
    ],
)
def test_an_identity_that_is_an_address_is_as_long_as_one_rfc2407_4_6_2(kind, octets, taken):
    values = frame_of(keyd.REPLIES, AUTHENTICATED)
    values[3] = [int(kind), b"\x0a" * octets]
    frame = msgpack.packb(values)
    if taken:
        assert keyd.REPLIES.decode(frame)[0].identity == Identity(kind, b"\x0a" * octets)
    else:
        with pytest.raises(SchemaError, match="field identity"):
            keyd.REPLIES.decode(frame)


@given(st.binary(max_size=400))
def test_random_octets_never_raise_anything_else(data):
    for table in (keyd.REQUESTS, keyd.REPLIES, install.FROM_WORKER, install.FROM_MONITOR, keymat.REPLIES, esp.REQUESTS):
        try:
            table.decode(data)
        except SchemaError:
            continue


def test_selectors_with_host_bits_are_refused():
    values = frame_of(keyd.REQUESTS, QUICK_OFFER)
    position = [field.name for field in dataclasses.fields(QUICK_OFFER)].index("local_ts") + 2
    values[position] = [bytes((10, 1, 0, 1)), 16, 0, 0]
    with pytest.raises(SchemaError):
        keyd.REQUESTS.decode(msgpack.packb(values))


def test_text_with_control_characters_is_refused():
    progress = install.Progress(order=1, text="fine")
    values = frame_of(install.FROM_WORKER, progress)
    values[3] = "line\nanother"
    with pytest.raises(SchemaError):
        install.FROM_WORKER.decode(msgpack.packb(values))


def test_no_answer_to_the_worker_has_room_for_a_key():
    """The worker's channels carry no field that is a key: the only octets are handles, public values, and messages."""
    allowed = {"ike", "ke", "nonce", "ciphertext", "payloads", "quick", "keymat"}
    for reply in get_args(keyd.Reply):
        for field in dataclasses.fields(reply):
            if "bytes" in str(field.type):
                assert field.name in allowed
    for name in vars(install):
        assert "Key" not in name


def test_messages_that_hold_keys_do_not_show_them():
    assert keymat.Redeemed.__repr__ is object.__repr__
    assert esp.AddInbound.__repr__ is esp.AddOutbound.__repr__ is object.__repr__
