"""XFRM's structs as pyroute2 attributes and layouts for its messages: <linux/xfrm.h>, field for field.

Nested structs are flattened, `sel.daddr` for `sel` and `daddr`. Fields that are not given are zero. Byte strings are
in network order, integers in the host's, as the kernel has them.
"""

import struct
from enum import IntEnum
from typing import Any, ClassVar

from pyroute2.netlink import nla

from privsep.iana import ProtocolId

Fields = tuple[tuple[str, str], ...]
Values = dict[str, Any]
Attribute = tuple[str, Values]
"""Name and content of an attribute."""


class Direction(IntEnum):
    """XFRM_POLICY_IN, _OUT, _FWD."""

    IN = 0
    OUT = 1
    FWD = 2


class KernelAction(IntEnum):
    """XFRM_POLICY_ALLOW, _BLOCK. With templates, ALLOW requires what they say."""

    ALLOW = 0
    BLOCK = 1


class KernelMode(IntEnum):
    """XFRM_MODE_TRANSPORT, _TUNNEL."""

    TRANSPORT = 0
    TUNNEL = 1


class Way(IntEnum):
    """XFRM_SA_DIR_IN, _OUT: of an SA, since Linux 6.10."""

    IN = 1
    OUT = 2


INFINITE = 0xFFFFFFFFFFFFFFFF
"""XFRM_INF: no limit."""
PROTOCOLS = {ProtocolId.ESP: 50, ProtocolId.AH: 51, ProtocolId.IPCOMP: 108}
"""IP protocol numbers (RFC 4303 section 2, RFC 4302 section 2, RFC 3173 section 3.3)."""
ALL_ALGORITHMS = 0xFFFFFFFF
"""A template that leaves the choice of algorithms to whoever installs the SA, which is us alone."""
STATE_AF_UNSPEC = 32
"""XFRM_STATE_AF_UNSPEC: the inner packets' family is not that of the outer addresses, or varies."""
STATE_ALIGN4 = 64
"""XFRM_STATE_ALIGN4: AH's header over IPv4 ends on a multiple of 4 octets, not on IPv6's 8 (RFC 4302 section 2.6)."""
STATE_ESN = 128
"""XFRM_STATE_ESN (RFC 4304)."""
_ATTRIBUTE_HEADER = 4
"""Octets."""
UDP_ENCAP_ESPINUDP = 2
"""<linux/udp.h>, RFC 3948."""


def within(prefix: str, fields: Fields) -> Fields:
    """The fields of a struct inside another."""
    return tuple((f"{prefix}.{name}", layout) for name, layout in fields)


UNLIMITED: Values = {
    f"lft.{name}": INFINITE for name in ("soft_byte_limit", "hard_byte_limit", "soft_packet_limit", "hard_packet_limit")
}
"""Zero seconds are no limit, zero octets are one."""

