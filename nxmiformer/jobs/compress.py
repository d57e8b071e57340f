"""One run: train and compress a model, verify and pack it, and write a report."""

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from nxmiformer.applied.convert import verify
from nxmiformer.export.manifest import replaceable
from nxmiformer.export.packed import add_results, load_packed, packing
from nxmiformer.files import set_aside, write_text
from nxmiformer.jobs.digests import read_contents
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.opening import Opened, check_same, identity_of, opened, record
from nxmiformer.jobs.phases import check_taught, taught, train
from nxmiformer.jobs.record import report
from nxmiformer.jobs.rehearsal import rehearse
from nxmiformer.layers.everything import blind_ranges, check_ranges
from nxmiformer.layers.factored import Factored, factor
from nxmiformer.layers.mode import evaluating
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.ranks import ranks
from nxmiformer.report.document import write_report
from nxmiformer.runs.numbers import REPORT
from nxmiformer.runs.parse import parse
from nxmiformer.runs.words import results
from nxmiformer.sets.fused import compiling
from nxmiformer.tasks.batches import Examples
from nxmiformer.train.evaluate import Answers, forward_of, looks, side_by_side
from nxmiformer.train.loop import Stage

FEW = 8  # examples on which products of factors are compared with what the factors compute
SLACK = 0.1  # of the largest logit: rounding, in 16 bits too, is below it, and another weight above


def run(job: Job) -> dict[str, Any]:
    """Run the job; give the content of its `report.json`.

    Raises:
        ValueError: the plan does not fit the model, the checkpoint is of another run, or training diverged.
    """
    began = time.perf_counter()
    with _trained(job) as (stage, plan, position, _):
        content = _pack(job, stage, plan, began - position.seconds)
        write_text(job.directory / REPORT, json.dumps(content, indent=1) + "\n")
        write_report(job.directory)
        stage.tracker.report(job.directory)
    return content


def follow(job: Job) -> None:
    """Train along with the process that runs the job, which goes on alone when training has ended."""
    with _trained(job):
        pass


@contextmanager
def _trained(job: Job) -> Iterator[Opened]:
    """The job as it was opened, and its model trained."""
    check_taught(job, job.recipe.phases)
    with opened(job, job.planning) as (stage, plan, position, resumed):
        remaining = dict(list(job.recipe.phases.items())[position.phase :])
        rehearse(stage, remaining, job.report_on, plan, taught(job, stage))
        if ranks().writes:
            plan.save(job.directory / "plan.json")
        with compiling(job.settings.compile):
            train(job, stage, job.recipe.phases, position, resumed)
        verify(stage.model, plan)
        check_ranges(blind_ranges(stage.model))
        yield Opened(stage, plan, position, resumed)


def finished(job: Job) -> dict[str, Any] | None:
    """The content of this job's `report.json` in its directory; None if it has not finished.

    Raises:
        RefusedError: it is of another job; the message shows the difference.
    """
    path = job.directory / REPORT
    if not (job.resume and path.exists()):
        return None
    content = parse(path.read_bytes(), str(path))
    theirs = {**record(job.directory).get("identity", {}), "report_on": content["report_on"]}
    if job.budget.given:  # the run went on from the dense model of its search, which read what the job reads
        theirs["content"] = record(job.directory / "search").get("identity", {}).get("content")
    # The file of a plan may have changed under its name; any other plan is a matter of the configuration.
    planned = CompressionPlan.load(job.planning.path).fingerprint if job.planning.path else theirs.get("plan")
    ours = {**identity_of(job, planned or "", read_contents(job)), "report_on": job.report_on}
    check_same(
        f"{job.directory} belongs to another job; give this job another directory", theirs, ours, "the finished job"
    )
    if not (job.directory / "report.html").exists():  # a kill came between the two
        write_report(job.directory)
    return content


def _pack(job: Job, stage: Stage, plan: CompressionPlan, began: float) -> dict[str, Any]:
    """Write the packed model to `packed/`, after a check that it is the trained one; give the content of
    report.json."""
    path = job.directory / "packed"
    if path.exists() and not replaceable(path):  # damaged, or edited: then it is somebody's
        set_aside(path)
    with packing(stage.model, plan, path, stage.tokenizer) as (directory, size):
        stage.facts["scores"]["final"], stage.facts["scores"]["packed"] = _reload(job, stage, directory)
        content = report(job, stage, plan, size, time.perf_counter() - began)
        add_results(directory, results(content))
    return content


def _reload(job: Job, stage: Stage, packed: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The scores of the model as trained, and as read back from its packed files; their logits must be the same.

    Where what is read computes with factors, the trained model is compared, and scored, as it does with them.
    """
    examples, size, accelerator = stage.data[job.report_on], job.settings.eval_batch_size, stage.accelerator
    trained, read = stage.model, load_packed(packed).to(accelerator.device)
    if any(isinstance(module, Factored) for module in read.modules()):
        trained = copy.deepcopy(trained)
        factor(trained)
        _check_factors(stage, trained, examples)
    models = trained, read
    answers = [Answers(stage.task, examples, model) for model in models]
    with evaluating(trained), accelerator.autocast():  # what they write, too
        forwards, name = [forward_of(each, accelerator) for each in models], f"{job.report_on}, trained and packed"
        for pair in side_by_side(forwards, answers, size, accelerator.device, stage.display, name):
            ours, theirs = (units.logits for _, _, units in pair)
            if not torch.equal(ours, theirs):
                apart = (ours - theirs).nan_to_num(0.0, 0.0, 0.0).abs().max().item()
                raise RuntimeError(
                    f"the packed model does not give the logits of the trained one: they differ by up to {apart:g}; "
                    f"please report this"
                )
    return answers[0].score(), answers[1].score()


def _check_factors(stage: Stage, factored: PreTrainedModel, examples: Examples) -> None:
    """Raise a RuntimeError unless a model with factors gives the logits of the trained one, which has their products.

    A few examples are compared. Rounding may differ, and may move the codes of inputs.
    """
    accelerator, found = stage.accelerator, []
    for model in (stage.model, factored):
        with evaluating(model), accelerator.autocast():
            forward = forward_of(model, accelerator)
            found.append(next(looks(forward, stage.task, examples, FEW, accelerator.device))[2].logits.float())
    apart, most = (found[0] - found[1]).abs().max().item(), found[0].abs().max().item()
    if not apart <= SLACK * most:
        raise RuntimeError(
            f"with its factors the model gives other logits than with their product: they differ by up to {apart:g}, "
            f"of {most:g}; please report this"
        )
