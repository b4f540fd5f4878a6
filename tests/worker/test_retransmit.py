"""Back-off and the answer to duplicates (RFC 2408 section 5.1)."""

from worker.retransmit import BACK_OFF, HALF_OPEN, MAX_RESENDS, RESEND_INTERVAL, LastReply, back_off


def test_waits_grow_by_the_factor():
    assert back_off(1.0, 2.0, 4) == (1.0, 2.0, 4.0, 8.0)


def test_a_responder_waits_longer_than_an_initiator_pauses():
    assert max(BACK_OFF) < HALF_OPEN[0] < sum(BACK_OFF)


def test_a_duplicate_gets_the_last_reply_at_a_bounded_rate_and_a_bounded_number_of_times():
    last = LastReply()
    last.accepted(b"request")
    assert last.again(0.0) == b"", "not answered yet"
    last.sent(b"reply", 10.0)
    assert last.again(10.0 + RESEND_INTERVAL / 2) == b"", "the reply is on its way"
    answers = [last.again(20.0 + number) for number in range(MAX_RESENDS + 5)]
    assert answers == [b"reply"] * MAX_RESENDS + [b""] * 5
    assert last.again(20.0 + MAX_RESENDS) == b""


def test_a_new_request_forgets_the_old_reply():
    last = LastReply()
    last.sent(b"reply", 0.0)
    last.accepted(b"next")
    assert last.again(10.0) == b""
