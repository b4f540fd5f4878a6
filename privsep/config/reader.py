"""Strict reading of a TOML document: every key has one type, every key that nobody asked for is an error.

A getter that finds something wrong notes a problem with its line and goes on with the default, so that `finish` can
tell everything at once. Values are checked by functions that take text and raise ValueError ("what is wrong; what would
be right"). No getter ever repeats a value itself, because the same code reads secrets.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, TypeVar

from privsep.config.problems import ConfigError, Problem, quote
from privsep.config.toml_lines import Document, Path

MAX_NAME = 64
"""Characters of a connection's or child's name, as in `privsep.schema.codec.Name`."""
_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{MAX_NAME - 1}}}", re.ASCII)
_TYPES = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number with a fraction",
    list: "a list",
    dict: "a table",
}

T = TypeVar("T")
E = TypeVar("E", bound=Enum)


class Reader:
    """One document being read."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._problems: list[Problem] = []

    def root(self) -> "Section":
        """The document's top level."""
        return Section(self, (), self._document.data)

    def problem(self, path: Path, text: str) -> None:
        """Note what is wrong at that key; `text` says what would be right."""
        self._problems.append(Problem(self._document.line_of(path), text))

    def line_of(self, path: Path) -> int:
        """Where that key stands."""
        return self._document.line_of(path)

    @property
    def sound(self) -> bool:
        """Whether nothing wrong was found yet."""
        return not self._problems

    def finish(self) -> None:
        """ConfigError with every problem, if there is any."""
        if self._problems:
            raise ConfigError(self._document.filename, self._problems)


