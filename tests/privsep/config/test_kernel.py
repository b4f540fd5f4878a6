"""Keys of a child that only the kernel's data plane has: read, compared between children, refused without a kernel."""

import pytest
from cost import ratio

from privsep.config.lanes import ANY_MARK, KernelOptions, Lane, Mark
from privsep.types import Identity

SMALL = """\
[connection.a]
local = "192.0.2.1"
remote = "192.0.2.2"
[connection.a.child.c]
local_ts = ["0.0.0.0/0"]
remote_ts = ["0.0.0.0/0"]
"""


def options(gateway, text):
    return gateway(SMALL + text).connections[0].children[0].kernel


def test_nothing_is_said_by_default(gateway):
    assert options(gateway, "") == KernelOptions(
        lane=Lane(mark_in=ANY_MARK, mark_out=ANY_MARK, if_id_in=0, if_id_out=0)
    )
    assert options(gateway, "").configured() == ()


def test_all_keys_are_read(gateway):
    text = """
    mark_in = "0x10/0xff"
    mark_out = 0x20
    if_id = 42
    interface = "ipsec0"
    priority = 77
    reqid = 70000
    life_bytes = "10G"
    life_packets = 5000
    """
    found = options(gateway, text)
    assert found == KernelOptions(
        lane=Lane(mark_in=Mark(0x10, 0xFF), mark_out=Mark(0x20), if_id_in=42, if_id_out=42),
        interface="ipsec0",
        priority=77,
        reqid=70000,
        life_bytes=10 << 30,
        life_packets=5000,
    )
    assert found.configured() == tuple(line.split()[0] for line in text.strip().splitlines())


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ('"0x10"', Mark(0x10, 0xFFFFFFFF)),
        ('"16"', Mark(16)),
        ("16", Mark(16)),
        ('"016/0255"', Mark(16, 255)),
        ('"0/1"', Mark(0, 1)),
        ("0", Mark(0)),
        ('"0xffffffff/0xFFFFFFFF"', Mark(0xFFFFFFFF)),
    ],
)
def test_marks_are_hexadecimal_or_decimal_with_or_without_a_mask(gateway, text, mark):
    assert options(gateway, f"mark_out = {text}").lane == Lane(mark_out=mark)


def test_each_direction_may_have_an_if_id_of_its_own(gateway):
    found = options(gateway, "if_id_in = 1\nif_id_out = 0xffffffff")
    assert found.lane == Lane(if_id_in=1, if_id_out=0xFFFFFFFF)
    assert found.configured() == ("if_id_in", "if_id_out")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('mark_in = "0x10/0x0f"', "'0x10/0x0f' is no mark; 32 bits within a mask, as in \"0x10/0xff\", would be right"),
        ('mark_in = "0/0"', "'0/0' is no mark"),
        ('mark_in = "4294967296"', "'4294967296' is no mark"),
        ('mark_out = "one"', "'one' is no mark"),
        ("mark_out = -1", "'mark_out' is out of range; 0 to 4294967295 would be right"),
        ("if_id = 0", "'if_id' is out of range; 1 to 4294967295 would be right"),
        ("if_id = 1\nif_id_in = 2", "either it or those two would be right"),
        ('interface = "ipsec0"', "an XFRM interface has one if_id for both directions; add if_id = 1, or another"),
        ('interface = "ipsec0"\nif_id_in = 1', "one if_id for both directions"),
        ('if_id = 1\ninterface = "a/b"', "'a/b' is no name of an interface; 1 to 15 characters would be right"),
        ('if_id = 1\ninterface = "ipsec%d"', "is no name of an interface"),
        ('if_id = 1\ninterface = "abcdefghijklmnop"', "is no name of an interface"),
        ("priority = 0", "'priority' is out of range; 1 to 4294967295 would be right"),
        ("reqid = 65535", "'reqid' is out of range; 65536 to 4294967295 would be right"),
        ("life_packets = 99", "'life_packets' is out of range; 100 to"),
        ('life_packets = "99"', '\'99\' is no amount; 100 or more, as in "500M" or "10G", would be right'),
        ('life_bytes = "1KB"', "'1KB' is no amount; 65536 or more"),
    ],
)
def test_what_is_wrong_is_told(problems, text, told):
    ((_, found),) = problems(SMALL + text)
    assert told in found


def test_a_fixed_reqid_is_for_one_remote_address(problems):
    text = SMALL.replace('"192.0.2.2"', '"any"\nremote_id = "any"') + "reqid = 70000"
    ((line, told),) = problems(text)
    assert (line, told) == (8, "a fixed reqid is for one remote address, as each peer has SAs of its own; drop it")


