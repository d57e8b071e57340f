"""The reweighted group Lasso against closed forms, brute force, and what it is for."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_methods import Run, make

from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.methods.group_lasso import GroupLasso
from nxmiformer.methods.obert import Obert
from nxmiformer.methods.taylor import Taylor
from nxmiformer.optim.group_lasso import norms, shrink, slope, weights
from nxmiformer.sets import NM, Block, Grid, Then
from nxmiformer.sets.block import spread
from nxmiformer.train.recipe import Phase, Recipe

TILES = [(1, 4), (3, 1), (2, 4), (6, 8), (1, 1)]


def matrix(seed, shape=(6, 8)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blocks(w, tile):
    rows, cols = tile
    return [[w[i : i + rows, j : j + cols] for j in range(0, w.shape[1], cols)] for i in range(0, w.shape[0], rows)]


@pytest.mark.parametrize("tile", TILES)
def test_norms_are_those_of_a_plain_loop(tile):
    w = matrix(0)
    looped = torch.tensor([[block.norm() for block in row] for row in blocks(w, tile)], dtype=torch.float64)
    torch.testing.assert_close(norms(w, tile), looped)


@pytest.mark.parametrize("tile", TILES)
def test_the_gradient_of_the_norms_is_finite_at_zero_and_the_slope_elsewhere(tile):
    w = matrix(1)
    w[:3, :4] = 0
    w.requires_grad_()
    thresholds = torch.rand_like(norms(w.detach(), tile))
    (norms(w, tile) * thresholds).sum().backward()
    assert w.grad.isfinite().all()
    torch.testing.assert_close(w.grad, slope(w.detach(), thresholds, tile))


@given(seed=st.integers(0, 99), tile=st.sampled_from(TILES), strength=st.floats(0, 4))
@settings(max_examples=20, deadline=None)
def test_the_proximal_point_is_the_closed_form_and_no_other_point_is_better(seed, tile, strength):
    w = matrix(seed)
    thresholds = strength * torch.rand(norms(w, tile).shape, generator=torch.Generator().manual_seed(seed)).double()
    point = shrink(w, thresholds, tile)
    for ours, theirs, limits in zip(blocks(point, tile), blocks(w, tile), thresholds, strict=True):
        for block, start, limit in zip(ours, theirs, limits, strict=True):
            length = start.norm()
            expected = (1 - limit / length) * start if length > limit else torch.zeros_like(start)
            torch.testing.assert_close(block, expected)

    def cost(x):
        return 0.5 * (x - w).square().sum() + (thresholds * norms(x, tile)).sum()

    others = [point + 10.0**-power * matrix(seed + 100 + power) for power in range(6)]
    assert all(cost(point) <= cost(other) for other in [*others, w, torch.zeros_like(w)])


def test_blocks_of_zeros_stay_and_nothing_is_not_a_number():
    w = torch.zeros(4, 4)
    assert torch.equal(shrink(w, torch.ones(2, 2), (2, 2)), w)
    assert torch.equal(shrink(w, torch.zeros(2, 2), (2, 2)), w)


@pytest.mark.parametrize(("power", "expected"), [(0, [1.0, 1.0]), (1, [1 / 2.1, 1 / 0.1]), (2, [1 / 4.1, 1 / 0.1])])
def test_gamma_is_one_over_the_power_of_the_norm(power, expected):
    found = weights(torch.tensor([2.0, 0.0], requires_grad=True), power, 0.1)
    assert not found.requires_grad
    torch.testing.assert_close(found, torch.tensor(expected))


TILE, GROUPS, ROWS = (1, 4), 12, 16


def solved(x, y, thresholds, start, steps=200):
    """The weight (outputs, in) that is least in 0.5 ||x w^T - y||^2 + the sum of thresholds * norms, by accelerated
    proximal gradient steps (Beck and Teboulle 2009)."""
    rate = 1 / torch.linalg.matrix_norm(x, 2) ** 2
    w, ahead, pace = start, start, 1.0
    for _ in range(steps):
        before, w = w, shrink(ahead - rate * (x @ ahead.t() - y).t() @ x, rate * thresholds, TILE)
        after = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead, pace = w + (pace - 1) / after * (w - before), after
    return w


def regressions(alive=4, samples=30):
    """Inputs, the outputs of as many models as ROWS, and which groups of each are not zero."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(samples, TILE[1] * GROUPS, generator=draw, dtype=torch.float64)
    kept = torch.rand(ROWS, GROUPS, generator=draw).argsort(1) < alive
    sizes = 0.3 + 2 * torch.rand(ROWS, GROUPS, generator=draw, dtype=torch.float64)
    w = torch.randn(ROWS, TILE[1] * GROUPS, generator=draw, dtype=torch.float64) * spread(sizes * kept, TILE)
    return x, x @ w.t() + 0.1 * torch.randn(samples, ROWS, generator=draw, dtype=torch.float64), kept


