"""Optimal BERT Surgeon: where its support comes from, and what memory it takes."""

import copy
import itertools

import pytest
from test_methods import EPOCH, STEPS, batch, given_to, make

from nxmiformer.layers.found import distinct_layers
from nxmiformer.methods.base import Length
from nxmiformer.methods.obert import GIB, Obert
from nxmiformer.methods.one_shot import OneShot
from nxmiformer.optim.fisher import Fisher
from nxmiformer.sets import NM, Grid, Then, Unstructured


def pruned(model, **options):
    """The method after its calibration of the model, and the names of the layers as they came."""
    method = Obert(**{"block": 8, "damping": 1e-5, "gradients": 16, **options})
    method.attach(model, Length(STEPS, EPOCH))
    done = list(method.calibrate(given_to(model, batches())))
    return method, done


def batches():
    """Batches without end, which differ."""
    for number in itertools.count():
        found = batch()
        yield {**found, "input_ids": found["input_ids"].roll(number, 0), "labels": found["labels"].roll(number // 8)}


def test_the_loss_is_lower_than_under_the_support_of_magnitude_and_pruned_weights_are_zero():
    dense, _ = make("bert", NM(1, 4))
    ours, theirs = copy.deepcopy(dense), copy.deepcopy(dense)
    method, done = pruned(ours)
    assert done == list(method.layers)
    for layer in method.layers.values():
        assert NM(1, 4).contains(layer.matrix.detach())
        assert layer.quantizer.mask.equal(layer.matrix != 0)
    one_shot = OneShot()
    one_shot.attach(theirs, Length(0, EPOCH))
    losses = [model.eval()(**batch()).loss.item() for model in (dense, ours, theirs)]
    assert abs(losses[1] - losses[0]) < abs(losses[2] - losses[0])


def test_layers_come_in_passes_that_fit_into_the_memory_and_give_the_same_weights():
    one, several = make("bert", NM(2, 4))[0], make("bert", NM(2, 4))[0]
    whole, _ = pruned(one)
    largest = max(Fisher.nbytes(tuple(layer.matrix.shape), 8) for layer in whole.layers.values())
    parts, _ = pruned(several, memory=largest / GIB)
    assert len(list(whole._passes())) == 1
    for part in parts._passes():
        assert sum(Fisher.nbytes(tuple(layer.matrix.shape), 8) for layer in part.values()) <= largest
    assert len(list(parts._passes())) > 1
    first = next(iter(whole._passes()))
    for name in list(next(iter(parts._passes()))):
        assert first[name].matrix.equal(parts.layers[name].matrix)


def test_the_gradients_are_those_of_the_loss_that_is_asked_for():
    task, taught, magnitude = (make("bert", NM(1, 4))[0] for _ in range(3))
    pruned(magnitude, gradients=0)
    for model, loss in ((task, "task"), (taught, "objective")):
        teacher = copy.deepcopy(model).eval()
        method = Obert(block=8, damping=1e-5, gradients=16, loss=loss)
        method.attach(model, Length(STEPS, EPOCH))

        def distilled(found, model=model, teacher=teacher):
            return (model(**found).logits - teacher(**found).logits.detach()).square().mean()

        list(method.calibrate(given_to(model, batches())._replace(objective=distilled)))
    supports = [[layer.mask for layer in find(model)] for model in (task, taught, magnitude)]
    assert all(ours.equal(theirs) for ours, theirs in zip(*supports[1:], strict=True))  # it is its own teacher
    assert not all(ours.equal(theirs) for ours, theirs in zip(*supports[::2], strict=True))


def find(model):
    return [layer.quantizer for layer in distinct_layers(model).values()]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_no_gradient_is_left_on_a_weight_and_the_quantizers_are_as_they_were(kind):
    model, _ = make(kind, Then(NM(2, 4), Grid(4)))
    method, _ = pruned(model, delay=3)
    assert all(p.grad is None for p in model.parameters())
    assert not any(layer.quantizer.active for layer in method.layers.values())


def test_a_layer_without_a_sparsity_set_is_left_as_it_is():
    model, _ = make("bert", Grid(8), method=Obert)  # all layers but the first
    before, first = copy.deepcopy(model.state_dict()), next(iter(distinct_layers(model)))
    assert pruned(model)[1] == [first]
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert moved
    assert all(name.startswith(first) for name in moved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradients": -1}, "gradients is a number of batches, 0 or more, not -1"),
        ({"block": 0}, "block is a number of weights, at least 1, not 0"),
        ({"damping": 0.0}, "damping must be positive, not 0"),
        ({"memory": -1.0}, "memory must be positive, not -1"),
    ],
)
def test_a_value_that_means_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Obert(**options)


def test_blocks_that_cut_a_group_in_two_are_named_with_their_layer():
    model, _ = make("bert", NM(2, 4))
    with pytest.raises(ValueError, match=r"encoder.*: blocks of 6 weights cut groups of 4 in two"):
        pruned(model, block=6)


def test_without_gradients_the_support_is_that_of_magnitude():
    model, _ = make("bert", Unstructured(0.5))
    method, done = pruned(model, gradients=0)
    assert done == []
    for layer in method.layers.values():
        assert layer.quantizer.mask.equal(Unstructured(0.5).mask(layer.matrix.detach().abs()))
