"""Laws of what is foreseen of one layer in one set, and how near that is to what happens."""

import numpy as np
import pytest
import torch
from small import evidence

from nxmiformer.search.sensitivity import LossChange, Measured, OutputError, WeightError, stand_ins
from nxmiformer.sets import NM, Grid, Then

SENSITIVITIES = [
    WeightError(),
    OutputError(),
    OutputError(weighted=False),
    OutputError(rows=5, iterations=0),
    LossChange(order=1),
    LossChange(order=2),
    Measured(),
    Measured(what="loss"),
    Measured(iterations=3),
]
SETS = [Grid(8), Grid(3), NM(2, 4), Then(NM(2, 4), Grid(4)), Then(NM(1, 4), Grid(2))]
BY_ITSELF = pytest.mark.parametrize("sensitivity", SENSITIVITIES, ids=repr)


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def seen(request):
    return evidence(request.param)


@pytest.fixture(scope="module")
def whole():
    """Evidence of more examples, for what holds on average."""
    return evidence("bert", count=40, size=20)


def one(seen):
    return list(seen.layers)[1]


@BY_ITSELF
def test_damage_is_a_number_of_zero_or_more_and_the_same_again(seen, sensitivity):
    first, again = (sensitivity(seen, one(seen), SETS) for _ in range(2))
    assert first == again
    assert len(first) == len(SETS)
    assert all(isinstance(each, float) and 0 <= each < float("inf") for each in first)
    assert first[-1] > 0 or sensitivity == Measured(what="loss")


@BY_ITSELF
def test_the_damage_in_one_set_does_not_depend_on_the_others(seen, sensitivity):
    alone = [sensitivity(seen, one(seen), [each])[0] for each in SETS]
    assert sensitivity(seen, one(seen), SETS) == alone


@BY_ITSELF
@pytest.mark.parametrize("constraint", [NM(2, 4), Grid(3), Then(NM(1, 4), Grid(2))], ids=str)
def test_a_set_that_the_weight_is_in_does_no_damage(sensitivity, constraint):
    seen = evidence()
    layer = seen.layers[one(seen)]
    with torch.no_grad():
        layer.weight.copy_(constraint.project(layer.weight))
    assert sensitivity(seen, one(seen), [constraint]) == [0]


@BY_ITSELF
def test_a_layer_of_zeros_takes_no_damage(sensitivity):
    seen = evidence()
    with torch.no_grad():
        seen.layers[one(seen)].weight.zero_()
    assert sensitivity(seen, one(seen), [Then(NM(2, 4), Grid(4)), Grid(1)]) == [0, 0]


@BY_ITSELF
def test_fewer_bits_and_fewer_weights_do_more_damage_on_average(whole, sensitivity):
    damage = np.array(
        [sensitivity(whole, name, [Grid(8), Grid(4), Grid(2), NM(2, 4), NM(1, 4)]) for name in whole.layers]
    )
    eight, four, two, half, quarter = damage.mean(0)
    assert eight < four < two
    assert half < quarter


def damped(moment):
    h = moment.double()
    return h + 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)


@pytest.mark.parametrize("constraint", SETS, ids=str)
def test_the_output_error_is_that_of_the_projection_on_the_inputs(seen, constraint):
    w, h = seen.layers[one(seen)].matrix.detach().double(), damped(seen.moments[one(seen)])
    off = constraint.project(w.float()).double() - w
    expected = ((off @ h) * off).sum() / ((w @ h) * w).sum()
    (found,) = OutputError(rows=10_000, weighted=False, iterations=0)(seen, one(seen), [constraint])
    assert found == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("constraint", SETS, ids=str)
def test_the_weighted_output_error_is_half_the_fisher_of_each_output_times_its_change(seen, constraint):
    w, h = seen.layers[one(seen)].matrix.detach().double(), damped(seen.moments[one(seen)])
    off = constraint.project(w.float()).double() - w
    expected = 0.5 * (seen.output_gradients[one(seen)].double() * torch.einsum("oi,ij,oj->o", off, h, off)).sum()
    (found,) = OutputError(rows=10_000, iterations=0)(seen, one(seen), [constraint])
    assert found == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_some_rows_tell_of_all_on_average(whole, weighted):
    some, every = (OutputError(weighted, rows, 0) for rows in (8, 10_000))
    ratios = [some(whole, name, [Grid(4)])[0] / every(whole, name, [Grid(4)])[0] for name in whole.layers]
    assert np.exp(np.mean(np.log(ratios))) == pytest.approx(1, abs=0.35)


def test_reconstruction_does_less_damage_than_projection(whole):
    for name in whole.layers:
        plain, reconstructed = (OutputError(rows=10_000, iterations=n)(whole, name, SETS) for n in (0, 10))
        assert all(after <= before * (1 + 1e-5) for before, after in zip(plain, reconstructed, strict=True))


def test_the_first_order_is_the_change_of_the_loss_to_come(whole):
    """For INT8, a small change, and summed over the layers with its sign lost."""
    loss = whole.loss(whole.logits)
    for name, layer in whole.layers.items():
        (foreseen,) = LossChange(order=1)(whole, name, [Grid(8)])
        change = abs(whole.loss(whole.changed({name: Grid(8).project(layer.matrix.detach())})) - loss)
        assert foreseen == pytest.approx(change, rel=0.25, abs=3e-6)


@pytest.mark.parametrize("kind", ["bert", "regression", "gpt2"])
def test_the_weighted_output_error_is_near_the_divergence_that_comes_of_it(kind):
    """For INT8, a small change: within a factor of 3 over all layers, without having run the model once with it."""
    seen = evidence(kind, count=120, size=40)
    foreseen = sum(OutputError(rows=10_000, iterations=0)(seen, name, [Grid(8)])[0] for name in seen.layers)
    measured = sum(Measured()(seen, name, [Grid(8)])[0] for name in seen.layers)
    assert 1 / 3 < foreseen / measured < 3


@pytest.mark.parametrize("iterations", [0, 4])
@pytest.mark.parametrize("what", ["divergence", "loss"])
def test_measured_is_what_the_evidence_says_of_the_stand_in(seen, what, iterations):
    points = stand_ins(seen, one(seen), SETS, iterations)
    changed = [seen.changed({one(seen): point}) for point in points]
    if what == "divergence":
        expected = [seen.divergence(each) for each in changed]
    else:
        expected = [max(0.0, seen.loss(each) - seen.loss(seen.logits)) for each in changed]
    assert Measured(what, iterations)(seen, one(seen), SETS) == expected


@pytest.mark.parametrize("iterations", [0, 3])
def test_stand_ins_are_points_of_their_sets(seen, iterations):
    for point, constraint in zip(stand_ins(seen, one(seen), SETS, iterations), SETS, strict=True):
        assert point.shape == seen.layers[one(seen)].matrix.shape
        assert constraint.contains(point)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OutputError(rows=0), "rows=0 must be at least 1"),
        (lambda: OutputError(iterations=-1), "iterations=-1 at least 0"),
        (lambda: LossChange(order=3), "to order 1 or 2, not 3"),
        (lambda: Measured(what="los"), "unknown measured damage 'los': did you mean loss"),
        (lambda: Measured(iterations=-1), "iterations=-1 must be at least 0"),
    ],
)
def test_sensitivities_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
