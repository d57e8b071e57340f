"""From a budget to the plan of a decoder, whose layers are looked at block by block."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from nxmiformer.blockwise.memory import predict
from nxmiformer.blockwise.survey import Survey
from nxmiformer.console.display import Display
from nxmiformer.export.packed import check_packable
from nxmiformer.files import write_text
from nxmiformer.jobs.decoder import left, open_decoder
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.opening import begin, check_searched
from nxmiformer.jobs.provenance import provenance
from nxmiformer.jobs.search import Look, targets_of
from nxmiformer.plan.origin import Planning
from nxmiformer.runs.many import SURVEYED
from nxmiformer.runs.words import size
from nxmiformer.search.candidates import Choice, words_of
from nxmiformer.search.costs import Costs
from nxmiformer.search.search import Search
from nxmiformer.search.table import Table
from nxmiformer.sets import ConstraintSet
from nxmiformer.train.memory import measuring

LOOKED = "survey"
WHOLE = ("frontier", "interactions", "halving")  # of a search, what measures whole models


def planned(job: Job) -> Job:
    """The job with the plan that a survey in its directory `search/` finds or has found. Without a budget, the job
    itself.

    Raises:
        ValueError: as `survey`.
    """
    if not job.budget.given:
        return job
    directory = job.directory / "search"
    check_searched(job.directory, directory, job.resume)
    survey(replace(job, directory=directory, wandb=None, notes={}))
    planning = Planning(f"searched@{job.budget}", path=str(directory / "plan.json"))
    return replace(job, planning=planning, budget=type(job.budget)())


def survey(job: Job) -> dict[str, Any]:
    """Look at the decoder block by block, choose a set for each layer under the budget, and write `plan.json` and
    `survey.json`; give the content.

    Raises:
        ValueError: as `open_decoder`; the budget is too small or of time; the search asks for what takes whole models;
            or a layer is in no block.
        RefusedError: it resumes, and what is in its directory is another's.
    """
    began, display, search, look = time.perf_counter(), Display(job.label), _search(job), Look(job)
    opened = open_decoder(job, display, look)
    decoder, settings, costs = opened.passage.decoder, job.blockwise, look.costs
    targets = targets_of(decoder.plan)
    around = set(decoder.layers(None))
    if outside := [target.name for target in targets.layers if target.name in around]:
        raise ValueError(
            f"a search block by block chooses sets of layers in blocks, and {', '.join(outside)} is in none: "
            f"plan.exclude=[{','.join(outside)}], or plan.embeddings and plan.head for one fixed set"
        )
    choices = search.candidates.choices(targets)
    first = {layer.name: choice.sets[0] for choice in choices for layer in choice.layers}
    check_packable(decoder.model, job.planning.assigned(decoder.model, targets, first), opened.tokenizer)
    identity = {**opened.identity, **{key: job.config.get(key) for key in ("budget", "search")}}
    if (content := left(job, identity, SURVEYED)) is not None:
        return content
    if not job.resume:  # what an earlier survey left is not this one's
        shutil.rmtree(job.directory / LOOKED, ignore_errors=True)
        for name in (SURVEYED, "plan.json"):
            (job.directory / name).unlink(missing_ok=True)
    begin(job, identity)
    tokens = job.settings.max_length
    told, later = (predict(decoder, settings, tokens, settings.batch * tokens, each) for each in (True, False))
    display.say(
        f"memory of {decoder.device.type}, beside what is taken: {size(told.survey)} to look at the blocks, then about "
        f"{size(max(later.blocks, later.scoring))}; on disk: {size(told.disk)} of hidden states"
    )
    sets = {layer.name: [s for s in each.sets if s is not None] for each in choices for layer in each.layers}
    looked = Survey(
        decoder,
        opened.dense,
        opened.passage.compressed.ids,
        settings,
        sets,
        _anchors(choices, costs),
        search.iterations,
        job.directory / LOOKED,
    )
    with measuring(decoder.device) as memory, display.work("survey", len(decoder.blocks), looked.done) as work:
        for _ in looked.run():
            display.step(work)
    damages = looked.damages()
    table = Table.of(choices, damages, costs.cost)
    best = search.strategy(table, costs.limit, 1)[0]
    plan = job.planning.assigned(decoder.model, targets, table.sets(best))
    uniform = {words: each for words, each in table.uniform().items() if table.cost(each) <= costs.limit}
    content = {
        "format": 1,
        "asked": str(job.budget),
        "limit": costs.limit,
        "cost": table.cost(best),
        "predicted": table.predicted(best),
        "uniform": {w: {"cost": table.cost(each), "predicted": table.predicted(each)} for w, each in uniform.items()},
        "plan": plan.fingerprint,
        "sets": {name: words_of(each) for name, each in table.sets(best).items()},
        "damages": damages,
        "memory": {"predicted": {**asdict(told), "survey": told.survey}, "measured": memory.taken},
        "seconds": time.perf_counter() - began,
        **provenance(),
    }
    plan.save(job.directory / "plan.json")
    write_text(job.directory / SURVEYED, json.dumps(content, indent=1) + "\n")
    display.say(_said(content))
    return content


def _search(job: Job) -> Search:
    """The job's search.

    Raises:
        ValueError: there is none, or it asks for what a decoder block by block has not.
    """
    if job.search is None:
        raise ValueError("there is no search: give one, such as search=knapsack")
    if job.budget.timed:
        raise ValueError("job=blockwise searches under a budget of bytes: ONNX Runtime times a model that is whole")
    if given := [name for name in WHOLE if getattr(job.search, name)]:
        raise ValueError(
            f"job=blockwise has no whole model to measure: leave out {', '.join(f'search.{name}' for name in given)}"
        )
    return job.search


def _anchors(choices: Sequence[Choice], costs: Costs) -> dict[str, ConstraintSet]:
    """The set of each layer at which its block's gain is measured: that of the most bits within the layer's share of
    the budget, or, where there is none, that of the fewest."""
    layers = [layer for choice in choices for layer in choice.layers]
    share = costs.limit / sum(costs.cost(None, layer) for layer in layers)
    found: dict[str, ConstraintSet] = {}
    for choice in choices:
        for layer in choice.layers:
            sets = {each: costs.cost(each, layer) for each in choice.sets if each is not None}
            fitting = {each: cost for each, cost in sets.items() if cost <= share * costs.cost(None, layer)}
            if sets:
                place = max(fitting, key=sets.__getitem__) if fitting else min(sets, key=sets.__getitem__)
                found[layer.name] = place
    return found


def _said(content: dict[str, Any]) -> str:
    """What was found, in a sentence."""
    told = f"searched in {content['seconds']:.0f} s: predicted damage {content['predicted']:.3g}"
    if not content["uniform"]:
        return told
    words, best = min(content["uniform"].items(), key=lambda pair: pair[1]["predicted"])
    return f"{told}; {words} for all layers: {best['predicted']:.3g}"
