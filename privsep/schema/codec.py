"""Typed messages between our processes: one msgpack array a frame, decoded within limits, then checked field by field.

A message is a frozen dataclass whose fields' annotations say everything: exact type, range, length. Both ends are built
from it, so there is nothing to keep in step. A `Table` gives each message of one direction a number; what is not in the
table cannot be said. A frame is the array ``[operation, sequence, field, ...]`` in the order of the declaration:
positional, so there are no keys to repeat or to confuse.
"""

import dataclasses
import functools
import ipaddress
import types
import typing
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Annotated, Any, Generic, TypeVar

import msgpack

from privsep.algorithms import ChildSuite, IkeSuite
from privsep.errors import Violation
from privsep.iana import IdType, ProtocolId
from privsep.types import HANDLE_OCTETS, MAX_CPI, MIN_CPI, Endpoint, Identity, TrafficSelector

MAX_FRAME = 65536
"""Octets; a sealed IKE message of UDP's largest size still fits."""
MAX_ITEMS = 512
"""Elements of one array, at any depth."""
MAX_SEQUENCE = 2**53
MAX_CACHED = 1024
"""Decoded values of one kind that are kept."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of an int, both included."""

    low: int
    high: int


@dataclasses.dataclass(frozen=True)
class Length:
    """Bounds of the length of bytes, str (characters) or a tuple, both included."""

    low: int
    high: int


U8 = Annotated[int, Range(0, 0xFF)]
U16 = Annotated[int, Range(0, 0xFFFF)]
U32 = Annotated[int, Range(0, 0xFFFFFFFF)]
U63 = Annotated[int, Range(0, 2**63 - 1)]
Name = Annotated[str, Length(1, 64)]
"""A connection's or child's name."""
OptionalName = Annotated[str, Length(0, 64)]
MAX_TEXT = 1024
Text = Annotated[str, Length(0, MAX_TEXT)]
"""A line for people: printable, no control characters (checked)."""
CookieField = Annotated[bytes, Length(8, 8)]
Handle = Annotated[bytes, Length(HANDLE_OCTETS, HANDLE_OCTETS)]
Blob = Annotated[bytes, Length(0, 60000)]
"""A payload chain or a sealed body."""
Unsealed = Annotated[bytes, Length(0, 28000)]
"""What is to be sealed: two of them, and what keyd puts beside them, are a `Blob` still."""
NonceField = Annotated[bytes, Length(8, 256)]
"""RFC 2409 section 5: the length of the nonce is between 8 and 256 octets."""
PublicValue = Annotated[bytes, Length(1, 1024)]
SpiField = Annotated[int, Range(256, 0xFFFFFFFF)]
"""RFC 4303 section 2.1 reserves 0 to 255."""
CpiField = Annotated[int, Range(MIN_CPI, MAX_CPI)]
"""Those that are negotiated."""

_Encode = Callable[[Any], Any]
_Decode = Callable[[Any], Any]


class SchemaError(Violation):
    """A frame that is not one message of the table. The text names the field, never its value."""


M = TypeVar("M")


@dataclasses.dataclass(frozen=True)
class _Layout:
    fields: tuple[tuple[str, _Encode, _Decode], ...]
    make: Callable[..., Any]


