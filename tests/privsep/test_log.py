"""Values of events: one line, printable, capped, whatever was put in."""

import pytest

from privsep.log import MAX_VALUE, escape


@pytest.mark.parametrize("text", ["", "gw1.example.org", "192.0.2.1[500]", "with spaces", "~" * MAX_VALUE])
def test_plain_text_stays_as_it_is(text):
    assert escape(text) == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a\nb", "a\\nb"),
        ("a\\b", "a\\\\b"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x7f", "\\x7f"),
        ("caf\u00e9", "caf\\xe9"),
        ("\u202e", "\\u202e"),
    ],
)
def test_what_is_not_printable_ascii_is_escaped_and_so_is_the_backslash(text, escaped):
    assert escape(text) == escaped


@pytest.mark.parametrize("text", ["x" * (MAX_VALUE + 1), "\0" * MAX_VALUE])
def test_long_text_is_cut_and_says_so(text):
    escaped = escape(text)
    assert len(escaped) == MAX_VALUE
    assert escaped.endswith("...")
