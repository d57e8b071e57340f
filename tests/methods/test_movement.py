"""Movement pruning: gradients of scores, courses, masks of every shape, and what is gone afterwards."""

import copy

import pytest
import torch
from test_methods import MODELS, Run, batch, logits, make

from nxmiformer.applied.convert import convert, strip, verify
from nxmiformer.layers.compact import compact
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.units import find_units, silent
from nxmiformer.methods.movement import Movement
from nxmiformer.plan.structured import Structured
from nxmiformer.sets import NM, Block, Grid, Then

LITERALS = {  # the support of a weight (4, 4) whose scores are 0, 1, 2, ... in the order of its blocks
    "squares": (Block(2, 2, 0.5), [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]),
    "rows": (Block(1, 4, 0.5), [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]),
    "columns": (Block(4, 1, 0.5), [[0, 0, 1, 1]] * 4),
    "fine": (Block(1, 1, 0.25), [[0, 0, 0, 0]] * 3 + [[1, 1, 1, 1]]),
    "n of m": (NM(1, 4), [[0, 0, 0, 1]] * 4),
    "squares and a grid": (Then(Block(2, 2, 0.25), Grid(8)), [[0] * 4, [0] * 4, [0, 0, 1, 1], [0, 0, 1, 1]]),
}


def hybrid(kind="bert", density=0.5, heads=None, weight=None):
    """A converted model whose feed-forward parts lose dimensions, and its plan."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[kind]()
    plan = Structured("hybrid", weight or Block(8, 8, 0.5), dimensions=density, heads=heads)(model)
    return convert(model, plan).train(), plan


def attached(model, steps=20, **options):
    phase = Run(model, Movement(**options), steps=steps)
    phase.method.before_step(0)
    return phase


@pytest.mark.parametrize("name", LITERALS)
def test_the_highest_scores_stay_in_the_shape_of_the_set(name):
    constraint, expected = LITERALS[name]
    model, _ = make(constraint=constraint)
    phase = attached(model, threshold=0.0)
    layer = phase.method.layers["bert.encoder.layer.0.attention.self.query"]
    each = phase.method.scored["bert.encoder.layer.0.attention.self.query"]
    shape = each.blocks["bert.encoder.layer.0.attention.self.query"].shape
    with torch.no_grad():  # the weight is (16, 16): so is the pattern, four times either way
        corner = (4 // constraint.sparsity.tile[0] or 1, 4 // constraint.sparsity.tile[1] or 1)
        small = torch.arange(corner[0] * corner[1]).view(corner).float()
        if name == "n of m":
            scores = small.repeat(4, 4)
        else:
            scores = small.repeat(-(-shape[0] // corner[0]), -(-shape[1] // corner[1]))[: shape[0], : shape[1]]
        each.scores.copy_(scores.flatten())
    phase.method.finalize()
    mask, pattern = layer.quantizer.mask, torch.tensor(expected, dtype=torch.bool)
    assert torch.equal(mask, pattern.repeat(4, 4))
    assert torch.equal(layer.matrix != 0, mask & (layer.matrix != 0))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_gradient_of_a_score_is_the_sum_of_the_gradient_times_the_weight_over_its_block(kind):
    model, _ = make(kind, Block(8, 8, 0.5))
    phase = Run(model, Movement(penalty=0.0)).take(8)
    phase.backward()
    seen = {name: layer.weight.grad.clone() for name, layer in phase.method.layers.items()}
    phase.method.before_clip()
    for name, layer in phase.method.layers.items():
        grad = (seen[name].t() if layer.transposed else seen[name]).double()
        product = grad * layer.matrix.detach().double()
        looped = [
            product[i : i + 8, j : j + 8].sum() for i in range(0, grad.shape[0], 8) for j in range(0, grad.shape[1], 8)
        ]
        torch.testing.assert_close(phase.method.scored[name].scores.grad.double(), torch.stack(looped))
        kept = layer.quantizer.mask
        assert not (layer.weight.grad.t() if layer.transposed else layer.weight.grad)[~kept].any()


def test_a_score_s_gradient_is_that_of_a_mask_that_multiplies_weight_and_bias():
    """Against autograd through W * M and b * M, with M at one."""
    model, _ = hybrid(density=0.5)
    plain = strip(copy.deepcopy(model))
    phase = attached(model, threshold=0.0)
    phase.backward()
    phase.method.before_clip()
    first, second = (plain.get_submodule(f"bert.encoder.layer.0.{name}.dense") for name in ("intermediate", "output"))
    mask = torch.ones(32, requires_grad=True)
    parameters = dict(plain.named_parameters())
    changed = {
        "bert.encoder.layer.0.intermediate.dense.weight": first.weight * mask[:, None],
        "bert.encoder.layer.0.intermediate.dense.bias": first.bias * mask,
        "bert.encoder.layer.0.output.dense.weight": second.weight * mask,
    }
    loss = torch.func.functional_call(plain, {**parameters, **changed}, kwargs=batch()).loss
    (expected,) = torch.autograd.grad(loss, mask)
    found = phase.method.scored["bert.encoder.layer.0.dimensions"].scores.grad
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_score_below_the_threshold_masks_exactly_its_block_and_one_of_a_unit_all_of_the_unit(kind):
    model, plan = hybrid(kind, 1.0, heads=1.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(float(name.endswith("bias")))
    phase = attached(model, threshold=0.1, before=0.0, after=1.0)
    before = {name: layer.matrix.detach().clone() for name, layer in phase.method.layers.items()}
    units = find_units(model)
    with torch.no_grad():
        for each in units:
            phase.method.scored[f"{each.layer}.{each.kind}"].scores[1] = -2.3  # sigmoid: 0.091
    phase.method.before_step(1)
    one = torch.tensor([1])
    for each in units:
        for name in each.names:
            expected = torch.ones(plan.layers[name].shape, dtype=torch.bool)
            for source in each.sources:
                if source.name == name:
                    expected[source.rows(one)] = False
                    assert not model.get_submodule(name).bias[source.rows(one)].any()
            if name == each.out:
                expected[:, each.columns(one)] = False
                assert model.get_submodule(name).bias.all()
            assert torch.equal(phase.method.layers[name].quantizer.mask, expected)
            assert torch.equal(phase.method.layers[name].matrix.detach(), before[name])  # it may come back
    with torch.no_grad():
        for each in units:
            phase.method.scored[f"{each.layer}.{each.kind}"].scores[1] = -2.1  # sigmoid: 0.109
    phase.method.before_step(2)
    assert all(layer.quantizer.mask.all() for layer in phase.method.layers.values())


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_what_a_run_leaves_is_in_the_plan_and_compacts_to_a_model_that_computes_the_same(kind):
    model, plan = hybrid(kind, 0.5, heads=0.5)
    phase = Run(model, Movement(threshold=0.0), steps=10).take(10)
    with phase.method.as_finished():
        shown = logits(model)
    phase.method.finalize()
    verify(model, plan)
    assert torch.equal(logits(model), shown)
    for units in find_units(model):
        assert int(silent(model, units).sum()) == units.count // 2
    compact(strip(model))
    assert all(units.count == units.full // 2 for units in find_units(model))
    torch.testing.assert_close(logits(model), shown, rtol=0, atol=1e-4)


def test_the_penalty_is_the_mean_over_parts_of_the_mean_over_modules_of_the_mean_of_the_sigmoids():
    model, _ = hybrid(density=0.5)
    options = {"penalty": 3.0, "attention": 2.0, "feed_forward": 0.5, "before": 0.0, "after": 1.0}
    phase = attached(model, **options)
    scored = phase.method.scored
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in scored.values():
            each.scores.copy_(torch.randn(each.scores.shape, generator=generator))
    phase.method.before_clip()  # there is no gradient of a loss
    for part in scored.values():
        part.ours, part.scores.grad = part.scores.grad, None
    attention = [each.scores for name, each in scored.items() if ".attention." in name]
    dimensions = [each.scores for name, each in scored.items() if name.endswith("dimensions")]
    assert (len(attention), len(dimensions)) == (8, 2)
    means = [torch.stack([each.sigmoid().mean() for each in group]).mean() for group in (attention, dimensions)]
    (3.0 * (2.0 * means[0] + 0.5 * means[1]) / 2).backward()
    for each in scored.values():
        torch.testing.assert_close(each.ours, each.scores.grad)


def test_a_penalty_alone_pushes_scores_below_the_threshold_and_the_more_it_is_the_fewer_blocks_stay():
    stays = []
    for penalty in (0.0, 20.0):
        model, plan = make(constraint=Block(4, 4, 1.0))
        phase = Run(model, Movement(penalty=penalty, score_rate=0.3), steps=20)
        phase.take(20).method.finalize()
        verify(model, plan)
        stays.append(phase.method.metrics(layers=True)["stays"])
    assert stays[1] < 0.7 * stays[0]


def test_scores_train_at_their_own_rate_and_without_weight_decay():
    model, _ = make(constraint=Block(4, 4, 0.5))
    method = Movement(score_rate=0.5)
    method.attach(model, Run(model, Movement()).method.length)
    base = torch.optim.AdamW([p for _, p in method.parameters()], lr=1e-3, weight_decay=0.1)
    group = method.optimizer(base).param_groups[-1]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.0)
    assert {id(p) for p in group["params"]} == {id(each.scores) for each in method.scored.values()}


def test_blocks_everywhere_have_scores_of_their_own_and_no_unit_is_shared():
    model, _ = make(constraint=Block(4, 4, 0.5))
    assert set(attached(model).method.scored) == set(compressed_layers(model))


def test_what_may_stay_shrinks_to_the_density_of_the_set_by_the_course():
    model, _ = make(constraint=Block(4, 4, 0.25))
    phase = Run(model, Movement(threshold=0.0, before=0.1, after=0.5), steps=20)
    layer = phase.method.layers["bert.encoder.layer.0.attention.self.query"]
    for step in range(20):
        phase.method.before_step(step)
        left = round((1 - phase.method.course.at(step)) * 12)
        assert int(layer.quantizer.mask.sum()) == 16 * (4 + left)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, r"threshold is one of a sigmoid, in \[0, 1\), not 1"),
        ({"penalty": -1.0}, "penalty must be a number that is not negative, not -1"),
        ({"score_rate": 0.0}, "score_rate must be positive, not 0"),
        ({"before": 0.7, "after": 0.7}, "together at most 1"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_movement(options, message):
    with pytest.raises(ValueError, match=message):
        Movement(**options)
