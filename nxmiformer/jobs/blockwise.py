"""A decoder in, block by block; a packed one out, scored from its file in the same way."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedTokenizerBase

from nxmiformer.applied.convert import convert
from nxmiformer.blockwise.decoder import Decoder, blank, blocks_of
from nxmiformer.blockwise.memory import predict
from nxmiformer.blockwise.passage import ACTIVATIONS, BLOCKS, Passage
from nxmiformer.blockwise.score import score
from nxmiformer.blockwise.stored import Checkpoint, Packed, checkpoint, shapes_of
from nxmiformer.blockwise.windows import calibration
from nxmiformer.console.display import Display
from nxmiformer.export.assembled import assembling
from nxmiformer.export.manifest import CONFIG, WEIGHTS, replaceable
from nxmiformer.export.packed import PackedSize, add_results, check_packable
from nxmiformer.files import digest_of, set_aside, write_text
from nxmiformer.jobs.digests import digest
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.opening import begin, check_same, record, without_paths
from nxmiformer.jobs.place import RECORD
from nxmiformer.jobs.provenance import device_name, provenance
from nxmiformer.layers.found import compressed_layers
from nxmiformer.models.fit import agree
from nxmiformer.models.source import Pretrained
from nxmiformer.runs.many import BLOCKWISE
from nxmiformer.runs.parse import parse
from nxmiformer.runs.words import size
from nxmiformer.tasks.batches import Examples
from nxmiformer.train.memory import measuring

DECODERS = "AutoModelForCausalLM"  # the head of the tasks whose models can be compressed so
DECIDING = ("task", "model", "plan", "blockwise")  # of a configuration, what the packed model depends on


class Opened(NamedTuple):
    """A job that is ready to begin: nothing of the model's weights is in memory."""

    passage: Passage
    dense: Checkpoint
    scored: Examples
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]


def blockwise(job: Job) -> dict[str, Any]:
    """Compress the decoder of the job; give the content of its `blocks.json`.

    Raises:
        ValueError: the job is not for a decoder that is one list of blocks, in safetensors; or its plan does not fit.
        RefusedError: it resumes, and what is in its directory is another's.
    """
    began, display = time.perf_counter(), Display(job.label)
    opened = _opened(job, display)
    if (content := _finished(job, opened.identity)) is not None:
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


def _opened(job: Job, display: Display) -> Opened:
    """Read all but the weights, and refuse what could not be done."""
    if job.task.head != DECODERS:
        raise ValueError(f"job=blockwise compresses decoders of plain text: task=causal, not task={job.task.name}")
    path = checkpoint(job.source)
    assert isinstance(job.source, Pretrained)
    if job.source.keep_layers is not None:
        raise ValueError("model.keep_layers: job=blockwise compresses all layers; job=compress can begin with some")
    if job.budget.given:
        raise ValueError("job=blockwise does not search: leave out the budget, and give a plan")
    if job.blockwise.steps and job.source.dtype != "float32":
        raise ValueError(
            f"blockwise.steps={job.blockwise.steps} trains in model.dtype: float32, not {job.source.dtype}"
        )
    display.say(f"reading task {job.task.name} and model {job.source.name}")
    if job.settings.threads is not None:
        torch.set_num_threads(job.settings.threads)
    transformers.set_seed(job.seed)
    tokenizer, tokens = job.source.tokenizer(job.task), job.settings.max_length
    model = blank(path, job.task.head, getattr(torch, job.source.dtype))
    blocks_of(model)
    agree(model, tokenizer, tokens)
    _refuse_everything(job.planning.everything)
    plan = job.planning(model)
    _refuse_everything(plan.everything)
    convert(model, plan)
    _refuse_static(model)
    check_packable(model, plan, tokenizer)
    decoder = Decoder(model, plan, job.settings.accelerator().device)
    dense = Checkpoint(path, shapes_of(model, decoder.shared), model.base_model_prefix)
    splits = job.task.splits()
    data = {name: job.task.encode(splits[name], tokenizer, tokens, model.config) for name in ("train", job.report_on)}
    ids = calibration(data["train"], tokens, job.blockwise.windows, job.blockwise.batch, job.seed)
    content = {
        "weights": digest([digest_of(file).encode() for file in dense.files]),
        "config": digest_of(path / CONFIG),
        "windows": digest([json.dumps([each.tolist() for each in ids]).encode()]),
        "scored": digest(str(each["input_ids"]).encode() for each in data[job.report_on].features),
    }
    identity = {
        "config": without_paths({key: job.config.get(key) for key in DECIDING}),
        "plan": plan.fingerprint,
        "seed": job.seed,
        "tokens": tokens,
        "report_on": job.report_on,
        "content": content,
    }
    passage = Passage(decoder, dense, ids, job.blockwise, job.directory, job.seed)
    return Opened(passage, dense, data[job.report_on], tokenizer, json.loads(json.dumps(identity)))


def _refuse_everything(everything: object) -> None:
    """Raise a ValueError where ranges of all inputs are to be learned while a model trains, which it does not here."""
    if everything is not None:
        raise ValueError("plan.everything is learned in training: job=blockwise takes plan.activations alone")


def _refuse_static(model: torch.nn.Module) -> None:
    """Raise a ValueError where ranges of inputs are to be learned while a model trains, which it does not here."""
    layers = compressed_layers(model).values()
    if any(layer.inputs is not None and layer.inputs.spec.ranges == "ema" for layer in layers):
        raise ValueError("plan.activations.ranges=ema is learned in training: job=blockwise takes token or tensor")


def _finished(job: Job, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What this very job left in its directory, if it has ended; that what is there is its own.

    Raises:
        RefusedError: it is another's.
    """
    if not (job.resume and (job.directory / RECORD).exists()):
        return None
    theirs = record(job.directory).get("identity", {})
    check_same(f"{job.directory} belongs to another job", theirs, identity, "the job there")
    path = job.directory / BLOCKWISE
    if not path.exists():
        return None
    _clear(job.directory)
    return parse(path.read_bytes(), str(path))


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
