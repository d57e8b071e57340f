"""A search: it finds a plan for a dense model and a budget."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from nxmiformer.files import write_text
from nxmiformer.jobs.compress import run
from nxmiformer.jobs.digests import read_contents
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.latency import Timing, timed
from nxmiformer.jobs.opening import check_same, check_searched, opened, without_paths
from nxmiformer.jobs.phases import leave_dense, train
from nxmiformer.jobs.provenance import provenance
from nxmiformer.jobs.rehearsal import rehearse
from nxmiformer.layers.moments import Batch
from nxmiformer.layers.targets import Target, Targets
from nxmiformer.methods.dense import Dense
from nxmiformer.models.source import Pretrained
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.plan.origin import Planning
from nxmiformer.report.document import write_search
from nxmiformer.runs.numbers import REPORT
from nxmiformer.runs.parse import parse
from nxmiformer.search.budget import NONE
from nxmiformer.search.candidates import DENSE
from nxmiformer.search.costs import Costs
from nxmiformer.search.evidence import Evidence
from nxmiformer.search.search import Found
from nxmiformer.search.whole import Sets
from nxmiformer.sets import NM
from nxmiformer.tasks.units import Units
from nxmiformer.train.loop import Stage
from nxmiformer.train.recipe import Phase, Recipe

FOUND, TRIALS = "search.json", "trials"
ANY = NM(1, 1)  # every matrix is a point of it
LOGITS = 2**29  # values of the dense model that are kept, at most: those of a language model fit no memory
ENTRY = 128  # bytes of a tensor's entry in the header of a safetensors file besides its name, at most


def planned(job: Job) -> Job:
    """The job with the plan that a search in its directory `search/` finds or has found. Without a budget, the job
    itself.

    The dense phases are those of the search. The job continues from their model.

    Raises:
        ValueError: as `search`; or, where the job resumes, the search there was of another configuration.
    """
    if not job.budget.given:
        return job
    searching = replace(job, directory=job.directory / "search", wandb=None, notes={})
    check_searched(job.directory, searching.directory, job.resume)
    if found(searching) is None:
        search(searching)
    planning = Planning(f"searched@{job.budget}", path=str(searching.directory / "plan.json"))
    return _going_on(job, searching.directory, planning)


def found(job: Job) -> dict[str, Any] | None:
    """The content of this search's `search.json` in the job's directory; None if it has not finished.

    Raises:
        RefusedError: it is of another configuration, model or data; the message shows the difference.
    """
    path = job.directory / FOUND
    if not (job.resume and path.exists()):
        return None
    content = parse(path.read_bytes(), str(path))
    ours = _identity(job, read_contents(job))
    check_same(f"{job.directory} is a search of another configuration", content["identity"], ours, "the search there")
    return content


def search(job: Job) -> dict[str, Any]:
    """Train the dense phases, search, and write `plan.json`, `dense/`, `search.json` and its figures; give the content.

    Raises:
        ValueError: there is no budget or it is too small, there is no search, a candidate fits no layer, or the
            checkpoint to resume from is of another run.
    """
    if job.search is None:
        raise ValueError("there is no search: give one, such as search=knapsack")
    if not job.budget.given:
        raise ValueError(NONE)
    if dict(job.config.get("model", {})).get("teacher") is not None:
        raise ValueError(
            "model.teacher: a search goes on from the dense model that it has looked at, and not from a checkpoint "
            "that another teaches: leave out the budget, and give plan.path of a plan that was searched"
        )
    method = job.search
    if job.budget.timed:  # what is fast enough already may stay dense
        sets = tuple(dict.fromkeys([*method.candidates.sets, DENSE]))
        method = replace(method, candidates=replace(method.candidates, sets=sets))
        job = replace(job, search=method)
    looked = Look(job)
    with opened(job, looked) as (stage, watched, position, resumed):
        if not job.resume:  # what an earlier search left is not this one's
            (job.directory / FOUND).unlink(missing_ok=True)
            shutil.rmtree(job.directory / TRIALS, ignore_errors=True)
        looked.keep()
        targets = targets_of(watched)
        # Under the plan that will be found the rest is rehearsed again; scales to learn come with its sets.
        known = {name: phase for name, phase in job.recipe.phases.items() if not phase.method.learned_scales}
        rehearse(stage, known, "holdout")
        train(job, stage, _dense(job), position, resumed)
        leave_dense(replace(job, report_on="holdout"), stage)
        began = time.perf_counter()
        evidence = evidence_of(stage, method.examples)

        def trial(sets: Sets, steps: int) -> float:
            return _trial(job, job.planning.assigned(stage.model, targets, sets), steps)

        result = method(evidence, targets, looked.costs, job.directory / "cache", trial, stage.display)
        seconds = time.perf_counter() - began
        plan = job.planning.assigned(stage.model, targets, result.best.sets)
        content = _content(job, stage, evidence, result, plan, seconds)
        plan.save(job.directory / "plan.json")
        write_text(job.directory / FOUND, json.dumps(content, indent=1) + "\n")
        write_search(job.directory)
        stage.tracker.report(job.directory, FOUND)
    return content


def nominal(job: Job, model: PreTrainedModel) -> CompressionPlan:
    """A plan that constrains nothing: it names the layers that are to be looked at."""
    return CompressionPlan.uniform(model, job.planning.targets(model), ANY)


class Look:
    """Gives the nominal plan of a model once it is known that there is a plan within the budget.

    Attributes:
        costs: what sets cost in the model.
    """

    costs: Costs

    def __init__(self, job: Job) -> None:
        self.job = job
        self.timing: Timing | None = None

    def __call__(self, model: PreTrainedModel) -> CompressionPlan:
        watched, search = nominal(self.job, model), self.job.search
        assert search is not None
        targets = targets_of(watched)
        if self.job.budget.timed:
            self.timing = timed(self.job, model, targets)
            self.costs = self.timing.latency.costs(self.job.budget, targets.layers)
        else:
            self.costs = self.job.budget.costs(targets.layers, rest_bits(self.job, model, watched))
        search.check(targets, self.costs)
        return watched

    def keep(self) -> None:
        """Write what was timed into the job's directory, which is its own by now."""
        if self.timing is not None:
            self.timing.keep()


