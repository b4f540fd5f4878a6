"""Wire formats, declared once: a dataclass's annotations are its layout, in order, in network byte order.

`Layout` serves records of fixed fields with at most one tail; `Reader` walks what has counts and nested parts. Both
consume everything: an octet too few or too many is a MalformedError (RFC 2408 section 5.1).
"""

import dataclasses
import operator
import struct
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from privsep.errors import MalformedError

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Field:
    """A fixed-length field in `struct`'s notation."""

    format: str


@dataclass(slots=True, frozen=True)
class Tail:
    """All remaining octets; `low` to `high` of them. Only the last field may be one."""

    low: int
    high: int


U8 = Annotated[int, Field("B")]
U16 = Annotated[int, Field("H")]
U32 = Annotated[int, Field("I")]


class Layout(Generic[T]):
    """Parser and encoder of one annotated dataclass; built once, at import. TypeError for what it cannot lay out."""

    def __init__(self, record: type[T]) -> None:
        hints = typing.get_type_hints(record, include_extras=True)
        self._names = tuple(field.name for field in dataclasses.fields(typing.cast(Any, record)))
        marks = [(typing.get_args(hints[name]) or (None,))[-1] for name in self._names]
        self._tail: Tail | None = marks.pop() if marks and isinstance(marks[-1], Tail) else None
        if not all(isinstance(mark, Field) for mark in marks):
            raise TypeError(f"{record.__name__}: a field has no layout, or a tail is not last")
        self._make = record
        self._struct = struct.Struct(">" + "".join(mark.format for mark in marks))
        # attrgetter of a single name gives the value itself, of several a tuple: ask for one more
        self._values = operator.attrgetter(*self._names, "__class__")
        self._what = record.__name__

    def parse(self, data: bytes) -> T:
        """The record that `data` is, all of it."""
        size = self._struct.size
        spare = len(data) - size
        low, high = (self._tail.low, self._tail.high) if self._tail is not None else (0, 0)
        if not low <= spare <= high:
            raise MalformedError(f"{self._what}: length is wrong")
        values: tuple[Any, ...] = self._struct.unpack_from(data)
        if self._tail is not None:
            values += (data[size:],)
        return self._make(**dict(zip(self._names, values, strict=True)))

    def encode(self, record: T) -> bytes:
        """The octets of a record of ours; struct.error if a field of it does not fit."""
        values = self._values(record)
        if self._tail is None:
            return self._struct.pack(*values[:-1])
        return self._struct.pack(*values[:-2]) + bytes(values[-2])


class Reader:
    """Walks octets once, forward."""

    __slots__ = ("_data", "_end", "_offset", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        """`what` names the structure in errors."""
        self._data = data
        self._offset = 0
        self._end = len(data)
        self._what = what

    @property
    def left(self) -> int:
        """Octets not read yet."""
        return self._end - self._offset

    def fields(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The next fixed fields."""
        start = self._offset
        if layout.size > self._end - start:
            raise MalformedError(f"{self._what}: cut off")
        self._offset = start + layout.size
        return layout.unpack_from(self._data, start)

    def take(self, count: int) -> bytes:
        """The next `count` octets."""
        start = self._offset
        if count > self._end - start:
            raise MalformedError(f"{self._what}: cut off")
        self._offset = start + count
        return self._data[start : self._offset]

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)

    def finish(self) -> None:
        """MalformedError unless everything was read."""
        if self._offset != self._end:
            raise MalformedError(f"{self._what}: octets are left over")
