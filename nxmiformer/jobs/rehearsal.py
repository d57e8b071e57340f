"""A rehearsal of all phases before the first step: what would fail after hours fails in seconds, and is named.

Every phase puts its method on the real model, takes the loss of a few real examples and its gradient, builds what would
train, and is evaluated. The score is computed with a few answers in place of all, and the packed model is built without
its weights. No step is taken and nothing remains: a run with a rehearsal is the same, bit for bit, as one without.

To take only seconds, it uses one layer for all with the same set and shape, and reconstructs none.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from nxmiformer.applied.convert import check_called
from nxmiformer.export.packed import check_packable
from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.everything import blind_ranges, check_ranges, range_quantizers
from nxmiformer.layers.found import compressed_layers, distinct_layers
from nxmiformer.layers.inputs import ActivationQuantizer
from nxmiformer.layers.mode import evaluating
from nxmiformer.layers.untouched import untouched
from nxmiformer.layers.weights import WeightQuantizer
from nxmiformer.methods.dense import Dense
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.ranks import LostError, ranks
from nxmiformer.tasks.batches import Examples
from nxmiformer.train.checkpoint import restore_rng, rng_state
from nxmiformer.train.evaluate import Answers, forward_of, looks
from nxmiformer.train.hidden import check_every_layer_runs
from nxmiformer.train.loop import Stage, training_mode, training_of
from nxmiformer.train.recipe import Phase, check_distillation

EVALUATION = "train.eval_batch_size, train.max_length, task"  # keys that it depends on
FEW = 2  # examples of a batch on a CPU; a GPU has whole ones, for it is their memory that may not be there


def rehearse(
    stage: Stage,
    phases: Mapping[str, Phase],
    report_on: str,
    plan: CompressionPlan | None = None,
    teacher: PreTrainedModel | None = None,
) -> None:
    """Go through the phases, the evaluation, and the packing of the plan that the model was converted to, if given.

    `teacher` is another model that is distilled, and not the dense one that the phases themselves leave.

    Raises:
        ValueError: something of it would fail; the message says what, why, and where to change it.
    """
    state = rng_state()
    try:
        if plan is not None:
            with _part("packing the model", "model, plan"):
                check_packable(stage.model, plan, stage.tokenizer)
        with untouched(stage.model):
            share = -(-stage.settings.batch_size // ranks().count)  # the most that a process has of a batch
            batch = _longest(stage.data["train"], _size(stage, share))
            inputs = batch.batch(range(len(batch)), stage.accelerator.device)
            with _part("a forward pass", "train.max_length, plan.exclude, model"):
                check_called(stage.model, stage.task.inputs(inputs))
            _thin_out(stage.model)
            blind = blind_ranges(stage.model)
            check_distillation(phases, stage.model, stage.task.told(inputs), teacher)
            for name, phase in phases.items():
                _phase(stage, name, phase, inputs, teacher)
            epoch = stage.steps_per_epoch()
            compressing = [phase for phase in phases.values() if not isinstance(phase.method, Dense)]
            if not any(each.method.sees_inputs(each.length(epoch).steps) for each in compressing):
                check_ranges(blind)
            with _part("the evaluation", EVALUATION):
                answers = _evaluate(stage)
            for split in dict.fromkeys(("holdout", report_on)):
                _score(stage, split, answers)
    finally:
        restore_rng(state)


def _thin_out(model: nn.Module) -> None:
    """Make plain layers of all compressed ones but one of each kind, and those that share its weight."""
    kept: dict[object, Tensor] = {}
    for layer in {id(layer): layer for layer in compressed_layers(model).values()}.values():
        kind = layer.plain, str(layer.quantizer), str(layer.inputs), layer.weight.shape
        if kept.setdefault(kind, layer.weight) is not layer.weight:
            layer.release()


def _phase(stage: Stage, name: str, phase: Phase, batch: Mapping[str, Tensor], teacher: PreTrainedModel | None) -> None:
    """One phase, on one batch of its inputs and targets."""
    where = f"recipe.phases.{name}"
    if ranks().count > 1 and phase.dropout:  # ranks that skip other layers would wait for sums of each other's
        with _part(f"phase {name!r} on several processes", f"{where}.dropout"):
            check_every_layer_runs(stage.model.config, f"{where}.dropout=false")
    with _part(f"the length of phase {name!r}", f"train.batch_size, {where}.steps"):
        length = phase.length(stage.steps_per_epoch())
    with _part(f"the optimizer or schedule of phase {name!r}", f"{where}.optimizer, {where}.schedule"):
        phase.try_out(length)
    method = copy.copy(phase.method)  # what it takes hold of is not the run's
    method.delay = 0
    with _part(f"the method of phase {name!r}", f"{where}.method, plan"):
        errors = dict.fromkeys(distinct_layers(stage.model), 1.0)  # which nobody knows yet
        facts = {**stage.facts, "projection_error": errors}
        training_of(replace(stage, facts=facts), name, replace(phase, method=method), length, given=None)
        method.before_step(0)
    with _part(f"the loss of phase {name!r}", f"{where}.objective, train.batch_size, train.max_length"):
        training_mode(stage.model, phase.dropout)
        with stage.accelerator.autocast():
            loss = phase.objective.of(stage.task, stage.wrapped, teacher or _Dense(stage.model), batch)
        if not math.isfinite(loss.item()):
            raise ValueError(f"it is {loss.item()}")
        loss.backward()
        method.before_clip()
        stage.model.zero_grad()
    with _part(f"the evaluation of phase {name!r}", EVALUATION), method.as_finished():
        _evaluate(stage)


def _evaluate(stage: Stage) -> list[Any]:
    """The answers to one batch, as the model stands."""
    examples = _longest(stage.data["holdout"], _size(stage, stage.settings.eval_batch_size))
    answers = Answers(stage.task, examples, stage.model)
    with evaluating(stage.model), stage.accelerator.autocast():
        forward, size = forward_of(stage.model, stage.accelerator), len(examples)
        for look in looks(forward, stage.task, examples, size, stage.accelerator.device):
            logits = look[2].logits
            if not len(logits):
                raise ValueError("there is nothing to compare: of these examples, none has a target")
            if (logits.isnan() | logits.isposinf()).any() or not logits.isfinite().any(-1).all():
                raise ValueError("there are logits that are not finite")
            answers.add(look)
    return answers.all


def _score(stage: Stage, split: str, answers: Sequence[Any]) -> None:
    """The task's score of these answers over and over, for all examples of a split."""
    truths = stage.data[split].truths
    given = [answers[index % len(answers)] for index in range(len(truths))]
    with _part(f"the score on {split}", "task"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that are all alike: the score says so
        scores = stage.task.score(given, truths)
        odd = {key: value for key, value in scores.items() if not math.isfinite(value)}
        if odd or stage.task.metric not in scores:
            raise ValueError(f"of {len(truths)} examples it is {scores}, and {stage.task.metric} must be a number")


class _Dense(nn.Module):
    """The model in evaluation mode and without its quantizers, in place of the teacher that it will leave."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.models = (model,)  # which is no child of this one

    def forward(self, **inputs: Any) -> Any:
        (model,) = self.models
        with evaluating(model), _unquantized(model):
            return model(**inputs)


@contextmanager
def _unquantized(model: nn.Module) -> Iterator[None]:
    """The model without its quantizers, of weights and of inputs."""
    parts = [part for layer in compressed_layers(model).values() for part in _quantizers(layer)]
    active = [part for part in (*parts, *range_quantizers(model).values()) if part.active]
    for part in active:
        part.active = False
    try:
        yield
    finally:
        for part in active:
            part.active = True


def _quantizers(layer: Compressed) -> list[WeightQuantizer | ActivationQuantizer]:
    return [layer.quantizer] if layer.inputs is None else [layer.quantizer, layer.inputs]


@contextmanager
def _part(what: str, keys: str) -> Iterator[None]:
    """Say which part of the rehearsal failed: whatever it raises, for the code of a model may be anybody's."""
    try:
        yield
    except LostError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"the run would fail later, in {what}: {reason}\n  to be changed in {keys}") from error


def _size(stage: Stage, size: int) -> int:
    return min(size, FEW) if stage.accelerator.device.type == "cpu" else size


def _longest(examples: Examples, size: int) -> Examples:
    """So many examples, those of the most tokens: what fits them fits all."""
    lengths = examples.lengths()
    return examples.only(sorted(range(len(examples)), key=lambda index: -lengths[index])[:size])
