"""One run: a dense model in; a verified, packed, sparse and low-bit one out, and a report."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from nxmiformer.bench.clock import Bench
from nxmiformer.console.display import Display
from nxmiformer.console.quiet import quiet
from nxmiformer.export.format import Format
from nxmiformer.export.manifest import replaceable
from nxmiformer.export.packed import PackedSize, add_results, load_packed, packing
from nxmiformer.files import replacing, set_aside, tidy, write_text
from nxmiformer.jobs.provenance import device_name, provenance
from nxmiformer.layers.convert import convert, distinct_layers, verify
from nxmiformer.layers.targets import find_embeddings, find_head
from nxmiformer.methods.base import Length
from nxmiformer.methods.dense import Dense
from nxmiformer.methods.one_shot import OneShot
from nxmiformer.models.agreement import agree
from nxmiformer.models.source import Source
from nxmiformer.plan.compression import FLOAT, CompressionPlan
from nxmiformer.plan.origin import Planning
from nxmiformer.report.document import write_report
from nxmiformer.runs.words import no_better, results
from nxmiformer.search.budget import Budget
from nxmiformer.search.search import Search
from nxmiformer.tasks.batches import encode_splits
from nxmiformer.tasks.order import in_order
from nxmiformer.tasks.task import Task
from nxmiformer.train.checkpoint import Checkpoints, Position
from nxmiformer.train.evaluate import predict
from nxmiformer.train.loop import Settings, Stage, train_phase
from nxmiformer.train.recipe import Phase, Recipe, check_distillation
from nxmiformer.train.tracker import Jsonl, Several, Tracker, Wandb

log = logging.getLogger(__name__)

PASSING = frozenset(
    {"resume", "tracker", "name", "hydra", "report_on", "format", "bench", "path", "out"}
)  # keys of a configuration that train nothing


@dataclass(frozen=True)
class Job:
    """Everything a run is made of. Building it checks every value; nothing has been read or computed yet.

    Attributes:
        name: of the run.
        directory: where everything goes.
        config: the whole configuration as plain values, for the record.
        report_on: "validation", or "holdout" for a run whose score a choice is made by.
        resume: go on from the latest checkpoint in `directory`.
        wandb: arguments of `wandb.init`; None: no wandb.
        budget: where it has a limit, a search finds the plan.
        search: how.
        format: that an export writes.
        bench: what a bench times.
        path: of the packed model that an export or a bench reads.
        out: the directory that it writes; None: beside `path`, called as the format is, or "bench".
        label: what the lines of its progress begin with, so that the jobs of a sweep are told apart.
    """

    name: str
    directory: Path
    seed: int
    task: Task
    source: Source
    planning: Planning
    recipe: Recipe
    settings: Settings
    config: Mapping[str, Any] = field(default_factory=dict)
    report_on: str = "validation"
    resume: bool = False
    wandb: Mapping[str, Any] | None = None
    budget: Budget = field(default_factory=Budget)
    search: Search | None = None
    format: Format | None = None
    bench: Bench = field(default_factory=Bench)
    path: str | None = None
    out: str | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if self.report_on not in ("validation", "holdout"):
            raise ValueError(f"report_on is 'validation' or 'holdout', not {self.report_on!r}")
        if self.budget.given and self.planning.path is not None:
            raise ValueError(f"plan.path={self.planning.path} is a plan already: leave out the budget, or the path")


def run(job: Job) -> dict[str, Any]:
    """Run the job; give the content of its `report.json`.

    Raises:
        ValueError: the plan does not fit the model, the checkpoint is of another run, or training went astray.
    """
    began = time.perf_counter()
    with opened(job, job.planning) as (stage, plan, position, resumed):
        plan.save(job.directory / "plan.json")
        train(job, stage, job.recipe.phases, position, resumed)
        verify(stage.model, plan)
        content = _pack(job, stage, plan, began - position.seconds)
        write_text(job.directory / "report.json", json.dumps(content, indent=1) + "\n")
        write_report(job.directory)
        stage.tracker.report(job.directory)
    return content


class Opened(NamedTuple):
    """A job that is ready to train: from `position` on, with the state of the checkpoint that was taken there."""

    stage: Stage
    plan: CompressionPlan
    position: Position
    resumed: dict[str, Any] | None


@contextmanager
def opened(job: Job, planning: Callable[[PreTrainedModel], CompressionPlan]) -> Iterator[Opened]:
    """Read the job's model and data, convert the model to the plan that `planning` gives, and open its directory."""
    display = Display(job.label)
    display.say(f"reading task {job.task.name} and model {job.source.name}")
    job.directory.mkdir(parents=True, exist_ok=True)
    if job.settings.threads is not None:
        torch.set_num_threads(job.settings.threads)
    transformers.set_seed(job.seed)
    tokenizer = job.source.tokenizer(job.task)
    model = job.source.model(job.task, tokenizer, job.seed)
    agree(model, tokenizer, job.settings.max_length)
    plan = planning(model)
    if remark := plan.remark(model):
        print(f"{job.name}: {remark}", file=sys.stderr, flush=True)
    task = in_order(job.task, model.config.id2label)
    data = encode_splits(task, tokenizer, job.settings.max_length)
    example = data["holdout"].batch([0], "cpu")
    convert(model, plan, {key: value for key, value in example.items() if key != "labels"})
    check_distillation(job.recipe.phases, model, example)
    accelerator = job.settings.accelerator()
    checkpoints = Checkpoints(job.directory, _identity(job, plan))
    _tidy(job, checkpoints)
    position, resumed = checkpoints.load("latest", model) if job.resume else (Position(), None)
    (job.directory / "report.json").unlink(missing_ok=True)  # where there is one, the run beside it has ended
    write_text(job.directory / "run.json", json.dumps(_started(job), indent=1) + "\n")
    facts = json.loads(resumed["facts"]) if resumed is not None else {"phases": {}, "scores": {}}
    wrapped = accelerator.prepare_model(model)
    with _tracker(job, position if job.resume else None, display) as tracker:
        stage = Stage(
            model, wrapped, tokenizer, task, data, job.settings, accelerator, checkpoints, tracker, job.seed, facts,
            display,
        )  # fmt: skip
        yield Opened(stage, plan, position, resumed)


