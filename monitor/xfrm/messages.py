"""XFRM's netlink messages as pyroute2 classes (<linux/xfrm.h>; RFC 3549 has the frame).

pyroute2 brings no XFRM. Its generic encoder walks the fields one by one and grows its buffer, which takes ten times as
long and leaves copies of keys in freed memory; so `encode` is our own: one precompiled struct for each message and
attribute, packed into a buffer that has its final length from the start. Decoding uses the same structs.
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar, Self

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL, nlmsg

from monitor.xfrm.structs import (
    ATTRIBUTES,
    ID,
    SELECTOR,
    USERPOLICY_INFO,
    USERSA_INFO,
    Attribute,
    Record,
    Values,
    within,
)

HEADER_OCTETS = 16
ATTRIBUTE_OCTETS = 4
NEW = NLM_F_CREATE | NLM_F_EXCL
"""Never in place of another. XFRM goes by the message's type, which says the same."""


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
    MIGRATE = 0x21
    MAPPING = 0x26


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
    fields = USERSA_INFO


class UpdSa(NewSa):
    """The same for an SA that exists, such as the larval one of an allocated SPI."""

    kind = Type.UPDSA


class Counters(Message):
    """The answer to GETSA without its attributes: they hold keys, and nobody here wants them."""

    kind = Type.NEWSA
    fields = USERSA_INFO


class AllocSpi(Message):
    """struct xfrm_userspi_info: reserve an inbound SPI between two bounds. The answer is a `Counters`."""

    kind = Type.ALLOCSPI
    fields = (*within("info", USERSA_INFO), ("min", "I"), ("max", "I"))


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
    fields = USERPOLICY_INFO


class UpdPolicy(NewPolicy):
    """The same for a policy that exists."""

    kind = Type.UPDPOLICY


class DelPolicy(Message):
    """struct xfrm_userpolicy_id."""

    kind = Type.DELPOLICY
    fields = (*within("sel", SELECTOR), ("index", "I"), ("dir", "B"), ("_", "3x"))


class GetPolicy(DelPolicy):
    """The same key, to read."""

    kind = Type.GETPOLICY


class Migrate(DelPolicy):
    """The same key; its attributes say from where to where its SAs and templates go."""

    kind = Type.MIGRATE


class Acquire(_WithAttributes):
    """struct xfrm_user_acquire: a packet needs an SA; the template says of which reqid."""

    kind = Type.ACQUIRE
    fields = (
        *within("id", ID),
        ("saddr", "16s"),
        *within("sel", SELECTOR),
        *within("policy", USERPOLICY_INFO),
        ("aalgos", "I"),
        ("ealgos", "I"),
        ("calgos", "I"),
        ("seq", "I"),
    )


class Expire(Message):
    """struct xfrm_user_expire: a lifetime of an SA ended."""

    kind = Type.EXPIRE
    fields = (*within("state", USERSA_INFO), ("hard", "B"), ("_", "7x"))


class PolExpire(Message):
    """struct xfrm_user_polexpire: a lifetime of a policy ended; ours have none."""

    kind = Type.POLEXPIRE
    fields = (*within("pol", USERPOLICY_INFO), ("hard", "B"), ("_", "7x"))


class Mapping(Message):
    """struct xfrm_user_mapping: ESP in UDP that verified came from another address or port than the SA's."""

    kind = Type.MAPPING
    fields = (
        *within("id", DelSa.fields),
        ("reqid", "I"),
        ("old_saddr", "16s"),
        ("new_saddr", "16s"),
        ("old_sport", "2s"),
        ("new_sport", "2s"),
    )


class Refusal(Message):
    """NLMSG_ERROR as the kernel sends it with NETLINK_CAP_ACK: errno, our header, perhaps an explanation."""

    fields = (("error", "i"), ("_", "16x"))
    nla_map = ((1, "NLMSGERR_ATTR_MSG", "asciiz"),)
