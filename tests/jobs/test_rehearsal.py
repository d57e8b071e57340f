"""A rehearsal finds what would fail, and leaves no trace."""

import json
import random
from dataclasses import dataclass, replace

import hydra
import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from nxmiformer.jobs import compress, phases
from nxmiformer.jobs.build import build
from nxmiformer.jobs.opening import opened
from nxmiformer.jobs.rehearsal import rehearse
from nxmiformer.layers.found import compressed_layers
from nxmiformer.methods.ste_qat import SteQat
from nxmiformer.models.source import Embedded
from nxmiformer.tasks.grammar import Grammar
from nxmiformer.train.objective import Objective
from nxmiformer.train.recipe import Recipe

TINY = [
    "name=tiny",
    "dense_cache=null",
    *("model.hidden=32", "model.heads=2", "model.intermediate=64", "model.layers=2"),
    *("task.train=48", "task.holdout=24", "task.validation=24"),
    *("train.batch_size=12", "train.evaluate_every=0", "train.cpu=true", "train.threads=1"),
]
RECIPES = ["admm", "admm_paper", "admm_relative", "fixed_mask", "obert", "sr_ste", "ste_qat", "one_shot"]


@pytest.fixture(scope="module", autouse=True)
def composing():
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        yield


def job(directory, *overrides, recipe="admm"):
    config = hydra.compose("config", [*TINY, f"recipe={recipe}", *overrides])
    built = build(config, directory)
    return replace(built, recipe=Recipe({name: replace(p, steps=2) for name, p in built.recipe.phases.items()}))


def with_phase(whole, **changes):
    """The job, its last phase changed."""
    last = list(whole.recipe.phases)[-1]
    phases = {**whole.recipe.phases, last: replace(whole.recipe.phases[last], **changes)}
    return replace(whole, recipe=Recipe(phases))


def generators():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def traces(model):
    """All that a rehearsal could leave in a model, and in the generators."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [(name, type(m), m.training) for name, m in model.named_modules()]
    layers = compressed_layers(model).values()
    parts = [part for layer in layers for part in (layer.quantizer, layer.inputs) if part is not None]
    quantizers = [{k: v for k, v in vars(part).items() if not isinstance(v, dict | set)} for part in parts]
    pieces = [layer.quantizer.piece for layer in layers]
    parameters = [(id(p), name, p.grad, p.requires_grad) for name, p in model.named_parameters()]
    return tensors, (modules, quantizers, pieces, parameters, generators())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_rehearsal_leaves_model_methods_and_generators_as_they_were(recipe, tmp_path):
    plan = ["plan.activations.ranges=ema", "plan.embeddings=int8", "plan.head=int8"]
    whole = job(tmp_path / "run", *plan, recipe=recipe)
    methods = {name: dict(vars(phase.method)) for name, phase in whole.recipe.phases.items()}
    with opened(whole, whole.planning) as (stage, plan, _, _):
        before, rest = traces(stage.model)
        rehearse(stage, whole.recipe.phases, "validation", plan)
        after, rest_after = traces(stage.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert rest == rest_after
    assert {name: dict(vars(phase.method)) for name, phase in whole.recipe.phases.items()} == methods


def test_a_run_has_the_same_bits_with_a_rehearsal_and_without(tmp_path, monkeypatch):
    def bits(directory):
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        losses = [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]
        return losses, (directory / "packed" / "model.safetensors").read_bytes()

    few = ["model.layers=1", "plan.activations.ranges=ema", "recipe.phases.admm.method.calibration=0"]
    monkeypatch.setattr(compress, "write_report", lambda _: None)
    compress.run(job(tmp_path / "with", *few))
    monkeypatch.setattr(compress, "rehearse", lambda *_: None)
    compress.run(job(tmp_path / "without", *few))
    assert bits(tmp_path / "with") == bits(tmp_path / "without")


class Crooked(Objective):
    """Fails only where it distils."""

    def __call__(self, *args):
        raise TypeError("this model has no pooler")


class Blown(Objective):
    def __call__(self, *args):
        return super().__call__(*args) * float("inf")


@dataclass(kw_only=True)
class Clumsy(SteQat):
    def before_clip(self):
        raise KeyError("mask")


class Constant(Grammar):
    def score(self, logits, labels):
        return {"accuracy": float("nan") if len(labels) == 24 else 1.0}


class Foreign(BertForSequenceClassification):
    """Not one of transformers' own."""