# "_" is padding.
SELECTOR: Fields = (
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
ID: Fields = (("daddr", "16s"), ("spi", "4s"), ("proto", "B"), ("_", "3x"))
LIMITS: Fields = tuple(
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
CURRENT: Fields = (("bytes", "Q"), ("packets", "Q"), ("add_time", "Q"), ("use_time", "Q"))
STATS: Fields = (("replay_window", "I"), ("replay", "I"), ("integrity_failed", "I"))

USERSA_INFO: Fields = (
    *within("sel", SELECTOR),
    *within("id", ID),
    ("saddr", "16s"),
    *within("lft", LIMITS),
    *within("curlft", CURRENT),
    *within("stats", STATS),
    ("seq", "I"),
    ("reqid", "I"),
    ("family", "H"),
    ("mode", "B"),
    ("replay_window", "B"),
    ("flags", "B"),
    ("_", "7x"),
)
USERPOLICY_INFO: Fields = (
    *within("sel", SELECTOR),
    *within("lft", LIMITS),
    *within("curlft", CURRENT),
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


class StructAttribute(Record, nla):  # type: ignore[misc] # pyroute2 has no types
    """A netlink attribute whose value is one struct."""

    def ft_decode(self, offset: int) -> None:
        """pyroute2's hook for the fields."""
        self.update(self.read(self.data, offset))
        del self["attrs"]


class Template(StructAttribute):
    """struct xfrm_user_tmpl. XFRMA_TMPL is an array of these: what comes after this one is `next`, if anything does."""

    fields = (
        *within("id", ID),
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

    @classmethod
    def octets(cls, values: Values) -> int:
        """With those that follow."""
        following = dict.get(values, "next")
        return cls.layout.size + (cls.octets(following) if following is not None else 0)

    @classmethod
    def write(cls, data: bytearray, offset: int, values: Values) -> None:
        """With those that follow."""
        super().write(data, offset, values)
        following = dict.get(values, "next")
        if following is not None:
            cls.write(data, offset + cls.layout.size, following)

    def ft_decode(self, offset: int) -> None:
        """The whole array."""
        size = self.layout.size
        starts = range(offset, offset + self.length - _ATTRIBUTE_HEADER - size + 1, size)
        found: Values | None = None
        for start in reversed(starts):
            found = self.read(self.data, start) | ({} if found is None else {"next": found})
        self.update(self.read(self.data, offset) if found is None else found)
        del self["attrs"]


class Crypt(StructAttribute):
    """struct xfrm_algo: a cipher."""

    fields = (("name", "64s"), ("key_len", "I"))
    tail = "key"


class AuthTrunc(StructAttribute):
    """struct xfrm_algo_auth: an integrity algorithm and how much of its output is sent."""

    fields = (("name", "64s"), ("key_len", "I"), ("trunc_len", "I"))
    tail = "key"


class Aead(StructAttribute):
    """struct xfrm_algo_aead: a combined-mode cipher; its key ends with the salt."""

    fields = (("name", "64s"), ("key_len", "I"), ("icv_len", "I"))
    tail = "key"


class Compression(StructAttribute):
    """struct xfrm_algo without a key: a compression algorithm."""

    fields = (("name", "64s"), ("key_len", "I"))


class Seconds(StructAttribute):
    """A number of seconds."""

    fields = (("seconds", "I"),)


class EncapTemplate(StructAttribute):
    """struct xfrm_encap_tmpl: the UDP header around ESP (RFC 3948)."""

    fields = (("type", "H"), ("sport", "2s"), ("dport", "2s"), ("_", "2x"), ("oa", "16s"))


class ReplayState(StructAttribute):
    """struct xfrm_replay_state_esn without its bitmap, which is then empty.

    Without XFRM_STATE_ESN this is a plain window of sequence numbers, but one that may be wider than 32 packets, which
    struct xfrm_usersa_info has room for.
    """

    fields = (
        ("bmp_len", "I"),
        ("oseq", "I"),
        ("seq", "I"),
        ("oseq_hi", "I"),
        ("seq_hi", "I"),
        ("replay_window", "I"),
    )


class Migration(StructAttribute):
    """struct xfrm_user_migrate: the ends of an SA and a template, before and after."""

    fields = (
        ("old_daddr", "16s"),
        ("old_saddr", "16s"),
        ("new_daddr", "16s"),
        ("new_saddr", "16s"),
        ("proto", "B"),
        ("mode", "B"),
        ("_", "2x"),
        ("reqid", "I"),
        ("old_family", "H"),
        ("new_family", "H"),
    )


class MarkValue(StructAttribute):
    """struct xfrm_mark: of a policy, the packets' marks; of an SA, what finds it besides its key."""

    fields = (("value", "I"), ("mask", "I"))


class Number(StructAttribute):
    """An attribute of 32 bits."""

    fields = (("value", "I"),)


class SaDirection(StructAttribute):
    """XFRM_SA_DIR_IN, _OUT."""

    fields = (("value", "B"),)


ATTRIBUTES: dict[str, tuple[int, type[StructAttribute]]] = {
    "XFRMA_ALG_CRYPT": (2, Crypt),
    "XFRMA_ALG_COMP": (3, Compression),
    "XFRMA_ENCAP": (4, EncapTemplate),
    "XFRMA_TMPL": (5, Template),
    "XFRMA_MIGRATE": (17, Migration),
    "XFRMA_ALG_AEAD": (18, Aead),
    "XFRMA_ALG_AUTH_TRUNC": (20, AuthTrunc),
    "XFRMA_MARK": (21, MarkValue),
    "XFRMA_REPLAY_ESN_VAL": (23, ReplayState),
    "XFRMA_SET_MARK": (29, Number),
    "XFRMA_SET_MARK_MASK": (30, Number),
    "XFRMA_IF_ID": (31, Number),
    "XFRMA_MTIMER_THRESH": (32, Seconds),
    "XFRMA_SA_DIR": (33, SaDirection),
}
"""XFRMA_*: number and struct of those that we use."""
