import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import NARROW, bert, compressed, distilbert, gpt2, llama, logits, roberta, seeded, tied

from nxmiformer.applied.convert import convert
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import ActivationQuantizer, Activations
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import Targets, find_embeddings, find_head, find_targets
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Block, Grid, Then

pytest.importorskip("compressed_tensors", reason="the extra compressed-tensors is not installed")
from nxmiformer.export.compressed_tensors import CompressedTensors

A8 = Activations(8)
MINILM = Path(__file__).parents[2].parent / "shared" / "models" / "all-MiniLM-L6-v2"
IDS = {"input_ids": torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 2]])}
SETS = [Then(NM(2, 4), Grid(4)), Grid(8), Grid(3, 8), Then(NM(1, 4), Grid(1)), Grid(1), Grid(2), Grid(5, 4), Grid(7)]
RUN = """
import sys, torch, transformers
from safetensors.torch import save_file
model = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
with torch.no_grad():
    save_file({"logits": model(input_ids=torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 2]])).logits}, sys.argv[2])
assert not [name for name in sys.modules if name.partition(".")[0] == "nxmiformer"]
"""


def mixed(layers):
    """The sets in turn, layer by layer."""
    return {target.name: SETS[i % len(SETS)] for i, target in enumerate(layers)}


def written(model, plan, directory, **options):
    form = CompressedTensors(**options)
    assert list(form.refusals(model, plan)) == []
    form.write(model, plan, directory)
    run = form.read(directory)
    return lambda batch: run(batch)["logits"]


def off(model):
    """The model with its activation quantizers off."""
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            module.active = False
    return model


def larger(model):
    """The model with weights of a size that lets rounded inputs be seen in the logits."""
    with torch.no_grad():
        for layer in compressed_layers(model).values():
            layer.weight.mul_(16)  # exactly, so that they stay points of their sets
    return model


def as_theirs(monkeypatch):
    """Ranges of inputs by the convention of the package, from its documentation: the maximum over q + 1/2."""

    def forward(self, x):
        if self.ends is not None:
            return self.ends(x)
        seen = self.spec.ranges == "ema" and self.peak > 0
        scale = self._range(x) / (self.top + (0 if seen else 0.5))
        return (x / scale).round().clamp(-self.top - 1, self.top) * scale

    monkeypatch.setattr(ActivationQuantizer, "forward", forward)


@pytest.mark.parametrize("make", [bert, roberta, distilbert, llama])
def test_the_logits_of_a_model_with_float_inputs_are_equal_whatever_the_grids(make, tmp_path):
    model, plan = compressed(make, weight=mixed)
    assert torch.equal(written(model, plan, tmp_path)(IDS), logits(model))


def test_transformers_loads_the_directory_without_nxmiformer(tmp_path):
    model, plan = compressed(weight=mixed)
    CompressedTensors().write(model, plan, tmp_path)
    out = tmp_path / "logits.safetensors"
    subprocess.run([sys.executable, "-W", "error", "-c", RUN, tmp_path, out], check=True, timeout=120)
    assert torch.equal(load_file(out)["logits"], logits(model))


