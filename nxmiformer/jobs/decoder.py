"""The start of a job that takes a decoder block by block: all but its weights is read."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.applied.convert import convert
from nxmiformer.blockwise.decoder import Decoder, blank, blocks_of
from nxmiformer.blockwise.passage import Passage
from nxmiformer.blockwise.stored import Checkpoint, checkpoint, shapes_of
from nxmiformer.blockwise.windows import calibration
from nxmiformer.console.display import Display
from nxmiformer.export.manifest import CONFIG
from nxmiformer.export.packed import check_packable
from nxmiformer.files import digest_of
from nxmiformer.jobs.digests import digest
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.opening import check_same, record, without_paths
from nxmiformer.jobs.place import RECORD
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.models.fit import agree
from nxmiformer.models.source import Pretrained
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.runs.parse import parse
from nxmiformer.tasks.batches import Examples

DECODERS = "AutoModelForCausalLM"  # the head of the tasks whose models can be compressed so
DECIDING = ("task", "model", "plan", "blockwise")  # of a configuration, what the packed model depends on


class Opened(NamedTuple):
    """A job that is ready to begin: nothing of the model's weights is in memory."""

    passage: Passage
    dense: Checkpoint
    scored: Examples
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]


def open_decoder(job: Job, display: Display, planning: Callable[[PreTrainedModel], CompressionPlan]) -> Opened:
    """Read all but the weights, and refuse what could not be done. `planning` gives the plan of the blank model.

    Raises:
        ValueError: the job is not for a decoder that is one list of blocks, in safetensors; or its plan does not fit.
    """
    if job.task.head != DECODERS:
        raise ValueError(f"job=blockwise compresses decoders of plain text: task=causal, not task={job.task.name}")
    path = checkpoint(job.source)
    assert isinstance(job.source, Pretrained)
    if job.source.keep_layers is not None:
        raise ValueError("model.keep_layers: job=blockwise compresses all layers; job=compress can begin with some")
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
    plan = planning(model)
    _refuse_everything(plan.everything)
    convert(model, plan)
    layers = compressed_layers(model).values()
    _refuse_fixed(job.planning.activations, *(layer.inputs.spec for layer in layers if layer.inputs is not None))
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


def left(job: Job, identity: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What this very job left in a file of its directory, if it has ended; that what is there is its own.

    Raises:
        RefusedError: it is another's.
    """
    if not (job.resume and (job.directory / RECORD).exists()):
        return None
    theirs = record(job.directory).get("identity", {})
    check_same(f"{job.directory} belongs to another job", theirs, identity, "the job there")
    path = job.directory / name
    return parse(path.read_bytes(), str(path)) if path.exists() else None


def _refuse_fixed(*inputs: Activations | None) -> None:
    """Raise a ValueError where ranges of inputs are to be learned while a model trains, which it does not here."""
    if learned := {each.ranges for each in inputs if each is not None and each.fixed}:
        raise ValueError(
            f"plan.activations.ranges={learned.pop()} is learned in training: job=blockwise takes token or tensor"
        )
