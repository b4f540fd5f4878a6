"""Messages made from a schema's annotations, frames that are almost messages, and a second opinion on both."""

import dataclasses
import ipaddress
import types
import typing
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from enum import Enum
from random import Random
from typing import Annotated, Any

import msgpack

from privsep.algorithms import ChildSuite, EspCipher, Group, Hash, IkeCipher, IkeSuite, Integrity
from privsep.iana import IdType, ProtocolId
from privsep.schema.codec import MAX_FRAME, MAX_ITEMS, Length, Range
from privsep.types import Endpoint, Identity, TrafficSelector

REMEMBERED = 24
"""Values of one field name that are used again."""
USUAL_LENGTH = 200
"""Octets; longer values, up to the field's bound, come rarely."""


class Generator:
    """Values for fields: what was configured (`sane`), what was heard (`learn`), bounds, chance."""

    def __init__(self, random: Random, **sane: Iterable[Any]) -> None:
        self.random = random
        self.sane = {name: tuple(values) for name, values in sane.items()}
        self.heard: dict[str, deque[Any]] = defaultdict(lambda: deque(maxlen=REMEMBERED))

    def learn(self, message: Any) -> None:
        """Remember the fields under their names: a reply's `ike` is a request's `ike`."""
        for field in dataclasses.fields(message):
            self.heard[field.name].append(getattr(message, field.name))

    def message(self, kind: type, oddity: float, **fixed: Any) -> Any:
        """A message within its declared bounds; each field is an odd one with that probability."""
        return kind(
            **{
                name: fixed[name]
                if name in fixed and self.random.random() >= oddity
                else self.field(name, hint, oddity)
                for name, hint in _hints(kind).items()
            }
        )

    def deviate(self, message: Any) -> Any:
        """The same message but for one field."""
        hints = _hints(type(message))
        if not hints:
            return message
        name = self.random.choice(list(hints))
        return dataclasses.replace(message, **{name: self.field(name, hints[name], 0.5)})

    def field(self, name: str, hint: Any, oddity: float) -> Any:
        """Sane or heard before; odd ones are bent or arbitrary."""
        odd = self.random.random() < oddity
        if name in self.sane and not odd:
            value = self.random.choice(self.sane[name])
        elif self.heard[name] and self.random.random() < (0.4 if odd else 0.9):
            value = self.random.choice(self.heard[name])
            value = self._bent(value, hint) if odd else value
        else:
            return self.arbitrary(hint)
        # a name can mean different things in two messages
        return value if conforms(value, hint) else self.arbitrary(hint)

    def _bent(self, value: Any, hint: Any) -> Any:
        """The same octets with one bit, one octet more or one less, if the bounds admit that."""
        if type(value) is not bytes or not value:
            return self.arbitrary(hint)
        where = self.random.randrange(len(value))
        return self.random.choice(
            (
                value[:where] + bytes((value[where] ^ 1 << self.random.randrange(8),)) + value[where + 1 :],
                value[:where],
                value + b"\x00",
                bytes(len(value)),
            )
        )

    def arbitrary(self, hint: Any) -> Any:
        """Any value that the annotation admits, bounds first."""
        random = self.random
        hint, bounds = _bounded(hint)
        arms = _arms(hint)
        if len(arms) > 1:
            return self.arbitrary(random.choice(arms))
        if hint is types.NoneType:
            return None
        if isinstance(bounds, Range):
            return random.choice((bounds.low, bounds.high, bounds.low + 1, random.randint(bounds.low, bounds.high)))
        if isinstance(bounds, Length):
            return self._sized(hint, bounds)
        if hint is bool:
            return random.random() < 0.5
        if isinstance(hint, type) and issubclass(hint, Enum):
            return random.choice(list(hint))
        maker = getattr(self, f"_{hint.__name__}", None)
        if maker is not None:
            return maker()
        return hint(**{name: self.arbitrary(inner) for name, inner in _hints(hint).items()})

    def _sized(self, hint: Any, bounds: Length) -> Any:
        random = self.random
        usual = max(bounds.low, min(bounds.high, 4 if typing.get_origin(hint) is tuple else USUAL_LENGTH))
        longest = bounds.high if random.random() < 0.02 else usual
        length = random.choice((bounds.low, longest, random.randint(bounds.low, longest)))
        if hint is bytes:
            return random.choice((bytes(length), b"\xff" * length, random.randbytes(length)))
        if hint is str:
            return "".join(random.choice("aZ09-_. ~") for _ in range(length))
        return tuple(self.arbitrary(typing.get_args(hint)[0]) for _ in range(length))

    def _IPv4Address(self) -> ipaddress.IPv4Address:  # noqa: N802 - named after the type
        return ipaddress.IPv4Address(self.random.choice((0, 2**32 - 1, 0xE0000001, self.random.getrandbits(32))))

    def _IPv6Address(self) -> ipaddress.IPv6Address:  # noqa: N802
        return ipaddress.IPv6Address(self.random.choice((0, 2**128 - 1, self.random.getrandbits(128))))

    def _Endpoint(self) -> Endpoint:  # noqa: N802
        return Endpoint(self._address(), self.random.choice((0, 500, 4500, 65535)))

    def _address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        return self.random.choice((self._IPv4Address, self._IPv6Address))()

    def _TrafficSelector(self) -> TrafficSelector:  # noqa: N802
        random, address = self.random, self._address()
        prefix = random.choice((0, 1, address.max_prefixlen, random.randint(0, address.max_prefixlen)))
        network = ipaddress.ip_network((address, prefix), strict=False)
        return TrafficSelector(network, random.choice((0, 6, 17, 255)), random.choice((0, 22, 65535)))

    def _Identity(self) -> Identity:  # noqa: N802
        kind = self.random.choice(list(IdType))
        length = {IdType.IPV4_ADDR: 4, IdType.IPV6_ADDR: 16}.get(kind, self.random.choice((1, 20, 1024)))
        return Identity(kind, self.random.randbytes(length))

    def _IkeSuite(self) -> IkeSuite:  # noqa: N802
        return IkeSuite(*(self.random.choice(list(part)) for part in (IkeCipher, Hash, Group)))

    def _ChildSuite(self) -> ChildSuite:  # noqa: N802
        cipher = self.random.choice(list(EspCipher))
        group = self.random.choice((None, *Group))
        return ChildSuite(ProtocolId.ESP, cipher, None if cipher.icv else self.random.choice(list(Integrity)), group)


