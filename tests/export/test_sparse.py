"""A sparse checkpoint: any other to `transformers`, with the supports that were packed beside it."""

import copy

import pytest
import transformers
from tiny import compressed, logits, seeded

from nxmiformer.applied.convert import convert
from nxmiformer.export.sparse import Sparse
from nxmiformer.layers.found import distinct_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.support import SUPPORTS, support_of, take_supports
from nxmiformer.layers.targets import find_targets
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Block, Grid, Then, Unstructured

SETS = [Unstructured(0.15), Unstructured(0.1, "entropy"), NM(2, 4), Block(2, 2, 0.25)]


def saved(directory, points):
    """A sparse model in its own format, and it."""
    model, plan = compressed(weight=points)
    Sparse().write(model, plan, directory)
    return model, plan


@pytest.mark.parametrize("points", SETS, ids=str)
def test_a_sparse_directory_is_a_checkpoint_like_any_other_and_its_supports_are_those_that_are_packed(tmp_path, points):
    model, plan = saved(tmp_path, points)
    again = type(model).from_pretrained(tmp_path)
    assert logits(again).equal(logits(model))
    other = seeded(transformers.BertForMaskedLM._from_config, config=model.config)
    backbone = transformers.BertModel.from_pretrained(tmp_path)
    for each in (again, other, backbone):
        take_supports(each, tmp_path)
        for name, spec in plan.layers.items():
            bare = name if each is not backbone else name.removeprefix("bert.")
            weight = model.get_parameter(f"{name}.weight").detach()
            stored = points.unpack_mask(points.pack(weight), spec.shape)
            assert support_of(each.get_submodule(bare)).equal(stored)
    targets = find_targets(again)
    convert(again, CompressionPlan.uniform(again, targets, points))
    assert all(support_of(layer) is not None for layer in distinct_layers(copy.deepcopy(again)).values())
    assert not any("support" in key for key in again.state_dict())


def test_damaged_supports_are_refused_with_their_file(tmp_path):
    model, _ = saved(tmp_path, NM(2, 4))
    plain = type(model).from_pretrained(tmp_path)
    (tmp_path / SUPPORTS).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=rf"{SUPPORTS} does not hold the supports"):
        take_supports(plain, tmp_path)


def test_what_a_sparse_checkpoint_cannot_carry_is_told():
    model, plan = compressed(weight=Then(NM(2, 4), Grid(8)), activations=Activations())
    assert "inputs are quantized" in next(Sparse().refusals(model, plan))
    model, plan = compressed(weight=Grid(8))
    assert list(Sparse().refusals(model, plan)) == ["no layer has a set of sparse weights"]
