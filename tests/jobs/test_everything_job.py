"""A run that quantizes everything, from its command to its packed model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_job import job

from nxmiformer.export.packed import load_packed
from nxmiformer.jobs.compress import run
from nxmiformer.layers.everything import blind_ranges, range_quantizers
from nxmiformer.layers.found import compressed_layers
from nxmiformer.models.source import Pretrained
from nxmiformer.tasks.grammar import Grammar

STEPS = ["recipe.phases.dense.steps=2", "recipe.phases.ste_qat.steps=3", "recipe.phases.ste_qat.method.delay=1"]


def test_one_word_quantizes_everything_and_leaves_a_dense_model_that_can_be_read(tmp_path):
    content = run(job(tmp_path / "run", "plan.everything=int8", *STEPS, recipe="ste_qat"))
    assert content["scores"]["packed"] == content["scores"]["final"]
    quantizers = range_quantizers(load_packed(tmp_path / "run" / "packed"))
    assert all((each.low <= each.high).all() for each in quantizers.values())
    told = f"| everything | int8 for {len(quantizers)} inputs of products |"
    assert told in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "int8 for" in (tmp_path / "run" / "packed" / "README.md").read_text(encoding="utf-8")
    assert "everything" in json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
    dense = tmp_path / "run" / "dense"
    assert not [name for name in load_file(dense / "model.safetensors") if "ranges" in name]
    source, task = Pretrained(str(dense), finetuned=True), Grammar()
    assert source.model(task, source.tokenizer(task), 0).num_labels == 2


PLANNED = ["plan.everything=int8", "plan.activations.ranges=static", "plan.activations.ranges=ema"]


@pytest.mark.parametrize("planned", PLANNED)
def test_a_recipe_in_which_no_range_would_see_an_input_is_refused_before_any_training(planned, tmp_path):
    blind = "recipe.phases.one_shot.method.calibration=0"
    with pytest.raises(ValueError, match=r"ranges have seen no input.*take a recipe that trains.*calibration"):
        run(job(tmp_path / "run", planned, blind, recipe="one_shot"))
    assert not (tmp_path / "run" / "dense").exists()


@pytest.mark.parametrize("planned", PLANNED)
def test_one_shot_fixes_the_ranges_of_inputs_on_batches_and_leaves_the_weights_projected(planned, tmp_path):
    steps = "recipe.phases.dense.steps=2"
    content = run(job(tmp_path / "run", planned, steps, recipe="one_shot"))
    assert content["scores"]["packed"] == content["scores"]["final"]
    model, dense = load_packed(tmp_path / "run" / "packed"), load_file(tmp_path / "run" / "dense" / "model.safetensors")
    assert not blind_ranges(model)
    for name, layer in compressed_layers(model).items():
        assert torch.equal(layer.weight, layer.quantizer.constraint.project(dense[f"{name}.weight"]))