def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _bounded(hint: Any) -> tuple[Any, Any]:
    return typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint, None)


def _arms(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation promises; what the codec let through is looked at again with this."""
    hint, bounds = _bounded(hint)
    arms = _arms(hint)
    if len(arms) > 1:
        return any(conforms(value, arm) for arm in arms)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        right = type(value) is tuple and all(conforms(each, item) for each in value)
    else:
        right = type(value) is hint
    if not right:
        return False
    if isinstance(bounds, Range):
        return bool(bounds.low <= value <= bounds.high)
    if isinstance(bounds, Length):
        text = hint is not str or all(0x20 <= ord(each) < 0x7F for each in value)
        return text and bounds.low <= len(value) <= bounds.high
    if hint is Endpoint:
        return 0 <= value.port <= 0xFFFF
    if dataclasses.is_dataclass(hint) and hint.__module__.startswith("privsep.schema"):
        return all(conforms(getattr(value, name), inner) for name, inner in _hints(hint).items())
    return True


def well_formed(message: Any) -> bool:
    """Whether each field of a decoded message keeps its annotation."""
    return conforms(message, type(message))


# frames

BOMBS: tuple[bytes, ...] = (
    b"",
    b"\xc1",
    b"\xc0",
    b"\x90",
    b"\x80",
    b"\x91" * 600 + b"\x00",
    b"\x91" * 60000 + b"\x00",
    b"\x92\x01\x01" * 2,
    b"\x94\x0e\x01" + b"\x91" * 5000,
    b"\x94\x0e\x01" + b"\x81\x01" * 5000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdc\xff\xff" + b"\xdc\xff\xff" * 9000,
    b"\x93\x0e\x01\xc6\xff\xff\xff\xff",
    b"\x93\x0e\x01\xdb\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\x93\x0e\x01\xde\x00\x01\x01\x01",
    b"\x93\x0e\x01\xc9\xff\xff\xff\xff\x05",
    b"\x93\x0e\x01\xd6\xff" + bytes(4),
    b"\x93\x0e\x01\xc7\x0c\xff" + bytes(12),
    b"\x93\x0e\x01\xd8\x00" + bytes(16),
    b"\xdc" + (MAX_ITEMS + 1).to_bytes(2, "big") + b"\x01" * (MAX_ITEMS + 1),
    bytes(MAX_FRAME),
    bytes(MAX_FRAME + 1),
    b"\x93\x0e\x01\xd9\x10" + b"\xff" * 16,
)

_FOREIGN: tuple[Any, ...] = (
    True,
    False,
    None,
    0,
    1,
    -1,
    2**64 - 1,
    -(2**63),
    1.0,
    float("nan"),
    float("inf"),
    "",
    "0" * 16,
    "\x00",
    "\u202e",
    b"",
    bytes(16),
    bytes(5000),
    [],
    [[[[]]]],
    [0] * 600,
    {},
    {0: 0},
    msgpack.ExtType(1, b"x"),
)


def spoilt(random: Random, frame: bytes) -> bytes:
    """A frame that was one message and may not be any more."""
    return random.choice((_flipped, _cut, _longer, _restructured, _restructured, _resized, _bomb, _fat))(random, frame)


def _flipped(random: Random, frame: bytes) -> bytes:
    changed = bytearray(frame)
    for _ in range(random.choice((1, 1, 2, 8))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(random: Random, frame: bytes) -> bytes:
    return frame[: random.randrange(len(frame))]


def _longer(random: Random, frame: bytes) -> bytes:
    return frame + random.choice((b"\x00", b"\xc0", frame, random.randbytes(3)))


def _bomb(random: Random, frame: bytes) -> bytes:
    return random.choice(BOMBS)


def _restructured(random: Random, frame: bytes) -> bytes:
    """One place of the value is foreign, missing or there twice."""
    tree = msgpack.unpackb(frame, raw=False)
    parent = tree
    while True:
        where = random.randrange(len(parent))
        if type(parent[where]) is list and parent[where] and random.random() < 0.7:
            parent = parent[where]
            continue
        break
    match random.randrange(4):
        case 0:
            del parent[where]
        case 1:
            parent.insert(where, parent[where])
        case _:
            parent[where] = random.choice(_FOREIGN)
    return msgpack.packb(tree, use_bin_type=True)


def _resized(random: Random, frame: bytes) -> bytes:
    """One text, octet string or list is empty, or a little shorter or longer than it was, or very much longer."""
    tree = msgpack.unpackb(frame, raw=False)
    places = list(_sized_places(tree))
    if not places:
        return _longer(random, frame)
    parent, where = random.choice(places)
    value = parent[where]
    parent[where] = random.choice((value[:0], value[:-1], value + value[-1:], value * 70))
    return msgpack.packb(tree, use_bin_type=True)


def _sized_places(tree: list[Any]) -> Iterator[tuple[list[Any], int]]:
    """Where something stands that has a length, at any depth."""
    for where, value in enumerate(tree):
        if type(value) in (str, bytes, list):
            yield tree, where
        if type(value) is list:
            yield from _sized_places(value)


def _fat(random: Random, frame: bytes) -> bytes:
    return fat(msgpack.unpackb(frame, raw=False))


def fat(value: Any) -> bytes:
    """The same value in msgpack's longest spelling."""
    match value:
        case list():
            return b"\xdd" + len(value).to_bytes(4, "big") + b"".join(map(fat, value))
        case bytes():
            return b"\xc6" + len(value).to_bytes(4, "big") + value
        case str():
            return b"\xdb" + len(value.encode()).to_bytes(4, "big") + value.encode()
        case int() if type(value) is int and value >= 0:
            return b"\xcf" + value.to_bytes(8, "big")
        case _:
            return msgpack.packb(value)
