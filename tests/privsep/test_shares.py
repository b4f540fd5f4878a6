"""Who has most gives way; and that is kept true by any sequence of comings and goings."""

import hypothesis.strategies as st
from hypothesis import given

from privsep.shares import Shares


def test_an_owner_that_has_all_it_may_gives_way_to_itself_the_longest_unused_first():
    shares: Shares[str] = Shares(100, each=2)
    assert [shares.enter(each, "a") for each in ("one", "two")] == [None, None]
    shares.use("one")
    assert shares.enter("three", "a") == "two"
    assert shares.enter("four", "b") is None


def test_where_all_is_taken_whoever_has_most_gives_way():
    shares: Shares[int] = Shares(10)
    for number in range(8):
        shares.enter(number, "greedy")
    shares.enter(100, "modest")
    assert [shares.enter(200 + number, "newcomer") for number in range(4)] == [None, 0, 1, 2]
    assert len(shares) == 10


def test_newcomers_never_push_out_one_who_has_less_than_they():
    shares: Shares[int] = Shares(50)
    shares.enter(-1, "honest")
    for number in range(10_000):
        assert shares.enter(number, f"liar {number % 7}") != -1


@given(st.lists(st.tuples(st.sampled_from(["enter", "leave", "use"]), st.integers(0, 30), st.integers(0, 4))))
def test_the_books_agree_whatever_comes_and_goes(steps):
    shares: Shares[int] = Shares(9, each=4)
    model: dict[int, int] = {}
    for what, thing, owner in steps:
        if what == "enter" and thing not in model:
            counts = {each: list(model.values()).count(each) for each in model.values()}
            gone = shares.enter(thing, owner)
            if counts.get(owner, 0) >= 4:
                assert model[gone] == owner
            elif len(model) == 9:
                assert counts[model[gone]] == max(counts.values())
            else:
                assert gone is None
            model.pop(gone, None)
            model[thing] = owner
        elif what == "leave":
            shares.leave(thing)
            model.pop(thing, None)
        elif what == "use":
            shares.use(thing)
        assert shares._owners == model
        assert {owner: set(share) for owner, share in shares._shares.items()} == {
            owner: {each for each, its in model.items() if its == owner} for owner in model.values()
        }
        assert {owner: size for size, owners in shares._sizes.items() for owner in owners} == {
            owner: len(share) for owner, share in shares._shares.items()
        }