def _tidy(job: Job, checkpoints: Checkpoints) -> None:
    """Clear away what a kill left in the job's directory."""
    for directory in (job.directory, job.directory / "figures"):
        tidy(directory)
    checkpoints.tidy()


def train(
    job: Job, stage: Stage, recipe: Mapping[str, Phase], position: Position, resumed: Mapping[str, Any] | None
) -> None:
    """The phases from the position on. Where compression begins, the dense model is scored and kept."""
    names, phases = list(recipe), list(recipe.values())
    compressing = next((i for i, phase in enumerate(phases) if not isinstance(phase.method, Dense)), len(phases))
    teacher: nn.Module | None = None
    for index in range(position.phase, len(phases)):
        if index >= compressing and "dense" not in stage.facts["scores"]:
            leave_dense(job, stage)
            _one_shot(job, stage)
        if teacher is None and any(phase.objective.distils for phase in phases[index:]) and index >= compressing:
            teacher = _teacher(job, stage)
        position = train_phase(stage, names[index], phases[index], teacher, position, resumed, index == len(phases) - 1)
        resumed = None
        stage.save("latest", position, {})


def _pack(job: Job, stage: Stage, plan: CompressionPlan, began: float) -> dict[str, Any]:
    """Leave the packed model in `packed/`, once it is found to be the trained one; give the content of report.json."""
    path = job.directory / "packed"
    if path.exists() and not replaceable(path):  # damaged, or edited: then it is somebody's
        set_aside(path)
    with packing(stage.model, plan, path, stage.tokenizer) as (directory, size):
        stage.facts["scores"]["final"], stage.facts["scores"]["packed"] = _reload(job, stage, directory)
        content = _report(job, stage, plan, size, time.perf_counter() - began)
        add_results(directory, results(content))
    return content


def leave_dense(job: Job, stage: Stage) -> None:
    """Score the dense model, and keep it in `dense/`, as `transformers` does."""
    Dense().attach(stage.model, Length(0, 1))
    stage.facts["scores"]["dense"] = stage.score(job.report_on)
    score, chance = stage.facts["scores"]["dense"][stage.task.metric], stage.chance(job.report_on)
    if score <= chance.most:
        log.info("%s", no_better(stage.task.metric, score, chance))
    with quiet(), replacing(job.directory / "dense", lambda _: True, "a dense model") as directory:
        stage.model.save_pretrained(directory)
        stage.tokenizer.save_pretrained(directory)


def _one_shot(job: Job, stage: Stage) -> None:
    """Score the projection of the dense model."""
    one_shot = OneShot()
    one_shot.attach(stage.model, Length(0, 1))
    with one_shot.as_finished():
        stage.facts["scores"]["one_shot"] = stage.score(job.report_on)
        stage.facts["projection_error"] = _errors(job, stage.model)


def _teacher(job: Job, stage: Stage) -> PreTrainedModel:
    """The dense model, frozen, in evaluation mode."""
    with quiet():
        teacher = type(stage.model).from_pretrained(job.directory / "dense")
    return teacher.to(stage.accelerator.device).eval().requires_grad_(False)


