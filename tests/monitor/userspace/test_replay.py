"""RFC 4303 section 3.4.3 against a model that remembers everything."""

from hypothesis import given
from hypothesis import strategies as st

from monitor.userspace.replay import ReplayWindow

# near each other, so that many fall into one window; and far leaps
numbers = st.lists(st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1)), max_size=200)


@given(size=st.sampled_from([32, 64, 128]), sequence=numbers)
def test_the_window_admits_what_a_model_with_perfect_memory_admits_rfc4303_3_4_3(size, sequence):
    window, seen, highest = ReplayWindow(size), set(), 0
    for number in sequence:
        expected = number > highest or (number not in seen and 0 < number > highest - size)
        assert window.admits(number) is expected
        if expected:
            window.accept(number)
            seen.add(number)
            highest = max(highest, number)
    assert window.highest == highest


def test_zero_is_never_admitted_rfc4303_3_3_3():
    window = ReplayWindow(64)
    assert not window.admits(0)
    window.accept(5)
    assert not window.admits(0)


def test_the_window_is_as_wide_as_it_says():
    window = ReplayWindow(64)
    window.accept(100)
    assert window.admits(37)
    assert not window.admits(36)
