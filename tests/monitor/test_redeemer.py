"""The monitor's end of keyd's channel."""

import pytest

from monitor.redeemer import Redeemer
from privsep.errors import ChannelClosed, Violation
from privsep.schema.keymat import NotRedeemable, Ready, RedeemInbound


@pytest.fixture
def keyd():
    class Keyd:
        def __init__(self):
            self.sent = []
            self.ready = 0
            self.redeemer = Redeemer(lambda message, sequence: self.sent.append(sequence), self.on_ready)

        def on_ready(self, ready):
            self.ready += 1

        def redeem(self):
            return self.redeemer.ask(RedeemInbound(keymat=bytes(16)))

    return Keyd()


def test_answers_in_any_order_reach_those_who_asked(keyd, kit):
    first, second = keyd.redeem(), keyd.redeem()
    keyd.redeemer.handle(kit.redeemed(), keyd.sent[1])
    assert (first.done, second.done) == (False, True)
    keyd.redeemer.handle(NotRedeemable(), keyd.sent[0])
    assert first._value == NotRedeemable()
    assert second._value.connection == "paris"


def test_an_answer_to_nothing_or_a_second_one_is_a_violation(keyd):
    keyd.redeem()
    keyd.redeemer.handle(NotRedeemable(), keyd.sent[0])
    for sequence in (keyd.sent[0], 0, 99):
        with pytest.raises(Violation):
            keyd.redeemer.handle(NotRedeemable(), sequence)


def test_ready_is_said_once_and_as_no_answer(keyd):
    keyd.redeemer.handle(Ready(same_secret=b""), 0)
    assert keyd.ready == 1
    with pytest.raises(Violation):
        keyd.redeemer.handle(Ready(same_secret=b""), 0)


def test_ready_as_an_answer_is_a_violation(keyd):
    keyd.redeem()
    with pytest.raises(Violation):
        keyd.redeemer.handle(Ready(same_secret=b""), keyd.sent[0])
    assert keyd.ready == 0


def test_the_end_tells_all_who_wait(keyd):
    waiting = keyd.redeem()
    keyd.redeemer.close()
    assert isinstance(waiting._error(), ChannelClosed)


def test_a_channel_that_is_closed_already_is_an_error_of_the_redemption():
    def closed(message, sequence):
        raise ChannelClosed

    assert isinstance(Redeemer(closed, lambda: None).ask(RedeemInbound(keymat=bytes(16)))._error(), ChannelClosed)
