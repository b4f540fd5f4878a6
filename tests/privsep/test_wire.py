"""The declarative codec: what is declared is what is on the wire, all of it, and nothing else."""

import struct
from dataclasses import dataclass
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privsep.errors import MalformedError
from privsep.wire import U8, U16, U32, Field, Layout, Reader, Tail


@dataclass(slots=True, frozen=True, kw_only=True)
class Fixed:
    cookie: Annotated[bytes, Field("8s")]
    kind: U8
    port: U16
    spi: U32


@dataclass(slots=True, frozen=True, kw_only=True)
class Tailed:
    kind: U8
    data: Annotated[bytes, Tail(2, 5)]


@dataclass(slots=True, frozen=True)
class OnlyTail:
    data: Annotated[bytes, Tail(0, 3)]


@dataclass(slots=True, frozen=True)
class OneField:
    value: U16


FIXED = Layout(Fixed)
TAILED = Layout(Tailed)


def test_fields_are_laid_out_in_order_in_network_byte_order():
    value = Fixed(cookie=b"abcdefgh", kind=1, port=0x0203, spi=0x04050607)
    assert FIXED.encode(value) == b"abcdefgh\x01\x02\x03\x04\x05\x06\x07"
    assert FIXED.parse(b"abcdefgh\x01\x02\x03\x04\x05\x06\x07") == value


@settings(deadline=None)
@given(
    st.builds(
        Fixed,
        cookie=st.binary(min_size=8, max_size=8),
        kind=st.integers(0, 0xFF),
        port=st.integers(0, 0xFFFF),
        spi=st.integers(0, 0xFFFFFFFF),
    )
)
def test_parsing_what_was_encoded_gives_the_same_fixed_record(value):
    assert FIXED.parse(FIXED.encode(value)) == value


@settings(deadline=None)
@given(st.builds(Tailed, kind=st.integers(0, 0xFF), data=st.binary(min_size=2, max_size=5)))
def test_parsing_what_was_encoded_gives_the_same_record_with_a_tail(value):
    assert TAILED.parse(TAILED.encode(value)) == value


@pytest.mark.parametrize("layout", [FIXED, TAILED, Layout(OneField)])
def test_every_truncation_and_one_octet_too_many_are_malformed(layout):
    longest = {FIXED: 15, TAILED: 6}.get(layout, 2)
    shortest = {TAILED: 3}.get(layout, longest)
    for length in (*range(shortest), longest + 1):
        with pytest.raises(MalformedError):
            layout.parse(bytes(length))
    for length in range(shortest, longest + 1):
        assert layout.encode(layout.parse(bytes(length))) == bytes(length)


def test_a_record_of_one_field_is_laid_out_too():
    assert Layout(OneField).encode(OneField(258)) == b"\x01\x02"
    assert Layout(OnlyTail).encode(OnlyTail(b"abc")) == b"abc"
    assert Layout(OnlyTail).parse(b"") == OnlyTail(b"")


def test_a_value_of_ours_that_does_not_fit_its_field_is_our_error():
    with pytest.raises(struct.error):
        FIXED.encode(Fixed(cookie=bytes(8), kind=256, port=0, spi=0))


def test_a_field_without_layout_or_a_tail_in_the_middle_is_refused_at_declaration():
    @dataclass
    class Bare:
        kind: int

    @dataclass
    class Middle:
        data: Annotated[bytes, Tail(0, 1)]
        kind: U8

    for record in (Bare, Middle):
        with pytest.raises(TypeError):
            Layout(record)


def test_a_reader_reads_forward_and_ends_exactly():
    reader = Reader(b"\x01\x02\x03abcrest", "thing")
    assert reader.fields(struct.Struct(">BH")) == (1, 0x0203)
    assert reader.take(3) == b"abc"
    assert reader.left == 4
    with pytest.raises(MalformedError, match="thing"):
        reader.finish()
    assert reader.rest() == b"rest"
    reader.finish()


def test_a_reader_never_reads_past_the_end():
    for short in (lambda reader: reader.take(3), lambda reader: reader.fields(struct.Struct(">BH"))):
        reader = Reader(b"\x01\x02", "thing")
        with pytest.raises(MalformedError, match="thing"):
            short(reader)
        assert reader.rest() == b"\x01\x02"
