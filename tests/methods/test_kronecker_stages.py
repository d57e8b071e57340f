"""Factors that one run has trained on a corpus are those that another begins with on a task."""

import warnings

import hydra
import pytest
import torch
import transformers
from test_kronecker_factors import compressed
from test_methods import Run, batch, bert

from nxmiformer.applied.convert import convert
from nxmiformer.cli import build
from nxmiformer.export.checkpoint import Checkpoint
from nxmiformer.export.packed import load_packed, save_packed
from nxmiformer.jobs.phases import check_taught
from nxmiformer.layers.factored import Factored
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.targets import find_targets
from nxmiformer.methods.base import Length
from nxmiformer.methods.kronecker import Kronecker as KroneckerFactors
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.plan.origin import Planning
from nxmiformer.sets import Grid, Kronecker

POINTS = Kronecker(2, 4)


def masked_lm():
    return transformers.BertForMaskedLM(bert().config)


def test_a_task_begins_with_the_factors_that_the_corpus_has_left_to_the_last_bit(tmp_path):
    model, plan = compressed(masked_lm)
    assert "bert.embeddings.word_embeddings" not in plan.layers  # which is the head too
    method = KroneckerFactors()
    method.attach(model, Length(3, 3))
    given = {**batch(), "labels": batch()["input_ids"]}
    optimizer = torch.optim.SGD([p for _, p in method.parameters()], lr=0.1)
    for _ in range(3):
        model(**given).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    method.finalize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no tokenizer
        save_packed(model.eval(), plan, tmp_path / "packed")
    read, form = load_packed(tmp_path / "packed"), Checkpoint()
    assert list(form.refusals(read, plan)) == []
    form.write(read, plan, tmp_path / "checkpoint")
    again = transformers.BertForMaskedLM.from_pretrained(tmp_path / "checkpoint")
    assert torch.equal(again(**given).logits, model(**given).logits)

    task = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint")
    convert(task, Planning("factors", Kronecker(2, 4), None, embeddings="kron1x4")(task))
    carried = {name: layer for name, layer in compressed_layers(read).items() if isinstance(layer, Factored)}
    for name, layer in carried.items():
        found = layer.quantizer.constraint.factors(task.get_parameter(f"{name}.weight").detach())
        assert torch.equal(found[0], layer.weight.left)
        assert torch.equal(found[1], layer.weight.right)
    phase = Run(task.train(), KroneckerFactors(carried=True))
    assert len(phase.method._parts()) == 2 * (len(carried) + 1)  # with the embedding of words
    for name, layer in carried.items():
        torch.testing.assert_close(task.get_submodule(name).quantizer.factors.weight(), layer.matrix)
    phase.take(3)


def test_a_checkpoint_without_factors_and_one_of_other_factors_are_refused_by_layer():
    model, _ = compressed(bert)
    with pytest.raises(
        ValueError, match=r"encoder\S+: the checkpoint's weight is not a point of kron2x4.*format=checkpoint"
    ):
        KroneckerFactors(carried=True).attach(model, Length(3, 3))


def test_a_weight_that_another_module_reads_as_it_is_is_not_factored():
    with torch.random.fork_rng():
        model = masked_lm()
    convert(model, Planning("head", POINTS, None, head="kron1x4")(model))
    told = r"decoder: its weight is that of bert\.embeddings\.word_embeddings too, which would not see the factors"
    with pytest.raises(ValueError, match=told):
        KroneckerFactors().attach(model, Length(3, 3))


def test_what_a_checkpoint_of_factors_cannot_carry_is_told():
    model = bert()
    plan = CompressionPlan.uniform(model, find_targets(model), POINTS, Activations())
    assert "inputs are quantized" in next(Checkpoint().refusals(model, plan))
    plan = CompressionPlan.uniform(model, find_targets(model), Grid(8))
    assert "no layer has Kronecker factors" in next(Checkpoint().refusals(model, plan))


def test_factors_that_are_carried_over_are_not_taught_by_a_head_that_nobody_has_trained(tmp_path):
    def job(*overrides):
        with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
            given = ["name=run", "model=pretrained", "recipe=kronecker_task", "plan=kronecker", *overrides]
            return build(hydra.compose("config", given), tmp_path)

    bare = job()
    with pytest.raises(ValueError, match=r"'kronecker' distils a dense model of the task: give model.teacher"):
        check_taught(bare, bare.recipe.phases)
    for overrides in (["model.teacher=somewhere"], ["recipe.phases.dense.steps=3"]):
        taught = job(*overrides)
        check_taught(taught, taught.recipe.phases)
