"""What a job is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nxmiformer.bench.clock import Bench
from nxmiformer.blockwise.settings import Blockwise
from nxmiformer.export.format import Format
from nxmiformer.models.source import Source
from nxmiformer.plan.origin import Planning
from nxmiformer.search.budget import Budget
from nxmiformer.search.search import Search
from nxmiformer.tasks.task import Task
from nxmiformer.train.recipe import Recipe
from nxmiformer.train.settings import Settings

PASSING = frozenset(  # keys of a configuration that train nothing
    {"resume", "overwrite", "dense_cache", "tracker", "name", "hydra", "report_on"}
    | {"format", "bench", "blockwise", "path", "out"}
)


@dataclass(frozen=True)
class Job:
    """Everything a run is made of. Building it checks every value; nothing has been read or computed yet.

    Attributes:
        name: name of the run.
        directory: directory of all files of the run.
        config: the whole configuration as plain values, for the record.
        report_on: "validation", or "holdout" for runs that choose between options.
        resume: continue from the latest checkpoint in `directory`, or start if there is none.
        overwrite: start again, and move aside what is in `directory`, which the caller does.
        dense_cache: the directory in which runs share their dense models; None: each trains its own.
        wandb: arguments of `wandb.init`; None: no wandb.
        budget: if it has a limit, a search finds the plan.
        search: the search that finds it.
        format: the format that an export writes.
        bench: what a bench times.
        blockwise: how a decoder is compressed block by block.
        path: the packed model that an export or a bench reads.
        out: the directory that it writes; None: beside `path`, named after the format, or "bench".
        label: prefix of its progress lines, which distinguishes the jobs of a sweep.
        notes: texts that are written to `directory` when the job starts, by their path in it.
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
    overwrite: bool = False
    dense_cache: str | None = None
    wandb: Mapping[str, Any] | None = None
    budget: Budget = field(default_factory=Budget)
    search: Search | None = None
    format: Format | None = None
    bench: Bench = field(default_factory=Bench)
    blockwise: Blockwise = field(default_factory=Blockwise)
    path: str | None = None
    out: str | None = None
    label: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: a seed is at least 0 and below 2**32")
        if self.report_on not in ("validation", "holdout"):
            raise ValueError(f"report_on is 'validation' or 'holdout', not {self.report_on!r}")
        if self.resume and self.overwrite:
            raise ValueError("resume=true continues the run, overwrite=true starts it again: give one of them")
        if self.source.finetuned:
            object.__setattr__(self, "recipe", self.recipe.of_a_trained_model())
        if not self.task.learns:
            object.__setattr__(self, "recipe", self.recipe.without_labels(self.task.name))
            if self.search is not None and self.search.sensitivity.labelled:
                raise ValueError(
                    f"task {self.task.name} has no labels to learn from, and search.sensitivity looks at their loss: "
                    f"take sensitivity@search.sensitivity=anchored"
                )
        if self.budget.given and self.planning.path is not None:
            raise ValueError(f"plan.path={self.planning.path} is a plan already: leave out the budget, or the path")