def reweighted(x, y, penalty, times):
    """The solutions of the plain problem and of so many reweighted ones, each from the one before."""
    gamma, w = torch.ones(ROWS, GROUPS, dtype=torch.float64), torch.zeros(ROWS, x.shape[1], dtype=torch.float64)
    for _ in range(times + 1):
        w = solved(x, y, penalty * gamma, w)
        yield w
        gamma = weights(norms(w, TILE), 1, 0.1)


def test_reweighting_never_raises_the_sum_of_logarithms_that_it_stands_for():
    """The majorize-minimize argument of Candes, Wakin and Boyd 2008, section 2.3, each problem solved exactly."""
    x, y, _ = regressions()
    costs = []
    for w in reweighted(x, y, 4.0, 4):
        fit = 0.5 * (x @ w.t() - y).square().sum(0)
        costs.append(fit + 4.0 * (norms(w, TILE) + 0.1).log().sum(1))
    for before, after in itertools.pairwise(costs):
        assert (after <= before + 1e-6).all()
    assert (costs[-1] < costs[0] - 1e-3).all()


def test_reweighted_finds_the_blocks_of_a_regression_more_often_than_plain_lasso_does():
    """The exact support, each at the best of the same penalties."""
    x, y, kept = regressions()
    found = [[*reweighted(x, y, penalty, 3)] for penalty in (1.0, 3.0)]
    hits = [[int(((norms(w, TILE) > 0) == kept).all(1).sum()) for w in each] for each in found]
    plain, last = (max(each[when] for each in hits) for when in (0, -1))
    assert last >= plain + 4, hits


# In training.

WIDE = Block(8, 8, 0.5)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("how", ["proximal", "gradient"])
def test_a_step_is_that_without_a_penalty_and_then_the_penalty_by_the_closed_form(kind, how):
    model, plan = make(kind, WIDE)
    options = {"penalty": 0.3, "how": how, "power": 2, "epsilon": 0.01, "sized": False}
    twin, lr = copy.deepcopy(model), 0.05
    sgd = torch.optim.SGD
    ours, theirs = Run(model, GroupLasso(**options)), Run(twin, GroupLasso(penalty=0.0))
    for each in (ours, theirs):
        each.optimizer = each.method.optimizer(sgd([p for _, p in each.method.parameters()], lr=lr))
    gamma = {name: weights(norms(layer.matrix.detach(), (8, 8)), 2, 0.01) for name, layer in ours.method.layers.items()}
    before = {name: layer.matrix.detach().clone() for name, layer in ours.method.layers.items()}
    ours.take(1), theirs.take(1)
    for name in plan.layers:
        stepped = theirs.method.layers[name].matrix.detach()
        thresholds = lr * 0.3 * gamma[name]
        pulled = stepped - slope(before[name], thresholds, (8, 8))
        expected = shrink(stepped, thresholds, (8, 8)) if how == "proximal" else pulled
        torch.testing.assert_close(ours.method.layers[name].matrix.detach(), expected)


def test_a_strong_penalty_empties_blocks_whole_and_gamma_is_chosen_anew_in_a_phase_of_any_length():
    for steps in (4, 20):
        model, _ = make(constraint=WIDE)
        phase, chosen = Run(model, GroupLasso(penalty=0.6, reweights=2), steps=steps, lr=0.02), set()
        for _ in range(steps):
            phase.take(1)
            chosen.add(tuple(gamma.sum().item() for gamma in phase.method.gamma.values()))
        assert len(chosen) == 3
    metrics = phase.method.metrics(layers=True)
    assert 0 < metrics["empty"] < 1
    for name, layer in phase.method.layers.items():
        gone = norms(layer.matrix.detach(), (8, 8)) == 0
        assert metrics[f"empty/{name}"] == gone.float().mean().item()
        assert not layer.matrix[spread(gone, (8, 8))].any()


def test_the_finish_trains_what_the_projection_kept_between_the_levels_of_its_grid():
    joint = Then(WIDE, Grid(4))
    model, _ = make(constraint=joint)
    phase = Run(model, GroupLasso()).take(5)
    phase.method.hand_over()
    for layer in phase.method.layers.values():
        assert WIDE.contains(layer.matrix.detach())
        assert not joint.contains(layer.matrix.detach())
    kept = {name: layer.matrix.detach() != 0 for name, layer in phase.method.layers.items()}
    finish = Run(model, FixedMask()).take(2)
    assert all(torch.equal(layer.quantizer.mask, kept[name]) for name, layer in finish.method.layers.items())


