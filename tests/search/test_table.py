import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from small import evidence

from nxmiformer.layers.targets import Target, Targets, find_targets
from nxmiformer.search.budget import Budget
from nxmiformer.search.candidates import Candidates
from nxmiformer.search.sensitivity import Sensitivity, WeightError
from nxmiformer.search.table import Table, measure
from nxmiformer.sets import NM, Grid

LAYERS = Targets((Target("a.0.x", (4, 8)), Target("a.1.x", (4, 16)), Target("a.0.y", (4, 6))), {})
DAMAGES = {"a.0.x": {"2:4": 1.0, "int4": 2.0}, "a.1.x": {"2:4": 10.0, "int4": 20.0}, "a.0.y": {"int4": 100.0}}


def table(tie="free", sets=("2:4", "dense", "int4"), **given):
    choices = Candidates(list(sets), tie=tie, **given).choices(LAYERS)
    return Table.of(choices, DAMAGES, Budget(accounting="values").of)


def test_each_candidate_has_its_damage_and_its_bits_and_a_dense_layer_none():
    found = table()
    np.testing.assert_array_equal(found.damage, [[1, 0, 2], [10, 0, 20], [0, 100, np.inf]])
    np.testing.assert_array_equal(
        found.costs, [[4 * 4 * 32, 4 * 8 * 32, 4 * 8 * 4], [4 * 8 * 32, 4 * 16 * 32, 4 * 16 * 4], [24 * 32, 24 * 4, 0]]
    )


def test_damages_and_bits_of_tied_layers_add_up():
    free, tied = table(), table("component")
    np.testing.assert_array_equal(tied.damage, [free.damage[:2].sum(0), free.damage[2]])
    np.testing.assert_array_equal(tied.costs, [free.costs[:2].sum(0), free.costs[2]])


def test_an_assignment_is_its_sets_their_damage_and_their_bits():
    found = table("component")
    assert found.sets((0, 1)) == {"a.0.x": NM(2, 4), "a.1.x": NM(2, 4), "a.0.y": Grid(4)}
    assert found.sets((1, 0)) == dict.fromkeys(["a.0.x", "a.1.x", "a.0.y"])
    assert found.predicted((0, 1)) == 111
    assert found.cost((0, 1)) == 16 * 32 + 32 * 32 + 24 * 4


def test_uniform_assignments_are_those_of_the_sets_that_every_layer_has():
    assert table().uniform() == {"dense": (1, 1, 0), "int4": (2, 2, 1)}
    assert table(sets=["2:4", "int4"]).uniform() == {"2:4": (0, 0, 0), "int4": (1, 1, 0)}  # the last has no choice


def test_pinned_layers_keep_their_set_in_every_uniform_assignment():
    found = table(pinned={"a.0.y": "int4"})
    assert list(found.uniform()) == ["2:4", "dense", "int4"]
    assert all(found.sets(each)["a.0.y"] == Grid(4) for each in found.uniform().values())


def test_where_all_are_pinned_nothing_is_uniform():
    assert table(pinned={"*": "dense"}).uniform() == {}


# What was measured.


@dataclass(frozen=True)
class Counting(Sensitivity):
    """Tells damages of its own, and writes down what it was asked for."""

    factor: float = 1.0
    asked: list = field(default_factory=list, repr=False)

    def __call__(self, evidence, layer, sets):
        self.asked.append((layer, [str(each) for each in sets]))
        return [self.factor * len(str(each)) / 3 for each in sets]


@pytest.fixture(scope="module")
def seen():
    return evidence()


def found(seen, sensitivity, cache, sets=("int8", "2:4+int4", "dense")):
    choices = Candidates(list(sets)).choices(find_targets_of(seen))
    return dict(measure(seen, choices, sensitivity, cache))


def find_targets_of(seen):
    return Targets(tuple(Target(name, tuple(layer.matrix.shape)) for name, layer in seen.layers.items()), {})


def test_the_layers_of_the_evidence_are_the_targets(seen):
    assert [target.name for target in find_targets(seen.model).layers] == list(seen.layers)


def test_every_layer_is_measured_once_in_every_set_that_is_not_dense(seen, tmp_path):
    counting = Counting()
    damages = found(seen, counting, tmp_path / "new" / "cache")
    assert counting.asked == [(name, ["int8", "2:4+int4"]) for name in seen.layers]
    assert damages == {name: {"int8": 4 / 3, "2:4+int4": 8 / 3} for name in seen.layers}


def test_what_is_in_the_cache_is_not_measured_again_and_is_the_same_number(seen, tmp_path):
    counting = Counting(factor=0.1)
    first = found(seen, counting, tmp_path)
    counting.asked.clear()
    assert found(seen, counting, tmp_path) == first
    assert counting.asked == []


def test_new_candidates_alone_are_measured_and_old_ones_are_not_told(seen, tmp_path):
    counting = Counting()
    found(seen, counting, tmp_path)
    counting.asked.clear()
    damages = found(seen, counting, tmp_path, ["int4", "int8"])
    assert counting.asked == [(name, ["int4"]) for name in seen.layers]
    assert damages == {name: {"int4": 4 / 3, "int8": 4 / 3} for name in seen.layers}
    assert [list(row) for row in damages.values()] == [["int4", "int8"]] * len(damages)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_a_kill_cut_short_is_measured_again(seen, tmp_path, cut):
    counting = Counting()
    whole = found(seen, counting, tmp_path)
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    file.write_text(text[:-cut])
    counting.asked.clear()
    for _ in range(2):
        assert found(seen, counting, tmp_path) == whole
    assert [layer for layer, _ in counting.asked] == [list(seen.layers)[-1]]
    assert file.read_text() == text
    assert all(json.loads(line) for line in text.splitlines())


def test_a_kill_between_two_layers_loses_none(seen, tmp_path):
    counting = Counting()
    work = measure(seen, Candidates(["int8"]).choices(find_targets_of(seen)), counting, tmp_path)
    done = [next(work)[0] for _ in range(3)]
    work.close()
    counting.asked.clear()
    found(seen, counting, tmp_path, ["int8"])
    assert [layer for layer, _ in counting.asked] == [name for name in seen.layers if name not in done]


@pytest.mark.parametrize(
    ("other", "sensitivity"),
    [(lambda: evidence("gpt2"), Counting()), (lambda: evidence(size=4), Counting()), (evidence, Counting(factor=2.0))],
    ids=["model", "data", "sensitivity"],
)
def test_another_model_data_or_sensitivity_has_a_file_of_its_own(seen, tmp_path, other, sensitivity):
    found(seen, Counting(), tmp_path)
    found(other(), sensitivity, tmp_path)
    assert len(sensitivity.asked) > 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_sensitivity_of_the_library_survives_the_cache_bit_for_bit(seen, tmp_path):
    assert found(seen, WeightError(), tmp_path) == found(seen, WeightError(), tmp_path)
    expected = {name: WeightError()(seen, name, [Grid(8)])[0] for name in seen.layers}
    assert {name: row["int8"] for name, row in found(seen, WeightError(), tmp_path).items()} == expected
