"""Gradual pruning: its course, its masks, what reaches a pruned weight, and its learning rates."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_methods import EPOCH, Run, batch, given_to, make
from torch.optim import SGD

from nxmiformer.methods.base import Length
from nxmiformer.methods.obert import Obert
from nxmiformer.methods.prune_once import PruneOnce
from nxmiformer.methods.taylor import Taylor
from nxmiformer.sets import NM, Block, Grid, Then, Unstructured
from nxmiformer.train.rates import held, rewound


def masks(method):
    return {name: layer.quantizer.mask.clone() for name, layer in method.layers.items()}


def sparsity(method):
    found = masks(method).values()
    return sum(int((~mask).sum()) for mask in found) / sum(mask.numel() for mask in found)


def test_prune_once_follows_the_trace_of_the_authors_then_moves_and_then_freezes():
    model, _ = make(constraint=Unstructured(0.1))
    phase, trace, moved = Run(model, PruneOnce(), steps=100, lr=0.05), {}, set()
    for step in range(100):
        before = masks(phase.method)
        phase.take(1)
        trace[step] = sparsity(phase.method)
        if any(not mask.equal(before[name]) for name, mask in masks(phase.method).items()):
            moved.add(step)
    expected = {1: 0.0529, 5: 0.244, 10: 0.439, 25: 0.788, 50: 0.9, 99: 0.9}
    assert {step: trace[step] for step in expected} == pytest.approx(expected, abs=2e-3)
    assert any(50 < step <= 80 for step in moved)
    assert max(moved) <= 80


@pytest.mark.parametrize(
    "method",
    [PruneOnce(prunings=5), *(kind(prunings=3, initial=0.3, after=0.4, gradients=0) for kind in (Obert, Taylor))],
)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_no_gradient_reaches_what_is_left_out_and_no_weight_of_it_is_seen(method, kind):
    phase = Run(make(kind, NM(2, 4))[0], method)
    for _ in range(12):
        phase.backward()
        phase.method.before_clip()
        for layer in phase.method.layers.values():
            mask = layer.quantizer.mask
            gradient = layer.weight.grad.t() if layer.transposed else layer.weight.grad
            assert not gradient[~mask].any()
            assert not layer.quantizer(layer.matrix)[~mask].any()
        phase.optimizer.step()
        phase.step += 1


SETS = [Unstructured(0.1), NM(1, 4), NM(2, 4), Block(2, 2, 0.25)]


@given(first=st.floats(0.0, 1.0), second=st.floats(0.0, 1.0), points=st.sampled_from(SETS))
def test_the_stages_on_the_way_to_a_set_hold_each_other_and_the_set(first, second, points):
    loose, tight = (points.keeping(max(first, second)), points.keeping(min(first, second)))
    score = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).abs()
    assert not (points.mask(score) & ~tight.mask(score)).any()
    assert not (tight.mask(score) & ~loose.mask(score)).any()
    assert points.keeping(0.0) == points
    assert points.keeping(1.0).mask(score).all()


def calibrated(method, model, steps):
    """The method after its calibrations before each of the steps, and the sparsity that each left."""

    def batches():
        for number in itertools.count():
            found = batch()
            yield {**found, "input_ids": found["input_ids"].roll(number, 0)}

    method.attach(model, Length(steps, EPOCH))
    trace, supports = [], []
    for step in range(steps):
        seen = given_to(model, batches())
        list(method.calibrate(seen) if step == 0 else method.calibrate_again(step, seen))
        trace.append(sparsity(method))
        supports.append(masks(method))
    return trace, supports


@pytest.mark.parametrize("constraint", [Unstructured(0.1), Then(Unstructured(0.1), Grid(8))], ids=str)
def test_the_surgeon_prunes_by_its_course_and_never_takes_back_what_it_pruned(constraint):
    model, _ = make(constraint=constraint)
    options = {"prunings": 7, "initial": 0.7, "before": 2 / 30, "after": 4 / 30}
    method = Obert(**options, gradients=8, block=8, damping=1e-5)
    trace, supports = calibrated(method, model, 30)
    assert trace[:2] == [0.0, 0.0]
    assert [trace[step] for step in range(2, 30, 4)] == pytest.approx(
        [0.7, 0.784, 0.841, 0.875, 0.893, 0.899, 0.9], abs=3e-3
    )
    for before, after in itertools.pairwise(supports):
        assert all(not (after[name] & ~before[name]).any() for name in before)
    for layer in method.layers.values():
        assert layer.quantizer.mask.equal(layer.matrix != 0)


@pytest.mark.parametrize("memory", [4.0, 1e-6])
def test_a_global_ranking_keeps_the_dearest_of_all_layers_and_no_more_than_a_set_allows(memory):
    model, _ = make(constraint=Unstructured(0.5))
    method = Obert(ranking="global", density=0.2, gradients=8, block=8, damping=1e-5, memory=memory)
    trace, _ = calibrated(method, model, 1)
    assert trace[0] == pytest.approx(0.8, abs=1e-3)
    shares = [mask.float().mean().item() for mask in masks(method).values()]
    assert max(shares) <= 0.5
    assert max(shares) > 1.2 * min(shares)


@pytest.mark.parametrize(("constraint", "density", "message"), [
    (NM(2, 4), 0.2, "single weights or blocks, not patterns, as the set of bert.encoder.* has"),
    (Unstructured(0.1), 0.2, "density=0.2 is more than the sets of the plan may keep, 0.1"),
])  # fmt: skip
def test_a_global_ranking_that_cannot_be_is_refused(constraint, density, message):
    with pytest.raises(ValueError, match=message):
        Obert(ranking="global", density=density).attach(make(constraint=constraint)[0], Length(1, 1))


@pytest.mark.parametrize(("kind", "options", "message"), [
    (Obert, {"prunings": 0}, "at least 1, not 0"),
    (Obert, {"initial": 1.0}, r"in \[0, 1\), not 1"),
    (Obert, {"ranking": "globle"}, "did you mean global"),
    (Obert, {"ranking": "global"}, "density is the share that ranking=global keeps"),
    (Obert, {"ranking": "global", "density": 2.0}, r"a density in \(0, 1\], not 2.0"),
    (PruneOnce, {"frozen": 0.6}, "within after=0.5, not 0.6"),
])  # fmt: skip
def test_a_course_that_means_nothing_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def rates(make_schedule, steps, *options, warmup=0):
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = make_schedule(optimizer, warmup, steps, *options)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_the_learning_rate_is_rewound_at_each_pruning_and_falls_in_between():
    found = rates(rewound, 30, 7, 2 / 30, 4 / 30, 0.1)
    assert [step for step, rate in enumerate(found) if rate == 1.0] == [0, 2, 6, 10, 14, 18, 22, 26]
    assert found[6:10] == pytest.approx([1.0, 0.775, 0.55, 0.325])


def test_the_learning_rate_is_held_while_masks_move_and_then_falls_to_nothing():
    found = rates(held, 10, 0.8, warmup=1)
    assert found == pytest.approx([0.5, *[1.0] * 8, 0.5])
