"""Laws of who trains at which learning rate."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from nxmiformer.applied.convert import convert
from nxmiformer.layers.found import distinct_layers
from nxmiformer.layers.targets import find_targets
from nxmiformer.methods.base import Length
from nxmiformer.methods.dense import Dense
from nxmiformer.methods.ste_qat import SteQat
from nxmiformer.models import embedded
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Grid, Then
from nxmiformer.tasks.grammar import Grammar
from nxmiformer.train.groups import LEAST, groups, scaled, shares
from nxmiformer.train.recipe import Phase

SETS = [Grid(8), Grid(3), Then(NM(1, 4), Grid(4))]


@pytest.fixture
def method():
    tokenizer = embedded.tokenizer(Grammar().vocabulary)
    model = embedded.model(tokenizer, 2, seed=0, hidden=16, layers=1, heads=2, intermediate=32)
    targets = find_targets(model)
    sets = {target.name: SETS[index % 3] for index, target in enumerate(targets.layers)}
    convert(model, CompressionPlan.assigned(model, targets, sets))
    attached = SteQat(learned_scales=True)
    attached.attach(model, Length(1, 1))
    return attached


def errors(method):
    """||W - P(W)||^2 / ||W||^2 of each layer."""
    found = {}
    for name, layer in distinct_layers(method.model).items():
        w = layer.matrix.detach().double()
        off = layer.quantizer.constraint.project(w.float()).double() - w
        found[name] = (off.square().sum() / w.square().sum()).item()
    return found


def test_a_compressed_weight_has_its_distance_for_a_share_and_all_else_that_of_all(method):
    found, distances = shares(method, errors(method)), errors(method)
    sizes = {name: layer.weight.numel() for name, layer in method.layers.items()}
    overall = (sum(sizes[name] * distances[name] for name in sizes) / sum(sizes.values())) ** 0.5
    assert found.keys() == {name for name, _ in method.model.named_parameters()}
    for name, share in found.items():
        layer = name.removesuffix(".weight")
        expected = max(LEAST, distances[layer] ** 0.5) if name.endswith(".weight") and layer in distances else overall
        assert share == pytest.approx(expected)
    assert len({found[f"{name}.weight"] for name in sizes}) > 3


def test_a_weight_in_its_set_still_has_the_least_share(method):
    assert set(shares(method, dict.fromkeys(method.layers, 0.0)).values()) == {LEAST}


def test_a_step_is_the_gradient_times_the_learning_rate_times_the_share(method):
    named, found = dict(method.parameters()), shares(method, errors(method))
    optimizer = scaled(SGD(groups(named.items(), 0.0, found), lr=0.5))
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.5 * found[name])


@pytest.mark.parametrize("relative", [False, True])
def test_each_parameter_is_in_one_group_and_matrices_alone_decay(method, relative):
    named = dict(method.parameters())
    found = groups(named.items(), 0.1, shares(method, errors(method)) if relative else {})
    decay = {id(parameter): group["weight_decay"] for group in found for parameter in group["params"]}
    assert sum(len(group["params"]) for group in found) == len(decay) == len(named)
    for name, parameter in named.items():
        assert decay[id(parameter)] == (0.1 if parameter.ndim > 1 and not name.endswith(".scales") else 0.0)
    assert relative or [group["share"] for group in found] == [1.0, 1.0]


def test_no_parameters_make_no_group():
    assert groups([], 0.1, {}) == []


def test_a_dense_phase_has_nothing_to_be_relative_to():
    with pytest.raises(ValueError, match="relative=false"):
        Phase(Dense(), SGD, relative=True)
    assert Phase(SteQat(), SGD, relative=True).relative


def test_biases_alone_are_one_group():
    (group,) = groups([("bias", nn.Parameter(torch.zeros(3)))], 0.1, {})
    assert group["weight_decay"] == 0.0
