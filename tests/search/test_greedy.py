import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nxmiformer.search.greedy import Greedy
from nxmiformer.search.knapsack import Knapsack
from nxmiformer.search.table import Table


@st.composite
def tables(draw):
    """A table with missing candidates, and a budget between the least and the most that it can take."""
    layers, candidates = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 10**9)))
    shape = (layers, candidates)
    damage = generator.integers(-2, 5, shape) * draw(st.sampled_from([1.0, 1e-9]))
    missing = generator.random(shape) < 0.2
    missing[:, 0] = False
    damage, bits = np.where(missing, np.inf, damage), np.where(missing, 0.0, generator.integers(0, 9, shape))
    least = np.where(missing, np.inf, bits).min(1).sum()
    return Table([None] * layers, damage, bits), least, int(least + draw(st.integers(0, 20)))


@given(tables())
def test_greedy_fits_is_the_same_again_and_never_better_than_the_knapsack(problem):
    table, _, budget = problem
    (found,) = Greedy()(table, budget, 3)
    assert table.cost(found) <= budget
    assert np.isfinite(table.predicted(found))
    assert Greedy()(table, budget, 3) == [found]
    best = table.predicted(Knapsack()(table, budget, 1)[0])
    assert best <= table.predicted(found) + 1e-4 * abs(best)


@given(tables())
def test_a_large_budget_leaves_every_layer_its_least_damage(problem):
    table, _, _ = problem
    (found,) = Greedy()(table, 10**9, 1)
    assert table.predicted(found) == table.damage.min(1).sum()


@given(tables())
def test_a_budget_below_the_least_names_it(problem):
    table, least, _ = problem
    assert table.cost(Greedy()(table, least, 1)[0]) == least
    with pytest.raises(ValueError, match=f"the smallest possible one is {least:.0f}$"):
        Greedy()(table, least - 1, 1)


def test_the_cheapest_bits_are_saved_first():
    """Ten bits are to be saved: at 1 a bit in the first layer, at 3 in the second."""
    damage, bits = np.array([[0.0, 10.0], [0.0, 30.0]]), np.array([[20.0, 10.0], [20.0, 10.0]])
    assert Greedy()(Table([None] * 2, damage, bits), 30, 1) == [(1, 0)]