class Table(Generic[M]):
    """The messages of one direction of one channel, numbered. Built once, at import."""

    def __init__(self, messages: dict[int, type[Any]]) -> None:
        """`messages` maps operation numbers to dataclasses; TypeError for a field type that has no codec."""
        self._by_number = {number: _layout(message) for number, message in messages.items()}
        self._by_type = {message: (number, self._by_number[number]) for number, message in messages.items()}

    def encode(self, message: M, sequence: int) -> bytes:
        """The frame of a message; Violation if we ourselves break a bound."""
        number, layout = self._by_type[type(message)]
        frame = [number, sequence]
        for name, encode, _ in layout.fields:
            frame.append(encode(getattr(message, name)))
        data: bytes = msgpack.packb(frame, use_bin_type=True)
        if len(data) > MAX_FRAME:
            raise SchemaError("frame too long")
        return data

    def decode(self, frame: bytes) -> tuple[M, int]:
        """The message and its sequence number; SchemaError for anything but one canonical message of this table."""
        if len(frame) > MAX_FRAME:
            raise SchemaError("frame too long")
        try:
            values = msgpack.unpackb(
                frame,
                raw=False,
                use_list=False,
                strict_map_key=True,
                ext_hook=_no_extension,
                max_str_len=1024,
                max_bin_len=MAX_FRAME,
                max_array_len=MAX_ITEMS,
                max_map_len=0,
                max_ext_len=0,
            )
        except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
            raise SchemaError("not one msgpack value within limits") from error
        if type(values) is not tuple or len(values) < 2:
            raise SchemaError("not an array")
        number, sequence, *fields = values
        if type(number) is not int or type(sequence) is not int or not 0 <= sequence <= MAX_SEQUENCE:
            raise SchemaError("operation or sequence is not a number")
        layout = self._by_number.get(number)
        if layout is None:
            raise SchemaError("no such operation on this channel")
        if len(fields) != len(layout.fields):
            raise SchemaError("wrong number of fields")
        decoded = {}
        for (name, _, decode), value in zip(layout.fields, fields, strict=True):
            try:
                decoded[name] = decode(value)
            except (ValueError, TypeError, KeyError) as error:
                raise SchemaError(f"field {name} is out of bounds") from error
        return layout.make(**decoded), sequence


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError("extension types are refused")


def _layout(message: type[Any]) -> _Layout:
    hints = typing.get_type_hints(message, include_extras=True)
    return _Layout(
        tuple((field.name, *_field_codec(hints[field.name])) for field in dataclasses.fields(message)), message
    )


def _field_codec(hint: Any) -> tuple[_Encode, _Decode]:
    """Encoder and decoder of one annotation."""
    bounds: Any = None
    if typing.get_origin(hint) is Annotated:
        hint, bounds = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        inner = [arm for arm in typing.get_args(hint) if arm is not types.NoneType]
        if len(inner) == 1:
            return _optional(*_field_codec(inner[0]))
        if set(inner) == {ipaddress.IPv4Address, ipaddress.IPv6Address}:
            return _packed, _unpacked
    if origin is tuple:
        item, _ = typing.get_args(hint)
        if not isinstance(bounds, Length):
            raise TypeError("a tuple needs a Length")
        return _sequence(bounds, *_field_codec(item))
    if hint is bool:
        return _identity, _exactly(bool)
    if hint is int and isinstance(bounds, Range):
        return _identity, _integer(bounds)
    if hint is bytes and isinstance(bounds, Length):
        return _identity, _sized(bytes, bounds)
    if hint is str and isinstance(bounds, Length):
        return _identity, _printable(bounds)
    if hint in _VALUES:
        return _VALUES[hint]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint)
    if dataclasses.is_dataclass(hint):
        return _nested(_layout(typing.cast(type, hint)))
    raise TypeError(f"no codec for {hint!r}; every field needs its bounds")


def _identity(value: Any) -> Any:
    return value


