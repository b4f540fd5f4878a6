import contextlib
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep.config.problems import MAX_PROBLEMS, ConfigError, Problem, quote
from privsep.config.toml_lines import MAX_DEPTH, MAX_LINE, MAX_SIZE, Document

TRICKY = """\
# [not.a.table] "nor a string
title = "a # ] ["   # [comment]
'quoted key' = 'its'
"""

NESTED = """\
[a]
x = [ 1, 2,
  # ] a bracket in a comment
  [3,
   "]" ], { k = 1, "q.r" = [1] },
]
after = 1
"""

STRINGS = '''\
[a]
basic = """
x = 1
[[not]] \\""" still
"""
literal = \'\'\'
[b]
\'\'\'
quotes = """"two"""""
after = "\\" # ["
last = 1979-05-27 07:32:00
'''

TABLES = """\
[connection.paris.child.lan]
z = 'x]'
[connection.paris]
v = 1
a.b . "c d" = 2
[[psk]]
ids = 1
[[ psk ]]
ids = ["a",
"b"]
[psk.sub]
q = 1
[[psk.deeper]]
[[psk.deeper]]
r = 1
"""


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        (TRICKY, ("title",), 2),
        (TRICKY, ("quoted key",), 3),
        (NESTED, ("a",), 1),
        (NESTED, ("a", "x"), 2),
        (NESTED, ("a", "x", 1), 2),
        (NESTED, ("a", "x", 2), 4),
        (NESTED, ("a", "x", 2, 1), 5),
        (NESTED, ("a", "x", 3, "k"), 5),
        (NESTED, ("a", "x", 3, "q.r", 0), 5),
        (NESTED, ("a", "after"), 7),
        (STRINGS, ("a", "basic"), 2),
        (STRINGS, ("a", "literal"), 6),
        (STRINGS, ("a", "quotes"), 9),
        (STRINGS, ("a", "after"), 10),
        (STRINGS, ("a", "last"), 11),
        (TABLES, ("connection",), 1),
        (TABLES, ("connection", "paris", "child", "lan", "z"), 2),
        (TABLES, ("connection", "paris"), 3),
        (TABLES, ("connection", "paris", "a", "b", "c d"), 5),
        (TABLES, ("psk", 0), 6),
        (TABLES, ("psk", 1), 8),
        (TABLES, ("psk", 1, "ids", 1), 10),
        (TABLES, ("psk", 1, "sub", "q"), 12),
        (TABLES, ("psk", 1, "deeper", 1, "r"), 15),
    ],
)
def test_every_key_table_and_element_has_its_line(text, path, line):
    assert Document.parse(text, "f").line_of(path) == line


def test_what_is_not_there_has_the_line_of_what_encloses_it():
    document = Document.parse(TABLES, "f")
    assert document.line_of(("connection", "paris", "missing", "too")) == 3
    assert document.line_of(("psk", 1, "missing")) == 8
    assert document.line_of(("nothing",)) == 1
    assert document.line_of(()) == 1


def test_lines_are_the_same_with_carriage_returns():
    document = Document.parse(NESTED.replace("\n", "\r\n"), "f")
    assert document.line_of(("a", "x", 2, 1)) == 5
    assert document.line_of(("a", "after")) == 7


def test_the_data_is_what_tomllib_reads():
    assert Document.parse(STRINGS, "f").data == tomllib.loads(STRINGS)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nb = \n", 2),
        ("a = 1\n\nb 2\n", 3),
        ("a = 1\na = 2\n", 2),
        ('a = 1\nb = "open\n', 2),
        ("[a]\n[a]\n", 2),
        ("a = [1,\n2,\n", 2),
        ("a = 1\nb = [1\n", 2),
    ],
)
def test_a_syntax_error_has_its_line(text, line):
    with pytest.raises(ConfigError) as caught:
        Document.parse(text, "some.toml")
    assert caught.value.filename == "some.toml"
    assert [problem.line for problem in caught.value.problems] == [line]
    assert str(caught.value).startswith(f"some.toml:{line}: ")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("\n" * MAX_SIZE + "\n", 1, "too long"),
        (f"\na = '{'x' * MAX_LINE}'\n", 2, "too long"),
        ("a = " + "[\n" * 3000 + "]\n" * 3000, 1, "too deep"),
        ("b = 1\na = " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), 2, "too deep"),
        ("\n\n" + ".".join("a" * (MAX_DEPTH + 1)) + " = 1", 3, "too deep"),
        ("[" + ".".join("a" * (MAX_DEPTH + 1)) + "]", 1, "too deep"),
    ],
)
def test_size_and_depth_are_bounded(text, line, words):
    with pytest.raises(ConfigError) as caught:
        Document.parse(text, "f")
    (problem,) = caught.value.problems
    assert problem.line == line
    assert words in problem.text