def test_every_weight_is_carried_bit_for_bit_at_its_own_width(tmp_path):
    from compressed_tensors.compressors import decompress_module

    model, plan = compressed(weight=mixed)
    with torch.no_grad():
        next(iter(compressed_layers(model).values())).weight[0] = 0  # a row without a scale
    CompressedTensors().write(model, plan, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    read = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for name, spec in plan.layers.items():
        packed, bits = stored[f"{name}.weight_packed"], max(2, spec.weight.grid.bits)
        assert packed.shape == (spec.shape[0], -(-spec.shape[1] * bits // 32))
        decompress_module(read.get_submodule(name))
        weight = read.get_parameter(f"{name}.weight").detach()
        assert torch.equal(weight, model.get_parameter(f"{name}.weight"))


@pytest.mark.parametrize(
    "activations",
    [
        A8,
        Activations(4),
        Activations(8, "tensor"),
        Activations(6, "ema"),
        Activations(8, "static"),
        Activations(5, "static"),
    ],
    ids=str,
)
def test_inputs_are_quantized_by_the_convention_of_the_package(activations, tmp_path, monkeypatch):
    model, plan = compressed(weight=Then(NM(2, 4), Grid(4)), activations=activations)
    larger(model).train()(**IDS)
    model.eval()
    run = written(model, plan, tmp_path)
    ours = logits(model)
    as_theirs(monkeypatch)
    torch.testing.assert_close(run(IDS), logits(model), rtol=1e-4, atol=1e-5)
    assert activations.fixed or not torch.allclose(run(IDS), ours, rtol=1e-4, atol=1e-5)


def test_a_range_for_each_token_is_one_for_each_row_of_a_head(tmp_path, monkeypatch):
    model = seeded(bert)
    layers = (*find_targets(model).layers, *find_head(model))
    plan = CompressionPlan.uniform(model, Targets(layers, {}), Grid(4), A8)
    project(convert(model, plan))
    run = written(larger(model.eval()), plan, tmp_path)
    as_theirs(monkeypatch)
    torch.testing.assert_close(run(IDS), logits(model), rtol=1e-4, atol=1e-5)
    alone = torch.cat([run({"input_ids": row[None]}) for row in IDS["input_ids"]])
    torch.testing.assert_close(run(IDS), alone, rtol=1e-4, atol=1e-5)


def test_without_activations_the_logits_are_those_of_the_model_with_its_quantizers_off(tmp_path):
    model, plan = compressed(weight=Grid(8), activations=A8)
    larger(model)
    quantized = logits(model)
    run = written(model, plan, tmp_path, activations=False)
    assert torch.equal(run(IDS), logits(off(model)))
    assert not torch.equal(run(IDS), quantized)


def test_eight_bits_with_quantized_inputs_are_stored_as_they_usually_are(tmp_path):
    sets = {True: Grid(8), False: Grid(4)}
    model, plan = compressed(weight=lambda layers: {t.name: sets[i == 0] for i, t in enumerate(layers)}, activations=A8)
    run = written(model, plan, tmp_path)
    torch.testing.assert_close(run(IDS), logits(model), rtol=0, atol=1e-4)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    first, *rest = plan.layers
    wide, narrow = config["config_groups"].values()
    assert (config["format"], wide["format"], narrow["format"]) == (
        "mixed-precision",
        "int-quantized",
        "pack-quantized",
    )
    assert (wide["targets"], narrow["targets"]) == ([first], rest)
    assert load_file(tmp_path / "model.safetensors")[f"{first}.weight"].dtype == torch.int8


def test_compressed_embeddings_are_carried(tmp_path):
    model = seeded(bert)
    plan = CompressionPlan.uniform(model, Targets(find_embeddings(model), {}), Grid(4, 8))
    project(convert(model, plan))
    assert torch.equal(written(model.eval(), plan, tmp_path)(IDS), logits(model))


def test_writing_leaves_the_model_as_it_was(tmp_path):
    model, plan = compressed(activations=A8)
    before, known = logits(model), {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    CompressedTensors().write(model, plan, tmp_path)
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == known
    assert len(compressed_layers(model)) == len(plan.layers)
    assert torch.equal(logits(model), before)
    assert "quantization_config" not in model.config.to_dict()


def test_what_cannot_be_carried_is_told_layer_by_layer():
    floats = [NM(2, 4), Block(4, 4, 0.5)]
    model, plan = compressed(
        weight=lambda layers: {t.name: floats[i] if i < 2 else Grid(4) for i, t in enumerate(layers)}
    )
    told = list(CompressedTensors().refusals(model, plan))
    assert [line.partition(":")[0] for line in told] == list(plan.layers)[:2]
    assert all("has float values" in line for line in told)
    told = list(CompressedTensors().refusals(*compressed(gpt2)))
    assert told
    assert all("it is a Conv1D" in line for line in told)
    assert "share its weight" in "".join(CompressedTensors().refusals(*compressed(tied)))
    assert "torch.bfloat16" in "".join(CompressedTensors().refusals(*compressed(dtype=torch.bfloat16)))


def test_a_model_of_other_inputs_is_refused():
    config = transformers.ViTConfig(**NARROW, image_size=8, patch_size=4)
    model = seeded(lambda: transformers.ViTForImageClassification(config))
    plan = CompressionPlan.uniform(model, find_targets(model), Grid(4))
    assert list(CompressedTensors().refusals(model, plan)) == ["ViTForImageClassification takes no input_ids"]


@pytest.mark.parametrize("tolerance", [-0.1, 1])
def test_a_tolerance_that_is_no_share_is_refused(tolerance):
    with pytest.raises(ValueError, match=r"format\.tolerance is a share"):
        CompressedTensors(tolerance=tolerance)


@pytest.mark.skipif(not MINILM.is_dir(), reason=f"needs a BERT at {MINILM}")
def test_minilm_keeps_its_logits_in_as_many_bytes_as_its_codes_and_scales_take(tmp_path):
    model = seeded(lambda: transformers.BertForSequenceClassification.from_pretrained(MINILM, dtype=torch.float32))
    targets = find_targets(model, ["*.layer.0.*"])
    plan = CompressionPlan.uniform(model, targets, Then(NM(2, 4), Grid(4, scale="absmax")))
    project(convert(model, plan))
    assert torch.equal(written(model.eval(), plan, tmp_path)(IDS), logits(model))
    codes = sum(spec.shape[0] * (spec.shape[1] // 2 + 4) for spec in plan.layers.values())
    bytes_, header = plan.rest * 4 + codes, 2**16
    assert bytes_ <= (tmp_path / "model.safetensors").stat().st_size <= bytes_ + header
