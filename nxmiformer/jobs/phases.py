"""The phases of a run, from its position to their end."""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from safetensors import safe_open
from torch import Size, Tensor, nn
from transformers import PreTrainedModel

from nxmiformer.applied.convert import strip
from nxmiformer.console.quiet import quiet
from nxmiformer.files import replacing
from nxmiformer.jobs.dense import rows_of, shared
from nxmiformer.jobs.job import Job
from nxmiformer.layers.found import compressed_layers, distinct_layers
from nxmiformer.layers.inputs import ActivationQuantizer
from nxmiformer.layers.ranges import RangeQuantizer
from nxmiformer.methods.base import Length, Method
from nxmiformer.methods.dense import Dense
from nxmiformer.methods.kronecker import Kronecker
from nxmiformer.methods.one_shot import OneShot
from nxmiformer.methods.pattern_lock import PatternLock
from nxmiformer.ranks import ranks
from nxmiformer.runs.words import no_better
from nxmiformer.train.checkpoint import Position
from nxmiformer.train.loop import Stage, train_phase
from nxmiformer.train.memory import measuring
from nxmiformer.train.recipe import Phase

log = logging.getLogger(__name__)
RANGES = (ActivationQuantizer, RangeQuantizer)  # which a dense model has no ranges of


def train(
    job: Job, stage: Stage, recipe: Mapping[str, Phase], position: Position, resumed: Mapping[str, Any] | None
) -> None:
    """The phases from the position on. Where compression begins, the dense model is scored and kept."""
    names, phases = list(recipe), list(recipe.values())
    compressing = next((i for i, phase in enumerate(phases) if not isinstance(phase.method, Dense)), len(phases))
    if position.phase < compressing:
        position = _train_dense(job, stage, dict(list(recipe.items())[:compressing]), position, resumed)
        resumed = None
    teacher: nn.Module | None = None
    for index in range(position.phase, len(phases)):
        if "dense" not in stage.facts["scores"]:
            leave_dense(job, stage)
            _one_shot(job, stage)
        if teacher is None and any(phase.objective.distils for phase in phases[index:]):
            teacher = _teacher(job, stage)
        position = _trained(
            stage, names[index], phases[index], teacher, position, resumed, final=index == len(phases) - 1
        )
        resumed = None
        stage.save("latest", position, {})


def _trained(
    stage: Stage,
    name: str,
    phase: Phase,
    teacher: nn.Module | None,
    position: Position,
    resumed: Mapping[str, Any] | None,
    final: bool,
) -> Position:
    """As `train_phase`, and note the most memory that there was."""
    with measuring(stage.accelerator.device) as memory:
        position = train_phase(stage, name, phase, teacher, position, resumed, final)
    stage.facts["phases"][name]["memory"] = memory.peak
    return position


def _train_dense(
    job: Job, stage: Stage, phases: Mapping[str, Phase], position: Position, resumed: Mapping[str, Any] | None
) -> Position:
    """The phases that a recipe begins with, from the position on, unless another run has trained them already."""
    names = list(phases)
    with shared(job, stage, phases) as kept:
        taken = kept.take(stage) if kept is not None and position == Position() else None
        if taken is not None:
            stage.save("latest", taken, {})
            return taken
        for name in names[position.phase :]:
            position = _trained(stage, name, phases[name], None, position, resumed, final=False)
            resumed = None
            stage.save("latest", position, {})
        if kept is not None:
            kept.keep(stage, position, rows_of(job, position))
    return position


def leave_dense(job: Job, stage: Stage) -> None:
    """Score the dense model, and keep it in `dense/`, as `transformers` does."""
    Dense().attach(stage.model, Length(0, 1))
    model = taught(job, stage) or stage.model
    stage.facts["dense_alike"] = model is stage.model or shapes_of(model) == shapes_of(stage.model)
    stage.facts["scores"]["dense"] = replace(stage, model=model).score(job.report_on)
    score, chance = stage.facts["scores"]["dense"][stage.task.metric], stage.chance(job.report_on)
    if not chance.beaten(score):
        log.info("%s", no_better(stage.task.metric, score, chance))
    if ranks().writes:
        _keep_dense(job, stage, model)
    ranks().wait()  # for what all are to read


