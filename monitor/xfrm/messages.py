"""XFRM's netlink messages as pyroute2 classes: <linux/xfrm.h>, field for field.

pyroute2 brings no XFRM. Its generic encoder walks the fields one by one and grows its buffer, which takes ten times as
long and leaves copies of keys in freed memory; so `encode` is our own: one precompiled struct for a message or
attribute, packed into a buffer that has its final length from the start. Decoding uses the same structs and is bounded.

Nested structs are flattened, `sel.daddr` for `sel` and `daddr`. Fields that are not given are zero. Byte strings are
in network order, integers in the host's, as the kernel has them.
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, ClassVar, Self

from pyroute2.netlink import nla, nlmsg

Fields = tuple[tuple[str, str], ...]
Values = dict[str, Any]
Attribute = tuple[str, Values]

HEADER_OCTETS = 16
ATTRIBUTE_OCTETS = 4


class Type(IntEnum):
    """XFRM_MSG_*. There is no FLUSH: nothing of ours removes what it did not install."""

    NEWSA = 0x10
    DELSA = 0x11
    GETSA = 0x12
    NEWPOLICY = 0x13
    DELPOLICY = 0x14
    GETPOLICY = 0x15
    ALLOCSPI = 0x16
    ACQUIRE = 0x17
    EXPIRE = 0x18
    UPDPOLICY = 0x19
    UPDSA = 0x1A
    POLEXPIRE = 0x1B


class Direction(IntEnum):
    """XFRM_POLICY_IN, _OUT, _FWD."""

    IN = 0
    OUT = 1
    FWD = 2


class KernelMode(IntEnum):
    """XFRM_MODE_TRANSPORT, _TUNNEL."""

    TRANSPORT = 0
    TUNNEL = 1


INFINITE = 0xFFFFFFFFFFFFFFFF
"""XFRM_INF: no limit."""
ESP = 50
"""IP protocol number (RFC 4303 section 2)."""
ALL_ALGORITHMS = 0xFFFFFFFF
"""A template that leaves the choice of algorithms to whoever installs the SA, which is us alone."""
STATE_AF_UNSPEC = 32
"""XFRM_STATE_AF_UNSPEC: the inner packets' family is not that of the outer addresses, or varies."""
UDP_ENCAP_ESPINUDP = 2
"""<linux/udp.h>, RFC 3948."""


def _within(prefix: str, fields: Fields) -> Fields:
    return tuple((f"{prefix}.{name}", layout) for name, layout in fields)


UNLIMITED: Values = {
    f"lft.{name}": INFINITE for name in ("soft_byte_limit", "hard_byte_limit", "soft_packet_limit", "hard_packet_limit")
}
"""Zero seconds are no limit, zero octets are one."""

# "_" is padding.
_SELECTOR: Fields = (
    ("daddr", "16s"),
    ("saddr", "16s"),
    ("dport", "2s"),
    ("dport_mask", "2s"),
    ("sport", "2s"),
    ("sport_mask", "2s"),
    ("family", "H"),
    ("prefixlen_d", "B"),
    ("prefixlen_s", "B"),
    ("proto", "B"),
    ("_", "3x"),
    ("ifindex", "i"),
    ("user", "I"),
)
_ID: Fields = (("daddr", "16s"), ("spi", "4s"), ("proto", "B"), ("_", "3x"))
_LIMITS: Fields = tuple(
    (name, "Q")
    for name in (
        "soft_byte_limit",
        "hard_byte_limit",
        "soft_packet_limit",
        "hard_packet_limit",
        "soft_add_expires_seconds",
        "hard_add_expires_seconds",
        "soft_use_expires_seconds",
        "hard_use_expires_seconds",
    )
)
_CURRENT: Fields = (("bytes", "Q"), ("packets", "Q"), ("add_time", "Q"), ("use_time", "Q"))
_STATS: Fields = (("replay_window", "I"), ("replay", "I"), ("integrity_failed", "I"))

_USERSA_INFO: Fields = (
    *_within("sel", _SELECTOR),
    *_within("id", _ID),
    ("saddr", "16s"),
    *_within("lft", _LIMITS),
    *_within("curlft", _CURRENT),
    *_within("stats", _STATS),
    ("seq", "I"),
    ("reqid", "I"),
    ("family", "H"),
    ("mode", "B"),
    ("replay_window", "B"),
    ("flags", "B"),
    ("_", "7x"),
)
_USERPOLICY_INFO: Fields = (
    *_within("sel", _SELECTOR),
    *_within("lft", _LIMITS),
    *_within("curlft", _CURRENT),
    ("priority", "I"),
    ("index", "I"),
    ("dir", "B"),
    ("action", "B"),
    ("flags", "B"),
    ("share", "B"),
    ("_", "4x"),
)


