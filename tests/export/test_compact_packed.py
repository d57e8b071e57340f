"""Models whose layers differ in size, as files: read, trained, compressed, counted and exported as every model is."""

import copy
import json

import pytest
import torch
import transformers
from tiny import MANIFEST, bert, distilbert, gpt2, llama, logits, roberta, same_bits, seeded

import nxmiformer
from nxmiformer.applied.convert import convert, verify
from nxmiformer.export.compact import Compact, dense_plan
from nxmiformer.export.manifest import PackedError
from nxmiformer.export.onnx import Onnx
from nxmiformer.export.packed import load_packed, save_packed
from nxmiformer.layers.compact import compact, sizes_of
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import find_targets
from nxmiformer.layers.units import find_units
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Block, Grid, Then

pytestmark = pytest.mark.filterwarnings("ignore:save_packed writes no tokenizer")
JOINT = Then(NM(2, 4), Grid(8))
MODELS = [bert, roberta, distilbert, gpt2, llama]


@torch.no_grad()
def halved(make):
    """A model with some heads and dimensions gone, not as many in each layer; four rows and columns stay together."""
    model = seeded(make).eval()
    for number, units in enumerate(find_units(model)):
        out = model.get_submodule(units.out)
        weight = out.weight.t() if "Conv1D" in type(out).__name__ else out.weight
        first, last = (0, 4 * (number + 1)) if units.kind == "dimensions" else (number // 2, units.count - 1)
        gone = torch.tensor([*range(first, last)], dtype=torch.long)
        weight[:, units.columns(gone)] = 0
    masked = logits(model)
    compact(model)
    torch.testing.assert_close(logits(model), masked, rtol=0, atol=1e-5)
    return model


def planned(model, constraint=JOINT, activations=None):
    plan = CompressionPlan.uniform(model, find_targets(model), constraint, activations)
    project(convert(model, plan))
    return plan


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("constraint", [None, JOINT])
def test_a_model_of_uneven_layers_is_read_back_bit_for_bit_by_both_readers(make, constraint, tmp_path):
    model = halved(make)
    sizes = sizes_of(model)
    assert len({str(each) for each in sizes.values()}) == 2
    plan = dense_plan(model) if constraint is None else planned(model, constraint, Activations())
    save_packed(model, plan, tmp_path / "packed")
    assert json.loads((tmp_path / "packed" / MANIFEST).read_text())["sizes"] == sizes
    again = load_packed(tmp_path / "packed")
    theirs = type(model).from_pretrained(tmp_path / "packed")
    assert sizes_of(again) == sizes_of(theirs) == sizes
    for read in (again, theirs, load_packed(tmp_path / "packed", lazy=True)):
        assert same_bits(logits(read), logits(model))
    assert sum(p.numel() for p in again.parameters()) * 32 == plan.storage().dense + plan.storage().rest


def test_the_storage_of_a_compacted_plan_is_that_of_the_smaller_shapes_and_of_the_file(tmp_path):
    whole, model = seeded(bert), halved(bert)
    plans = [planned(each) for each in (whole, model)]
    sizes = [
        save_packed(each, plan, tmp_path / str(i))
        for i, (each, plan) in enumerate(zip((whole, model), plans, strict=True))
    ]
    assert [size.weights * 8 for size in sizes] == [plan.storage().total for plan in plans]
    assert plans[1].storage().total < plans[0].storage().total
    lost = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in model.parameters())
    assert (
        plans[0].storage().dense + plans[0].storage().rest - plans[1].storage().dense - plans[1].storage().rest
        == 32 * lost
    )


def test_what_from_pretrained_reads_is_saved_and_read_again_and_as_its_backbone(tmp_path):
    model = halved(bert)
    save_packed(model, dense_plan(model), tmp_path / "one")
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "one")
    again.save_pretrained(tmp_path / "two")
    assert same_bits(logits(load_packed(tmp_path / "two")), logits(model))
    backbone = transformers.BertModel.from_pretrained(tmp_path / "one")
    assert {f"bert.{name}" for name in sizes_of(backbone)} == set(sizes_of(model))
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert same_bits(backbone(ids).last_hidden_state, model.bert(ids).last_hidden_state)


