"""Laws of what is foreseen of one layer in one set, and how near that is to what happens."""

import numpy as np
import pytest
import torch
from every import SENSITIVITIES
from small import evidence

from nxmiformer.search.anchored import Anchored
from nxmiformer.search.sensitivity import LossChange, Measured, OutputError, Sensitivity
from nxmiformer.sets import NM, Block, Grid, Kronecker, Then, Unstructured

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
def test_the_weighted_output_error_is_half_the_squared_gradient_of_each_output_times_its_change(seen, constraint):
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


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("constraint", [Kronecker(4, 4), Block(8, 4, 0.5), Unstructured(0.3)], ids=str)
def test_all_rows_are_looked_at_where_they_are_no_problems_of_their_own(seen, weighted, constraint):
    some, every = (OutputError(weighted, rows, 0)(seen, one(seen), [constraint, Grid(4)]) for rows in (3, 10_000))
    assert some[0] == every[0] > 0
    assert some[1] != every[1]


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
def test_the_weighted_output_error_is_near_the_distance_that_comes_of_it(kind):
    """For INT8, a small change: within a factor of 3 over all layers, without having run the model once with it."""
    seen = evidence(kind, count=120, size=40)
    foreseen = sum(OutputError(rows=10_000, iterations=0)(seen, name, [Grid(8)])[0] for name in seen.layers)
    measured = sum(Measured()(seen, name, [Grid(8)])[0] for name in seen.layers)
    assert 1 / 3 < foreseen / measured < 3


@pytest.mark.parametrize("iterations", [0, 4])
@pytest.mark.parametrize("what", ["logits", "divergence", "loss"])
@pytest.mark.parametrize("examples", [None, 6])
def test_measured_is_what_the_evidence_says_of_the_point(seen, what, iterations, examples):
    part = seen.part(examples or 10_000)
    changed = [part.changed({one(seen): seen.point(one(seen), each, iterations)}) for each in SETS]
    judge = {
        "logits": part.distance,
        "divergence": part.divergence,
        "loss": lambda logits: max(0.0, part.loss(logits) - part.loss(part.logits)),
    }
    expected = [judge[what](each) for each in changed]
    assert Measured(what, iterations, examples)(seen, one(seen), SETS) == expected


class Known(Sensitivity):
    """Damages that are told."""

    def __init__(self, damages):
        self.damages, self.asked = damages, []

    def __call__(self, evidence, layer, sets):
        self.asked.append([str(each) for each in sets])
        return [self.damages[str(each)] for each in sets]


def test_an_anchored_sensitivity_says_at_the_anchors_what_was_measured_there(seen):
    measured = Measured(iterations=2, examples=8)
    anchored = Anchored(OutputError(), measured, ["2:4+int4", "1:4+int2"])
    sets = [Then(NM(2, 4), Grid(4)), Then(NM(1, 4), Grid(2))]
    assert anchored(seen, one(seen), sets) == pytest.approx(measured(seen, one(seen), sets), rel=1e-9)


def test_between_the_anchors_the_log_of_the_ratio_is_interpolated_and_beyond_them_it_stays(seen):
    foreseen = Known({"int8": 1e-4, "int4": 1e-2, "int3": 0.1, "int2": 1.0, "2:4": 10.0})
    measured = Known({"int4": 2e-2, "int2": 32.0})
    found = Anchored(foreseen, measured, ["int2", "int4"])(seen, one(seen), [Grid(8), Grid(3), NM(2, 4)])
    assert found == pytest.approx([2e-4, 0.1 * (2 * 32) ** 0.5, 320.0])
    assert measured.asked == [["int2", "int4"]]


def test_anchors_that_a_layer_cannot_take_are_left_out(seen):
    """1:5 fits none of the layers, whose columns are powers of 2."""
    foreseen, measured = Known({"int8": 1.0, "int4": 2.0}), Known({"int4": 6.0})
    assert Anchored(foreseen, measured, ["1:5", "int4"])(seen, one(seen), [Grid(8)]) == pytest.approx([3.0])
    assert Anchored(foreseen, measured, ["1:5"])(seen, one(seen), [Grid(8)]) == [1.0]
    assert measured.asked == [["int4"]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OutputError(rows=0), "rows=0 must be at least 1"),
        (lambda: OutputError(iterations=-1), "iterations=-1 at least 0"),
        (lambda: LossChange(order=3), "to order 1 or 2, not 3"),
        (lambda: Measured(what="los"), "unknown measured damage 'los': did you mean loss"),
        (lambda: Measured(iterations=-1), "iterations=-1 must be at least 0"),
        (lambda: Measured(examples=0), "examples=0 must be at least 1"),
        (lambda: Anchored(OutputError(), Measured(), ["2of4"]), "'2of4' is not a set"),
    ],
)
def test_sensitivities_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
