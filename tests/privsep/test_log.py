"""Events as lines: printable, capped, and to be read back, whatever was put in."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep import log
from privsep.log import CODES, MAX_LINE, MAX_VALUE, Code, Level, Record, escape, parse, render


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


# logfmt


def logfmt(line: str) -> tuple[list[str], dict[str, str]]:
    """Words and fields of a line as a reader of logfmt takes them: blanks between, JSON's escapes within quotes."""
    words, fields, position = [], {}, 0
    while position < len(line):
        end = position
        while end < len(line) and line[end] not in ' ="':
            end += 1
        name = line[position:end]
        if end == len(line) or line[end] == " ":
            words.append(name)
        elif line[end] == '"':
            raise AssertionError("a quote within a word")
        elif line[end + 1 : end + 2] == '"':
            fields[name], length = json.JSONDecoder().raw_decode(line[end + 1 :])
            end += 1 + length
        else:
            start = end + 1
            while end < len(line) and line[end] != " ":
                end += 1
            fields[name] = line[start:end]
            assert not set('"=\\') & set(fields[name])
        assert line[end : end + 1] in ("", " ")
        position = end + 1
    return words, fields


names = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)
levels = st.sampled_from(Level)
codes = st.sampled_from(sorted(CODES))


@given(levels, codes, st.dictionaries(names, st.text(max_size=40), max_size=4))
def test_a_reader_of_logfmt_gets_every_field_back(level, code, fields):
    line = render(level, code, fields)
    assert line.isascii()
    assert line.isprintable()
    assert logfmt(line) == ([level.value, code], fields)


@given(levels, codes, st.dictionaries(names, st.text(max_size=40), max_size=4))
def test_what_was_written_is_read_back(level, code, fields):
    assert parse(render(level, code, fields)) == Record(level, code, fields)


@given(levels, codes, st.dictionaries(names, st.text(), max_size=30))
def test_a_line_has_its_bounds_and_is_cut_between_fields(level, code, fields):
    fields = {name: value * 300 for name, value in fields.items()}
    line = render(level, code, fields)
    assert len(line) <= MAX_LINE
    _, read = logfmt(line)
    for name, value in read.items():
        assert value == fields[name] or (len(value) == MAX_VALUE and value.endswith("..."))


@given(st.text(alphabet='notice installed="\\ux0a\n\x00é', max_size=60))
def test_any_other_line_is_read_without_an_error(text):
    parse(text)
    parse(f"notice installed {text}")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "notice",
        "fatal installed",
        "notice unheard-of",
        "notice installed a",
        "notice installed a=",
        'notice installed a="',
        'notice installed a="\\',
        'notice installed a="x"b=y',
        "notice installed  a=b",
        "notice installed a=b a=c",
        "notice installed A=b",
        'notice installed a="\\x41"',
        "notice installed " + " ".join(f"a{number}=b" for number in range(25)),
        f"notice installed a={'x' * MAX_LINE}",
    ],
)
def test_what_is_no_event_is_not_taken_for_one(line):
    assert parse(line) is None


def test_every_code_has_a_place_in_the_list_and_is_used():
    assert sorted(CODES) == list(get_args(Code))
    root = Path(log.__file__).parents[1]
    sources = [
        path.read_text() for name in ("privsep", "monitor", "worker", "keyd") for path in root.glob(f"{name}/**/*.py")
    ]
    for code in CODES:
        # once in the list, and where it is written
        assert sum(source.count(f'"{code}"') for source in sources) > 1, code


# levels


@pytest.fixture
def thresholds():
    yield
    log.configure(Level.INFO, {})


def test_a_connection_has_a_level_of_its_own(thresholds):
    log.configure(Level.WARNING, {"paris": Level.DEBUG})
    assert [log.shown(level) for level in Level] == [False, False, False, True, True]
    assert all(log.shown(level, "paris") for level in Level)
    assert not log.shown(Level.NOTICE, "rome")


def test_levels_change_while_it_runs(thresholds):
    log.configure(Level.INFO, {})
    log.set_level(Level.ERROR)
    log.set_level(Level.DEBUG, "paris")
    assert not log.shown(Level.WARNING, "rome")
    assert log.shown(Level.DEBUG, "paris")
    log.set_level(Level.ERROR, "paris")
    assert not log.shown(Level.WARNING, "paris")


def test_a_child_holds_nothing_back_that_events_would_tell(thresholds):
    log.configure(Level.ERROR, {}, most=log.FOLLOWED)
    assert [log.shown(level) for level in Level] == [False, True, True, True, True]
    assert [log.noticed(level) for level in Level] == [False, True, True, True, True]


# the journal

SAYS = """
import os
stream = os.fstat({fd})
os.environ["JOURNAL_STREAM"] = f"{{stream.st_dev}}:{{stream.st_ino}}"
from privsep.log import Level, event
for level in Level:
    event(level, "secrets", problem="a b")
"""


@pytest.mark.parametrize(
    ("fd", "written"),
    [
        (2, '<6>info secrets problem="a b"\n<5>notice secrets problem="a b"\n'
            '<4>warning secrets problem="a b"\n<3>error secrets problem="a b"\n'),
        (0, 'info secrets problem="a b"\nnotice secrets problem="a b"\n'
            'warning secrets problem="a b"\nerror secrets problem="a b"\n'),
    ],
)  # fmt: skip
def test_lines_have_priorities_where_stderr_is_the_journals_and_nowhere_else(fd, written):
    done = subprocess.run(
        [sys.executable, "-c", SAYS.format(fd=fd)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"},
    )
    assert done.stderr == written
