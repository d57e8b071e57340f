"""Pruning by gradient times weight: what a block is worth, which stay, and what compaction makes of it."""

import copy
import itertools

import pytest
import torch
from test_methods import EPOCH, MODELS, batch, given_to, make
from torch.nn.utils import stateless

from nxmiformer.applied.convert import convert, strip
from nxmiformer.layers.compact import compact
from nxmiformer.layers.projection import project
from nxmiformer.layers.units import find_units
from nxmiformer.methods.base import Length
from nxmiformer.methods.taylor import Taylor
from nxmiformer.plan.structured import Structured
from nxmiformer.sets import NM, Block, Unstructured

STRUCTURED = Structured("structured", Block(2, 2, 0.5), dimensions=0.5, heads=0.5, reading=True)


def batches():
    """Batches without end, which differ."""
    for number in itertools.count():
        found = batch()
        yield {**found, "input_ids": found["input_ids"].roll(number, 0)}


def structured(planning=STRUCTURED, kind="bert"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[kind]()
    return convert(model, planning(model)).train()


def calibrated(model, step=0, steps=10, **options):
    method = Taylor(**options)
    method.attach(model, Length(steps, EPOCH))
    list(method.calibrate(given_to(model, batches())))
    for later in range(1, step + 1):
        list(method.calibrate_again(later, given_to(model, batches())))
    return method


def stays(method):
    return {name: layer.quantizer.mask.clone() for name, layer in method.sparse().items()}


def test_a_head_and_a_dimension_are_worth_the_slope_of_the_loss_as_it_is_faded_out():
    model = structured()
    plain = strip(copy.deepcopy(model)).double().eval()
    method = Taylor(gradients=3)
    method.attach(model, Length(1, EPOCH))
    for layer in method.sparse().values():
        method.hold(layer, torch.ones_like(layer.matrix, dtype=torch.bool))
    method._activate(False)
    worth = method._worth(given_to(model, batches()))
    weights, little = dict(plain.named_parameters()), 1e-5
    for units in find_units(plain):
        name = f"{units.out}.weight"
        for unit in range(0, units.count, 5):

            def loss(scale, name=name, units=units, unit=unit):
                faded = weights[name].detach().clone()
                faded[:, units.columns(torch.tensor([unit]))] *= scale
                with stateless._reparametrize_module(plain, {name: faded}), torch.no_grad():
                    return sum(plain(**each).loss.item() for each in itertools.islice(batches(), 3))

            slope = (loss(1 + little) - loss(1 - little)) / (2 * little)
            for column in units.columns(torch.tensor([unit])):
                assert worth[units.out][0, column].item() == pytest.approx(abs(slope), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("gradients", [0, 4])
@pytest.mark.parametrize("constraint", [Unstructured(0.3), NM(1, 4), Block(2, 4, 0.25)], ids=str)
def test_what_stays_is_worth_the_most_in_its_layer(constraint, gradients):
    model, _ = make(constraint=constraint)
    dense = {name: p.detach().clone() for name, p in model.named_parameters()}
    method = calibrated(model, gradients=gradients)
    twin, _ = make(constraint=constraint)
    total = {}
    for each in itertools.islice(batches(), gradients):
        plain = strip(copy.deepcopy(twin)).eval()
        plain(**each).loss.backward()
        for name, p in plain.named_parameters():
            total[name] = total.get(name, 0) + p.grad
    rows, columns = constraint.tile
    for name, layer in method.layers.items():
        weight = dense[f"{name}.weight"]
        product = total[f"{name}.weight"] * weight if gradients else weight**2
        sums = product.unfold(0, rows, rows).unfold(1, columns, columns).sum((2, 3)).abs()
        kept = layer.quantizer.mask[::rows, ::columns]
        if isinstance(constraint, NM):
            assert torch.equal(kept.view(-1, 4).float().argmax(1), sums.view(-1, 4).argmax(1))
        else:
            assert sums[kept].min() >= sums[~kept].max()
        assert constraint.contains(layer.matrix.detach())
        assert torch.equal(layer.matrix, torch.where(layer.quantizer.mask, weight, 0))


def test_blocks_of_one_size_compete_over_all_layers_and_of_another_do_not():
    planning = Structured("structured", Block(2, 2, 0.5), dimensions=1.0, heads=1.0, reading=True)
    model = structured(planning)
    method = calibrated(model, ranking="global", density=0.25)
    found = stays(method)
    for kind in ("heads", "dimensions"):
        units = [each for each in find_units(model) if each.kind == kind]
        kept = sum(int(found[each.out][0].sum()) // each.width for each in units)
        assert kept == round(0.25 * sum(each.count for each in units))
    shares = [found[each.out][0].float().mean().item() for each in find_units(model) if each.kind == "dimensions"]
    assert max(shares) > min(shares)


def test_prunings_follow_the_course_and_take_nothing_back():
    model, _ = make(constraint=Unstructured(0.2))
    kept = [
        stays(calibrated(copy.deepcopy(model), step, prunings=3, initial=0.4, gradients=2, before=0.1, after=0.3))
        for step in range(10)
    ]
    shares = [sum(int(mask.sum()) for mask in each.values()) / sum(m.numel() for m in each.values()) for each in kept]
    assert shares[0] == 1.0
    assert shares[-1] == pytest.approx(0.2, abs=2e-3)
    assert len(set(shares)) == 4
    for before, after in itertools.pairwise(kept):
        assert all(not (after[name] & ~before[name]).any() for name in before)


def test_what_is_pruned_has_no_say_in_the_next_pruning_though_the_optimizer_has_moved_it(monkeypatch):
    model, _ = make(constraint=Unstructured(0.2))
    method, seen = Taylor(prunings=3, initial=0.4, gradients=2, after=0.2), []
    worth = Taylor._worth

    def watched(self, given):
        seen.append(sum(int((layer.matrix[~layer.quantizer.mask] != 0).sum()) for layer in self.layers.values()))
        return worth(self, given)

    monkeypatch.setattr(Taylor, "_worth", watched)
    method.attach(model, Length(10, EPOCH))
    optimizer = method.optimizer(torch.optim.AdamW([p for _, p in method.parameters()], lr=0.01))
    for step in range(10):
        given = given_to(model, batches())
        list(method.calibrate_again(step, given) if step else method.calibrate(given))
        method.before_step(step)
        optimizer.zero_grad()
        model(**batch()).loss.backward()
        method.before_clip()
        optimizer.step()
    assert any((layer.matrix[~layer.quantizer.mask] != 0).any() for layer in method.layers.values())
    assert seen == [0, 0, 0]


def test_the_gradients_may_be_those_of_what_the_phase_minimises():
    model, _ = make(constraint=Unstructured(0.3))
    supports = []
    for loss in ("task", "objective"):
        method = Taylor(gradients=2, loss=loss)
        method.attach(copy.deepcopy(model), Length(1, EPOCH))
        given = given_to(method.model, batches())
        given = given._replace(objective=lambda found, model=method.model: model(**found).logits.square().mean())
        list(method.calibrate(given))
        supports.append(stays(method))
    assert Taylor().labelled
    assert not Taylor(loss="objective").labelled
    assert any(not mask.equal(supports[1][name]) for name, mask in supports[0].items())


@pytest.mark.parametrize("kind", MODELS)
def test_compaction_leaves_the_heads_and_dimensions_that_were_kept(kind):
    model = structured(kind=kind)
    method = calibrated(model)
    kept = {
        (each.layer, each.kind): int(method.layers[each.out].quantizer.mask[0].sum()) // each.width
        for each in find_units(model)
    }
    project(model)
    sizes = compact(strip(model)).units
    assert {(layer, kind): left for layer, kinds in sizes.items() for kind, (left, _) in kinds.items()} == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradients": -1}, "gradients is a number of batches, 0 or more, not -1"),
        ({"loss": "tusk"}, "unknown loss of the gradients 'tusk': did you mean task"),
        ({"ranking": "globle"}, "did you mean global"),
        ({"ranking": "global"}, "density is the share that ranking=global keeps"),
    ],
)
def test_a_value_of_taylor_that_means_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Taylor(**options)


@pytest.mark.parametrize("planning", [STRUCTURED], ids=["structured"])
def test_a_global_density_above_what_one_kind_of_block_may_keep_is_refused(planning):
    with pytest.raises(ValueError, match=r"density=0\.6 is more than the sets of the plan may keep, 0\.5"):
        Taylor(ranking="global", density=0.6).attach(structured(planning), Length(1, 1))