def hub(*children):
    """A connection with all traffic for each."""
    return "".join(
        SMALL.replace("connection.a", f"connection.c{at}").replace("192.0.2.2", f"198.51.{at >> 8}.{at & 255}")
        + each
        + "\n"
        for at, each in enumerate(children)
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("if_id = 1", "if_id = 2"),
        ("", "if_id = 1"),
        ("if_id_in = 1\nif_id_out = 2", "if_id_in = 2\nif_id_out = 1"),
        ("mark_in = 1\nmark_out = 1", "mark_in = 2\nmark_out = 2"),
        ("mark_in = '0x10/0xf0'\nmark_out = 1", "mark_in = '0x2f/0xff'\nmark_out = 2"),
        ("if_id = 1\nmark_out = 1", "if_id = 2"),
    ],
)
def test_connections_in_lanes_that_do_not_meet_may_have_the_same_selectors(gateway, one, other):
    assert len(gateway(hub(one, other)).connections) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", ""),
        ("if_id = 1", "if_id = 1"),
        ("if_id_out = 1", "if_id_out = 2"),
        ("if_id_in = 1", "if_id_in = 2"),
        ("mark_out = 1", "mark_out = 2"),
        ("mark_in = 1\nmark_out = 1", ""),
        ("mark_in = 1\nmark_out = 1", "mark_in = 2\nmark_out = '0x1/0x1'"),
        ("mark_in = '0x10/0xf0'\nmark_out = '0x10/0xf0'", "mark_in = '0x1/0xf'\nmark_out = '0x1/0xf'"),
        ("if_id = 1\nmark_in = 1\nmark_out = 1", "if_id = 1"),
        ("priority = 1", "priority = 2"),
    ],
)
def test_connections_whose_lanes_meet_in_one_direction_may_not(problems, one, other):
    found = problems(hub(one, other))
    assert [told for _, told in found] == [
        "0.0.0.0/0 overlaps 0.0.0.0/0 of [connection.c0.child.c]; "
        "selectors of one connection only, or an if_id for each, would be right"
    ]


def test_children_of_one_connection_are_told_apart_by_selectors_alone_since_a_peer_names_nothing_else(problems):
    second = SMALL[SMALL.index("[connection.a.child") :].replace("child.c", "child.d")
    found = problems(SMALL + "if_id = 1\n" + second + "if_id = 2")
    assert [told for _, told in found] == ["0.0.0.0/0 to 0.0.0.0/0 is also child c's; one child for it would be right"]


@pytest.mark.parametrize("lane", ["if_id = {}", "mark_in = {0}\nmark_out = {0}"])
def test_many_peers_with_all_traffic_each_are_compared_in_a_moment(gateway, lane):
    def loaded(many):
        assert len(gateway(hub(*(lane.format(number) for number in range(1, many + 1)))).connections) == many

    assert ratio(lambda: loaded(2000), lambda: loaded(500), rounds=3) < 8


def test_names_and_numbers_belong_to_one(problems, gateway):
    shared = "if_id = 1\ninterface = 'ipsec0'"
    six = SMALL[SMALL.index("[connection.a.child") :].replace("0.0.0.0/0", "::/0").replace("child.c", "child.six")
    assert len(gateway(f"{SMALL}{shared}\n{six}{shared}").connections[0].children) == 2
    lanes = ("if_id = 1\ninterface = 'ipsec0'", "if_id = 2\ninterface = 'ipsec0'")
    found = problems(hub(*lanes, "if_id = 3\nreqid = 70000", "if_id = 4\nreqid = 70000"))
    assert [told for _, told in found] == [
        "ipsec0 has if_id 1, and if_id 2 is ipsec0's; one if_id for one interface would be right",
        "also the reqid of [connection.c2.child.c]; another would be right",
    ]
    ((_, told),) = problems(f"{SMALL}{shared}\n{six}if_id = 1\ninterface = 'ipsec1'")
    assert told == "ipsec1 has if_id 1, and if_id 1 is ipsec0's; one if_id for one interface would be right"


@pytest.mark.parametrize(
    "text",
    [
        "mark_in = 1",
        "mark_out = 1",
        "if_id = 1",
        "if_id_in = 1",
        "priority = 1",
        "reqid = 70000",
        "life_bytes = '1G'",
        "life_packets = 100",
    ],
)
def test_the_userspace_data_plane_has_none_of_it(problems, gateway, text):
    key = text.split()[0]
    whole = "[gateway]\ndataplane = '{}'\n" + SMALL + text
    assert problems(whole.format("userspace")) == [
        (9, f'the userspace data plane has no {key}; dataplane = "kernel" would be right')
    ]
    for choice in ("kernel", "auto"):
        assert isinstance(gateway(whole.format(choice)).connections[0].local_id, Identity)
