"""From text to batches of tensors."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from nxmiformer.tasks.task import Task

log = logging.getLogger(__name__)

WINDOW = 32  # batches within which examples of like length are put together
MULTIPLE = 8  # padded lengths are multiples of this


@dataclass(frozen=True)
class Examples:
    """Tokenised examples.

    Attributes:
        features: per example the tokenizer's lists of integers, such as `input_ids`.
        labels: (examples,), int64 classes or float32 targets.
        padding: what each feature is padded with.
        side: where it is padded, "right" or "left".
        limit: tokens that no batch is wider than, whatever its width is rounded to.
        cut: how many examples were cut off there.
    """

    features: Sequence[dict[str, list[int]]]
    labels: Tensor
    padding: dict[str, int]
    side: str = "right"
    limit: int | None = None
    cut: int = 0

    def __len__(self) -> int:
        return len(self.features)

    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(next(iter(feature.values()))) for feature in self.features]

    def batch(self, indices: Sequence[int], device: torch.device | str) -> dict[str, Tensor]:
        """The examples as (batch, tokens) tensors, padded to the longest, and `labels` (batch,)."""
        longest = max(len(next(iter(self.features[i].values()))) for i in indices)
        width = -(-longest // MULTIPLE) * MULTIPLE
        if self.limit is not None:
            width = max(longest, min(width, self.limit))
        batch = {}
        for key, fill in self.padding.items():
            rows = [self.features[i][key] for i in indices]
            padded = [_padded(row, [fill] * (width - len(row)), self.side) for row in rows]
            batch[key] = torch.tensor(padded, device=device)
        return {**batch, "labels": self.labels[list(indices)].to(device)}


def _padded(row: list[int], fill: list[int], side: str) -> list[int]:
    return fill + row if side == "left" else row + fill


def encode_splits(
    splits: datasets.DatasetDict, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Examples]:
    """The splits of a task by name, tokenised; how many of their texts are cut off is logged."""
    data = {name: encode(splits[name], task, tokenizer, max_length) for name in splits}
    if any(examples.cut for examples in data.values()):
        told = [f"{examples.cut:,} of {len(examples):,} in {name}" for name, examples in data.items()]
        log.info("train.max_length=%d cuts texts off: %s", max_length, ", ".join(told))
    return data


def encode(split: datasets.Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Examples:
    """Tokenise a split of `task`, truncated to `max_length` tokens and padded where the tokenizer pads."""
    columns = [list(split[column]) for column in task.columns]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    features = [dict(zip(encoded.keys(), row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    labels = torch.tensor(split["label"], dtype=torch.int64 if task.labels else torch.float32, device="cpu")
    fills: dict[str, Any] = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    padding = {key: fills.get(key, 0) for key in encoded}
    return Examples(features, labels, padding, tokenizer.padding_side, max_length, _cut(encoded, columns, tokenizer))


def _cut(encoded: BatchEncoding, columns: Sequence[list[str]], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many of the texts were truncated. Tokenizers that are written in Python do not tell, but for the lengths."""
    if encoded.encodings is not None:
        return sum(bool(each.overflowing) for each in encoded.encodings)
    lengths = map(len, encoded["input_ids"])
    return sum(len(whole) > length for whole, length in zip(tokenizer(*columns)["input_ids"], lengths, strict=True))


def shuffled(
    examples: Examples,
    size: int,
    seed: int,
    start: int,
    device: torch.device | str,
    rank: int = 0,
    world: int = 1,
    grouped: bool = True,
) -> Iterator[dict[str, Tensor]]:
    """Endless training batches of `size` examples for each of `world` processes, from batch `start` on.

    The order depends on the seed and the epoch alone, so that a run resumes at any batch, and takes no random number
    from the global generators. If `grouped`, examples of like length go together within windows of batches: less
    padding, but batches that are alike inside. Only full batches are given; what an epoch leaves over is left to the
    next one's shuffle.
    """
    whole = size * world
    per_epoch = batches_per_epoch(len(examples), whole)
    lengths = torch.tensor(examples.lengths() if grouped else [0] * len(examples), device="cpu")
    while True:
        order = _epoch(lengths, whole, torch.Generator().manual_seed(seed * 1_000_003 + start // per_epoch))
        for position in range(start % per_epoch, per_epoch):
            yield examples.batch(order[position][rank * size : (rank + 1) * size], device)
            start += 1


def batches_per_epoch(examples: int, size: int) -> int:
    """Full batches in one pass over the data; a ValueError where there is none."""
    if examples < size:
        raise ValueError(f"a batch of {size} needs at least as many training examples, and there are {examples}")
    return examples // size


def _epoch(lengths: Tensor, size: int, generator: torch.Generator) -> list[list[int]]:
    """The batches of one epoch, as lists of example numbers."""
    order = torch.randperm(len(lengths), generator=generator, device="cpu")[: len(lengths) // size * size]
    windows = [window[lengths[window].argsort(stable=True)] for window in order.split(WINDOW * size)]
    batches = [batch for window in windows for batch in window.split(size)]
    shuffle = torch.randperm(len(batches), generator=generator, device="cpu").tolist()
    return [batches[i].tolist() for i in shuffle]


def sorted_batches(examples: Examples, size: int) -> list[list[int]]:
    """Every example once, in batches of like length."""
    order = torch.tensor(examples.lengths(), device="cpu").argsort(stable=True)
    return [batch.tolist() for batch in order.split(size)]