def test_a_file_that_is_not_utf_8_has_the_line_of_its_first_bad_octet():
    with pytest.raises(ConfigError, match=r"f:2: .*UTF-8"):
        Document.decode(b"a = 1\nb = '\xff'\n", "f")
    assert Document.decode("a = 'ü'".encode(), "f") == "a = 'ü'"


@given(st.text(alphabet=st.sampled_from("ab.= \n\t\r\"'[]{}#,\\1-é"), max_size=60))
def test_no_text_raises_anything_but_a_config_error(text):
    last = text.count("\n") + 1
    try:
        document = Document.parse(text, "f")
    except ConfigError as error:
        told = [problem.line for problem in error.problems]
    else:
        told = list(_lines(document.data, (), document))
    assert set(told) <= set(range(1, last + 1))


_keys = st.text(min_size=1, max_size=8)
_values = st.recursive(
    st.integers(-9, 9) | st.booleans() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=8,
)


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case str():
            return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
        case list():
            return "[ # ]\n" + "".join(f"{_toml(each)}, # [\n" for each in value) + "]"
        case dict():
            return "{" + ", ".join(f"{_toml(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    raise TypeError


@given(st.dictionaries(_keys, _values, max_size=5))
def test_a_key_is_on_the_line_where_it_was_written(data):
    lines, expected = [], {}
    for key, value in data.items():
        expected[key] = "\n".join(lines).count("\n") + (2 if lines else 1)
        lines.append(f"{_toml(key)} = {_toml(value)}")
    document = Document.parse("\n".join(lines), "f")
    assert document.data == data
    assert {key: document.line_of((key,)) for key in data} == expected


def _lines(value, path, document):
    """The lines of everything in a value; KeyError for what the walk did not see."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield document._lines[(*path, key)]
        yield from _lines(inner, (*path, key), document)


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("a = 1\n\na = 2\n", 3, "'a' is on line 1 already"),
        ('"a" = 1\na = 2', 2, "'a' is on line 1 already"),
        ("[c.paris]\nlocal = 1\nx = [\n1]\nlocal = 2 # twice\n[c.lo", 5, "'c.paris.local' is on line 2 already"),
        ('[a]\nb = """\n"""\nb = """\n\n"""\n', 6, "'a.b' is on line 2 already"),
        ("[c.paris.child.lan]\n\n[c.paris.child.lan]", 3, "'c.paris.child.lan' is on line 1 already"),
        ("[a]\n[a.b]\nx = 1\n[a]\n", 4, "'a' is on line 1 already"),
        ("a.b = 1\na = 2\n", 2, "'a' is on line 1 already"),
        ("a = { x = 1, x = 2 }", 1, "'a.x' is on line 1 already"),
        ("[[psk]]\n[psk]\n", 2, "'psk' is on line 1 already"),
        ("[psk]\nids = 1\n[[psk]]\n", 3, "'psk' is on line 1 already"),
        ("[[psk]]\n[[psk]]\n[psk.a]\n[psk.a]\n", 4, "'psk.1.a' is on line 3 already"),
    ],
)
def test_what_is_given_twice_is_told_with_both_lines(text, line, told):
    with pytest.raises(ConfigError) as caught:
        Document.parse(text, "f")
    assert caught.value.problems == (Problem(line, f"{told}; one of the two would be right"),)


@given(st.text(alphabet="ab=[]{}.,'\"\n #1\\", max_size=60))
def test_no_text_makes_it_fail_in_another_way(text):
    """What `tomllib` refuses is walked over too, to find what is given twice."""
    with contextlib.suppress(ConfigError):
        Document.parse(text, "f")


def test_problems_are_sorted_told_once_and_capped():
    error = ConfigError("f", [Problem(2, "b"), Problem(1, "a"), Problem(2, "b")])
    assert str(error) == "f:1: a\nf:2: b"
    many = ConfigError("f", [Problem(number, "x") for number in range(1, MAX_PROBLEMS + 8)])
    assert len(many.problems) == MAX_PROBLEMS
    assert str(many).endswith("f: 7 more problems; these first")


def test_a_quote_is_one_printable_line_of_bounded_length():
    assert quote("a\n\x1b[31m\u202e") == "'a\\n\\x1b[31m\\u202e'"
    assert len(quote("x" * 10_000)) < 80
