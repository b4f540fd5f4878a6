"""Inherited SEQPACKET pairs: typed, non-blocking, closed at the first violation."""

import os

import pytest

from privsep.channel import Channel, pair
from privsep.errors import ChannelClosed
from privsep.loop import Loop
from privsep.schema import keymat

REDEEM = keymat.RedeemInbound(keymat=b"k" * 16)


@pytest.fixture
def ends():
    loop = Loop()
    ours, theirs = pair()
    got, closed = [], []
    channel = Channel(
        ours,
        loop,
        keymat.REPLIES,
        keymat.REQUESTS,
        lambda message, sequence: got.append((message, sequence)),
        closed.append,
    )
    loop.after(2.0, loop.stop)
    yield loop, channel, theirs, got, closed
    theirs.close()


def turn(loop: Loop) -> None:
    loop.after(0.02, loop.stop)
    loop.run()


def test_messages_pass_with_their_sequence(ends):
    loop, channel, theirs, got, closed = ends
    channel.send(REDEEM, 9)
    assert keymat.REQUESTS.decode(theirs.recv(70000)) == (REDEEM, 9)
    theirs.send(keymat.REPLIES.encode(keymat.NotRedeemable(), 9))
    turn(loop)
    assert got == [(keymat.NotRedeemable(), 9)]
    assert closed == []


@pytest.mark.parametrize("garbage", [b"\xc0", b"x" * 60000, os.urandom(200)])
def test_a_frame_outside_the_table_closes_the_channel(ends, garbage):
    loop, channel, theirs, got, closed = ends
    theirs.send(garbage)
    turn(loop)
    assert got == []
    assert len(closed) == 1
    assert closed[0].startswith("violation")
    with pytest.raises(ChannelClosed):
        channel.send(REDEEM, 1)


def test_the_end_of_the_other_side_is_reported_once(ends):
    loop, channel, theirs, _got, closed = ends
    theirs.close()
    turn(loop)
    channel.close("again")
    assert closed == ["the other end is gone"]


def test_a_reader_that_never_reads_cannot_block_or_fill_us(ends):
    _loop, channel, _theirs, _got, closed = ends

    def send_forever() -> None:
        for number in range(100_000):
            channel.send(REDEEM, number)

    with pytest.raises(ChannelClosed):
        send_forever()
    assert closed == ["the other end does not read"]


def test_queued_frames_arrive_in_order_when_the_reader_returns(ends):
    loop, channel, theirs, _got, _closed = ends
    for number in range(2000):
        channel.send(REDEEM, number)
    theirs.setblocking(False)
    seen = []
    for _ in range(200):
        turn_is_over = len(seen) == 2000
        if turn_is_over:
            break
        try:
            while True:
                seen.append(keymat.REQUESTS.decode(theirs.recv(70000))[1])
        except BlockingIOError:
            loop.after(0.001, loop.stop)
            loop.run()
    assert seen == list(range(2000))
