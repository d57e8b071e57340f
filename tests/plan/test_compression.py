import dataclasses
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutated import mutated, same
from torch import nn
from transformers.pytorch_utils import Conv1D

from nxmiformer.layers.inputs import RANGES, Activations
from nxmiformer.layers.targets import find_targets
from nxmiformer.plan.compression import CompressionPlan, LayerSpec
from nxmiformer.sets import NM, Block, ConstraintSet, Grid, Then, Unstructured
from nxmiformer.sets.values import from_values, to_values

JOINT = Then(NM(2, 4), Grid(4))

GROUPS = st.sampled_from([1, 2, 4, 8, 16])
DENSITIES = st.floats(0, 1, exclude_min=True)
GRIDS = st.builds(Grid, st.integers(1, 8), st.none() | GROUPS, st.sampled_from(["mse", "absmax"]))
SPARSITIES = st.one_of(
    GROUPS.flatmap(lambda group: st.builds(NM, st.integers(1, group), st.just(group))),
    st.builds(Unstructured, DENSITIES, st.sampled_from(["bitmap", "entropy"])),
    st.builds(Block, GROUPS, GROUPS, DENSITIES),
)
SPECS = st.builds(
    LayerSpec,
    weight=st.one_of(GRIDS, SPARSITIES, st.builds(Then, SPARSITIES, GRIDS)),
    shape=st.tuples(*[st.integers(1, 4).map(lambda n: 16 * n)] * 2),
    activations=st.none() | st.builds(Activations, st.integers(2, 8), st.sampled_from(RANGES)),
    transposed=st.booleans(),
    aliases=st.lists(st.text(max_size=5), max_size=2).map(tuple),
)
NAMES = st.text(max_size=8)
PLANS = st.builds(
    CompressionPlan, st.dictionaries(NAMES, SPECS, max_size=3), st.dictionaries(NAMES, NAMES), st.integers(0, 2**40)
)


