"""A decoder in, block by block; a packed one out, scored from its file in the same way."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nxmiformer.blockwise.memory import predict
from nxmiformer.blockwise.passage import ACTIVATIONS, BLOCKS
from nxmiformer.blockwise.score import score
from nxmiformer.blockwise.stored import Checkpoint, Packed
from nxmiformer.console.display import Display
from nxmiformer.export.assembled import assembling
from nxmiformer.export.manifest import WEIGHTS, replaceable
from nxmiformer.export.packed import PackedSize, add_results
from nxmiformer.files import set_aside, write_text
from nxmiformer.jobs.decoder import Opened, left, open_decoder
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.opening import begin
from nxmiformer.jobs.provenance import device_name, provenance
from nxmiformer.jobs.survey import planned
from nxmiformer.runs.many import BLOCKWISE
from nxmiformer.runs.words import size
from nxmiformer.train.memory import measuring


def blockwise(job: Job) -> dict[str, Any]:
    """Compress the decoder of the job; give the content of its `blocks.json`.

    Raises:
        ValueError: as `open_decoder` and, with a budget, as `survey`.
        RefusedError: it resumes, and what is in its directory is another's.
    """
    began, display = time.perf_counter(), Display(job.label)
    job = planned(job)
    opened = open_decoder(job, display, job.planning)
    if (content := left(job, opened.identity, BLOCKWISE)) is not None:
        _clear(job.directory)
        return content
    begin(job, opened.identity)
    passage, settings = opened.passage, job.blockwise
    decoder = passage.decoder
    decoder.plan.save(job.directory / "plan.json")
    told = predict(decoder, settings, job.settings.max_length, settings.batch * job.settings.max_length)
    display.say(
        f"memory of {decoder.device.type}, beside what is taken: {size(told.blocks)} for the blocks, "
        f"{size(told.scoring)} for the scores; on disk: {size(told.disk)} of hidden states"
    )
    with measuring(decoder.device) as blocks, display.work("blocks", len(decoder.blocks), passage.done) as work:
        for _, facts in passage.run():
            display.step(work, f"{facts['seconds']:.0f} s a block")
    with measuring(decoder.device) as scoring:
        content = _packed(job, opened, display)
    content["memory"] = {
        "predicted": {**asdict(told), "blocks": told.blocks},
        "measured": {"blocks": blocks.taken, "scoring": scoring.taken},
    }
    content["seconds"] = time.perf_counter() - began
    write_text(job.directory / BLOCKWISE, json.dumps(content, indent=1) + "\n")
    _clear(job.directory)
    return content


def _clear(directory: Path) -> None:
    """Remove what only a job that is under way needs."""
    for name in (BLOCKS, ACTIVATIONS):
        shutil.rmtree(directory / name, ignore_errors=True)


def _packed(job: Job, opened: Opened, display: Display) -> dict[str, Any]:
    """Leave the packed model in `packed/`, with its score and that of the dense one; give the content of
    `blocks.json`."""
    passage, path = opened.passage, job.directory / "packed"
    decoder = passage.decoder
    dense = _score(job, opened, opened.dense, display)
    if path.exists() and not replaceable(path):  # damaged, or edited: then it is somebody's
        set_aside(path)
    with assembling(decoder.model, decoder.plan, passage.files, path, opened.tokenizer) as (directory, nbytes):
        packed = Packed(directory / WEIGHTS, decoder.plan, decoder.model.dtype)
        scores = {"dense": dense, "packed": _score(job, opened, packed, display)}
        content = _content(job, opened, scores, nbytes)
        add_results(
            directory, {f"{name} {job.task.metric}": f"{each[job.task.metric]:.4g}" for name, each in scores.items()}
        )
    return content


def _score(job: Job, opened: Opened, stored: Checkpoint | Packed, display: Display) -> dict[str, float]:
    decoder, quantized = opened.passage.decoder, isinstance(stored, Packed)
    name = f"{job.report_on}, {'packed' if quantized else 'dense'}"
    with display.work(name, len(decoder.blocks)) as work:
        return score(
            decoder,
            stored,
            job.task,
            opened.scored,
            job.blockwise.batch,
            job.directory / ACTIVATIONS,
            quantized,
            lambda: display.step(work),
        )


def _content(job: Job, opened: Opened, scores: Mapping[str, Mapping[str, float]], nbytes: PackedSize) -> dict[str, Any]:
    passage = opened.passage
    decoder = passage.decoder
    storage = decoder.plan.storage()
    return {
        "format": 1,
        "name": job.name,
        "seed": job.seed,
        "task": {"name": job.task.name, "metric": job.task.metric, job.report_on: len(opened.scored)},
        "tokens": job.settings.max_length,
        "model": {"name": job.source.name, "parameters": (storage.dense + storage.rest) // 32},
        "plan": {"name": job.planning.name, "fingerprint": decoder.plan.fingerprint},
        "blockwise": asdict(job.blockwise),
        "report_on": job.report_on,
        "scores": scores,
        "bytes": {
            "dense_model": (storage.dense + storage.rest) // 8,
            "packed_model": nbytes.total,
            "packed_weights": nbytes.weights,
        },
        "compression": storage.compression,
        "blocks": [passage.facts(index) for index in range(len(decoder.blocks))],
        **provenance(),
        "device": device_name(decoder.device),
    }
