"""TOML with line numbers: the standard library parses, a second walk over the valid text finds where each key stands.

`tomllib` forgets lines, and a problem without its line is half a message. The walk knows only as much of TOML's grammar
as it needs to tell keys, brackets and strings apart in text that `tomllib` has already accepted.
"""

import re
import tomllib
from functools import cached_property
from typing import Any, Self

from privsep.config.problems import ConfigError, Problem, quote

MAX_SIZE = 4 << 20
"""Characters; ten thousand connections fit."""
MAX_LINE = 4096
"""Characters; also keeps integers below the size that Python refuses to convert."""
MAX_DEPTH = 16
"""Parts of a path; real ones have six."""

Path = tuple[str | int, ...]
"""Keys, and indexes into arrays: ("psk", 0, "ids", 1)."""

_TOKEN = re.compile(
    r"""
      (?P<blank> [ \t\r]+ | \#[^\n]* )
    | (?P<string>
          \"{3} (?: [^"\\] | \\. | "{1,2}(?!") )*+ "{3,5}
        | '{3} (?: [^'] | '{1,2}(?!') )*+ '{3,5}
        | " (?: [^"\\\n] | \\. )*+ "
        | ' [^'\n]*+ '
      )
    | (?P<mark> [\[\]{}=,.\n] )
    | (?P<bare> [^\s\[\]{}=,."'\#]+ )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_AT_LINE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_TWICE = ("Cannot overwrite", "Cannot declare", "Cannot redefine", "Cannot mutate", "Duplicate inline table key")
"""How `tomllib` begins to say that a key is there already."""
_END = ""


class Document:
    """A parsed file: `data`, and the line of everything in it, which is looked for when somebody asks."""

    def __init__(self, filename: str, data: dict[str, Any], text: str) -> None:
        self.filename = filename
        self.data = data
        self._text = text

    @cached_property
    def _lines(self) -> dict[Path, int]:
        return _Walk(self._text, self.filename).lines

    @classmethod
    def parse(cls, text: str, filename: str) -> Self:
        """ConfigError with its line for whatever is no TOML document within limits."""
        _check_size(text, filename)
        try:
            data = tomllib.loads(text)
        except RecursionError:
            raise _error(filename, 1, f"brackets nest too deep; {MAX_DEPTH} levels are enough") from None
        except ValueError as error:
            found = _AT_LINE.search(str(error))
            reason = str(error)[: found.start()] if found else str(error)
            line = int(found[1]) if found and found[1] else text.count("\n", 0, len(text.rstrip())) + 1
            twice = _given_twice(text, line) if reason.startswith(_TWICE) else None
            raise _error(filename, line, twice or f"{reason}; this is not TOML") from None
        document = cls(filename, data, text)
        if _is_deeper(data, MAX_DEPTH):
            # the walk says where
            document.line_of(())
        return document

    @staticmethod
    def decode(octets: bytes, filename: str) -> str:
        """A file's text; TOML is UTF-8."""
        try:
            return octets.decode()
        except UnicodeDecodeError as error:
            line = octets.count(b"\n", 0, error.start) + 1
            raise _error(filename, line, "an octet that is not UTF-8; TOML files are UTF-8") from None

    def line_of(self, path: Path) -> int:
        """The line of a key, a table's header or an array's element, or of the nearest that encloses it."""
        lines = self._lines
        for length in range(len(path), 0, -1):
            if (line := lines.get(path[:length])) is not None:
                return line
        return 1


def _error(filename: str, line: int, text: str) -> ConfigError:
    return ConfigError(filename, [Problem(line, text)])


def _is_deeper(value: object, depth: int) -> bool:
    """Whether paths into it have more parts."""
    if isinstance(value, dict):
        inside = list(value.values())
    elif isinstance(value, list):
        inside = value
    else:
        return False
    return bool(inside) and (not depth or any(_is_deeper(each, depth - 1) for each in inside))


def _check_size(text: str, filename: str) -> None:
    if len(text) > MAX_SIZE:
        raise _error(filename, 1, f"the file is too long; {MAX_SIZE} characters are enough")
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE:
            raise _error(filename, number, f"the line is too long; {MAX_LINE} characters are enough")


class _Walk:
    """Statement after statement over the tokens; `lines` fills up."""

    def __init__(self, text: str, filename: str) -> None:
        self.lines: dict[Path, int] = {}
        self.repeated: tuple[Path, int] | None = None
        """The first key or table that is given again, and the line where it was first. Not in valid text."""
        self._given: set[Path] = set()
        self._filename = filename
        self._counts: dict[Path, int] = {}
        """Elements so far of each array of tables."""
        self._tokens = _TOKEN.finditer(text)
        self._line = 1
        self._here = _END
        self._next()
        self._document()

    def _next(self) -> str:
        """Step to the next token that means something; returns the one left behind."""
        left = self._here
        self._line += left.count("\n")
        for match in self._tokens:
            if match.lastgroup != "blank":
                self._here = match[0]
                return left
        self._here = _END
        return left

    def _document(self) -> None:
        table: Path = ()
        while self._here != _END:
            if self._here == "\n":
                self._next()
            elif self._here == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        """``[a.b]`` or ``[[a.b]]``; in a path, an array of tables stands for its last element."""
        self._next()
        array = self._here == "["
        if array:
            self._next()
        line, parts = self._line, self._key()
        while self._here == "]":
            self._next()
        path: Path = ()
        for part in parts[:-1]:
            path = self._last(path + (part,))
            self._record(path, line, explicit=False)
        path += (parts[-1],)
        self._give(path, given=path in self._given and (not array or path not in self._counts))
        if not array:
            self._record(path, line, explicit=True)
            return path
        self._record(path, line, explicit=False)
        self._counts[path] = self._counts.get(path, 0) + 1
        path = self._last(path)
        self._record(path, line, explicit=True)
        return path

    def _last(self, path: Path) -> Path:
        return path + (self._counts[path] - 1,) if path in self._counts else path

    def _record(self, path: Path, line: int, *, explicit: bool) -> None:
        """A table's own header wins over the first mention of something inside it."""
        if len(path) > MAX_DEPTH:
            raise _error(self._filename, line, f"keys nest too deep; {MAX_DEPTH} levels are enough")
        if explicit:
            self.lines[path] = line
        else:
            self.lines.setdefault(path, line)

    def _give(self, path: Path, *, given: bool) -> None:
        """A path is about to get a value or a table of its own; `given` says that it has one."""
        if given and self.repeated is None:
            self.repeated = path, self.lines[path]
        self._given.add(path)

    def _key(self) -> list[str]:
        parts = [_unquote(self._next())]
        while self._here == ".":
            self._next()
            parts.append(_unquote(self._next()))
        return parts

    def _pair(self, table: Path) -> None:
        """``key.key = value``"""
        line, path = self._line, table
        parts = self._key()
        for part in parts[:-1]:
            path += (part,)
            self._record(path, line, explicit=False)
        path += (parts[-1],)
        self._give(path, given=path in self.lines)
        self._record(path, line, explicit=False)
        self._next()
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._here == "[":
            self._next()
            index = 0
            while self._skip_to_element("]"):
                self._record(path + (index,), self._line, explicit=True)
                self._value(path + (index,))
                index += 1
        elif self._here == "{":
            self._next()
            while self._skip_to_element("}"):
                self._pair(path)
        else:
            while self._here not in (",", "]", "}", "\n", _END):
                self._next()

    def _skip_to_element(self, close: str) -> bool:
        """Whether another element follows; otherwise the closing bracket is consumed."""
        while self._here in ("\n", ","):
            self._next()
        if self._here in (close, _END):
            self._next()
            return False
        return True


def _given_twice(text: str, line: int) -> str | None:
    """What is wrong at that line if a key is given there again; None where no earlier one is found.

    `tomllib` names the second place only. What it accepted before that can be walked over.
    """
    try:
        walk = _Walk("\n".join(text.split("\n")[:line]), "")
    except ValueError:
        return None
    if walk.repeated is None:
        return None
    path, first = walk.repeated
    return f"{quote('.'.join(map(str, path)))} is on line {first} already; one of the two would be right"


def _unquote(token: str) -> str:
    if token[:1] not in ("'", '"'):
        return token
    value: str = tomllib.loads(f"key = {token}")["key"]
    return value
