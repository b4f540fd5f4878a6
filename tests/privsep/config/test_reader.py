from enum import Enum

import pytest

from privsep.config.problems import ConfigError
from privsep.config.reader import Reader, one_of, suggest
from privsep.config.toml_lines import Document


class Colour(Enum):
    RED = "red"
    GREEN = "green"


def read(text: str, use) -> list[str]:
    """The problems that reading it so leaves, as "LINE: text"."""
    reader = Reader(Document.parse(text, "f"))
    use(reader.root())
    try:
        reader.finish()
    except ConfigError as error:
        return [f"{problem.line}: {problem.text}" for problem in error.problems]
    return []


def test_a_document_without_problems_finishes():
    values = []

    def use(root):
        values.extend([root.text("a"), root.number("b", 0, low=0, high=9), root.choice("c", Colour, Colour.RED)])
        values.extend([root.many("d", int, limit=2), root.optional("e", int, 7), root.choice("f", Colour, Colour.RED)])
        root.close()

    assert read('a = "x"\nb = 3\nc = "green"\nd = ["1", "2"]\n', use) == []
    assert values == ["x", 3, Colour.GREEN, (1, 2), 7, Colour.RED]


@pytest.mark.parametrize(
    ("text", "use", "problem"),
    [
        (
            "x = 1\ny = 2\n",
            lambda s: (s.number("x", 0, low=0, high=9), s.close()),
            "2: unknown key 'y'; one of x would",
        ),
        (
            "\nnmae = 1",
            lambda s: (s.optional("name", str, ""), s.close()),
            "2: unknown key 'nmae'; did you mean 'name'?",
        ),
        ("a = 1", lambda s: s.text("a"), "1: 'a' is a whole number; text in quotes, as in \"...\" would be right"),
        (
            "a = true",
            lambda s: s.number("a", 0, low=0, high=1),
            "1: 'a' is true or false; a whole number would be right",
        ),
        (
            "a = 1.5",
            lambda s: s.number("a", 0, low=0, high=1),
            "1: 'a' is a number with a fraction; a whole number would",
        ),
        ("a = 1979-05-27", lambda s: s.text("a"), "1: 'a' is a date or time; text in quotes"),
        ("\na = 10", lambda s: s.number("a", 0, low=0, high=9), "2: 'a' is out of range; 0 to 9 would be right"),
        ("", lambda s: s.text("a", 'a = "x"'), "1: 'a' is missing; add a = \"x\""),
        ('a = "rde"', lambda s: s.choice("a", Colour, Colour.RED), "1: a: 'rde' is not known; did you mean 'red'?"),
        (
            'a = "blue"',
            lambda s: s.choice("a", Colour, Colour.RED),
            "1: a: 'blue' is not known; one of green, red would",
        ),
        ('a = "x"', lambda s: s.many("a", str, limit=2), "1: 'a' is text; a list, as in [\"...\"] would be right"),
        ("a = []", lambda s: s.many("a", str, limit=2), "1: 'a' has 0 elements; 1 to 2 would be right"),
        ('a = ["1", "2", "3"]', lambda s: s.many("a", str, limit=2), "1: 'a' has 3 elements; 1 to 2 would be right"),
        ('a = ["1",\n2]', lambda s: s.many("a", str, limit=2), "2: 'a' is a whole number; text in quotes"),
        ('a = ["1",\n"1"]', lambda s: s.many("a", str, limit=2), "2: element 2 of 'a' repeats; drop it"),
        ("a = 1", lambda s: s.table("a"), "1: 'a' is a whole number; a table would be right"),
        ("a = [1]", lambda s: s.tables("a", limit=2), "1: 'a' is a whole number; a table would be right"),
        ("[[a]]\n[[a]]", lambda s: s.tables("a", limit=1), "1: 2 of [[a]]; 1 are possible"),
        ("[a]\nb = 1", lambda s: s.named("a", limit=1), "2: 'b' is a whole number; a table would be right"),
        ('[a]\n[a."b/c"]', lambda s: s.named("a", limit=1), "2: 'b/c' is no name; 1 to 64 letters, digits"),
        ("[a.b]\n[a.c]", lambda s: s.named("a", limit=1), "1: 2 of [a.NAME]; 1 are possible"),
        (
            "a = 1.0",
            lambda s: s.text_or_number("a", low=0, high=9),
            "1: 'a' is a number with a fraction; a whole number",
        ),
        ("a = -1", lambda s: s.text_or_number("a", low=0, high=9), "1: 'a' is out of range; 0 to 9 would be right"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_what_would_be_right(text, use, problem):
    (found,) = read(text, use)
    assert found.startswith(problem)


def test_a_list_with_a_wrong_element_is_none_and_all_its_problems_are_told():
    results = []
    problems = read('a = ["x",\n"1",\n"y"]', lambda s: results.append(s.many("a", int, limit=5)))
    assert results == [None]
    assert [problem[:2] for problem in problems] == ["1:", "3:"]


def test_problems_of_types_and_unknown_keys_never_repeat_a_value():
    (problem,) = read('secret = ["hunter2"]', lambda s: (s.text("secret"), s.close()))
    assert "hunter2" not in problem


def test_suggestions_name_the_nearest_or_all():
    assert suggest("conection", ["connection", "gateway"]) == "did you mean 'connection'?"
    assert suggest("x", ["b", "a"]) == "one of a, b would be right"
    assert one_of(Colour)("red") is Colour.RED
