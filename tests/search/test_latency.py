"""Laws of a budget of time, on made-up times."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nxmiformer.layers.targets import Target
from nxmiformer.search.budget import Budget
from nxmiformer.search.latency import Latency, form
from nxmiformer.sets import NM, Block, Grid, Kronecker, Then, Unstructured

FIRST, SECOND = ((1, 8, 4), (6, 4)), ((1, 8, 6), (4, 6))
LAYERS = [Target("once", (6, 4)), Target("thrice", (4, 6))]
CALLS = {"once": [FIRST], "thrice": [SECOND] * 3}
TIMES = {(FIRST, "dense"): 50, (FIRST, "int8"): 20, (SECOND, "dense"): 40, (SECOND, "int8"): 10}
LATENCY = Latency(1000, 0, CALLS, TIMES, {"batch": 1})
SMALLEST = 1000 - 50 - 3 * 40 + 20 + 3 * 10


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (None, "dense"),
        (Grid(8), "int8"),
        (Grid(3), "int8"),
        (Grid(4, 64), "int8g64"),
        (Then(NM(2, 4), Grid(2)), "int8"),
        (Then(Block(2, 2, 0.5), Grid(8)), "int8"),
        (Kronecker(2, 3), "kron2x3"),
    ],
    ids=str,
)
def test_zeros_and_few_bits_are_multiplied_as_eight_bits(constraint, words):
    assert form(constraint) == words


@pytest.mark.parametrize("constraint", [NM(2, 4), Unstructured(0.2), Block(2, 2, 0.5)], ids=str)
def test_sparse_floats_have_no_form(constraint):
    with pytest.raises(
        ValueError, match=r"the set .* has float values, which ONNX Runtime multiplies as it does dense"
    ):
        form(constraint)


def test_a_layer_takes_the_time_of_all_its_calls():
    assert [LATENCY.of(None, each) for each in LAYERS] == [50, 120]
    assert [LATENCY.of(Grid(4), each) for each in LAYERS] == [20, 30]


@given(st.floats(0.001, 1.0), st.booleans())
def test_plans_within_the_limit_are_those_whose_whole_time_is_within_the_budget(share, shares):
    budget = Budget(latency=share) if shares else Budget(milliseconds=share / 1000)
    costs = LATENCY.costs(budget, LAYERS)
    rest = 1000 - 50 - 120
    for first in (None, Grid(8)):
        for second in (None, Grid(8)):
            cost = costs.cost(first, LAYERS[0]) + costs.cost(second, LAYERS[1])
            within = rest + cost <= share * 1000
            assert (cost <= costs.limit) == within or abs(rest + cost - share * 1000) < 1e-6


@given(st.floats(0.001, 1.0), st.booleans())
def test_the_smallest_budget_is_enough_and_a_step_less_is_not(share, shares):
    budget = Budget(latency=share) if shares else Budget(milliseconds=share / 1000)
    costs, least = LATENCY.costs(budget, LAYERS), 20 + 30
    assume(costs.limit < least)
    name, value = costs.smallest(least).removeprefix("budget.").split("=")
    assert name == ("latency" if shares else "milliseconds")
    assert LATENCY.costs(Budget(**{name: float(value)}), LAYERS).limit >= least
    assert float(value) * (1000 if shares else 1e6) < SMALLEST * 1.12


def test_what_else_is_compressed_is_part_of_the_rest():
    costs = replace(LATENCY, around=-30).costs(Budget(latency=0.9), LAYERS)
    assert costs.limit == 900 - (1000 - 170 - 30)
    assert costs.latency["rest"] == 800


def test_stored_bits_are_told_beside_the_time():
    costs = LATENCY.costs(Budget(latency=0.9), LAYERS)
    assert costs.bits(Grid(4), LAYERS[0]) == Budget().cost(Grid(4), (6, 4))
    assert costs.words(0) == f"{(1000 - 170) / 1e6:.3g} ms"
    assert costs.latency == {"batch": 1, "dense": 1000, "rest": 830}
