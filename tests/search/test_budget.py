import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nxmiformer.search.budget import Budget
from nxmiformer.sets import NM, Grid, Then

SETS = [NM(2, 4), NM(1, 4), NM(3, 4), Grid(8), Grid(3), Grid(4, 4), Then(NM(2, 4), Grid(3)), Then(NM(3, 8), Grid(1, 8))]
LIMITS = ["ratio", "bytes", "whole_model_bytes", "latency", "milliseconds"]


@given(st.sampled_from(SETS), st.integers(1, 9), st.integers(1, 4))
def test_a_layer_costs_what_is_packed_of_it(constraint, rows, groups):
    shape = (rows, 8 * groups)
    packed = constraint.pack(constraint.project(torch.randn(shape, generator=torch.Generator().manual_seed(rows))))
    sizes = {name: part.numel() * part.element_size() for name, part in packed.items()}
    storage = constraint.storage(shape)
    assert Budget(accounting="all").cost(constraint, shape) == 8 * sum(sizes.values())
    values, places = (Budget(accounting=name).cost(constraint, shape) for name in ("values", "indices"))
    assert -(-values // 8) == sizes["values"]
    assert -(-(places - values) // 8) == sizes.get("indices", 0)
    assert values == storage.values


@pytest.mark.parametrize("accounting", ["values", "indices", "all"])
def test_a_dense_layer_costs_its_float32_weights(accounting):
    assert Budget(accounting=accounting).cost(None, (3, 5)) == 3 * 5 * 32


def test_each_limit_in_bits():
    assert Budget(ratio=0.125).bits(100, 999) == 400
    assert Budget(bytes=50).bits(100, 999) == 400
    assert Budget(whole_model_bytes=50).bits(100, 80) == 320


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 10**10))
def test_a_ratio_is_not_exceeded(ratio, weights):
    bits = Budget(ratio=ratio).bits(weights, 0)
    assert bits <= ratio * weights * 32 < bits + 1


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_a_limit_is_above_zero(limit, value):
    with pytest.raises(ValueError, match=f"budget.{limit}={value}: it must be above 0"):
        Budget(**{limit: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratio": 1.01}, "budget.ratio=1.01: it must be above 0 and at most 1"),
        ({"ratio": 0.1, "bytes": 5}, "a budget has one limit, not budget.ratio=0.1 and budget.bytes=5"),
        ({"accounting": "al"}, "unknown accounting of a budget 'al': did you mean all"),
        ({"whole_model_bytes": 9, "accounting": "values"}, "budget.accounting=values has no effect"),
        (
            {"latency": 0.5, "accounting": "values"},
            "budget.latency counts all, so budget.accounting=values has no effect",
        ),
        ({"latency": 1.5}, "budget.latency=1.5: it must be above 0 and at most 1"),
        ({"latency": 0.5, "batch": 0}, "budget.batch=0: it must be at least 1"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Budget(**given)


def test_a_rest_that_takes_all_of_it_is_told():
    with pytest.raises(ValueError, match=r"budget\.whole_model_bytes=10: the rest of the model alone takes 11 bytes"):
        Budget(whole_model_bytes=10).bits(100, 81)
    with pytest.raises(ValueError, match="alone takes 10 bytes"):
        Budget(whole_model_bytes=10).bits(100, 80)


def test_no_limit_is_no_budget():
    assert not Budget().given
    assert all(Budget(**{limit: 1}).given for limit in LIMITS)
    with pytest.raises(ValueError, match=r"a search needs a budget: budget\.ratio=\.\.\., budget\.bytes"):
        Budget().bits(100, 0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "no limit"),
        ({"ratio": 0.06}, "0.06"),
        ({"ratio": 0.06, "accounting": "values"}, "0.06 by values"),
        ({"bytes": 70}, "70 bytes"),
        ({"bytes": 70, "accounting": "indices"}, "70 bytes by indices"),
        ({"whole_model_bytes": 70}, "70 whole bytes"),
        ({"latency": 0.5}, "0.5 of the latency"),
        ({"milliseconds": 12.5}, "12.5 ms"),
    ],
)
def test_a_budget_in_words(given, words):
    assert str(Budget(**given)) == words