def _errors(job: Job, model: nn.Module) -> dict[str, float]:
    """||W_dense - W||^2 / ||W_dense||^2 of each compressed layer, as the model stands."""
    errors = {}
    with safe_open(job.directory / "dense" / "model.safetensors", framework="pt") as dense:
        for name, layer in distinct_layers(model).items():
            before = dense.get_tensor(f"{name}.weight").float()
            distance = (before - layer.weight.detach().cpu().float()).square().sum()
            errors[name] = (distance / before.square().sum()).item()
    return errors


def _reload(job: Job, stage: Stage, packed: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The scores of the model as trained, and as read back from its packed files; their logits must be the same."""
    examples, size = stage.data[job.report_on], job.settings.eval_batch_size
    loaded = load_packed(packed).to(stage.accelerator.device)
    logits = [
        predict(model, examples, size, stage.accelerator, stage.display, f"{job.report_on}, {name}")
        for name, model in {"trained": stage.model, "packed": loaded}.items()
    ]
    if not np.array_equal(logits[0], logits[1]):
        raise RuntimeError(
            f"the packed model does not give the logits of the trained one: they differ by up to "
            f"{np.abs(logits[0] - logits[1]).max():g}; please report this"
        )
    final, reloaded = (stage.task.score(each, examples.labels.numpy()) for each in logits)
    return final, reloaded


def _report(job: Job, stage: Stage, plan: CompressionPlan, size: PackedSize, seconds: float) -> dict[str, Any]:
    """The content of report.json of a run that took so many `seconds` by the clock."""
    storage, facts, metric = plan.storage(), stage.facts, job.task.metric
    errors, layers = _errors(job, stage.model), distinct_layers(stage.model)
    scores, phases = facts["scores"], facts["phases"]
    gaps: dict[str, float] = next(
        (phase["gaps"] for phase in phases.values() if phase["gaps"]), {}
    )  # at the first hard projection
    chance = stage.chance(job.report_on)
    dense_bytes = sum(file.stat().st_size for file in (job.directory / "dense").rglob("*") if file.is_file())
    return {
        "format": 1,
        "name": job.name,
        "seed": job.seed,
        "task": {"name": job.task.name, "metric": metric, **{k: len(v) for k, v in stage.data.items()}},
        "model": {"name": job.source.name, "parameters": (storage.dense + storage.rest) // 32},
        "plan": {"name": job.planning.name, "fingerprint": plan.fingerprint},
        "scores": scores,
        "report_on": job.report_on,
        "chance": asdict(chance),
        "retention": scores["final"][metric] / dense if (dense := scores["dense"][metric]) > chance.most else None,
        "cut": {name: examples.cut for name, examples in stage.data.items()},
        "storage": {
            "dense_bits": storage.dense,
            "value_bits": storage.values,
            "index_bits": storage.indices,
            "scale_bits": storage.scales,
            "rest_bits": storage.rest,
            "compression": storage.compression,
            "bytes": {"dense_model": dense_bytes, "packed_model": size.total, "packed_weights": size.weights},
            "left": _left(stage.model, plan),
        },
        "layers": {
            name: {
                "set": str(spec),
                "error": errors[name],
                "projection_error": facts["projection_error"][name],
                "gap": gaps.get(name),
                "kept": (layers[name].weight != 0).float().mean().item(),
            }
            for name, spec in plan.layers.items()
        },
        "phases": {name: {k: v for k, v in phase.items() if k != "gaps"} for name, phase in phases.items()},
        **provenance(),
        "device": device_name(stage.accelerator.device),
        "seconds": seconds,
    }


def _left(model: nn.Module, plan: CompressionPlan) -> dict[str, int]:
    """Bits of the embeddings and of the head that the plan leaves dense, by the plan's key that has a set for them."""
    around = {"embeddings": find_embeddings(model), "head": find_head(model)}
    return {
        part: FLOAT * sum(t.shape[0] * t.shape[1] for t in targets if t.name not in plan.layers)
        for part, targets in around.items()
    }


def _started(job: Job) -> dict[str, Any]:
    """The content of run.json."""
    return {**provenance(), "directory": str(Path.cwd()), "config": job.config}


def _identity(job: Job, plan: CompressionPlan) -> dict[str, Any]:
    """What a checkpoint must agree with to be gone on from."""
    config = {key: value for key, value in job.config.items() if key not in PASSING}
    return {"config": config, "plan": plan.fingerprint, "model": job.source.name, "seed": job.seed}


def _tracker(job: Job, position: Position | None, display: Display) -> Tracker:
    trackers: list[Tracker] = [Jsonl(job.directory, None if position is None else position.total_step)]
    if job.wandb is not None:
        trackers.append(Wandb(job.directory, job.config, job.wandb, display))
    return Several(trackers)
