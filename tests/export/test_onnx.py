from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny import NARROW, WORDS, bert, compressed, distilbert, gpt2, llama, roberta, seeded

from nxmiformer.applied.convert import convert
from nxmiformer.export.symbolic import codes_of
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import Targets, find_embeddings, find_targets
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Grid, Then

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
from nxmiformer.export.onnx import DATA, FILE, Onnx  # noqa: E402
from nxmiformer.layers.examples import inputs_of  # noqa: E402

A8 = Activations(8)
KINDS = [
    (Grid(8), A8),
    (Then(NM(2, 4), Grid(4)), A8),
    (Grid(4, 8), A8),
    (Then(NM(1, 4), Grid(1)), A8),
    (Grid(2), None),
    (Grid(3), Activations(4)),
    (Then(NM(2, 4), Grid(5, 4)), None),
    (Grid(4), Activations(8, "tensor")),
    (Grid(4), Activations(6, "ema")),
    (Grid(8), Activations(8, "static")),
    (Grid(4), Activations(6, "static")),
    (Grid(4, 8), Activations(8, "static")),
]


def batch(model, rows, tokens, seed=0):
    """Random tokens, padded from the second row on, as `model` takes them."""
    ids = torch.randint(2, 24, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, tokens - min(row, tokens - 1) :] = 0
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    return {name: given[name] for name in inputs_of(model)}


def of_all_kinds(make, dtype=torch.float32):
    """A model whose layers differ in their sets and activations, and whose ranges have been seen."""
    model = seeded(make).to(dtype)
    layers = find_targets(model).layers
    sets = {target.name: KINDS[i % len(KINDS)] for i, target in enumerate(layers)}
    plan = CompressionPlan.assigned(model, Targets(layers, {}), {name: kind for name, (kind, _) in sets.items()})
    specs = {n: type(s)(s.weight, s.shape, sets[n][1], s.transposed, s.aliases) for n, s in plan.layers.items()}
    plan = CompressionPlan(specs, {}, plan.rest)
    convert(model, plan)
    project(model)
    with torch.no_grad():
        model.train()(**batch(model, 4, 6))
    return model.eval(), plan


@torch.no_grad()
def check_agrees(model, run):
    """Whatever the batch and the length, ONNX Runtime gives the logits of the model."""
    for rows, tokens in ((1, 1), (3, 7), (4, 12)):
        given = batch(model, rows, tokens, seed=rows)
        torch.testing.assert_close(run(given), model(**given).logits, rtol=1e-4, atol=1e-5)


def written(model, plan, directory, **options):
    form = Onnx(**options)
    assert list(form.refusals(model, plan)) == []
    form.write(model, plan, directory)
    content = onnx.load(directory / FILE)
    onnx.checker.check_model(content, full_check=True)
    run = form.read(directory, threads=1)
    return content, lambda batch: run(batch)["logits"]


@pytest.mark.parametrize("make", [roberta, gpt2, llama])
def test_onnx_runtime_gives_the_logits_of_a_model_with_layers_of_all_kinds(make, tmp_path):
    model, plan = of_all_kinds(make)
    check_agrees(model, written(model, plan, tmp_path)[1])


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """A BERT of 2:4 + INT4 with INT8 activations, compressed embeddings among them: model, content and reader."""
    model = seeded(bert)
    targets, embeddings = find_targets(model), find_embeddings(model)
    sets = {t.name: Then(NM(2, 4), Grid(4)) for t in targets.layers} | {t.name: Grid(8, 8) for t in embeddings}
    plan = CompressionPlan.assigned(model, Targets((*targets.layers, *embeddings), {}), sets, A8)
    convert(model, plan)
    project(model)
    content, run = written(model.eval(), plan, tmp_path_factory.mktemp("onnx"))
    return model, plan, content, run


def test_weights_too_large_for_one_file_are_in_a_second_one_and_mean_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("nxmiformer.export.onnx.LARGEST", 1000)
    model, plan = of_all_kinds(distilbert)
    check_agrees(model, written(model, plan, tmp_path)[1])
    assert (tmp_path / DATA).stat().st_size > 1000


def test_onnx_runtime_gives_the_logits_of_a_bert_whose_embeddings_are_compressed(joint):
    model, _, _, run = joint
    check_agrees(model, run)


