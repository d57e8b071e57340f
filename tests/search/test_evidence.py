"""Laws of what is measured on a dense model, against copies of it in float64 that see one example at a time."""

import copy
from dataclasses import replace

import pytest
import torch
from naive import same_bits
from small import MODELS, accuracy, evidence, logits, separate

from nxmiformer.layers.found import compressed_layers
from nxmiformer.sets import NM, Grid, Then

SET = Grid(3)
SETS = [Grid(8), SET, NM(2, 4), NM(1, 1), Then(NM(1, 4), Grid(1))]


@pytest.fixture(scope="module", params=list(MODELS))
def seen(request):
    return evidence(request.param)


def state(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def unchanged(model, before):
    return all(same_bits(tensor, before[key]) for key, tensor in model.state_dict().items())


def points(seen):
    return {name: SET.project(layer.matrix.detach()) for name, layer in seen.layers.items()}


def twin(seen, weights=None):
    """A copy of the model in float64 and evaluation mode, with these weights."""
    model = copy.deepcopy(seen.model).double().eval()
    for name, weight in (weights or {}).items():
        layer = model.get_submodule(name)
        layer.weight.data = (weight.t() if layer.transposed else weight).double().contiguous()
    for name, alias in shared_names(seen).items():
        model.get_submodule(name).weight = model.get_submodule(alias).weight
    return model


def shared_names(seen):
    """The layers that share the weight of another, and that other."""
    first = {id(layer.weight): name for name, layer in seen.layers.items()}
    modules = compressed_layers(seen.model)
    return {name: first[id(module.weight)] for name, module in modules.items() if name not in seen.layers}


def slow_loss(row, label):
    if len(row) == 1:
        return (row[0] - label) ** 2 / 2
    return torch.logsumexp(row, 0) - row[label]


def test_the_logits_after_a_change_are_those_of_a_copy_with_the_weights(seen):
    model = twin(seen, points(seen))
    with torch.no_grad():
        expected = torch.cat([logits(model, each) for each in separate(seen)])
    found = torch.cat(seen.changed(points(seen)))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_divergence_and_the_loss_are_those_of_copies(seen):
    models = twin(seen), twin(seen, points(seen))
    divergences, losses = [], []
    for each in separate(seen):
        with torch.no_grad():
            before, after = (logits(model, each)[0] for model in models)
        if len(before) == 1:
            divergences.append((after - before) ** 2 / 2)
        else:
            p, q = before.softmax(0), after.softmax(0)
            divergences.append((p * (p / q).log()).sum())
        losses.append(slow_loss(after, each["labels"][0]))
    changed = seen.changed(points(seen))
    assert seen.divergence(changed) == pytest.approx(float(sum(divergences) / len(divergences)), rel=1e-3)
    assert seen.loss(changed) == pytest.approx(float(sum(losses) / len(losses)), rel=1e-4)


def test_the_divergence_of_the_dense_weights_is_zero_and_of_others_is_not(seen):
    dense = {name: layer.matrix.detach().clone() for name, layer in seen.layers.items()}
    assert seen.divergence(seen.changed(dense)) == 0
    assert seen.divergence(seen.changed({})) == 0
    for name, point in points(seen).items():
        assert seen.divergence(seen.changed({name: point})) > 0


def test_the_least_change_diverges_by_no_less_than_zero():
    seen = evidence("bert")
    shifted = [each + 1e-4 for each in seen.logits]  # the same predictions, but for rounding
    assert 0 <= seen.divergence(shifted) < 1e-12


def test_the_score_is_the_metric_of_all_logits_and_labels_together(seen):
    labels = torch.cat([batch["labels"] for batch in seen.batches]).numpy()
    assert seen.examples == len(labels)
    assert seen.score(seen.logits) == accuracy(torch.cat(seen.logits).numpy(), labels)


@pytest.mark.parametrize("fails", [False, True])
def test_the_weights_and_modes_are_the_same_bits_afterwards(seen, fails):
    before, modes = state(seen.model), [module.training for module in seen.model.modules()]
    given = points(seen)
    if fails:

        def broken(batch):
            raise RuntimeError("broken")

        failing = replace(seen, forward=broken)
        failing.__dict__["logits"] = seen.logits  # those of the dense model were taken before
        with pytest.raises(RuntimeError, match="broken"):
            failing.changed(given)
    else:
        seen.loss(seen.changed(given))
    assert unchanged(seen.model, before)
    assert [module.training for module in seen.model.modules()] == modes


def test_a_weight_of_another_shape_leaves_the_others_as_they_were(seen):
    before = state(seen.model)
    *others, last = points(seen)
    with pytest.raises(RuntimeError):
        seen.changed({**{name: points(seen)[name] for name in others}, last: torch.zeros(3, 3)})
    assert unchanged(seen.model, before)


def directions(seen):
    """Those that the generator gives: one batch after the other, each orthogonal to what all outputs have in common."""
    generator = torch.Generator().manual_seed(0)
    for batch in seen.logits:
        for row in torch.randn(batch.shape, generator=generator).double():
            yield (row - row.mean() if len(row) > 1 else row) / len(row) ** 0.5


def test_the_gradients_of_outputs_are_those_of_one_example_after_the_other(seen):
    model, aliases = twin(seen), shared_names(seen)
    totals = {name: torch.zeros(layer.out_features, dtype=torch.float64) for name, layer in seen.layers.items()}
    outputs = {}
    for name, layer in compressed_layers(model).items():
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.__setitem__(name, output))
    for example, direction in zip(separate(seen), directions(seen), strict=True):
        along = (logits(model, example)[0] * direction).sum()
        gradients = torch.autograd.grad(along, list(outputs.values()))
        for name, gradient in zip(outputs, gradients, strict=True):
            for token in gradient.flatten(0, -2):
                totals[aliases.get(name, name)] += token**2
    for name, total in totals.items():
        torch.testing.assert_close(seen.output_gradients[name].double(), total / seen.examples, rtol=2e-3, atol=1e-7)