class Record:
    """What messages and attributes have in common: a struct, of which `tail` names the octets of variable length."""

    fields: ClassVar[Fields] = ()
    tail: ClassVar[str] = ""
    layout: ClassVar[struct.Struct] = struct.Struct("")
    slots: ClassVar[tuple[tuple[str, bytes | int], ...]] = ()
    """Name and default of each field that is no padding."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.layout = struct.Struct("=" + "".join(layout for _, layout in cls.fields))
        cls.slots = tuple(
            (name, b"" if layout.endswith("s") else 0) for name, layout in cls.fields if not layout.endswith("x")
        )

    @classmethod
    def octets(cls, values: Values) -> int:
        """How long `write` will be."""
        return cls.layout.size + (len(values[cls.tail]) if cls.tail else 0)

    @classmethod
    def write(cls, data: bytearray, offset: int, values: Values) -> None:
        """Pack the values into place; keys go from their owner into the message, with no copy between."""
        # nlmsg is a dict whose own `get` is slow
        cls.layout.pack_into(data, offset, *[dict.get(values, name, default) for name, default in cls.slots])
        if cls.tail:
            start = offset + cls.layout.size
            data[start : start + len(values[cls.tail])] = values[cls.tail]

    @classmethod
    def read(cls, data: bytes | bytearray | memoryview, offset: int) -> dict[str, Any]:
        """The fixed fields by name; struct.error if the data end before."""
        return {name: value for (name, _), value in zip(cls.slots, cls.layout.unpack_from(data, offset), strict=True)}


class _Attribute(Record, nla):  # type: ignore[misc] # pyroute2 has no types
    """A netlink attribute whose value is one struct."""

    def ft_decode(self, offset: int) -> None:
        """pyroute2's hook for the fields."""
        self.update(self.read(self.data, offset))
        del self["attrs"]


class Template(_Attribute):
    """struct xfrm_user_tmpl. XFRMA_TMPL is an array of these; our policies have one."""

    fields = (
        *_within("id", _ID),
        ("family", "H"),
        ("_", "2x"),
        ("saddr", "16s"),
        ("reqid", "I"),
        ("mode", "B"),
        ("share", "B"),
        ("optional", "B"),
        ("_", "1x"),
        ("aalgos", "I"),
        ("ealgos", "I"),
        ("calgos", "I"),
    )


class Crypt(_Attribute):
    """struct xfrm_algo: a cipher."""

    fields = (("name", "64s"), ("key_len", "I"))
    tail = "key"


class AuthTrunc(_Attribute):
    """struct xfrm_algo_auth: an integrity algorithm and how much of its output is sent."""

    fields = (("name", "64s"), ("key_len", "I"), ("trunc_len", "I"))
    tail = "key"


class Aead(_Attribute):
    """struct xfrm_algo_aead: a combined-mode cipher; its key ends with the salt (RFC 4106 section 8.1)."""

    fields = (("name", "64s"), ("key_len", "I"), ("icv_len", "I"))
    tail = "key"


class EncapTemplate(_Attribute):
    """struct xfrm_encap_tmpl: the UDP header around ESP (RFC 3948)."""

    fields = (("type", "H"), ("sport", "2s"), ("dport", "2s"), ("_", "2x"), ("oa", "16s"))


class ReplayState(_Attribute):
    """struct xfrm_replay_state_esn without its bitmap, which is then empty.

    Without XFRM_STATE_ESN this is a plain window of sequence numbers, but one that may be wider than 32 packets.
    """

    fields = (
        ("bmp_len", "I"),
        ("oseq", "I"),
        ("seq", "I"),
        ("oseq_hi", "I"),
        ("seq_hi", "I"),
        ("replay_window", "I"),
    )


ATTRIBUTES: dict[str, tuple[int, type[_Attribute]]] = {
    "XFRMA_ALG_CRYPT": (2, Crypt),
    "XFRMA_ENCAP": (4, EncapTemplate),
    "XFRMA_TMPL": (5, Template),
    "XFRMA_ALG_AEAD": (18, Aead),
    "XFRMA_ALG_AUTH_TRUNC": (20, AuthTrunc),
    "XFRMA_REPLAY_ESN_VAL": (23, ReplayState),
}
"""XFRMA_*: number and struct of those that we use."""
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE_HEADER = struct.Struct("=HH")