class Model(nn.Module):
    """Two blocks of an 8 -> 16 linear and a 16 -> 8 Conv1D, and a head of 8 * 3 + 3 parameters."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(8, 16), "down": Conv1D(8, 16)}) for _ in range(2))
        self.head = nn.Linear(8, 3)


def uniform(weight=JOINT, activations=None):
    model = Model()
    return CompressionPlan.uniform(model, find_targets(model), weight, activations)


@settings(max_examples=50)
@given(PLANS)
def test_a_plan_survives_json(plan):
    again = CompressionPlan.from_json(plan.to_json())
    assert again == plan
    assert again.fingerprint == plan.fingerprint
    assert again.to_json() == plan.to_json()


@given(SPECS, SPECS)
def test_two_layers_have_the_same_fingerprint_only_if_they_are_the_same(one, other):
    plans = [CompressionPlan({"layer": spec}) for spec in (one, other)]
    assert (plans[0].fingerprint == plans[1].fingerprint) == (one == other)


def test_a_plan_survives_its_file(tmp_path):
    plan = uniform(activations=Activations(8, "ema"))
    plan.save(tmp_path / "plan.json")
    assert CompressionPlan.load(tmp_path / "plan.json") == plan


def test_the_fingerprint_is_16_hexadecimal_digits_and_the_same_in_every_process():
    plan = CompressionPlan({"layer": LayerSpec(JOINT, (8, 16))})
    assert plan.fingerprint == "5464be3209120d78"


@pytest.mark.parametrize(
    "change",
    [
        {"weight": Then(NM(2, 4), Grid(4, scale="absmax"))},
        {"weight": NM(2, 4)},
        {"shape": (16, 16)},
        {"activations": Activations(8)},
        {"activations": Activations(8, momentum=0.9)},
        {"transposed": True},
        {"aliases": ("other",)},
    ],
)
def test_the_fingerprint_changes_with_every_part_of_a_layer(change):
    spec = LayerSpec(JOINT, (16, 8))
    seen = {CompressionPlan({"layer": spec}).fingerprint}
    assert CompressionPlan({"layer": dataclasses.replace(spec, **change)}).fingerprint not in seen
    assert CompressionPlan({"renamed": spec}).fingerprint not in seen
    assert CompressionPlan({"layer": spec, "further": spec}).fingerprint not in seen


def test_the_fingerprint_does_not_change_with_what_is_left_out_or_the_order():
    one, other = LayerSpec(JOINT, (16, 8)), LayerSpec(NM(2, 4), (8, 8))
    plan = CompressionPlan({"one": one, "other": other})
    assert CompressionPlan({"one": one, "other": other}, {"head": "why"}, 5).fingerprint == plan.fingerprint
    assert CompressionPlan({"other": other, "one": one}).fingerprint == plan.fingerprint


def test_uniform_gives_every_target_the_same_set():
    plan = uniform(activations=Activations(8))
    names = [f"blocks.{index}.{name}" for index in range(2) for name in ("up", "down")]
    assert list(plan.layers) == names
    assert plan.layers["blocks.0.up"] == LayerSpec(JOINT, (16, 8), Activations(8))
    assert plan.layers["blocks.1.down"] == LayerSpec(JOINT, (8, 16), Activations(8), transposed=True)
    assert plan.skipped == {"head": "it is outside the model's repeated blocks"}
    assert plan.rest == 2 * (16 + 8) + 8 * 3 + 3
    assert str(plan.layers["blocks.0.up"]) == "2:4+int4 a8"


def test_assigned_leaves_the_layers_dense_that_have_no_set():
    model = Model()
    weights = {"blocks.1.down": NM(1, 4), "blocks.0.up": Grid(8), "blocks.0.down": None}
    plan = CompressionPlan.assigned(model, find_targets(model), weights)
    assert {name: spec.weight for name, spec in plan.layers.items()} == {
        "blocks.0.up": Grid(8),
        "blocks.1.down": NM(1, 4),
    }
    dense = "the plan leaves it dense"
    assert plan.skipped == {**uniform().skipped, "blocks.0.down": dense, "blocks.1.up": dense}
    assert plan.rest == uniform().rest + 2 * 8 * 16


def test_aliases_of_a_shared_weight_count_once():
    model = Model()
    model.blocks[1]["up"].weight = model.blocks[0]["up"].weight
    plan = CompressionPlan.uniform(model, find_targets(model), JOINT)
    assert plan.layers["blocks.0.up"].aliases == ("blocks.1.up",)
    assert plan.storage().dense == 3 * 8 * 16 * 32
    assert plan.rest == uniform().rest


def test_a_name_that_is_no_target_is_answered_with_the_nearest():
    model = Model()
    with pytest.raises(ValueError, match=r"unknown layer in the plan 'blocks\.0\.upp': did you mean blocks\.0\.up"):
        CompressionPlan.assigned(model, find_targets(model), {"blocks.0.upp": JOINT})


def test_a_set_that_rejects_layers_lists_them_all():
    with pytest.raises(ValueError, match="the plan does not fit the model") as error:
        uniform(NM(2, 16))
    reason = "2:16 rejects shape (16, 8): in_features 8 is not a multiple of the group 16"
    assert str(error.value).splitlines()[1:] == [f"  blocks.{index}.up: {reason}" for index in range(2)]


def test_check_names_every_layer_that_is_missing_or_of_another_shape():
    plan, model = uniform(), Model()
    plan.check(model)
    del model.blocks[0]["up"]
    model.blocks[1] = nn.ModuleDict({"up": nn.Linear(8, 12), "down": Conv1D(8, 12)})
    with pytest.raises(ValueError, match="the plan does not fit the model") as error:
        plan.check(model)
    assert str(error.value).splitlines()[1:] == [
        "  blocks.0.up: the model has no such layer",
        "  blocks.1.up: its weight is (12, 8), the plan's (16, 8)",
        "  blocks.1.down: its weight is (12, 8), the plan's (16, 8)",
    ]


def test_check_names_a_layer_that_is_stored_the_other_way_round_though_its_shape_is_the_same():
    square = nn.ModuleDict({"linear": nn.Linear(8, 8), "conv": Conv1D(8, 8)})
    plan = CompressionPlan({name: LayerSpec(JOINT, (8, 8), transposed=name == "linear") for name in square})
    with pytest.raises(ValueError, match="the plan does not fit the model") as error:
        plan.check(square)
    assert str(error.value).splitlines()[1:] == [
        "  linear: it stores its weight (out, in), the plan has it (in, out)",
        "  conv: it stores its weight (in, out), the plan has it (out, in)",
    ]


def test_check_names_a_layer_that_shares_its_weight_otherwise_than_the_plan_says():
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in "abc"})
    model["b"].weight = model["a"].weight
    plan = CompressionPlan(
        {"a": LayerSpec(JOINT, (8, 8), aliases=("c",)), "b": LayerSpec(JOINT, (8, 8)), "c": LayerSpec(JOINT, (8, 8))}
    )
    with pytest.raises(ValueError, match="the plan does not fit the model") as error:
        plan.check(model)
    assert str(error.value).splitlines()[1:] == [
        "  c: its weight is not that of a, which the plan has it share",
        "  b: its weight is that of a, which the plan has a set for",
        "  c: its weight is that of a, which the plan has a set for",
    ]


def test_a_plan_with_less_than_half_of_the_weights_of_the_blocks_says_so_and_names_the_largest_without_a_set():
    model = Model()
    assert uniform().remark(model) is None
    ups = [f"blocks.{index}.up" for index in range(2)]
    half = CompressionPlan.assigned(model, find_targets(model), dict.fromkeys(ups, JOINT))
    assert half.remark(model) is None
    model.blocks[1]["down"] = Conv1D(9, 16)
    less = CompressionPlan.assigned(model, find_targets(model), dict.fromkeys(ups, JOINT))
    assert less.remark(model) == (
        "the plan has only 48.5 % of the weights in the model's blocks; the largest of 2 matrices without a set is "
        "blocks.1.down: the plan leaves it dense"
    )
    assert CompressionPlan({}).remark(nn.Linear(8, 8)) is None  # which has no blocks


def test_check_looks_at_aliases_too():
    spec = LayerSpec(JOINT, (16, 8), aliases=("blocks.2.up",))
    with pytest.raises(ValueError, match=r"blocks\.2\.up: the model has no such layer"):
        CompressionPlan({"blocks.0.up": spec}).check(Model())


MALFORMED = {
    "not json": "{",
    "a list": "[]",
    "null": "null",
    "no format": "{}",
    "another format": '{"format": 99}',
    "no layers": '{"format": 1, "skipped": {}, "rest": 0}',
    "layers in a list": '{"format": 1, "layers": [], "skipped": {}, "rest": 0}',
    "rest infinite": '{"format": 1, "layers": {}, "skipped": {}, "rest": Infinity}',
    "rest a word": '{"format": 1, "layers": {}, "skipped": {}, "rest": "much"}',
}
BROKEN = {
    "unknown set": {"weight": {"set": "MN", "keep": 2, "group": 4}},
    "set out of range": {"weight": {"set": "NM", "keep": 5, "group": 4}},
    "unknown field": {"weight": {"set": "NM", "keep": 2, "groups": 4}},
    "no set": {"weight": {"keep": 2, "group": 4}},
    "set a word": {"weight": "NM"},
    "three dimensions": {"shape": [1, 2, 3]},
    "rejected shape": {"shape": [16, 7]},
    "activations": {"activations": {"bits": 99}},
    "no aliases": {"aliases": None},
}


def broken_text(kind):
    if kind in MALFORMED:
        return MALFORMED[kind]
    content = json.loads(uniform().to_json())
    content["layers"]["blocks.0.up"] |= BROKEN[kind]
    return json.dumps(content)


@pytest.mark.parametrize("kind", [*MALFORMED, *BROKEN])
def test_a_file_that_is_no_plan_is_named(kind, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(broken_text(kind))
    with pytest.raises(ValueError, match=r"broken\.json: this is not a compression plan"):
        CompressionPlan.load(path)


# One thing that is of another type, by what the message says of it: the same for a file and in Python.
OF_ANOTHER_TYPE = {
    "Grid needs bits to be an integer, not 4.0": lambda layer: layer["weight"]["second"].update(bits=4.0),
    "Grid needs group to be an integer or None, not 'all'": lambda layer: layer["weight"]["second"].update(group="all"),
    "NM needs keep to be an integer, not True": lambda layer: layer["weight"]["first"].update(keep=True),
    "LayerSpec needs transposed to be true or false, not 'no'": lambda layer: layer.update(transposed="no"),
    r"needs shape to be a tuple \(an integer, an integer\), not \(16, 8, 1\)": lambda layer: layer.update(
        shape=[16, 8, 1]
    ),
    r"needs aliases to be a tuple \(text, ...\), not 'up'": lambda layer: layer.update(aliases="up"),
    "LayerSpec needs activations to be Activations or None, not 8": lambda layer: layer.update(activations=8),
    "Activations needs momentum to be a finite number, not '0.9'": lambda layer: layer["activations"].update(
        momentum="0.9"
    ),
    "unknown field of Grid 'bit': did you mean bits": lambda layer: layer["weight"]["second"].update(bit=4),
    "Grid lacks scale": lambda layer: layer["weight"]["second"].pop("scale"),
    "density to be a finite number, not nan": lambda layer: layer.update(
        weight={"set": "Unstructured", "density": float("nan")}
    ),
}


@pytest.mark.parametrize("message", OF_ANOTHER_TYPE)
def test_a_value_of_another_type_in_a_file_is_named_with_its_layer_and_its_field(message):
    content = json.loads(uniform(activations=Activations(8)).to_json())
    OF_ANOTHER_TYPE[message](content["layers"]["blocks.1.up"])
    with pytest.raises(ValueError, match=rf"^this is not a compression plan: blocks\.1\.up: .*{message}"):
        CompressionPlan.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerSpec(JOINT, [16, 8]), r"needs shape to be a tuple \(an integer, an integer\), not \[16, 8\]"),
        (lambda: LayerSpec(JOINT, (16, -8)), r"needs a shape of no negative number, not \(16, -8\)"),
        (lambda: LayerSpec("2:4", (16, 8)), "needs weight to be ConstraintSet, not '2:4'"),
        (lambda: LayerSpec(JOINT, (16, 8), transposed=0), "needs transposed to be true or false, not 0"),
        (lambda: CompressionPlan({"up": JOINT}), "needs layers to be a mapping of text to LayerSpec"),
        (lambda: CompressionPlan({}, rest=2.0), "needs rest to be an integer, not 2.0"),
        (lambda: CompressionPlan({}, rest=-1), "needs rest to be no negative number, not -1"),
    ],
)
def test_a_value_of_another_type_in_python_is_named_with_its_field(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_plan_is_refused_or_is_what_its_file_says_whatever_is_changed_in_it():
    content = json.loads(uniform(activations=Activations(8, "ema")).to_json())
    content["layers"]["blocks.0.up"]["weight"] = {"set": "Unstructured", "density": 0.5}
    chance, read = random.Random(0), 0
    for _ in range(1000):
        changed = mutated(content, chance)
        try:
            plan = CompressionPlan.from_json(json.dumps(changed))
        except ValueError as error:
            assert str(error).startswith("this is not a compression plan: ")  # noqa: PT017 (most are errors)
        else:
            read += 1
            assert same(changed, json.loads(plan.to_json())), changed
    assert 50 < read < 500


def test_an_unknown_set_in_a_file_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown set 'MN': did you mean NM"):
        CompressionPlan.from_json(broken_text("unknown set"))


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "broken.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"broken\.json"):
        CompressionPlan.load(tmp_path / "broken.json")


def test_storage_of_two_in_four_at_four_bits_by_hand():
    storage = uniform().storage()
    weights = 4 * 8 * 16  # four matrices
    assert storage.dense == weights * 32
    assert storage.values == weights // 2 * 4  # half are kept, at 4 bits
    assert storage.indices == weights // 2 * 2  # 2 bits tell a position in four
    assert storage.scales == (2 * 16 + 2 * 8) * 32  # one float32 a row
    assert storage.rest == (2 * (16 + 8) + 27) * 32
    assert storage.total == storage.values + storage.indices + storage.scales == 1024 + 512 + 1536
    assert storage.compression == pytest.approx(
        {
            "values": 1 - 2 / 32,
            "indices": 1 - 3 / 32,
            "all": 1 - 3072 / 16384,
            "model": 1 - (3072 + 2400) / (16384 + 2400),
        }
    )


def test_a_plan_of_no_layers_saves_nothing():
    model = Model()
    storage = CompressionPlan.assigned(model, find_targets(model), {}).storage()
    assert storage.compression == dict.fromkeys(("values", "indices", "all", "model"), 0.0)


def test_a_field_that_came_later_is_read_from_plans_without_it_and_left_out_where_it_says_the_same():
    content = {"set": "Unstructured", "density": 0.5}
    read = from_values(ConstraintSet, content)
    assert read == Unstructured(0.5, "bitmap")
    assert to_values(read) == content
    coded = Unstructured(0.5, "entropy")
    assert from_values(ConstraintSet, to_values(coded)) == coded