class Section:
    """One table. Ask for every key it may have, then `close` it."""

    def __init__(self, reader: Reader, path: Path, data: dict[str, Any]) -> None:
        self.path = path
        self._reader = reader
        self._data = data
        self._known: set[str] = set()

    def problem(self, key: str, text: str) -> None:
        """Note what is wrong with the key, or with the whole table if it does not have it."""
        self._reader.problem(self.path + (key,), text)

    def has(self, key: str) -> bool:
        """Whether the key is there. Makes it known."""
        self._known.add(key)
        return key in self._data

    def lacks(self, *keys: str) -> bool:
        """Whether all of them are missing or empty."""
        return not any(self._data.get(key) for key in keys)

    def close(self, *others: str) -> None:
        """Every key that no getter asked for is an error; `others` are keys that are read elsewhere."""
        known = self._known.union(others)
        for key in self._data:
            if key not in known:
                self.problem(key, f"unknown key {quote(key)}; {suggest(key, known)}")

    def text(self, key: str, right: str = "") -> str | None:
        """A text that must be there; `right` is an example. None, and a problem, if it is not."""
        return self.required(key, str, right)

    def optional(self, key: str, parse: Callable[[str], T], default: T) -> T:
        """A text that `parse` understands, or the default."""
        value = self._get(key, str)
        return default if value is None else self._parsed((key,), value, parse, default)

    def required(self, key: str, parse: Callable[[str], T], right: str) -> T | None:
        """A text that `parse` understands; None, and a problem, if it is missing or wrong."""
        if not self.has(key):
            self.problem(key, f"{quote(key)} is missing; add {right or key}")
            return None
        value = self._get(key, str)
        return None if value is None else self._parsed((key,), value, parse, None)

    def many(self, key: str, parse: Callable[[str], T], *, limit: int) -> tuple[T, ...] | None:
        """A list of different texts; None if it is missing or has a problem."""
        value = self._get(key, list)
        if value is None:
            return None
        if not 1 <= len(value) <= limit:
            self.problem(key, f"{quote(key)} has {len(value)} elements; 1 to {limit} would be right")
            return None
        found: list[T] = []
        for index, element in enumerate(value):
            if type(element) is not str:
                self._wrong_type((key, index), element, str)
            elif element in value[:index]:
                self._reader.problem(self.path + (key, index), f"element {index + 1} of {quote(key)} repeats; drop it")
            elif (one := self._parsed((key, index), element, parse, None)) is not None:
                found.append(one)
        return tuple(found) if len(found) == len(value) else None

    def choice(self, key: str, kind: type[E], default: E) -> E:
        """One of the enum's values."""
        return self.optional(key, one_of(kind), default)

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._get(key, bool)
        return default if value is None else value

    def number(self, key: str, default: int, *, low: int, high: int) -> int:
        """An integer between the bounds, both included."""
        value = self._get(key, int)
        if value is None:
            return default
        if not low <= value <= high:
            self.problem(key, f"{quote(key)} is out of range; {low} to {high} would be right")
            return default
        return value

    def text_or_number(self, key: str, *, low: int, high: int) -> str | int | None:
        """Either; a name that may be given by its number."""
        if type(self._data.get(key)) is not str:
            value = self.number(key, low - 1, low=low, high=high)
            return None if value < low else value
        return self._get(key, str)

    def table(self, key: str) -> "Section | None":
        """A table inside this one, if it is there."""
        value = self._get(key, dict)
        return None if value is None else Section(self._reader, self.path + (key,), value)

    def named(self, key: str, *, limit: int) -> "list[tuple[str, Section]]":
        """``[key.NAME]``: the tables of a table, with their names."""
        outer = self.table(key)
        if outer is None:
            return []
        if len(outer._data) > limit:
            self.problem(key, f"{len(outer._data)} of [{key}.NAME]; {limit} are possible")
            return []
        found = []
        for name in outer._data:
            if not _NAME.fullmatch(name):
                outer.problem(
                    name, f"{quote(name)} is no name; 1 to {MAX_NAME} letters, digits, '_', '-' or '.' would be right"
                )
            elif (section := outer.table(name)) is not None:
                found.append((name, section))
        return found

    def tables(self, key: str, *, limit: int) -> "list[Section]":
        """``[[key]]``: an array of tables."""
        value = self._get(key, list)
        if value is None:
            return []
        if len(value) > limit:
            self.problem(key, f"{len(value)} of [[{key}]]; {limit} are possible")
            return []
        found = []
        for index, element in enumerate(value):
            if type(element) is dict:
                found.append(Section(self._reader, self.path + (key, index), element))
            else:
                self._wrong_type((key, index), element, dict)
        return found

    def _get(self, key: str, kind: type[T]) -> T | None:
        """The value, if it is there and exactly of that type (true is no number)."""
        if not self.has(key):
            return None
        value = self._data[key]
        if type(value) is kind:
            return value
        self._wrong_type((key,), value, kind)
        return None

    def _wrong_type(self, path: Path, value: object, kind: type[object]) -> None:
        what, right = _TYPES.get(type(value), "a date or time"), _TYPES[kind]
        hint = ' in quotes, as in "..."' if kind is str and type(value) is not list else ""
        hint = ', as in ["..."]' if kind is list else hint
        self._reader.problem(self.path + path, f"{quote(str(path[0]))} is {what}; {right}{hint} would be right")

    def _parsed(self, path: Path, value: str, parse: Callable[[str], T], default: T) -> T:
        try:
            return parse(value)
        except ValueError as error:
            self._reader.problem(self.path + path, f"{path[0]}: {error}")
            return default


def one_of(kind: type[E], *others: str) -> Callable[[str], E]:
    """A parser of the enum's values; `others` are suggested but not parsed."""

    def parse(text: str) -> E:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(
                f"{quote(text)} is not known; {suggest(text, [*others, *(str(each.value) for each in kind)])}"
            ) from None

    return parse


def suggest(wrong: str, right: Iterable[str]) -> str:
    """What would be right: the nearest if one is near, else all of them."""
    known = sorted(right)
    near = difflib.get_close_matches(wrong[:MAX_NAME], known, n=1, cutoff=0.6)
    return f"did you mean {quote(near[0])}?" if near else f"one of {', '.join(known)} would be right"