class Message(Record, nlmsg):  # type: ignore[misc] # pyroute2 has no types
    """A netlink message: header, one struct, attributes."""

    kind: ClassVar[Type]

    @classmethod
    def request(cls, flags: int, values: Values, attributes: Iterable[Attribute] = ()) -> Self:
        """A message to the kernel."""
        message = cls()
        message["header"] = {"type": cls.kind, "flags": flags, "sequence_number": 0, "pid": 0}
        message.update(values)
        message["attrs"] = list(attributes)
        return message

    def __repr__(self) -> str:
        """Never the fields: pyroute2 logs messages, and some have keys."""
        return f"<{type(self).__name__}>"

    def encode(self) -> None:
        """Into `data`, which is the only place where a key is copied to. Overrides pyroute2's (see above)."""
        attributes = [(*ATTRIBUTES[name], values) for name, values in self["attrs"]]
        start = HEADER_OCTETS + self.layout.size
        length = start + sum(_aligned(ATTRIBUTE_OCTETS + record.octets(values)) for _, record, values in attributes)
        self.data = bytearray(length)
        header = self["header"]
        _HEADER.pack_into(
            self.data, 0, length, header["type"], header["flags"], header["sequence_number"], header["pid"]
        )
        self.write(self.data, HEADER_OCTETS, self)
        for number, record, values in attributes:
            octets = ATTRIBUTE_OCTETS + record.octets(values)
            _ATTRIBUTE_HEADER.pack_into(self.data, start, octets, number)
            record.write(self.data, start + ATTRIBUTE_OCTETS, values)
            start += _aligned(octets)

    def wipe(self) -> None:
        """Overwrite what was encoded."""
        self.data[:] = bytes(len(self.data))

    def ft_decode(self, offset: int) -> None:
        """pyroute2's hook: the fields and, for classes with a `nla_map`, the attributes."""
        self.update(self.read(self.data, offset))
        if self.nla_map:
            self.decode_nlas(offset + self.layout.size)
            for attribute in self["attrs"]:
                # pyroute2 would decode when somebody looks, but by then the buffer is wiped
                attribute.try_to_decode()
        else:
            del self["attrs"]


def _aligned(octets: int) -> int:
    return (octets + 3) & ~3


class _WithAttributes(Message):
    """A message whose attributes are decoded too. pyroute2 looks their classes up by name."""

    nla_map = tuple((number, name, record.__name__) for name, (number, record) in ATTRIBUTES.items())


for _, _record in ATTRIBUTES.values():
    setattr(_WithAttributes, _record.__name__, _record)


class NewSa(_WithAttributes):
    """A new SA: struct xfrm_usersa_info and its algorithms."""

    kind = Type.NEWSA
    fields = _USERSA_INFO


class UpdSa(NewSa):
    """The same for an SA that exists, such as the larval one of an allocated SPI."""

    kind = Type.UPDSA


class Counters(Message):
    """The answer to GETSA without its attributes: they hold keys, and nobody here wants them."""

    kind = Type.NEWSA
    fields = _USERSA_INFO


class AllocSpi(Message):
    """struct xfrm_userspi_info: reserve an inbound SPI between two bounds. The answer is a `Counters`."""

    kind = Type.ALLOCSPI
    fields = (*_within("info", _USERSA_INFO), ("min", "I"), ("max", "I"))


class DelSa(Message):
    """struct xfrm_usersa_id."""

    kind = Type.DELSA
    fields = (("daddr", "16s"), ("spi", "4s"), ("family", "H"), ("proto", "B"), ("_", "1x"))


class GetSa(DelSa):
    """The same key, to read."""

    kind = Type.GETSA


class NewPolicy(_WithAttributes):
    """struct xfrm_userpolicy_info and its templates. Also the answer to GETPOLICY."""

    kind = Type.NEWPOLICY
    fields = _USERPOLICY_INFO


class UpdPolicy(NewPolicy):
    """The same for a policy that exists."""

    kind = Type.UPDPOLICY


class DelPolicy(Message):
    """struct xfrm_userpolicy_id."""

    kind = Type.DELPOLICY
    fields = (*_within("sel", _SELECTOR), ("index", "I"), ("dir", "B"), ("_", "3x"))


class GetPolicy(DelPolicy):
    """The same key, to read."""

    kind = Type.GETPOLICY


class Acquire(_WithAttributes):
    """struct xfrm_user_acquire: a packet needs an SA; the template says of which reqid."""

    kind = Type.ACQUIRE
    fields = (
        *_within("id", _ID),
        ("saddr", "16s"),
        *_within("sel", _SELECTOR),
        *_within("policy", _USERPOLICY_INFO),
        ("aalgos", "I"),
        ("ealgos", "I"),
        ("calgos", "I"),
        ("seq", "I"),
    )


class Expire(Message):
    """struct xfrm_user_expire: a lifetime of an SA ended."""

    kind = Type.EXPIRE
    fields = (*_within("state", _USERSA_INFO), ("hard", "B"), ("_", "7x"))


class PolExpire(Message):
    """struct xfrm_user_polexpire: a lifetime of a policy ended; ours have none."""

    kind = Type.POLEXPIRE
    fields = (*_within("pol", _USERPOLICY_INFO), ("hard", "B"), ("_", "7x"))


class Refusal(Message):
    """NLMSG_ERROR as the kernel sends it with NETLINK_CAP_ACK: errno, our header, perhaps an explanation."""

    fields = (("error", "i"), ("_", "16x"))
    nla_map = ((1, "NLMSGERR_ATTR_MSG", "asciiz"),)
