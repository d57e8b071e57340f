"""Laws of the exact choice, against enumeration and the linear relaxation."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from nxmiformer.search.knapsack import Exhausted, Knapsack, solve
from nxmiformer.search.table import Table

MAGNITUDES = [1e-30, 1e-9, 1.0, 1e9, 1e30]


def total(values, choice):
    return values[np.arange(len(values)), list(choice)].sum()


def choices(damage, bits, budget):
    """Every choice within the budget."""
    there = [np.isfinite(row).nonzero()[0] for row in damage]
    return [choice for choice in product(*there) if total(bits, choice) <= budget]


def assert_best(damage, bits, budget, choice, among):
    worst = np.abs(damage[np.isfinite(damage)]).max(initial=0)
    assert total(bits, choice) <= budget
    best = min(total(damage, each) for each in among)
    assert total(damage, choice) == pytest.approx(best, rel=1e-4, abs=1e-15 * worst)


@st.composite
def problems(draw):
    """Damage and bits of a few layers, some candidates missing, and a budget that is often exactly what a choice
    takes."""
    layers, candidates = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 10**9)))
    shape = (layers, candidates)
    damage = {
        "integers": lambda: generator.integers(0, 4, shape).astype(float),
        "signed": lambda: generator.normal(size=shape),
        "zero": lambda: np.zeros(shape),
        "spread": lambda: 10.0 ** generator.uniform(-12, 0, shape),
    }[draw(st.sampled_from(["integers", "signed", "zero", "spread"]))]()
    bits = {
        "few": lambda: generator.integers(0, 6, shape).astype(float),
        "many": lambda: generator.integers(10**8, 10**10, shape).astype(float),
        "alike": lambda: 10.0**9 + generator.integers(0, 3, shape),
        "none": lambda: np.zeros(shape),
    }[draw(st.sampled_from(["few", "many", "alike", "none"]))]()
    missing = generator.random(shape) < draw(st.sampled_from([0.0, 0.3]))
    missing[np.arange(layers), generator.integers(0, candidates, layers)] = False
    damage = np.where(missing, np.inf, damage * draw(st.sampled_from(MAGNITUDES)))
    costs = sorted({total(bits, choice) for choice in choices(damage, bits, np.inf)})
    return damage, bits, draw(st.sampled_from(costs)) + draw(st.sampled_from([0.0, 0.5, 1.0]))


@given(problems())
def test_the_choice_is_the_best_of_all_within_the_budget(problem):
    damage, bits, budget = problem
    choice = solve(damage, bits, budget)
    assert choice.dtype == np.int64
    assert_best(damage, bits, budget, choice, choices(damage, bits, budget))


@settings(max_examples=50)
@given(problems(), st.integers(1, 3), st.integers(1, 4))
def test_the_next_choices_are_the_best_of_those_that_differ_enough(problem, distance, most):
    damage, bits, budget = problem
    found = [solve(damage, bits, budget)]
    left = choices(damage, bits, budget)
    while len(found) < most:
        left = [each for each in left if (np.array(each) != found[-1]).sum() >= distance]
        if not left:
            with pytest.raises(Exhausted, match=rf"differs from {len(found)} others in {distance} layers"):
                solve(damage, bits, budget, found, distance)
            break
        found.append(solve(damage, bits, budget, found, distance))
        assert_best(damage, bits, budget, found[-1], left)


@given(problems())
def test_one_bit_less_than_the_least_names_the_least(problem):
    damage, bits, _ = problem
    least = np.where(np.isfinite(damage), bits, np.inf).min(1).sum()
    solve(damage, bits, least)
    with pytest.raises(ValueError, match=f"too small: the smallest possible one is {least:.0f}$"):
        solve(damage, bits, least - 1)


def relaxation(damage, bits, budget):
    """The least sum where a layer may be split between candidates, which no choice can be below."""
    layers, candidates = damage.shape
    one = np.kron(np.eye(layers), np.ones(candidates))
    return linprog(damage.ravel(), A_ub=bits.reshape(1, -1), b_ub=[budget], A_eq=one, b_eq=np.ones(layers)).fun


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_large_model_is_solved_to_a_thousandth_of_the_bound(seed, share):
    """224 layers of 20 candidates: the damage falls with the bits, at another rate in each layer."""
    generator = np.random.default_rng(seed)
    sizes = generator.choice([768 * 768, 768 * 3072, 1024 * 4096], (224, 1)).astype(float)
    bits = sizes * np.sort(generator.uniform(0.5, 8, (224, 20)), axis=1)
    damage = 10 ** generator.uniform(-3, 2, (224, 1)) * np.exp(-generator.uniform(0.3, 1, (224, 20)) * bits / sizes)
    budget = bits.min(1).sum() * (1 - share) + bits.max(1).sum() * share
    choice = solve(damage, bits, budget)
    assert total(bits, choice) <= budget
    assert total(damage, choice) <= relaxation(damage, bits / sizes.max(), budget / sizes.max()) * 1.001


@pytest.mark.parametrize(
    ("damage", "bits", "message"),
    [
        (np.zeros(3), np.zeros(3), r"two arrays of layers x candidates, not \(3,\) and \(3,\)"),
        (np.zeros((2, 3)), np.zeros((3, 2)), r"not \(2, 3\) and \(3, 2\)"),
        (np.array([[np.nan]]), np.ones((1, 1)), "damage is a number"),
        (np.array([[-np.inf]]), np.ones((1, 1)), "damage is a number"),
        (np.zeros((1, 1)), np.array([[-1.0]]), "bits are numbers, 0 or more"),
        (np.zeros((1, 1)), np.array([[np.inf]]), "bits are numbers, 0 or more"),
        (np.array([[0, 1], [np.inf, np.inf]]), np.ones((2, 2)), "layer 1 has no candidate"),
        (np.zeros((2, 0)), np.zeros((2, 0)), "layer 0 has no candidate"),
    ],
)
def test_arrays_that_are_no_problem_are_refused(damage, bits, message):
    with pytest.raises(ValueError, match=message):
        solve(damage, bits, 10)


def test_no_layers_need_no_choice():
    assert solve(np.zeros((0, 4)), np.zeros((0, 4)), 0).shape == (0,)


@pytest.mark.parametrize("distance", [-0.1, 1.1])
def test_a_distance_is_a_share(distance):
    with pytest.raises(ValueError, match="a share of the choices"):
        Knapsack(distance)


@settings(max_examples=30)
@given(problems(), st.sampled_from([0.0, 0.4, 1.0]), st.integers(1, 4))
def test_proposals_fit_are_sorted_differ_and_are_the_same_again(problem, distance, most):
    damage, bits, budget = problem
    table = Table([None] * len(damage), damage, bits)
    found = Knapsack(distance)(table, budget, most)
    assert 1 <= len(found) <= most
    assert all(table.cost(each) <= budget for each in found)
    assert found == sorted(found, key=table.predicted)
    assert found == Knapsack(distance)(table, budget, most)
    apart = max(1, round(distance * len(damage)))
    pairs = [(a, b) for i, a in enumerate(found) for b in found[:i]]
    assert all(sum(x != y for x, y in zip(a, b, strict=True)) >= apart for a, b in pairs)