def test_a_model_that_was_read_trains_on_and_is_compressed_like_any_other(tmp_path):
    model = halved(bert)
    save_packed(model, dense_plan(model), tmp_path / "one")
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "one")
    plan = planned(again, JOINT, Activations())
    for layer in map(again.get_submodule, plan.layers):
        layer.quantizer.seen = JOINT
        layer.quantizer.refresh(layer.matrix)
    loss = again(torch.tensor([[1, 2, 3]]), labels=torch.tensor([1])).loss
    loss.backward()
    torch.optim.SGD(again.parameters(), 0.1).step()
    assert again(torch.tensor([[1, 2, 3]]), labels=torch.tensor([1])).loss < loss
    project(again)
    verify(again, plan)
    save_packed(again, plan, tmp_path / "two")
    assert same_bits(logits(load_packed(tmp_path / "two")), logits(again.eval()))


def test_a_layer_that_went_whole_is_not_in_the_files(tmp_path):
    model = seeded(llama).eval()
    with torch.no_grad():
        for units in find_units(model)[:2]:
            model.get_submodule(units.out).weight.zero_()
    masked = logits(model)
    compact(model)
    save_packed(model, dense_plan(model), tmp_path / "packed")
    again = load_packed(tmp_path / "packed")
    assert again.config.num_hidden_layers == len(again.model.layers) == 1
    torch.testing.assert_close(logits(again), masked, rtol=0, atol=1e-5)


def test_onnx_runtime_computes_a_model_of_uneven_layers(tmp_path):
    pytest.importorskip("onnxruntime")
    model = halved(bert)
    plan = planned(model)
    form = Onnx()
    assert list(form.refusals(model, plan)) == []
    form.write(model, plan, tmp_path)
    ids = torch.tensor([[1, 2, 3, 4], [6, 7, 8, 9]])
    found = form.read(tmp_path, 1)(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": ids * 0}
    )
    with torch.no_grad():
        torch.testing.assert_close(found["logits"], model(ids).logits, rtol=0, atol=1e-4)


def test_the_format_writes_a_smaller_dense_model_and_leaves_the_packed_one_as_it_is(tmp_path):
    model = seeded(bert).eval()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[:, :16] = 0
    plan = CompressionPlan.uniform(model, find_targets(model, ["*output.dense"]), Block(16, 16, 0.9))
    project(convert(model, plan))
    before, form = copy.deepcopy(model), Compact()
    assert list(form.refusals(model, plan)) == []
    (tmp_path / "compact").mkdir()
    form.write(model, plan, tmp_path / "compact")
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 2]])
    found = form.read(tmp_path / "compact", 1)({"input_ids": ids})["logits"]
    torch.testing.assert_close(found, logits(model), rtol=0, atol=1e-5)
    assert same_bits(logits(model), logits(before))
    smaller = nxmiformer.load_packed(tmp_path / "compact")
    assert sizes_of(smaller) == {"bert.encoder.layer.0": {"dimensions": 16}}
    assert not CompressionPlan.load(tmp_path / "compact" / "plan.json").layers


def test_quantized_inputs_are_refused_before_compaction():
    model = seeded(bert)
    plan = planned(model, Grid(8), Activations())
    assert "quantize after compaction" in next(Compact().refusals(model, plan))


@pytest.mark.parametrize(
    "sizes",
    [
        {"bert.encoder.layer.0": {"heads": 5}},
        {"bert.encoder.layer.0": {"wings": 1}},
        {"bert.encoder.layer.7": {"heads": 1}},
        3,
    ],
)
def test_a_manifest_that_lies_about_sizes_is_refused(sizes, tmp_path):
    model = halved(bert)
    save_packed(model, dense_plan(model), tmp_path / "packed")
    manifest = json.loads((tmp_path / "packed" / MANIFEST).read_text())
    (tmp_path / "packed" / MANIFEST).write_text(json.dumps({**manifest, "sizes": sizes}))
    with pytest.raises(PackedError, match=r"packed\.json"):
        load_packed(tmp_path / "packed")


def test_sizes_that_are_not_those_of_the_weights_are_refused(tmp_path):
    model = halved(bert)
    save_packed(model, dense_plan(model), tmp_path / "packed")
    manifest = json.loads((tmp_path / "packed" / MANIFEST).read_text())
    manifest["sizes"]["bert.encoder.layer.0"]["dimensions"] += 1
    (tmp_path / "packed" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(PackedError, match="and the model needs"):
        load_packed(tmp_path / "packed")