class Theirs(Embedded):
    def model(self, task, tokenizer, seed):
        model = super().model(task, tokenizer, seed)
        model.__class__ = Foreign
        return model


class Damaged(Embedded):
    def model(self, task, tokenizer, seed):
        model = super().model(task, tokenizer, seed)
        model.classifier.bias.data[0] = torch.nan
        return model


class Unpaired(Embedded):
    def model(self, task, tokenizer, seed):
        model = super().model(task, tokenizer, seed)
        model.bert.embeddings.token_type_embeddings = torch.nn.Embedding(1, self.hidden)
        model.config.type_vocab_size = 1
        return model


SMALL = {"hidden": 32, "heads": 2, "intermediate": 64, "layers": 1}
FAILURES = {
    "the loss of phase 'finish': TypeError: this model has no pooler": lambda job: with_phase(job, objective=Crooked()),
    "the loss of phase 'finish': it is inf": lambda job: with_phase(job, objective=Blown()),
    "the loss of phase 'finish': KeyError: 'mask'": lambda job: with_phase(job, method=Clumsy()),
    "the method of phase 'finish': .* has no scales to learn": lambda job: with_phase(
        replace(job, planning=replace(job.planning, weight=job.planning.weight.first)),
        method=SteQat(learned_scales=True),
    ),
    "the length of phase 'dense': a batch of 49 needs at least": lambda job: replace(
        job, settings=replace(job.settings, batch_size=49)
    ),
    "the score on holdout: of 24 examples it is": lambda job: replace(
        job, task=Constant(**{name: getattr(job.task, name) for name in ("train", "holdout", "validation")})
    ),
    "packing the model: .*transformers has no model 'Foreign'": lambda job: replace(job, source=Theirs(**SMALL)),
    "the loss of phase 'dense': it is nan": lambda job: replace(job, source=Damaged(**SMALL)),
    "a forward pass: IndexError: index out of range": lambda job: replace(job, source=Unpaired(**SMALL)),
}


@pytest.mark.parametrize(("message", "broken"), FAILURES.items(), ids=FAILURES)
def test_what_would_fail_later_fails_before_the_first_step_and_says_where(message, broken, tmp_path):
    with pytest.raises(ValueError, match=f"^the run would fail later, in {message}(?s:.*)\n  to be changed in [a-z]"):
        compress.run(broken(job(tmp_path / "run")))
    assert "loss" not in "".join(path.read_text() for path in (tmp_path / "run").glob("metrics.jsonl"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_dense_phase_has_no_teacher_and_is_refused_one(tmp_path):
    with pytest.raises(ValueError, match="phase 'dense' makes the dense model, and has no teacher yet"):
        job(tmp_path, "recipe.phases.dense.objective.logits=1")


def test_a_resumed_run_rehearses_what_is_left_of_it(tmp_path, monkeypatch):
    seen = []

    def killed(*_):
        raise KeyboardInterrupt

    def noted(stage, phases, *_):
        seen.extend(phases)
        raise KeyboardInterrupt

    whole = job(tmp_path / "run")
    monkeypatch.setattr(phases, "leave_dense", killed)
    with pytest.raises(KeyboardInterrupt):
        compress.run(whole)
    monkeypatch.setattr(compress, "rehearse", noted)
    with pytest.raises(KeyboardInterrupt):
        compress.run(replace(whole, resume=True))
    assert seen == ["admm", "finish"]
