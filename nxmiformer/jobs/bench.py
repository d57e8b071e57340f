"""Measure the speed, memory and size of each way to run a packed model."""

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nxmiformer.bench.clock import interleaved, peak_memory, summarised
from nxmiformer.bench.contenders import BASELINE, Contender, LineUp, line_up
from nxmiformer.console.display import Display
from nxmiformer.export.manifest import PLAN
from nxmiformer.export.packed import load_packed
from nxmiformer.files import alone, set_aside, write_text
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.origin import packed_of
from nxmiformer.jobs.provenance import device_name, provenance
from nxmiformer.layers.examples import made_up
from nxmiformer.models.fit import positions
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.report.document import write_bench
from nxmiformer.runs.parse import parse
from nxmiformer.runs.speeds import BENCH, FORMAT, read_bench
from nxmiformer.train.checkpoint import difference

IDENTITY = ("plan", "device", "threads", "repeats", "seconds", "warmup", "contenders", "left_out")


def bench(job: Job) -> dict[str, Any]:
    """Time the packed model at `job.path`, its exports beside it, and the dense model; give `bench.json`.

    Results are written to `job.out`, or to `bench/` beside the packed model, after every shape. With `resume`, a job
    continues from them after a kill, or adds further shapes. A figure is drawn at the end.

    Raises:
        ValueError: there is no path, the directory is not a packed model, all lengths are too long for it, or the bench
            to resume is another one (the message shows the difference).
        FileExistsError: `out` exists and is not a bench.
        BusyError: another bench is running in it.
    """
    if job.path is None:
        raise ValueError("a bench needs a packed model: path=RUN, or path=RUN/packed")
    path = packed_of(job.path)
    out = Path(job.out).resolve() if job.out is not None else path.with_name("bench")
    _refuse_foreign(out)
    with alone(out):
        return {**_bench(job, path, out), "out": str(out)}


def _refuse_foreign(out: Path) -> None:
    if out.exists():
        try:
            read_bench(out)["cells"]
        except (OSError, ValueError, KeyError) as error:
            kept = "it is left as it is: give another, out=..., or move it away"
            raise FileExistsError(f"{out} exists and is not a bench; {kept} ({error})") from error


def _bench(job: Job, path: Path, out: Path) -> dict[str, Any]:
    """Time the packed model at `path`, and write to `out`; give the content of `bench.json`."""
    if job.settings.threads is not None:
        torch.set_num_threads(job.settings.threads)
    model = load_packed(path)
    shapes, too_long = _shapes(job, model)
    device = torch.device("cuda" if torch.cuda.is_available() and not job.settings.cpu else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        lined = line_up(path, Path(scratch), device, torch.get_num_threads())
        content = _opened(job, out, {**_facts(job, path, lined, device), "too_long": too_long})
        _time(job, model, shapes, lined, content, out)
        if job.bench.memory:
            _weigh(model, max(shapes, key=lambda shape: shape[0] * shape[1]), lined, content, out, job.label)
    write_bench(out)
    return content


def _shapes(job: Job, model: PreTrainedModel) -> tuple[list[tuple[int, int]], list[int]]:
    """The shapes to time, the smallest first, and the lengths that are too long for the model."""
    limit = positions(model)
    too_long = [length for length in job.bench.lengths if limit is not None and length > limit]
    lengths = [length for length in job.bench.lengths if length not in too_long]
    if not lengths:
        raise ValueError(f"bench.lengths={too_long}: the model has positions for {limit} tokens")
    shapes = [(batch, length) for batch in job.bench.batches for length in lengths]
    return sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape)), too_long


def _facts(job: Job, path: Path, lined: LineUp, device: torch.device) -> dict[str, Any]:
    plan = CompressionPlan.load(path / PLAN)
    return {
        "format": FORMAT,
        "plan": plan.fingerprint,
        "sets": list(dict.fromkeys(str(spec) for spec in plan.layers.values())),
        "device": device_name(device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "repeats": job.bench.repeats,
        "seconds": job.bench.seconds,
        "warmup": job.bench.warmup,
        "baseline": BASELINE,
        "contenders": {
            each.name: {"how": each.how, "bytes": each.nbytes, "control": each.control} for each in lined.contenders
        },
        "left_out": dict(lined.left_out),
        "memory": {},
        "memory_shape": None,
        "cells": [],
        **provenance(),
    }


def _opened(job: Job, out: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """What was measured already of this very bench, where the job resumes; else nothing yet."""
    if not job.resume and (out / BENCH).is_file():
        set_aside(out / BENCH)
    if not (out / BENCH).is_file():
        return fresh
    content = parse((out / BENCH).read_bytes(), str(out / BENCH))
    theirs, ours = ({key: each.get(key) for key in IDENTITY} for each in (content, fresh))
    differences = difference(theirs, ours, whose="the bench there")
    if differences:
        raise ValueError(f"{out} has the results of another bench:\n  " + "\n  ".join(differences))
    return {**content, "too_long": sorted({*content["too_long"], *fresh["too_long"]})}


def _time(
    job: Job, model: PreTrainedModel, shapes: list[tuple[int, int]], lined: LineUp, content: dict[str, Any], out: Path
) -> None:
    """Time every shape that is not in `content` yet, and write it after each."""
    done = {(cell["batch"], cell["length"]) for cell in content["cells"]}
    left = [shape for shape in shapes if shape not in done]
    runs = {each.name: each.load() for each in lined.contenders} if left else {}
    display = Display(job.label)
    for batch, length in left:
        inputs = made_up(model, batch, length)
        name = f"{len(content['cells']) + 1} of {len(shapes)}: {batch} x {length} tokens"
        taken = interleaved(
            {each: partial(run, inputs) for each, run in runs.items()}, job.bench, display=display, name=name
        )
        timings = summarised(taken, batch, BASELINE)
        content["cells"].append({"batch": batch, "length": length, "timings": timings})
        _write(content, out)


def _weigh(
    model: PreTrainedModel, shape: tuple[int, int], lined: LineUp, content: dict[str, Any], out: Path, label: str
) -> None:
    """Measure what memory each contender takes that is not in `content` yet, and write it after each."""
    imports = ["nxmiformer.bench.contenders", type(model).__module__]
    imports += ["onnxruntime"] if any("onnx" in each.how for each in lined.contenders) else []
    inputs = made_up(model, *shape)
    if content["memory_shape"] != list(shape):
        content["memory"], content["memory_shape"] = {}, list(shape)
    for each in Display(label).tracked(lined.contenders, "memory", len(lined.contenders)):
        if each.name not in content["memory"]:
            work = partial(_load_and_run, each, inputs, content["threads"])
            content["memory"][each.name] = peak_memory(work, imports)
            _write(content, out)


def _load_and_run(contender: Contender, inputs: Mapping[str, Tensor], threads: int) -> None:
    torch.set_num_threads(threads)
    contender.load()(inputs)


def _write(content: dict[str, Any], out: Path) -> None:
    write_text(out / BENCH, json.dumps(content, indent=1) + "\n")
