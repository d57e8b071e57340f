"""Laws of whole plans that are measured without training."""

from itertools import combinations

import pytest
import torch
from small import evidence

from nxmiformer.search.sensitivity import Measured
from nxmiformer.search.whole import OneShot
from nxmiformer.sets import NM, Grid, Then

SETS = [Grid(8), Grid(3), NM(2, 4), NM(1, 1), Then(NM(2, 4), Grid(4)), Then(NM(1, 4), Grid(1))]


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def seen(request):
    return evidence(request.param)


def mixed(seen):
    """A set for each layer, one after the other; every seventh stays dense."""
    return {name: [*SETS, None][index % 7] for index, name in enumerate(seen.layers)}


def test_the_logits_are_those_with_every_layer_at_its_point(seen):
    sets = mixed(seen)
    weights = {name: each.project(seen.layers[name].matrix.detach()) for name, each in sets.items() if each is not None}
    found, expected = OneShot(seen, 0).logits(sets), seen.changed(weights)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert OneShot(seen, 0).distance(sets) == seen.distance(expected)


def test_a_plan_that_leaves_all_dense_changes_nothing(seen):
    assert OneShot(seen).distance(dict.fromkeys(seen.layers)) == 0


@pytest.mark.parametrize("most", [1, 2, 4, 99])
def test_interactions_are_of_all_pairs_of_the_layers_that_do_the_most_damage_alone(seen, most):
    sets, whole = mixed(seen), OneShot(seen, 0)
    alone = {name: Measured()(seen, name, [each])[0] for name, each in sets.items() if each is not None}
    worst = sorted(alone, key=lambda name: -alone[name])[:most]
    found = whole.interactions(sets, most)
    assert {frozenset(pair[:2]) for pair in found} == {frozenset(pair) for pair in combinations(worst, 2)}
    for a, b, both, total in found:
        assert both == whole.distance({a: sets[a], b: sets[b]})
        assert total == pytest.approx(alone[a] + alone[b])
    excess = [both - total for _, _, both, total in found]
    assert excess == sorted(excess, reverse=True)
