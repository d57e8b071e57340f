"""Plain text: its rows, the one row of tokens that they make, and how well its tokens are predicted."""

import abc
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.tasks.rows import check_texts, require
from nxmiformer.tasks.table import Table
from nxmiformer.tasks.task import Chance, Task
from nxmiformer.tasks.units import Units

CHUNK = 2**24  # logits whose losses are computed at once, at most: the softmax of a batch would be as large again
BATCH = 1000  # texts that are tokenised at once
BLOCK, BLOCKS = 64, 20  # rows of a block, at most, and how many blocks there are, at least, if there are so many rows
LONGEST = 700.0  # nats; e to the power of more is no float


class Tally(NamedTuple):
    """Of the units of an example: how many there are, how many are right, and the sum of their losses in nats."""

    units: float
    right: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class PlainText(Table, Task):
    """A task on plain text, token by token.

    Attributes:
        column: the text column.
        between: separator of two texts. None: the tokenizer's token between documents, and blank texts are left out;
            for the lines of a .txt file, the end of a line. Text, such as "\\n\\n" for paragraphs: rows that follow one
            another stay together, in blocks, where a holdout is cut.
    """

    column: str = "text"
    between: str | None = None

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.column,)

    @property
    def joint(self) -> str | None:
        """The text between two texts; None if a token separates them."""
        return "\n" if self.between is None and self.path.lower().endswith(".txt") else self.between

    def splits(self) -> datasets.DatasetDict:
        """Read from `path`; a ValueError names the first row that is not a text."""
        return self.table(self._checked)

    def _checked(self, rows: datasets.Dataset, where: str) -> datasets.Dataset:
        require(rows, [self.column], where)
        check_texts(rows, [self.column], where)
        if self.joint is None:
            return rows
        texts, size = rows[self.column][:], min(BLOCK, max(1, len(rows) // BLOCKS))
        blocks = [self.joint.join(texts[first : first + size]) for first in range(0, len(texts), size)]
        return datasets.Dataset.from_dict({self.column: blocks})

    def texts(self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
        """The tokens of each text, without special ones; blank texts are left out."""
        for batch in split.iter(BATCH):
            yield from _tokens([text for text in batch[self.column] if text.strip()], tokenizer)

    def stream(self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, end: int | None) -> "array[int]":
        """The tokens of all texts in one row, with `end` after each if a token separates them.

        Raises:
            ValueError: the tokenizer has no such token.
        """
        if self.joint is not None:
            return array("i", _tokens([self.joint.join(split[self.column][:])], tokenizer)[0])
        if end is None:
            raise ValueError(
                "the tokenizer has no token that separates documents, such as eos_token: give a separator, such as "
                'task.between="\\n"'
            )
        return array("i", (token for ids in self.texts(split, tokenizer) for token in (*ids, end)))

    def answers(self, units: Units, batch: Mapping[str, Tensor], model: PreTrainedModel | None = None) -> list[Tally]:
        """What the units of each example come to, of those that there are."""
        return tallies(units, len(batch["labels"]))

    @abc.abstractmethod
    def score(self, answers: Sequence[Tally], truths: Sequence[Any]) -> dict[str, float]: ...


def _tokens(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Of each text, without special tokens. The tokenizer would warn that they are long."""
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return found


def tallies(units: Units, examples: int) -> list[Tally]:
    """What the units of each of so many examples come to, the losses of a few units computed at once."""
    rows = max(1, CHUNK // units.logits.shape[-1])
    parts = zip(units.logits.split(rows), units.targets.split(rows), strict=True)
    losses = torch.cat([units.outcome.losses(logits, targets) for logits, targets in parts])
    right = units.logits.argmax(-1) == units.targets
    each = torch.stack([torch.ones_like(losses), right.to(losses.dtype), losses]).double().cpu()
    sums = torch.zeros(3, examples, dtype=torch.float64, device="cpu").index_add_(1, units.owner.cpu(), each)
    return [Tally(*row) for row in sums.t().tolist()]


def foreseen(answers: Sequence[Tally]) -> dict[str, float]:
    """The loss of a token in nats, mean over all units, and the perplexity that it is the logarithm of."""
    loss = math.fsum(each.loss for each in answers) / sum(each.units for each in answers)
    return {"perplexity": math.exp(min(loss, LONGEST)), "loss": loss}


def right(answers: Sequence[Tally]) -> float:
    """The share of units that are right."""
    return sum(each.right for each in answers) / sum(each.units for each in answers)


def unigram(truths: Sequence[Sequence[int]], metric: str) -> Chance:
    """The score of the unigram model, which knows how often each token occurs and does not read the text. Its accuracy
    is the share of the most common token, its loss the entropy of that distribution; or its perplexity."""
    _, counts = np.unique(np.concatenate([np.asarray(each, dtype=np.int64) for each in truths]), return_counts=True)
    shares, total = counts / counts.sum(), counts.sum()
    if metric == "accuracy":
        most = float(shares.max())
        return Chance(most, math.sqrt(most * (1 - most) / total))
    surprise = -np.log(shares)
    entropy = float((shares * surprise).sum())
    error = math.sqrt(float((shares * (surprise - entropy) ** 2).sum()) / total)
    if metric == "loss":
        return Chance(entropy, error, "lower")
    return Chance(math.exp(entropy), math.exp(entropy) * error, "lower")