def test_a_set_that_keeps_weights_one_by_one_has_groups_of_one():
    model, _ = make(constraint=NM(2, 4))
    method = Run(model, GroupLasso()).method
    assert all(gamma.shape == method.layers[name].matrix.shape for name, gamma in method.gamma.items())


def kept_blocks(method):
    return {name: norms(layer.matrix.detach(), (8, 8)) > 0 for name, layer in method.layers.items()}


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("end", ["hand_over", "finalize"])
def test_a_global_ranking_keeps_the_blocks_of_largest_norm_of_all_layers(kind, end):
    model, _ = make(kind, Block(8, 8, 0.75))
    with torch.no_grad():
        for number, layer in enumerate(Run(model, GroupLasso()).method.layers.values()):
            layer.weight.mul_(1 + number)  # later layers have the larger blocks
    method = Run(model, GroupLasso(ranking="global", density=0.4)).method
    before = {name: norms(layer.matrix.detach(), (8, 8)) for name, layer in method.layers.items()}
    with method.as_finished():
        meanwhile = kept_blocks(method)
    assert all(torch.equal(norms(layer.matrix.detach(), (8, 8)), before[n]) for n, layer in method.layers.items())
    getattr(method, end)()
    kept = kept_blocks(method)
    assert all(torch.equal(kept[name], meanwhile[name]) for name in kept)
    total = sum(each.numel() for each in kept.values())
    assert sum(int(each.sum()) for each in kept.values()) == round(0.4 * total)
    assert len({int(each.sum()) / each.numel() for each in kept.values()}) > 1
    full = {name for name, each in kept.items() if int(each.sum()) == round(0.75 * each.numel())}
    lost = max(before[name][~kept[name]].max() for name in kept.keys() - full)
    for name, each in kept.items():
        if each.any():
            assert before[name][each].min() >= max(lost, before[name][~each].max())


def test_the_finish_leaves_empty_what_the_phase_before_has_emptied_if_it_is_asked_to():
    model, _ = make(constraint=Block(8, 8, 0.75))
    phase = Run(model, GroupLasso(ranking="global", density=0.4)).take(2)
    phase.method.hand_over()
    kept = kept_blocks(phase.method)
    finish = Run(model, FixedMask(keep_zeros=True)).take(3)
    finish.method.finalize()
    found = kept_blocks(finish.method)
    whole = [name for name, each in kept.items() if each.any()]
    assert all(torch.equal(found[name], kept[name]) for name in whole)
    again, _ = make(constraint=Block(8, 8, 0.75))
    with torch.no_grad():
        for layer in Run(again, GroupLasso()).method.layers.values():
            layer.matrix[:8] = 0
    method = Run(again, FixedMask()).take(1).method
    assert any(layer.quantizer.mask[:8].any() for layer in method.layers.values())


@pytest.mark.parametrize("first", [GroupLasso, Taylor, Obert])
def test_a_recipe_whose_finish_would_train_what_lost_to_other_layers_is_refused(first):
    def recipe(finish):
        adam = torch.optim.AdamW
        phases = {
            "prune": Phase(first(ranking="global", density=0.5), adam, steps=4),
            "finish": Phase(finish, adam, steps=4),
        }
        return Recipe(phases)

    with pytest.raises(ValueError, match=r"use recipe\.phases\.finish\.method\.keep_zeros=true"):
        recipe(FixedMask())
    assert recipe(FixedMask(keep_zeros=True)).phases


def test_a_layer_of_zeros_can_be_trained_by_the_finish():
    model, _ = make(constraint=Block(8, 8, 0.5))
    first = next(iter(Run(model, GroupLasso()).method.layers.values()))
    with torch.no_grad():
        first.weight.zero_()
    assert Run(model, FixedMask(keep_zeros=True)).method is not None
    assert first.quantizer.mask.float().mean() == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranking": "global"}, "density is the share that ranking=global keeps: not None with global"),
        ({"density": 0.5}, "density is the share that ranking=global keeps: not 0.5 with layer"),
        ({"ranking": "global", "density": 1.5}, r"ranking=global needs a density in \(0, 1\], not 1.5"),
        ({"penalty": -1.0}, "penalty must be a number that is not negative, not -1"),
        ({"power": 3}, "power of the norm in gamma is 0, 1 or 2, not 3"),
        ({"epsilon": 0.0}, "epsilon must be positive, not 0"),
        ({"reweights": -1}, "reweights is how often gamma is recomputed, 0 or more, not -1"),
        ({"how": "prox"}, "unknown way to apply the penalty 'prox': did you mean proximal"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GroupLasso(**options)
