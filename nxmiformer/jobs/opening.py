"""The start of a job: its model and data are read, and then it takes its directory."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from nxmiformer.applied.convert import convert
from nxmiformer.console.display import Display
from nxmiformer.errors import RefusedError
from nxmiformer.files import tidy, write_text
from nxmiformer.jobs.digests import contents
from nxmiformer.jobs.job import PASSING, Job
from nxmiformer.jobs.place import RECORD
from nxmiformer.jobs.provenance import provenance
from nxmiformer.models.fit import agree
from nxmiformer.models.labels import classes_of
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.ranks import ranks
from nxmiformer.runs.numbers import REPORT
from nxmiformer.runs.parse import parse
from nxmiformer.tasks.description import described_data
from nxmiformer.tasks.task import encode_splits
from nxmiformer.train.checkpoint import Checkpoints, Position, difference
from nxmiformer.train.loop import Stage
from nxmiformer.train.tracker import Jsonl, Several, Tracker, Wandb


class Opened(NamedTuple):
    """A job that is ready to train: from `position` on, with the state of the checkpoint that was taken there."""

    stage: Stage
    plan: CompressionPlan
    position: Position
    resumed: dict[str, Any] | None


@contextmanager
def opened(job: Job, planning: Callable[[PreTrainedModel], CompressionPlan]) -> Iterator[Opened]:
    """Read the job's model and data, convert the model to the plan that `planning` gives, and open its directory.

    Raises:
        RefusedError: the job resumes, and its directory belongs to another job; the message shows the difference.
    """
    display = Display(job.label, ranks().writes)
    display.say(f"reading task {job.task.name} and model {job.source.name}")
    if job.settings.threads is not None:
        torch.set_num_threads(job.settings.threads)
    transformers.set_seed(job.seed)
    tokenizer = job.source.tokenizer(job.task)
    splits = job.task.splits()  # before the model: a wrong column is told at once
    model = job.source.model(job.task, tokenizer, job.seed)
    agree(model, tokenizer, job.settings.max_length)
    plan = planning(model)
    if remark := plan.remark(model):
        print(f"{job.name}: {remark}", file=sys.stderr, flush=True)
    task = job.task.in_order(classes_of(model.config))
    splits = splits if task is job.task else task.splits()
    content = contents(model, tokenizer, task, splits, job.source.taught(job.task, tokenizer))
    identity = identity_of(job, plan.fingerprint, content)
    data = encode_splits(splits, task, tokenizer, job.settings.max_length, model.config)
    for line in described_data(task, splits, data, tokenizer):
        display.say(line)
    convert(model, plan)
    accelerator = job.settings.accelerator()
    checkpoints = Checkpoints(job.directory, identity)
    position, resumed = _going_on(job, checkpoints, model)
    _check_alike({"identity": checkpoints.identity, "goes on at": position.total_step})
    if ranks().writes:  # all have read what this may remove
        begin(job, checkpoints.identity)
        checkpoints.tidy()
    facts = json.loads(resumed["facts"]) if resumed is not None else {"phases": {}, "scores": {}}
    wrapped = accelerator.prepare_model(model, evaluation_mode=True)  # which wraps nothing: the loop adds gradients
    with _tracker(job, position if resumed is not None else None, display) as tracker:
        stage = Stage(
            model, wrapped, tokenizer, task, data, job.settings, accelerator, checkpoints, tracker, job.seed, facts,
            display,
        )  # fmt: skip
        yield Opened(stage, plan, position, resumed)


def identity_of(job: Job, plan: str, content: Mapping[str, str]) -> dict[str, Any]:
    """What must agree for a job to continue another's run, as JSON values.

    Args:
        plan: the plan's fingerprint.
        content: see `contents`.
    """
    config = without_paths({key: value for key, value in job.config.items() if key not in {*PASSING, "seed"}})
    return {"config": config, "plan": plan, "seed": job.seed, "content": dict(content)}


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON values, without where things are read from: what is read there is compared instead."""
    kept: dict[str, Any] = json.loads(json.dumps(config))
    for group in ("model", "task", "plan"):
        if isinstance(kept.get(group), dict):
            for place in ("path", "teacher"):
                kept[group].pop(place, None)
    return kept


def _going_on(job: Job, checkpoints: Checkpoints, model: PreTrainedModel) -> tuple[Position, dict[str, Any] | None]:
    """Where the job starts, and the state of the checkpoint there, if it resumes from one."""
    if not job.resume:
        return Position(), None
    if checkpoints.path("latest") is not None:
        return checkpoints.load("latest", model)
    if (job.directory / RECORD).exists():  # it was killed before its first checkpoint, and begins again
        theirs = record(job.directory).get("identity", {})
        check_same(f"{job.directory} belongs to another run", theirs, checkpoints.identity, "the run there")
    return Position(), None


def check_searched(directory: Path, search: Path, resume: bool) -> None:
    """Raise a RefusedError where a job without a search has begun in the directory that one with it is to go on in."""
    if resume and (directory / RECORD).exists() and not (search / RECORD).exists():
        raise RefusedError(f"{directory} belongs to a job without a budget; give this job another directory")


def record(directory: Path) -> dict[str, Any]:
    """The content of the `run.json` in a directory."""
    path = directory / RECORD
    return parse(path.read_bytes(), str(path))


def check_same(message: str, theirs: Any, ours: Any, whose: str) -> None:
    """Raise a RefusedError with the message and a line for each difference, if there is any."""
    differences = difference(theirs, ours, whose=whose)
    if differences:
        raise RefusedError("\n  ".join([f"{message}:", *differences]))


def begin(job: Job, identity: Mapping[str, Any]) -> None:
    """Leave the first bytes in the job's directory, its record before anything else; clear away what a kill left."""
    job.directory.mkdir(parents=True, exist_ok=True)
    content = {**provenance(), "directory": str(Path.cwd()), "config": job.config, "identity": identity}
    (job.directory / REPORT).unlink(missing_ok=True)  # where there is one, the run beside it has ended
    write_text(job.directory / RECORD, json.dumps(content, indent=1) + "\n")
    for directory in (job.directory, job.directory / "figures"):
        tidy(directory)
    for name, text in job.notes.items():
        (job.directory / name).parent.mkdir(exist_ok=True)
        write_text(job.directory / name, text)


def _check_alike(facts: Mapping[str, Any]) -> None:
    """Raise a ValueError unless all processes have read the same."""
    differences = [line for theirs in ranks().all(facts) for line in difference(theirs, facts, whose="another process")]
    if differences:
        raise ValueError("\n  ".join(["the processes of this run read different files:", *differences]))


def _tracker(job: Job, position: Position | None, display: Display) -> Tracker:
    if not ranks().writes:
        return Several([])
    trackers: list[Tracker] = [Jsonl(job.directory, None if position is None else position.total_step)]
    if job.wandb is not None:
        trackers.append(Wandb(job.directory, job.config, job.wandb, display))
    return Several(trackers)