def test_the_distance_is_the_divergence_at_a_high_temperature(seen):
    generator = torch.Generator().manual_seed(0)
    moved = [each + torch.randn(each.shape, generator=generator) for each in seen.logits]
    if moved[0].shape[1] == 1:
        assert seen.distance(moved) == pytest.approx(seen.divergence(moved), rel=1e-6)
        return
    hot, total = 1e4, 0.0
    for before, after in zip(seen.logits, moved, strict=True):
        p, q = ((each.double() / hot).log_softmax(1) for each in (before, after))
        total += hot**2 * (p.exp() * (p - q)).sum().item()
    assert seen.distance(moved) == pytest.approx(total / seen.examples, rel=1e-3)


def test_what_all_outputs_have_in_common_is_no_distance(seen):
    moved = [each + 5.0 if each.shape[1] > 1 else each for each in seen.logits]
    assert seen.distance(moved) == pytest.approx(0, abs=1e-9)


def test_the_expansion_is_the_gradient_and_its_square_of_each_batch(seen):
    model = twin(seen)
    sums = {}
    for batch in seen.batches:
        losses = [slow_loss(*pair) for pair in zip(logits(model, batch), batch["labels"], strict=True)]
        for name in seen.layers:
            layer = model.get_submodule(name)
            (gradient,) = torch.autograd.grad(sum(losses), layer.weight, retain_graph=True)
            gradient = gradient.t() if layer.transposed else gradient
            sums.setdefault(name, []).append((gradient, gradient**2))
    for name, pairs in sums.items():
        for found, parts in zip(seen.expansion[name], zip(*pairs, strict=True), strict=True):
            torch.testing.assert_close(found.double(), sum(parts) / seen.examples, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("what", ["output_gradients", "expansion"])
def test_looking_at_gradients_leaves_gradients_and_what_needs_them(what):
    seen = evidence()
    parameters = list(seen.model.parameters())
    for index, parameter in enumerate(parameters):
        parameter.requires_grad_(index % 2 == 0)
        parameter.grad = torch.full_like(parameter, index) if index % 3 == 0 else None
    before = state(seen.model)
    assert getattr(seen, what).keys() == seen.layers.keys()
    assert unchanged(seen.model, before)
    for index, parameter in enumerate(parameters):
        assert parameter.requires_grad == (index % 2 == 0)
        assert (parameter.grad is not None) == (index % 3 == 0)
        assert parameter.grad is None or bool((parameter.grad == index).all())
    assert not any(module._forward_hooks for module in seen.model.modules())


def test_gradients_do_not_depend_on_what_was_left_in_them():
    clean, dirty = evidence(), evidence()
    for parameter in dirty.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for name in clean.layers:
        assert torch.equal(clean.expansion[name][0], dirty.expansion[name][0])


def changed_batches(seen):
    first, *others = seen.batches
    return replace(seen, batches=[{**first, "input_ids": first["input_ids"].roll(1, 1)}, *others])


def changed_head(seen):
    with torch.no_grad():
        seen.model.classifier.bias.add_(1)
    return seen


def changed_weight(seen):
    with torch.no_grad():
        next(iter(seen.layers.values())).weight[0, 0] += 1e-3
    return seen


@pytest.mark.parametrize("change", [changed_batches, changed_head, changed_weight])
def test_the_fingerprint_is_that_of_this_model_and_these_batches(change):
    assert evidence().fingerprint == evidence().fingerprint != change(evidence()).fingerprint


@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize("constraint", SETS, ids=str)
def test_a_point_is_in_its_set_and_the_same_the_second_time_too(seen, constraint, iterations):
    name = list(seen.layers)[2]
    weight = seen.layers[name].matrix.detach()
    made = seen.problem(name).point(constraint, iterations) if iterations else constraint.project(weight)
    for _ in range(2):
        point = seen.point(name, constraint, iterations)
        assert torch.equal(point, made)
        assert point.dtype == weight.dtype
        assert constraint.contains(point)


def test_the_points_that_are_kept_take_the_bits_that_they_are_worth():
    seen = evidence()
    for name in seen.layers:
        seen.point(name, SETS[-1], 0)
    for (name, constraint, _), parts in seen._points.items():
        size = sum(part.numel() * part.element_size() for part in parts.values())
        assert size == constraint.storage(tuple(seen.layers[name].matrix.shape)).nbytes
    assert len(seen._points) == len(seen.layers)


@pytest.mark.parametrize("examples", [1, 7, 16])
def test_a_part_of_the_evidence_is_of_every_batch(seen, examples):
    part = seen.part(examples)
    assert part is seen.part(examples)
    assert examples <= part.examples < examples + len(seen.batches)
    for fewer, batch in zip(part.batches, seen.batches, strict=True):
        assert all(torch.equal(value, batch[key][: len(value)]) for key, value in fewer.items())


def test_a_part_as_large_as_the_evidence_is_the_evidence(seen):
    assert seen.part(seen.examples) is seen
