"""From text to batches of tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nxmiformer.tasks.task import Task

WINDOW = 32  # batches within which examples of like length are put together
MULTIPLE = 8  # padded lengths are multiples of this


@dataclass(frozen=True)
class Examples:
    """Tokenised examples.

    Attributes:
        features: per example the tokenizer's lists of integers, such as `input_ids`.
        labels: (examples,), int64 classes or float32 targets.
        padding: what each feature is padded with.
    """

    features: Sequence[dict[str, list[int]]]
    labels: Tensor
    padding: dict[str, int]

    def __len__(self) -> int:
        return len(self.features)

    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(next(iter(feature.values()))) for feature in self.features]

    def batch(self, indices: Sequence[int], device: torch.device | str) -> dict[str, Tensor]:
        """The examples as (batch, tokens) tensors, padded to the longest, and `labels` (batch,)."""
        longest = max(len(next(iter(self.features[i].values()))) for i in indices)
        width = -(-longest // MULTIPLE) * MULTIPLE
        batch = {}
        for key, fill in self.padding.items():
            rows = [self.features[i][key] for i in indices]
            batch[key] = torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=device)
        return {**batch, "labels": self.labels[list(indices)].to(device)}


def encode(split: datasets.Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Examples:
    """Tokenise a split of `task`, truncated to `max_length` tokens."""
    columns = [list(split[column]) for column in task.columns]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    features = [dict(zip(encoded.keys(), row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    labels = torch.tensor(split["label"], dtype=torch.int64 if task.labels else torch.float32, device="cpu")
    fills: dict[str, Any] = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    return Examples(features, labels, {key: fills.get(key, 0) for key in encoded})


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
