"""Laws of a whole search, on a random model."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from small import evidence

from nxmiformer.layers.targets import Target, Targets
from nxmiformer.search.budget import Budget
from nxmiformer.search.candidates import Candidates
from nxmiformer.search.greedy import Greedy
from nxmiformer.search.halving import Halving
from nxmiformer.search.knapsack import Knapsack
from nxmiformer.search.search import Search
from nxmiformer.search.sensitivity import OutputError, WeightError
from nxmiformer.sets import Grid
from nxmiformer.sets.words import from_words

WORDS = ["int8", "int4", "2:4+int4", "1:4+int4"]
REST = 8_000


def no_trial(sets, steps):
    raise AssertionError("nothing is to be trained")


@pytest.fixture(scope="module")
def seen():
    """Evidence on a model that stores its weights the other way round."""
    return evidence("gpt2")


@pytest.fixture(scope="module")
def bert():
    return evidence()


def targets_of(seen):
    layers = seen.layers.items()
    return Targets(tuple(Target(n, tuple(layer.matrix.shape), layer.transposed) for n, layer in layers), {})


def searched(seen, cache, budget=None, trial=no_trial, **given):
    given = {"candidates": Candidates(WORDS), "sensitivity": OutputError(), "strategy": Knapsack(), **given}
    search = Search(**{"iterations": 0, **given})
    targets = targets_of(seen)
    return search(seen, targets, (budget or Budget(ratio=0.12)).costs(targets.layers, REST), cache, trial)


def cost(sets, seen, budget):
    return sum(budget.cost(each, tuple(seen.layers[name].matrix.shape)) for name, each in sets.items())


@pytest.mark.parametrize("strategy", [Knapsack(), Knapsack(0.0), Greedy()], ids=repr)
@pytest.mark.parametrize("tie", ["free", "component"])
def test_every_plan_fits_and_the_best_diverges_the_least(seen, tmp_path, strategy, tie):
    found = searched(seen, tmp_path, strategy=strategy, candidates=Candidates(WORDS, tie=tie))
    weights = sum(layer.matrix.numel() for layer in seen.layers.values())
    assert found.budget == int(0.12 * weights * 32)
    for plan in found.plans:
        assert plan.bits == cost(plan.sets, seen, Budget()) <= found.budget
        assert plan.sets.keys() == seen.layers.keys()
    divergences = [plan.divergence for plan in found.plans]
    assert found.best == found.plans[0]
    assert divergences == sorted(divergences)
    assert {"uniform 1:4+int4"} <= {plan.name for plan in found.plans}


MIXED = ["kron2x2", "kron1x4+int8", "8x8@0.5+int4", "0.2dense+int8", "1:4+int4", "int3", "dense"]


def test_sets_of_every_kind_are_chosen_from_under_one_budget(bert, tmp_path):
    found = searched(bert, tmp_path, Budget(ratio=0.2), candidates=Candidates(MIXED), uniform=9)
    assert all(plan.bits == cost(plan.sets, bert, Budget()) <= found.budget for plan in found.plans)
    assert len({type(each) for each in found.best.sets.values()}) > 1
    names = {plan.name for plan in found.plans if plan.name.startswith("uniform")}
    bits = {words: cost(dict.fromkeys(bert.layers, from_words(words)), bert, Budget()) for words in MIXED[:-1]}
    fit = {words for words, each in bits.items() if each <= found.budget}
    assert names == {f"uniform {words}" for words in fit}
    assert fit < set(MIXED[:-1])


def test_the_best_of_a_budget_that_a_uniform_plan_fills_is_not_worse_than_it(seen, tmp_path):
    for words in WORDS[1:]:
        uniform = {name: Candidates([words])._runs[0] for name in seen.layers}
        bits = cost(uniform, seen, Budget())
        found = searched(seen, tmp_path, Budget(bytes=bits // 8))
        weights = {name: each.project(seen.layers[name].matrix.detach()) for name, each in uniform.items()}
        assert found.best.divergence <= seen.divergence(seen.changed(weights))


def test_the_figures_of_a_plan_are_those_of_its_layers_together(seen, tmp_path):
    found = searched(seen, tmp_path)
    for plan in found.plans:
        weights = {name: each.project(seen.layers[name].matrix.detach()) for name, each in plan.sets.items()}
        logits = seen.changed(weights)
        assert (plan.divergence, plan.score) == (seen.divergence(logits), seen.score(logits))
        assert plan.predicted == pytest.approx(sum(found.damages[n][str(each)] for n, each in plan.sets.items()))


def test_the_same_search_again_finds_the_same(bert, tmp_path):
    first, cached = (searched(bert, tmp_path / "one", frontier=1, interactions=2) for _ in range(2))
    other = searched(evidence(), tmp_path / "two", frontier=1, interactions=2)
    assert json.dumps(first.to_dict()) == json.dumps(cached.to_dict()) == json.dumps(other.to_dict())


KINDS = st.one_of(
    st.builds(Budget, ratio=st.floats(0.01, 1), accounting=st.sampled_from(["values", "indices", "all"])),
    st.builds(Budget, bytes=st.integers(1, 5000), accounting=st.sampled_from(["values", "indices", "all"])),
    st.builds(Budget, whole_model_bytes=st.integers(1, 8000)),
)


def bits_of(budget, seen):
    """The limit in bits; none where the rest of the model takes all of it."""
    try:
        return budget.bits(sum(layer.matrix.numel() for layer in seen.layers.values()), REST)
    except ValueError:
        return 0


def least(budget, seen):
    """The bits of the smallest plan that there is, found the slow way."""
    sets = Candidates(WORDS)._runs
    return sum(min(cost({name: each}, seen, budget) for each in sets) for name in seen.layers)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(KINDS)
def test_no_budget_is_exceeded(bert, tmp_path, budget):
    assume(bits_of(budget, bert) >= least(budget, bert))
    found = searched(bert, tmp_path, budget, sensitivity=WeightError(), keep=2)
    assert all(cost(plan.sets, bert, budget) <= bits_of(budget, bert) for plan in found.plans)


@given(KINDS)
def test_a_budget_that_is_too_small_names_the_smallest_that_is_not(bert, budget):
    search, targets = Search(Candidates(WORDS), WeightError(), Greedy()), targets_of(bert)
    assume(0 < bits_of(budget, bert) < least(budget, bert))
    with pytest.raises(ValueError, match=f"budget {budget} is too small: the least is budget") as error:
        search.check(targets, budget.costs(targets.layers, REST))
    name, value = str(error.value).split()[-1].removeprefix("budget.").split("=")
    number, step = (float(value), 1e-4) if name == "ratio" else (int(value), 1)
    enough, less = (Budget(**{name: each}, accounting=budget.accounting) for each in (number, number - step))
    search.check(targets, costs := enough.costs(targets.layers, REST))
    assert costs.limit >= least(budget, bert) > bits_of(less, bert)


@pytest.mark.parametrize("each", [112_667, 30_011, 7])
def test_where_all_sets_cost_the_same_the_frontier_has_one_budget(bert, tmp_path, each):
    targets = targets_of(bert)
    costs = replace(Budget(ratio=1.0).costs(targets.layers, 0), cost=lambda *_: each, limit=each * len(targets.layers))
    search = Search(Candidates(WORDS), WeightError(), Knapsack(), iterations=0, frontier=6)
    found = search(bert, targets, costs, tmp_path, no_trial)
    assert len([plan for plan in found.frontier if plan.name.startswith("searched")]) == 1


def test_a_budget_for_all_leaves_all_dense_where_that_is_a_candidate(bert, tmp_path):
    found = searched(bert, tmp_path, Budget(ratio=1.0), candidates=Candidates(["dense", "int8"]))
    assert set(found.best.sets.values()) == {None}
    assert found.best.divergence == 0


def test_a_pinned_layer_is_what_it_is_pinned_to_in_every_plan(bert, tmp_path):
    name = list(bert.layers)[3]
    found = searched(bert, tmp_path, candidates=Candidates(WORDS, pinned={name: "int3"}), frontier=2)
    assert all(plan.sets[name] == Grid(3) for plan in (*found.plans, *found.frontier))


def test_the_frontier_has_the_uniform_plans_and_searched_ones_between_them(bert, tmp_path):
    found = searched(bert, tmp_path, frontier=4)
    uniform = {plan.name: plan.bits for plan in found.frontier if plan.name.startswith("uniform")}
    between = [plan for plan in found.frontier if plan.name.startswith("searched")]
    assert list(uniform) == [f"uniform {words}" for words in WORDS]
    assert len(between) == 4
    for plan in between:
        limit = 8 * (int(plan.name.split()[1]) + 1)
        assert min(uniform.values()) <= plan.bits <= limit
        assert plan.bits < max(uniform.values())
    assert found.frontier[-1].bits > between[0].bits
    assert searched(bert, tmp_path).frontier == ()


def test_interactions_are_looked_at_for_the_best_plan(bert, tmp_path):
    found = searched(bert, tmp_path, interactions=3)
    assert len(found.interactions) == 3
    assert searched(bert, tmp_path).interactions == ()


def test_trials_decide_and_are_asked_for_once(bert, tmp_path):
    """The plan that diverges the most is made to win."""
    worst = searched(bert, tmp_path).plans[-1].sets
    asked = []

    def trial(sets, steps):
        asked.append((json.dumps({name: str(each) for name, each in sets.items()}), steps))
        return float(sets == worst) * steps

    found = searched(bert, tmp_path, trial=trial, halving=Halving(5))
    assert len(set(asked)) == len(asked)
    assert found.best.sets == worst
    last = max(steps for _, steps in asked)
    assert found.best.trials[-1] == (last, float(last))
    lengths = [len(plan.trials) for plan in found.plans]
    assert lengths == sorted(lengths, reverse=True)
    assert min(lengths) >= 1


def test_where_trials_agree_the_least_divergence_wins(bert, tmp_path):
    found = searched(bert, tmp_path, trial=lambda sets, steps: 0.5, halving=Halving(5))
    assert found.best.sets == searched(bert, tmp_path).best.sets


def test_what_was_found_is_json(bert, tmp_path):
    found = searched(bert, tmp_path, frontier=1, interactions=2)
    content = found.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["best"]["sets"] == {name: str(each) for name, each in found.best.sets.items()}


@pytest.mark.parametrize(("name", "least"), [("keep", 1), ("iterations", 0), ("examples", 1), ("frontier", 0)])
def test_settings_below_their_least_are_refused(name, least):
    with pytest.raises(ValueError, match=rf"search\.{name}={least - 1}: it must be at least {least}"):
        Search(Candidates(WORDS), WeightError(), Greedy(), **{name: least - 1})