def targets_of(nominal: CompressionPlan) -> Targets:
    """The layers to look at. Those of the model itself no longer tell which way round they were stored."""
    specs = nominal.layers.items()
    return Targets(tuple(Target(n, spec.shape, spec.transposed, spec.aliases) for n, spec in specs), nominal.skipped)


def _dense(job: Job) -> dict[str, Phase]:
    return {name: phase for name, phase in job.recipe.phases.items() if isinstance(phase.method, Dense)}


def _going_on(job: Job, directory: Path, planning: Planning) -> Job:
    """The job from the dense model in `directory/dense` on."""
    compressing = {name: phase for name, phase in job.recipe.phases.items() if name not in _dense(job)}
    source = Pretrained(str(directory / "dense"), job.source.name)
    return replace(job, source=source, recipe=Recipe(compressing), planning=planning, budget=type(job.budget)())


def evidence_of(stage: Stage, examples: int) -> Evidence:
    """The dense model, and so many examples of the holdout, drawn by the run's seed and batched by their length."""
    holdout, settings, accelerator, task = stage.data["holdout"], stage.settings, stage.accelerator, stage.task
    generator = torch.Generator().manual_seed(stage.seed)
    drawn = torch.randperm(len(holdout), generator=generator, device="cpu")[:examples].tolist()
    lengths = holdout.lengths()
    drawn.sort(key=lambda index: (lengths[index], index))
    size = settings.batch_size
    groups = [drawn[start : start + size] for start in range(0, len(drawn), size)]
    batches = [holdout.batch(group, accelerator.device) for group in groups]

    def forward(batch: Batch) -> Units:
        with accelerator.autocast():
            units = task.units(stage.model(**task.inputs(batch)), batch)
        return units.thinned(LOGITS // (len(batches) * units.logits.shape[-1]))

    def metric(units: Sequence[Units], batches: Sequence[Batch], truths: Sequence[Any]) -> float:
        pairs = zip(units, batches, strict=True)
        answers = [answer for each, batch in pairs for answer in task.answers(each, batch)]
        return task.score(answers, truths)[task.metric]

    truths = [[holdout.truths[index] for index in group] for group in groups]
    return Evidence(stage.model, batches, forward, truths, metric)


def rest_bits(job: Job, model: PreTrainedModel, watched: CompressionPlan) -> int:
    """Bits of the packed file that are not of the layers that are searched: other tensors, and the header."""
    around = {target.parameter: each.storage(target.shape) for target, each in job.planning.around(model)}
    state = model.state_dict(keep_vars=True)
    packed = {f"{name}.weight" for name in watched.layers} | around.keys()
    distinct = {id(tensor): (key, tensor) for key, tensor in reversed(state.items())}
    others = [tensor for key, tensor in distinct.values() if key not in packed]
    stored = sum(t.numel() * t.element_size() for t in others) + sum(each.nbytes for each in around.values())
    header = sum(len(key) + ENTRY for key in [*state, *packed, *packed])  # values, indices and scales: an entry each
    return 8 * (stored + header)


def _trial(job: Job, plan: CompressionPlan, steps: int) -> float:
    """The score on the holdout after a run of the recipe's compressing phases in so many steps. A finished run is not
    repeated."""
    directory = job.directory / TRIALS / f"{plan.fingerprint}-{steps}"
    file = directory / REPORT
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        plan.save(directory / "given.json")
        going_on = _going_on(job, job.directory, Planning(plan.fingerprint, path=str(directory / "given.json")))
        recipe = Recipe(_shortened(going_on.recipe.phases, steps))
        trial = replace(
            going_on, directory=directory, recipe=recipe, report_on="holdout", wandb=None, resume=False, notes={}
        )
        run(replace(trial, name=directory.name))
    content = json.loads(file.read_text(encoding="utf-8"))
    score: float = content["scores"]["packed"][content["task"]["metric"]]
    return score


def _shortened(phases: Mapping[str, Phase], steps: int) -> dict[str, Phase]:
    """The phases in `steps` together, in their proportions."""
    lengths = [phase.length(1000).steps for phase in phases.values()]
    ends = np.round(np.cumsum([0, *lengths]) * (steps / max(1, sum(lengths)))).astype(int)
    pairs = zip(phases.items(), np.diff(ends), strict=True)
    return {name: replace(phase, steps=int(count)) for (name, phase), count in pairs}


def _identity(job: Job, content: Mapping[str, str]) -> dict[str, Any]:
    """What a search must agree with to be used again, as JSON values; `content` is that of the model and the data."""
    kept = ("seed", "task", "model", "plan", "budget", "search", "train")
    trained = job.recipe.phases if job.search is not None and job.search.halving is not None else _dense(job)
    phases = job.config.get("recipe", {}).get("phases", {})
    found = {**{key: job.config.get(key) for key in kept}, "phases": {name: phases.get(name) for name in trained}}
    return {**without_paths(found), "content": dict(content)}


def _content(
    job: Job, stage: Stage, evidence: Evidence, found: Found, plan: CompressionPlan, seconds: float
) -> dict[str, Any]:
    """The content of search.json; the dense model's score is on the examples that the plans were measured on."""
    epoch = stage.settings.steps_per_epoch(len(stage.data["train"]))
    lengths = [(phase["steps"], phase["step_seconds"]) for phase in stage.facts["phases"].values()]
    steps, trained = sum(count for count, _ in lengths), sum(count * each for count, each in lengths)
    return {
        "format": 1,
        "name": job.name,
        "seed": job.seed,
        "task": {"name": stage.task.name, "metric": stage.task.metric},
        "asked": str(job.budget),
        "accounting": job.budget.accounting,
        "plan": plan.fingerprint,
        "dense": evidence.score(evidence.logits),
        "chance": asdict(stage.task.chance(list(chain(*evidence.truths)))),
        **found.to_dict(),
        "seconds": seconds,
        "epochs": seconds / (trained / steps * epoch) if trained else None,
        "identity": _identity(job, stage.checkpoints.identity["content"]),
        **provenance(),
    }
