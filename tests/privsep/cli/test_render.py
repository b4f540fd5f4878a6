import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep.cli.render import Style, cell, size, span, status_text, table

PLAIN = Style(colour=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_status_is_two_aligned_tables(status_document):
    assert status_text(status_document, PLAIN) == (
        "data plane: userspace (the kernel has no ESP); worker: running\n"
        "\n"
        "CONNECTION  STATE        LOCAL           REMOTE           PEER             ROLE       PROPOSAL"
        "                NAT   AGE  REKEY IN\n"
        "berlin      down         any             198.51.100.0/24  -                -          -"
        "                       -     -    -\n"
        "paris       established  192.0.2.1[500]  192.0.2.2[500]   gw2.example.org  initiator  aes256-sha256-modp2048"
        "  none  3s   7h46m\n"
        "\n"
        "CHILD       STATE      LOCAL TS     REMOTE TS    PROPOSAL              SPI IN      SPI OUT     IN     OUT"
        "      EXPIRES IN\n"
        "berlin/net  down       10.1.0.0/16  10.9.0.0/16  -                     -           -           -      -"
        "        -\n"
        "paris/lan   installed  10.1.0.0/16  10.2.0.0/16  aes256gcm16-modp2048  0xc0000001  0xc0000002  252 B  1.5 KiB"
        "  58m20s\n"
    )


def test_a_narrow_terminal_gets_records_with_nothing_cut_off(status_document):
    text = status_text(status_document, PLAIN, width=60)
    assert max(map(len, text.splitlines())) <= 70
    assert "  proposal    aes256-sha256-modp2048\n" in text
    assert "paris/lan\n" in text


def test_an_ah_proposal_is_marked(status_document):
    status_document["ike_sas"][0]["children"][0] |= {"protocol": "ah", "proposal": "sha256-esn"}
    assert "  AH sha256-esn  " in status_text(status_document, PLAIN)


def test_a_compressed_child_is_marked(status_document):
    child = status_document["ike_sas"][0]["children"][0]
    for told, shown in ((True, True), (False, False), ("yes", False)):
        child["ipcomp"] = told
        assert (f"{child['proposal']} IPComp  " in status_text(status_document, PLAIN)) is shown


def test_shunts_are_a_table_where_there_are_any(status_document):
    status_document["shunts"] = [
        {"name": "rest", "action": "drop", "order": "last", "local_ts": ["10.1.0.0/16"], "remote_ts": ["0.0.0.0/0"]}
    ]
    assert status_text(status_document, PLAIN).endswith(
        "\n\nSHUNT  ACTION  ORDER  LOCAL TS     REMOTE TS\nrest   drop    last   10.1.0.0/16  0.0.0.0/0\n"
    )


def test_adopted_children_are_shown(status_document):
    status_document["adopted"] = [{"connection": "rome", "name": "net", "state": "installed", "bytes_in": 0}]
    assert "rome/net" in status_text(status_document, PLAIN)


def test_an_idle_gateway_says_so():
    assert status_text({"dataplane": "kernel"}, PLAIN) == "data plane: kernel\n\nno connection\n\nno child\n"


@pytest.mark.parametrize(
    ("stream", "variables", "colour"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(monkeypatch, stream, variables, colour):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Style.of(stream) == Style(colour=colour)


def test_colour_does_not_change_the_text_or_its_alignment(status_document):
    coloured = status_text(status_document, Style(colour=True))
    for code in ("\x1b[0m", "\x1b[1m", "\x1b[32m", "\x1b[33m"):
        assert code in coloured
        coloured = coloured.replace(code, "")
    assert coloured == status_text(status_document, PLAIN)


@given(st.lists(st.lists(st.text(max_size=12), min_size=3, max_size=3), min_size=1, max_size=4))
def test_no_value_breaks_a_line_or_reaches_the_terminal_raw(rows):
    text = table(["A", "B", "C"], [[cell(value) for value in row] for row in rows], PLAIN)
    assert text.count("\n") == len(rows) + 1
    assert text.replace("\n", "").isascii()
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59, "59s"),
        (60, "1m00s"),
        (3500, "58m20s"),
        (28000, "7h46m"),
        (90000, "1d01h"),
        (None, "-"),
        ("x", "-"),
    ],
)
def test_spans_have_their_two_largest_units(seconds, text):
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 40, "3.0 TiB"),
        (1 << 60, "1024.0 PiB"),
    ],
)
def test_sizes_have_the_unit_that_leaves_few_digits(octets, text):
    assert size(octets) == text
    assert size(None) == "-"