def test_weights_are_stored_as_integers_as_narrow_as_their_grids(joint):
    model, plan, content, _ = joint
    stored = {initializer.name: initializer for initializer in content.graph.initializer}
    for name, spec in plan.layers.items():
        narrow = spec.weight.grid.bits <= 4
        tensor = stored[f"model.{name}.codes" + ("_int4" if narrow else "")]
        assert tensor.data_type == (onnx.TensorProto.INT4 if narrow else onnx.TensorProto.INT8)
        assert len(tensor.raw_data) == spec.shape[0] * spec.shape[1] // (2 if narrow else 1)
        codes, _ = codes_of(compressed_layers(model)[name])
        lookup = "embeddings" in name
        assert np.array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), codes if lookup else codes.t())
    floats = sum(np.prod(t.dims) for t in stored.values() if t.data_type == onnx.TensorProto.FLOAT)
    scales = sum(spec.weight.storage(spec.shape).scales // 32 for spec in plan.layers.values())
    assert floats <= plan.rest + scales + 16  # some constants; equal tensors are stored once


def test_every_linear_layer_of_one_scale_a_row_multiplies_integers_by_standard_operators(joint):
    _, plan, content, _ = joint
    linear = [name for name in plan.layers if "embeddings" not in name]
    assert sum(node.op_type == "MatMulInteger" for node in content.graph.node) == len(linear)
    assert {node.domain for node in content.graph.node} == {""}
    assert {entry.domain for entry in content.opset_import} == {""}


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """A BERT of INT8 weights and of inputs with static ranges, a row of zeros among its weights: model, file, run."""
    model, plan = compressed(bert, weight=Grid(8), activations=Activations(8, "static"))
    layers = list(compressed_layers(model).values())
    with torch.no_grad():
        for layer in layers:
            layer.bias.normal_(generator=torch.Generator().manual_seed(1))
        layers[0].weight[1::2] = 0  # their biases are all that they give
        layers[1].weight[:, :] = 1e-30  # steps in which no integer of 32 bits holds the bias
        project(model)
        model.train()(**batch(model, 4, 6))
    place = tmp_path_factory.mktemp("static")
    content, run = written(model.eval(), plan, place)
    return model, plan, content, run, place / FILE


def test_inputs_with_static_ranges_give_the_logits_of_the_model(static):
    check_agrees(static[0], static[3])


def test_inputs_with_static_ranges_are_multiplied_exactly_where_sums_of_codes_saturate_too(static, monkeypatch):
    monkeypatch.setattr("nxmiformer.export.onnx.saturates", lambda: True)
    run = Onnx().read(static[4].parent, threads=1)
    check_agrees(static[0], lambda given: run(given)["logits"])


def test_products_of_inputs_with_static_ranges_are_one_operator_of_integers_in_the_runtime(static, tmp_path):
    import onnxruntime

    _, plan, content, _, path = static
    kinds = [node.op_type for node in content.graph.node]
    assert "MatMulInteger" not in kinds
    assert {node.domain for node in content.graph.node} == {""}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    fused = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert fused.count("QGemm") == len(plan.layers) - 1  # not the layer whose bias no integers hold


def test_the_file_tells_nothing_of_the_machine_that_wrote_it(joint):
    content = joint[2].SerializeToString()
    assert b".py" not in content
    assert str(Path.home()).encode() not in content


def test_without_int4_every_code_is_stored_in_8_bits(tmp_path):
    model, plan = compressed(bert, include=["*.0.attention.self.query"], activations=A8)
    content, run = written(model, plan, tmp_path, int4=False)
    types = [each.data_type for each in content.graph.initializer if "codes" in each.name]
    assert types == [onnx.TensorProto.INT8]
    check_agrees(model, run)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_times_scales_are_the_weight(bits):
    for weight in (Grid(bits), Grid(bits, 8), Then(NM(2, 4), Grid(bits))):
        model, plan = compressed(bert, weight=weight)
        for name, layer in compressed_layers(model).items():
            codes, scales = codes_of(layer)
            assert codes.abs().max() <= plan.layers[name].weight.grid.top
            points = codes.view(len(codes), scales.shape[1], -1) * scales[..., None]
            assert torch.equal(points.view(codes.shape), layer.matrix)


def test_writing_leaves_the_model_as_it_was(joint):
    model, plan, _, _ = joint
    again = seeded(bert)
    assert model.state_dict().keys() == again.state_dict().keys()
    assert len(compressed_layers(model)) == len(plan.layers)
    assert model.config._attn_implementation == again.config._attn_implementation


def test_what_cannot_be_carried_is_told_layer_by_layer():
    model, plan = compressed(
        bert, weight=lambda layers: {t.name: NM(2, 4) if i < 2 else Grid(4) for i, t in enumerate(layers)}
    )
    told = list(Onnx().refusals(model, plan))
    assert [line.partition(":")[0] for line in told] == list(plan.layers)[:2]
    assert all("2:4 has float values" in line for line in told)
    assert "torch.bfloat16" in "".join(Onnx().refusals(*compressed(bert, weight=Grid(4), dtype=torch.bfloat16)))


def test_a_model_of_other_inputs_is_refused():
    config = transformers.ViTConfig(**NARROW, image_size=8, patch_size=4)
    model = seeded(lambda: transformers.ViTForImageClassification(config))
    plan = CompressionPlan.uniform(model, find_targets(model), Grid(4))
    assert list(Onnx().refusals(model, plan)) == ["ViTForImageClassification takes no input_ids"]


def test_a_model_of_one_type_of_tokens_is_not_asked_for_types():
    assert inputs_of(seeded(bert)) == ("input_ids", "attention_mask", "token_type_ids")
    assert inputs_of(seeded(distilbert)) == ("input_ids", "attention_mask")
    assert inputs_of(seeded(gpt2)) == ("input_ids", "attention_mask")
    one = transformers.RobertaConfig(**WORDS, **NARROW, type_vocab_size=1)
    assert inputs_of(transformers.RobertaForSequenceClassification(one)) == ("input_ids", "attention_mask")


def test_an_input_that_is_not_given_is_named(joint):
    model, _, _, run = joint
    given = batch(model, 1, 4)
    del given["attention_mask"]
    with pytest.raises(ValueError, match=r"takes input_ids, attention_mask, token_type_ids, and was not given attent"):
        run(given)


def test_tokens_whose_types_are_not_given_are_all_of_the_first_as_for_the_model(joint):
    model, _, _, run = joint
    given = batch(model, 3, 7)
    del given["token_type_ids"]
    with torch.no_grad():
        torch.testing.assert_close(run(given), model(**given).logits, rtol=1e-4, atol=1e-5)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ValueError, match=r"needs onnxruntime: pip install 'nxmiformer\[onnx\]'"):
        Onnx().read(tmp_path)


@pytest.mark.parametrize("tolerance", [-0.1, 1])
def test_a_tolerance_that_is_no_share_is_refused(tolerance):
    with pytest.raises(ValueError, match=r"format\.tolerance is a share"):
        Onnx(tolerance=tolerance)
