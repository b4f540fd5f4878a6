"""Rates."""

from privsep.rate import Rate


def test_so_many_in_a_second_and_the_rest_is_counted():
    rate = Rate(3)
    assert [rate.admit(1.0 + number / 10) for number in range(5)] == [True, True, True, False, False]
    assert rate.take_refused() == 2
    assert rate.take_refused() == 0
    assert rate.admit(2.0)
