import re

import pytest
import torch
from small import bert, distilbert, gpt2

from nxmiformer.layers.targets import Target, Targets, find_targets
from nxmiformer.search.candidates import Candidates
from nxmiformer.sets import NM, Grid, Then

BOTH = ["int8", "2:4+int4"]


def choices(model=bert, sets=BOTH, **given):
    torch.manual_seed(0)
    return Candidates(sets, **given).choices(find_targets(model()))


def groups(found):
    return [tuple(layer.name for layer in choice.layers) for choice in found]


@pytest.mark.parametrize("tie", ["free", "attention", "component"])
@pytest.mark.parametrize("model", [bert, distilbert, gpt2])
def test_every_layer_is_in_one_choice_in_the_models_order(model, tie):
    found = choices(model, tie=tie)
    names = [name for group in groups(found) for name in group]
    expected = [target.name for target in find_targets(model()).layers]
    assert sorted(names) == sorted(expected)
    assert [group[0] for group in groups(found)] == sorted((g[0] for g in groups(found)), key=expected.index)
    assert all(list(group) == sorted(group, key=expected.index) for group in groups(found))
    assert all(choice.sets == (Grid(8), Then(NM(2, 4), Grid(4))) for choice in found)


@pytest.mark.parametrize("model", [bert, distilbert, gpt2])
def test_free_layers_are_alone(model):
    assert all(len(group) == 1 for group in groups(choices(model, tie="free")))


def ending(found):
    """The tied groups of more than one layer, by block and the last part of the name."""
    parts = [[name.split(".") for name in group] for group in groups(found) if len(group) > 1]
    return [[(next(p for p in name if p.isdigit()), name[-1]) for name in group] for group in parts]


@pytest.mark.parametrize(
    ("model", "names"), [(bert, ("query", "key", "value")), (distilbert, ("q_lin", "k_lin", "v_lin")), (gpt2, None)]
)
def test_attention_ties_query_key_and_value_of_a_block(model, names):
    expected = [] if names is None else [[(block, name) for name in names] for block in "01"]
    assert ending(choices(model, tie="attention")) == expected


@pytest.mark.parametrize("names", [("q", "k", "v"), ("query_proj", "key_proj", "value_proj"), ("q_proj", "v_proj")])
def test_attention_knows_the_names_of_other_models(names):
    layers = tuple(Target(f"blocks.0.{name}", (8, 8)) for name in (*names, "o"))
    found = Candidates(BOTH, tie="attention").choices(Targets(layers, {}))
    assert groups(found) == [tuple(f"blocks.0.{name}" for name in names), ("blocks.0.o",)]


@pytest.mark.parametrize(("model", "components"), [(bert, 6), (distilbert, 6), (gpt2, 4)])
def test_component_ties_a_component_of_all_blocks(model, components):
    found = choices(model, tie="component")
    assert len(found) == components
    for choice in found:
        names = [re.sub(r"\.\d+\.", ".N.", layer.name) for layer in choice.layers]
        assert len(names) == 2
        assert len(set(names)) == 1


def test_a_choice_is_called_by_its_first_layer():
    first = choices(tie="component")[0]
    assert first.name == "bert.encoder.layer.0.attention.self.query (+1)"
    assert choices()[0].name == "bert.encoder.layer.0.attention.self.query"


ALL = ["dense", "int8", "int4", "int8g8", "2:4", "1:4", "2:4+int8", "2:4+int4", "1:4+int8"]


@pytest.mark.parametrize(
    ("hardware", "kept"),
    [("any", ALL), ("ampere_sparse", ["dense", "int8", "2:4", "2:4+int8"]), ("cpu_int8", ["dense", "int8"])],
)
def test_hardware_keeps_what_it_runs(hardware, kept):
    for choice in choices(sets=ALL, hardware=hardware):
        assert ["dense" if each is None else str(each) for each in choice.sets] == kept


def test_hardware_that_runs_none_is_an_error():
    with pytest.raises(ValueError, match=r"none of the candidates \['int4'\] runs on hardware=cpu_int8"):
        Candidates(["int4"], hardware="cpu_int8")


def test_a_candidate_that_is_named_twice_is_one():
    assert choices(sets=["int8", "int4", "int8"])[0].sets == (Grid(8), Grid(4))


def test_a_later_pattern_of_the_pinned_wins_and_pins_to_any_set():
    pinned = {"*.attention.*": "1:4", "*.self.value": "dense", "*.1.*.value": "int3"}
    found = {choice.name: choice.sets for choice in choices(pinned=pinned)}
    stem = "bert.encoder.layer"
    assert found[f"{stem}.0.attention.self.query"] == (NM(1, 4),)
    assert found[f"{stem}.0.attention.self.value"] == (None,)
    assert found[f"{stem}.1.attention.self.value"] == (Grid(3),)
    assert found[f"{stem}.1.output.dense"] == (Grid(8), Then(NM(2, 4), Grid(4)))


def test_a_pinned_layer_leaves_its_tie():
    found = choices(tie="attention", pinned={"*.0.attention.self.key": "int8"})
    assert ending(found) == [[("0", "query"), ("0", "value")], [("1", "query"), ("1", "key"), ("1", "value")]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tie": "fre"}, "unknown tie of layers 'fre': did you mean free"),
        ({"hardware": "cpu"}, "unknown hardware 'cpu': did you mean cpu_int8"),
        ({"pinned": {"*": "2x4"}}, "'2x4' is not a set"),
        ({"sets": []}, r"none of the candidates \[\]"),
    ],
)
def test_candidates_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Candidates(**{"sets": BOTH, **given})


def test_a_pattern_that_matches_no_layer_is_an_error_with_the_nearest_names():
    with pytest.raises(
        ValueError, match=r"unknown pattern of layer names in pinned 'bert\.pooler\.dense': did you mean"
    ):
        choices(pinned={"bert.pooler.dense": "int8"})


UNEVEN = Targets((Target("a.0.x", (4, 8)), Target("a.1.x", (4, 6)), Target("a.2.y", (4, 8))), {})


def test_a_set_that_rejects_a_shape_is_none_of_that_layers_candidates():
    found = {choice.name: choice.sets for choice in Candidates(["2:4", "int8"]).choices(UNEVEN)}
    assert found == {"a.0.x": (NM(2, 4), Grid(8)), "a.1.x": (Grid(8),), "a.2.y": (NM(2, 4), Grid(8))}


def test_tied_layers_become_what_none_of_them_rejects():
    found = Candidates(["2:4", "int8"], tie="component").choices(UNEVEN)
    assert [choice.sets for choice in found] == [(Grid(8),), (NM(2, 4), Grid(8))]


@pytest.mark.parametrize("given", [{"sets": ["2:4", "int4g4"]}, {"sets": BOTH, "pinned": {"a.1.*": "2:4"}}])
def test_a_layer_that_is_left_without_any_is_named_with_every_reason(given):
    with pytest.raises(ValueError, match=r"no candidate is left for a\.1\.x:") as error:
        Candidates(**given).choices(UNEVEN)
    _, *reasons = str(error.value).splitlines()
    assert reasons[0].strip() == "2:4 rejects a.1.x: in_features 6 is not a multiple of the group 4"
    assert len(reasons) == (1 if "pinned" in given else 2)
