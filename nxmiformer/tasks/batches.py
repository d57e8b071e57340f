"""Examples, and how they become batches of tensors."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

WINDOW = 32  # batches within which examples of like length are put together
MULTIPLE = 8  # padded lengths are multiples of this

Vary = Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Examples:
    """Tokenised examples.

    Attributes:
        features: the rows of each example by name, lists of integers such as `input_ids`, which are padded to the
            longest of a batch.
        padding: what the rows of each name are padded with.
        whole: what has one value, or one row of equal length, an example: by name, tensors (examples, ...), such as the
            `labels` of a classification.
        truths: the correct answer of each example, for the score.
        side: where rows are padded, "right" or "left".
        limit: maximum width of a batch in tokens, after rounding.
        cut: how many texts were truncated there.
        vary: changes a training batch each time that it is seen, such as by other masks.
    """

    features: Sequence[Mapping[str, Sequence[int]]]
    padding: Mapping[str, int]
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    truths: Sequence[Any] = ()
    side: str = "right"
    limit: int | None = None
    cut: int = 0
    vary: Vary | None = None

    def __len__(self) -> int:
        return len(self.features)

    def lengths(self) -> list[int]:
        """Tokens of each example: of its first row, `input_ids`."""
        return [len(next(iter(feature.values()))) for feature in self.features]

    def only(self, indices: Sequence[int]) -> "Examples":
        """These of the examples, in this order."""
        return replace(
            self,
            features=[self.features[i] for i in indices],
            whole={name: values[list(indices)] for name, values in self.whole.items()},
            truths=[self.truths[i] for i in indices],
        )

    def batch(self, indices: Sequence[int], device: torch.device | str) -> dict[str, Tensor]:
        """The examples as (batch, places) tensors, each padded to the longest of its name, and what is `whole`."""
        batch = {}
        for key, fill in self.padding.items():
            rows = [list(self.features[i][key]) for i in indices]
            width = self._width(max(map(len, rows)))
            padded = [_padded(row, [fill] * (width - len(row)), self.side) for row in rows]
            batch[key] = torch.tensor(padded, device=device)
        return {**batch, **{key: values[list(indices)].to(device) for key, values in self.whole.items()}}

    def _width(self, longest: int) -> int:
        width = -(-longest // MULTIPLE) * MULTIPLE
        return width if self.limit is None else max(longest, min(width, self.limit))


def _padded(row: list[int], fill: list[int], side: str) -> list[int]:
    return fill + row if side == "left" else row + fill


def fills(names: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """What rows of these names, as the tokenizer gives them, are padded with."""
    special: dict[str, Any] = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    return {name: special.get(name, 0) for name in names}


def rows_of(encoded: BatchEncoding) -> list[dict[str, list[int]]]:
    """The rows of each example by name, as a tokenizer gives them for many."""
    return [dict(zip(encoded.keys(), row, strict=True)) for row in zip(*encoded.values(), strict=True)]


def cut_off(encoded: BatchEncoding, columns: Sequence[Sequence[Any]], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many texts, or pairs of texts, were truncated. Tokenizers that are written in Python do not tell, but for the
    lengths."""
    if encoded.encodings is not None:
        return sum(bool(each.overflowing) for each in encoded.encodings)
    lengths = map(len, encoded["input_ids"])
    whole = tokenizer(*map(list, columns))["input_ids"]
    return sum(len(each) > length for each, length in zip(whole, lengths, strict=True))


def shuffled(
    examples: Examples,
    size: int,
    seed: int,
    start: int,
    device: torch.device | str,
    grouped: bool = True,
    share: slice = slice(None),
) -> Iterator[dict[str, Tensor]]:
    """Endless training batches of `size` examples, from batch `start` on; of each the rows of `share`, as they are in
    the whole batch: padded to its width, and varied as there.

    The order depends on the seed and the epoch alone, so that a run can resume at any batch. It takes no random number
    from the global generators. If `grouped`, examples of like length go together within windows of batches: less
    padding, but batches that are alike inside. Only full batches are given; what an epoch leaves over is left to the
    next one's shuffle.
    """
    per_epoch = batches_per_epoch(len(examples), size)
    lengths = torch.tensor(examples.lengths() if grouped else [0] * len(examples), device="cpu")
    while True:
        order = _epoch(lengths, size, torch.Generator().manual_seed(seed * 1_000_003 + start // per_epoch))
        for position in range(start % per_epoch, per_epoch):
            batch = examples.batch(order[position], device)
            if examples.vary is not None:
                batch = examples.vary(batch, torch.Generator().manual_seed(seed * 1_000_003 + start))
            yield {name: rows[share] for name, rows in batch.items()}
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
