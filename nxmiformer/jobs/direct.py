"""Compress a model from Python, as the command does."""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import hydra
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.files import alone
from nxmiformer.jobs.build import build
from nxmiformer.jobs.compress import run
from nxmiformer.jobs.place import claimed, recorded
from nxmiformer.layers.targets import find_targets
from nxmiformer.models.labels import classes_of
from nxmiformer.models.source import Source
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.plan.origin import Planning
from nxmiformer.runs.words import outcome
from nxmiformer.sets import NM, ConstraintSet, Grid, Then
from nxmiformer.tasks.loaded import Loaded
from nxmiformer.tasks.table import Table
from nxmiformer.tasks.task import Task
from nxmiformer.tasks.text import Text
from nxmiformer.train.recipe import Recipe

DEFAULT = Then(NM(2, 4), Grid(4))
Data: TypeAlias = Task | datasets.Dataset | datasets.DatasetDict | Iterable[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Compressed:
    """The result of `compress`.

    Attributes:
        model: the given model, with every layer of the plan in its set.
        plan: the set of each layer.
        report: the content of `report.json`.
        directory: the directory of the run, with `packed/` in it; None if none was given.
    """

    model: PreTrainedModel
    plan: CompressionPlan
    report: Mapping[str, Any]
    directory: Path | None = None

    def __str__(self) -> str:
        """The scores and the size, a line each."""
        told = outcome(self.report)
        width = max(map(len, told))
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in told.items())


@dataclass(frozen=True)
class Given(Source):
    """A model and a tokenizer that are given as objects."""

    given: PreTrainedModel
    words: PreTrainedTokenizerBase
    name: str
    finetuned: bool

    def tokenizer(self, task: Task) -> PreTrainedTokenizerBase:
        return self.words

    def model(self, task: Task, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
        return self.given


def compress(
    model: PreTrainedModel,
    train_data: Data,
    *,
    tokenizer: PreTrainedTokenizerBase,
    eval_data: datasets.Dataset | Iterable[Mapping[str, Tensor]] | None = None,
    task: type[Table] = Text,
    plan: CompressionPlan | ConstraintSet = DEFAULT,
    recipe: Recipe | str = "admm",
    finetuned: bool = True,
    directory: str | Path | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    **fields: Any,
) -> Compressed:
    """Compress a model as the command does: calibration, the recipe's phases, verification, packing.

    Args:
        model: a model with the head of the task. It is changed in place, and stays trainable.
        train_data: rows, of which a holdout is cut; batches of a DataLoader, with one label an example; or a task,
            which has data of its own.
        tokenizer: the model's.
        eval_data: rows, or batches, of the reported score; None: a part of `train_data`.
        task: the kind of task of the rows, with its `fields`, such as columns=["text"], label="stars".
        plan: a plan, or one set for every linear layer of the model's blocks.
        recipe: the phases, or the name of a recipe of the command.
        finetuned: whether the model is already fine-tuned on the task; False: the recipe's dense phases train it first.
        directory: the directory for the files of the run; None: a temporary one.
        seed: of batches and dropout.
        overrides: further options of the command, such as "train.batch_size=16" or "recipe.phases.admm.steps=200".

    Raises:
        ValueError: something does not fit. The message says what, before any training.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: from Python one process compresses. Unset it, or start "
            "the command nxmiformer by torchrun"
        )
    learned = _task(model, train_data, eval_data, task, fields)
    words = [recipe] if isinstance(recipe, str) else []
    # Not the embedded model, which brings a way of training of its own.
    chosen = ["model=pretrained", *(f"recipe={word}" for word in words), f"seed={seed}", "dense_cache=null", *overrides]
    with ExitStack() as held:
        temporary = directory is None
        place = Path(held.enter_context(tempfile.TemporaryDirectory()) if temporary else str(directory)).resolve()
        with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
            built = build(hydra.compose("config", [f"name={place.name}", *chosen]), place)
        found = plan if isinstance(plan, CompressionPlan) else CompressionPlan.uniform(model, find_targets(model), plan)
        file = Path(held.enter_context(tempfile.TemporaryDirectory())) / "plan.json"
        found.save(file)
        name = str(plan) if isinstance(plan, ConstraintSet) else found.fingerprint
        config = {**built.config, "task": {"name": learned.name}, "model": {"name": type(model).__name__}, "plan": name}
        job = replace(
            built,
            task=learned,
            source=Given(model, tokenizer, type(model).__name__, finetuned),
            planning=Planning(name, path=str(file)),
            recipe=recipe if isinstance(recipe, Recipe) else built.recipe,
            config=config,
        )
        claim = claimed(place, "a run", resume=job.resume, overwrite=job.overwrite)
        with alone(place), recorded(place), claim:
            report = run(job)
    return Compressed(model, found, report, None if temporary else place)


def _task(model: PreTrainedModel, train: Data, evaluation: Any, kind: type[Table], fields: Mapping[str, Any]) -> Task:
    """The task that the data are for."""
    if isinstance(train, Task):
        if evaluation is not None or fields:
            given = [*(["eval_data"] if evaluation is not None else []), *fields]
            raise ValueError(f"task {train.name} has data and fields of its own: leave out {', '.join(given)}")
        return train
    if isinstance(train, datasets.Dataset | datasets.DatasetDict):
        rows = dict(train) if isinstance(train, datasets.DatasetDict) else {"train": train}
        if evaluation is not None:
            rows["validation"] = evaluation
        found = kind.of(datasets.DatasetDict(rows), **fields)
        assert isinstance(found, Task)
        return found
    if fields:
        raise ValueError(f"batches are tokenised and labelled already: leave out {', '.join(fields)}")
    if kind is not Text:
        raise ValueError(
            f"task={kind.__name__}: of batches only one label an example is understood: give rows, a Dataset"
        )
    return Loaded(train, evaluation, tuple(classes_of(model.config)) if (model.config.num_labels or 0) > 1 else ())
