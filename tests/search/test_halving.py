from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nxmiformer.search.halving import Halving


def rounds(trials):
    """The plans of each round by its steps."""
    found = {}
    for plan, steps, _ in trials:
        found.setdefault(steps, []).append(plan)
    return found


@given(st.lists(st.integers(0, 3), max_size=17), st.integers(1, 50))
def test_the_better_half_goes_on_for_twice_the_steps_until_one_is_left(scores, first):
    plans = list(range(len(scores)))
    trials = list(Halving(first)(plans, lambda plan, steps: scores[plan]))
    left, steps, expected = plans, first, {}
    while len(left) > 1:
        expected[steps] = left
        better = sorted(left, key=lambda plan: (-scores[plan], plan))  # of equal scores the plan that comes first
        left, steps = sorted(better[: len(left) // 2]), 2 * steps
    assert rounds(trials) == expected
    assert [score for plan, _, score in trials] == [scores[plan] for plan, _, _ in trials]


@given(st.integers(0, 17))
def test_each_trial_is_run_once_when_it_is_asked_for(count):
    run = Counter()

    def trial(plan, steps):
        run[plan, steps] += 1
        return float(plan)

    for number, (plan, steps, _) in enumerate(Halving(20)(range(count), trial), 1):
        assert run.total() == number
        assert run[plan, steps] == 1


def test_scores_of_a_later_round_decide_that_round():
    seen = {("a", 5): 3, ("b", 5): 2, ("c", 5): 1, ("d", 5): 4, ("a", 10): 2, ("d", 10): 1}
    trials = list(Halving(5)("abcd", lambda plan, steps: seen[plan, steps]))
    assert [(plan, steps) for plan, steps, _ in trials] == list(seen)


def test_a_round_has_at_least_one_step():
    with pytest.raises(ValueError, match=r"halving\.steps=0: a round needs at least one"):
        Halving(0)