def _keep_dense(job: Job, stage: Stage, model: PreTrainedModel) -> None:
    with quiet(), replacing(job.directory / "dense", lambda _: True, "a dense model") as directory:
        quantizers = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, RANGES))
        weights = {name: each for name, each in model.state_dict().items() if not name.startswith(quantizers)}
        if "save_pretrained" in vars(model):  # it was read from a packed model, and saves itself whole
            plain = copy.deepcopy(model)
            strip(plain)
            plain.save_pretrained(directory)
        else:
            model.save_pretrained(directory, state_dict=weights)
        stage.tokenizer.save_pretrained(directory)


def taught(job: Job, stage: Stage) -> PreTrainedModel | None:
    """The dense model of another run, if one is given. It may have more heads, dimensions or layers.

    Raises:
        ValueError: it is of another architecture, or compressed.
    """
    model = job.source.taught(stage.task, stage.tokenizer)
    if model is None:
        return None
    if compressed_layers(model):
        raise ValueError(
            "model.teacher is a compressed model, and what is retained is told against a dense one: give the dense "
            "model that it was made of, such as model.teacher=RUN/dense"
        )
    if type(model) is not type(stage.model):
        raise ValueError(
            f"model.teacher is a {type(model).__name__}, and the model that it is to teach a "
            f"{type(stage.model).__name__}: give one of the same architecture and task"
        )
    words = [len(each.get_input_embeddings().get_parameter("weight")) for each in (model, stage.model)]
    if words[0] != words[1]:
        raise ValueError(
            f"model.teacher has {words[0]} words, and the model that it is to teach {words[1]}: give one of the same "
            f"tokenizer"
        )
    return model.to(stage.accelerator.device).eval().requires_grad_(False)


def shapes_of(model: nn.Module) -> dict[str, Size]:
    """Of all parameters, by name."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def check_taught(job: Job, phases: Mapping[str, Phase]) -> None:
    """Raise a ValueError if a checkpoint's mask or factors would be taught by a head that nobody has trained."""
    dense = [phase for phase in phases.values() if isinstance(phase.method, Dense)]
    given = job.source.finetuned or dict(job.config.get("model", {})).get("teacher") is not None
    if given or any(phase.steps != 0 for phase in dense):
        return
    for name, phase in phases.items():
        if _goes_on(phase.method) and phase.objective.distils:
            labels = f"recipe.phases.{name}.objective='{{task: 1.0, logits: 0.0, hidden: 0.0, attention: 0.0}}'"
            instead = f", or {labels} to learn from labels" if job.task.learns else ""
            raise ValueError(
                f"phase {name!r} distils a dense model of the task: give model.teacher=RUN/dense of a run that trained "
                f"one{instead}"
            )


def _goes_on(method: Method) -> bool:
    """Whether it trains what an earlier run has left in the checkpoint."""
    return isinstance(method, PatternLock) or (isinstance(method, Kronecker) and method.carried)


def _one_shot(job: Job, stage: Stage) -> None:
    """Score the projection of the model that compression begins with."""
    one_shot, alike = OneShot(), stage.facts["dense_alike"]
    one_shot.attach(stage.model, Length(0, 1))
    start = {} if alike else {n: layer.weight.detach().clone() for n, layer in distinct_layers(stage.model).items()}
    with one_shot.as_finished():
        stage.facts["scores"]["one_shot"] = stage.score(job.report_on)
        stage.facts["projection_error"] = (
            errors(job, stage.model) if alike else _distances(start.__getitem__, stage.model)
        )


def _teacher(job: Job, stage: Stage) -> PreTrainedModel:
    """The dense model, frozen, in evaluation mode."""
    with quiet():
        teacher = type(stage.model).from_pretrained(job.directory / "dense")
    return teacher.to(stage.accelerator.device).eval().requires_grad_(False)


def errors(job: Job, model: nn.Module) -> dict[str, float]:
    """||W_dense - W||^2 / ||W_dense||^2 of each compressed layer, as the model stands."""
    with safe_open(job.directory / "dense" / "model.safetensors", framework="pt") as dense:
        return _distances(lambda name: dense.get_tensor(f"{name}.weight"), model)


def _distances(start: Callable[[str], Tensor], model: nn.Module) -> dict[str, float]:
    """||W_start - W||^2 / ||W_start||^2 of each compressed layer; `start` gives the weight by the layer's name."""
    found = {}
    for name, layer in distinct_layers(model).items():
        before = start(name).cpu().float()
        distance = (before - layer.weight.detach().cpu().float()).square().sum()
        found[name] = (distance / before.square().sum()).item()
    return found
