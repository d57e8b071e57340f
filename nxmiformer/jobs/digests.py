"""The content of what a run reads: runs that read other weights or rows under the same names are different runs."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.jobs.job import Job
from nxmiformer.layers.support import support_of
from nxmiformer.models.labels import classes_of
from nxmiformer.tasks.task import Task

DIGITS = 16  # hexadecimal, of SHA-256


def contents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    splits: datasets.DatasetDict,
    teacher: PreTrainedModel | None = None,
) -> dict[str, str]:
    """A digest of everything that a run reads: the weights, the supports stored beside them, the architecture, the
    tokenizer, the rows of each split, and the teacher's weights.

    Args:
        model: the model before any change.
        teacher: the dense model that `model.teacher` names.
    """
    taught = {} if teacher is None else {"teacher": digest(_tensors(teacher.state_dict()))}
    supports = {f"{name}.support": support_of(module) for name, module in model.named_modules()}
    stored = {name: support for name, support in supports.items() if support is not None}
    plain = {name: split.with_format(None) for name, split in splits.items()}
    rows = {name: digest(_json(split[key][:]) for key in task.reads) for name, split in plain.items()}
    return {
        "weights": digest(_tensors({**model.state_dict(), **stored})),
        "architecture": digest([str(type(model)).encode(), str(model).encode(), _json(_config(model))]),
        "tokenizer": digest([_json(_vocabulary(tokenizer))]),
        **taught,
        **rows,
    }


def read_contents(job: Job) -> dict[str, str]:
    """The digests of the model and the data that the job would read now."""
    tokenizer = job.source.tokenizer(job.task)
    model = job.source.model(job.task, tokenizer, job.seed)
    task = job.task.in_order(classes_of(model.config))
    return contents(model, tokenizer, task, task.splits(), job.source.taught(job.task, tokenizer))


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """The first digits of the SHA-256 of the parts, as a list."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8))  # so that no two lists of parts are one text
        digest.update(part)
    return digest.hexdigest()[:DIGITS]


def _tensors(state: Mapping[str, torch.Tensor]) -> Iterable[bytes | memoryview]:
    for name, tensor in state.items():
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _config(model: PreTrainedModel) -> dict[str, Any]:
    """The model's configuration, without where it was read from."""
    attention = model.config._attn_implementation
    return {**model.config.to_dict(), "_name_or_path": None, "attention": attention}


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """The words and the special ones, and how a text becomes them where the tokenizer can tell."""
    fast = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else ""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), special, fast]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()