def _exactly(kind: type) -> _Decode:
    def decode(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError
        return value

    return decode


def _integer(bounds: Range) -> _Decode:
    low, high = bounds.low, bounds.high

    def decode(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    return decode


def _sized(kind: type[bytes] | type[str] | type[tuple[Any, ...]], bounds: Length) -> _Decode:
    low, high = bounds.low, bounds.high

    def decode(value: Any) -> Any:
        if type(value) is not kind or not low <= len(value) <= high:
            raise ValueError
        return value

    return decode


def _printable(bounds: Length) -> _Decode:
    sized = _sized(str, bounds)

    def decode(value: Any) -> str:
        text: str = sized(value)
        if not text.isascii() or not text.isprintable():
            raise ValueError
        return text

    return decode


def _optional(encode: _Encode, decode: _Decode) -> tuple[_Encode, _Decode]:
    return (
        lambda value: None if value is None else encode(value),
        lambda value: None if value is None else decode(value),
    )


def _sequence(bounds: Length, encode: _Encode, decode: _Decode) -> tuple[_Encode, _Decode]:
    sized = _sized(tuple, bounds)

    def decode_all(value: Any) -> tuple[Any, ...]:
        return tuple(map(decode, sized(value)))

    def encode_all(value: Iterable[Any]) -> list[Any]:
        return list(map(encode, value))

    return encode_all, decode_all


def _enum(kind: type[Enum]) -> tuple[_Encode, _Decode]:
    """Enums go by name; members are looked up in a table, so no foreign text ever reaches a constructor."""
    members = dict(kind.__members__)

    def decode(value: Any) -> Any:
        if type(value) is not str:
            raise ValueError
        return members[value]

    return (lambda value: value.name), decode


def _nested(layout: _Layout) -> tuple[_Encode, _Decode]:
    def encode(value: Any) -> list[Any]:
        return [field_encode(getattr(value, name)) for name, field_encode, _ in layout.fields]

    def decode(value: Any) -> Any:
        if type(value) is not tuple or len(value) != len(layout.fields):
            raise ValueError
        return layout.make(**{name: field(item) for (name, _, field), item in zip(layout.fields, value, strict=True)})

    return encode, decode


# the same few addresses, networks and suites come in every handshake; none of them can be changed
_address = functools.lru_cache(MAX_CACHED)(ipaddress.ip_address)
_network = functools.lru_cache(MAX_CACHED)(ipaddress.ip_network)
_ike_suite = functools.lru_cache(MAX_CACHED)(IkeSuite.parse)
_child_suite = functools.lru_cache(MAX_CACHED)(ChildSuite.parse)


def _packed(address: Any) -> bytes:
    packed: bytes = address.packed
    return packed


def _unpacked(value: Any) -> Any:
    if type(value) is not bytes or len(value) not in (4, 16):
        raise ValueError
    return _address(value)


def _decode_endpoint(value: Any) -> Endpoint:
    if type(value) is not tuple or len(value) != 2:
        raise ValueError
    return Endpoint(_unpacked(value[0]), _PORT(value[1]))


def _decode_selector(value: Any) -> TrafficSelector:
    if type(value) is not tuple or len(value) != 4:
        raise ValueError
    packed, prefix, protocol, port = value
    if type(packed) is not bytes or len(packed) not in (4, 16):
        raise ValueError
    if type(prefix) is not int or not 0 <= prefix <= 128:
        raise ValueError
    # strict: host bits beyond the prefix are an error
    return TrafficSelector(_network((packed, prefix)), _OCTET(protocol), _PORT(port))


def _decode_identity(value: Any) -> Identity:
    if type(value) is not tuple or len(value) != 2:
        raise ValueError
    kind, data = value
    if type(data) is not bytes or not 1 <= len(data) <= 1024:
        raise ValueError
    identity = Identity(IdType(_OCTET(kind)), data)
    if _ADDRESS_OCTETS.get(identity.type, len(data)) != len(data):
        raise ValueError
    return identity


def _decode_ike_suite(value: Any) -> IkeSuite:
    if type(value) is not str or len(value) > 64:
        raise ValueError
    return _ike_suite(value)


def _decode_child_suite(value: Any) -> ChildSuite:
    if type(value) is not tuple or len(value) != 2:
        raise ValueError
    protocol, text = value
    if type(text) is not str or len(text) > 64:
        raise ValueError
    return _child_suite(text, _CHILD_PROTOCOLS[_OCTET(protocol)])


_CHILD_PROTOCOLS = {int(protocol): protocol for protocol in (ProtocolId.AH, ProtocolId.ESP)}
_ADDRESS_OCTETS = {IdType.IPV4_ADDR: 4, IdType.IPV6_ADDR: 16}
_PORT = _integer(Range(0, 0xFFFF))
_OCTET = _integer(Range(0, 0xFF))

_VALUES: dict[Any, tuple[_Encode, _Decode]] = {
    Endpoint: (lambda value: [value.address.packed, value.port], _decode_endpoint),
    TrafficSelector: (
        lambda value: [
            value.network.network_address.packed,
            value.network.prefixlen,
            value.protocol,
            value.port,
        ],
        _decode_selector,
    ),
    Identity: (lambda value: [int(value.type), value.data], _decode_identity),
    IkeSuite: (str, _decode_ike_suite),
    ChildSuite: (lambda suite: [int(suite.protocol), str(suite)], _decode_child_suite),
}
