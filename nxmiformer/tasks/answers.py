"""Extractive question answering: questions whose answers are spans of a text, in the columns of SQuAD."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.errors import unknown
from nxmiformer.sets.fields import check_fields
from nxmiformer.tasks.batches import Examples, fills
from nxmiformer.tasks.outcomes import Classes
from nxmiformer.tasks.spans import (
    Spans,
    Window,
    answered,
    best_spans,
    exact_match,
    f1,
    f1_or_empty,
    normalised,
    over_golds,
    read,
)
from nxmiformer.tasks.table import Table
from nxmiformer.tasks.task import Chance, Task
from nxmiformer.tasks.units import Outputs, Units

log = logging.getLogger(__name__)

METRICS = ("exact_match", "f1")
NEAR = 2  # characters by which an answer may be off the place that is told
FIELDS = {"text": datasets.Value("string"), "answer_start": datasets.Value("int64")}


@dataclass(frozen=True, kw_only=True)
class Answers(Table, Task):
    """Extractive question answering (Rajpurkar et al. 2016, arXiv 1606.05250, and 2018, arXiv 1806.03822).

    An example is a window: a question, and as much of its context as fits into `max_length` tokens. Contexts are not
    truncated: each has as many windows as it needs, and a question is scored over all of them. Holdout and training
    rows share no context.

    Attributes:
        name: name in reports.
        metric: exact_match or f1.
        stride: tokens of a context that two of its windows share.
        longest: tokens of the longest answer.
        best: number of candidates for the first and for the last token of a window, and of spans kept.
        unanswerable: whether there are questions without an answer, as in SQuAD 2.0.
        threshold: "no answer" is the answer if it scores better than the best span by more than this.
    """

    name: str = "answers"
    metric: str = "f1"
    stride: int = 32
    longest: int = 30
    best: int = 20
    unanswerable: bool = False
    threshold: float = 0.0

    head: ClassVar[str] = "AutoModelForQuestionAnswering"
    targets: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions")
    unseen: ClassVar[tuple[str, ...]] = ("open",)
    reads = ("question", "context", "answers")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        if self.metric not in METRICS:
            raise unknown("task.metric", self.metric, METRICS)
        if self.stride < 0:
            raise ValueError(f"task.stride={self.stride}: two windows share 0 tokens or more")
        for field, value in (("longest", self.longest), ("best", self.best)):
            if value < 1:
                raise ValueError(f"task.{field}={value}: it must be at least 1")

    def splits(self) -> datasets.DatasetDict:
        return self.table(self._checked)

    def parted(self, rows: datasets.Dataset, size: int) -> tuple[datasets.Dataset, datasets.Dataset]:
        """The rows of whole contexts, at most `size` if more than one context has so few: a model knows a text that it
        has seen in training."""
        numbers: dict[str, int] = {}
        owners = np.array([numbers.setdefault(text, len(numbers)) for text in rows["context"][:]])
        if len(numbers) < 2:
            raise ValueError(f"task.path={self.path}: all rows have one context, and nothing can be held out")
        draw = np.random.default_rng(0)
        order = draw.permutation(len(numbers))
        within = int((np.bincount(owners)[order].cumsum() <= size).sum())
        held = np.isin(owners, order[: max(1, within)])
        mixed = draw.permutation(len(owners))
        return rows.select(mixed[~held[mixed]]), rows.select(mixed[held[mixed]])

    def _checked(self, rows: datasets.Dataset, where: str) -> datasets.Dataset:
        """The rows, their answers as SQuAD has them and where their text says that they are.

        Raises:
            ValueError: a column is missing or of another type, a text is missing, an answer is not in its context, or a
                question has no answer where each must have one. The message has the first such row and its value.
        """
        if missing := [name for name in self.reads if name not in rows.column_names]:
            raise ValueError(
                f"{where} has no column {missing}; task=answers reads {self.reads}, it has {rows.column_names}"
            )
        found = []
        for number, (question, context, answers) in enumerate(zip(*(rows[name] for name in self.reads), strict=True)):
            place = f"{where}, row {number} (the first is 0)"
            for name, text in (("question", question), ("context", context)):
                if not isinstance(text, str) or not text.strip():
                    raise ValueError(f"{place}, column {name!r}: {text!r}, but a text is expected")
            found.append(self._answers_of(answers, context, place))
        moved = sum(old != new for old, new in zip(rows["answers"], found, strict=True) if new["text"])
        if moved:
            told = "%s: the positions of %d answers were wrong by a character or two, and are corrected"
            log.info(told, where, moved)
        feature = {name: datasets.List(each) for name, each in FIELDS.items()}
        return rows.select_columns(["question", "context"]).add_column("answers", found, feature=feature)

    def _answers_of(self, answers: Any, context: str, place: str) -> dict[str, list[Any]]:
        """The answers of a row, each with where it is in the context."""
        if not isinstance(answers, Mapping) or not set(answers) >= set(FIELDS):
            raise ValueError(
                f"{place}, column 'answers': {answers!r}, but lists 'text' and 'answer_start' are expected"
            )
        texts, starts = answers["text"], answers["answer_start"]
        if len(texts) != len(starts):
            raise ValueError(
                f"{place}, column 'answers': {len(texts)} texts and {len(starts)} starts, such as {texts[:1]}"
            )
        if not texts and not self.unanswerable:
            raise ValueError(
                f"{place}: its question has no answer; task.unanswerable=true is for data with such questions"
            )
        return {
            "text": list(texts),
            "answer_start": [_start(*each, context, place) for each in zip(texts, starts, strict=True)],
        }

    def encode(
        self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, config: PretrainedConfig
    ) -> Examples:
        """A window an example, padded on the right, where it moves no place."""
        found = read(split, tokenizer, max_length, self.stride)
        ends = torch.tensor(found.ends, device="cpu")
        return Examples(
            [{**feature, "open": each} for feature, each in zip(found.features, found.open, strict=True)],
            {**fills(found.features[0], tokenizer), "open": 0},
            {"start_positions": ends[:, 0], "end_positions": ends[:, 1]},
            found.truths,
            "right",
            max_length,
        )

    def units(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Units:
        """Two of each window, its start and its end; -inf where there can be none, but for the first token."""
        logits = torch.stack([outputs["start_logits"], outputs["end_logits"]], 1).float()
        if logits.shape != (len(batch["open"]), 2, batch["open"].shape[1]):
            raise ValueError(
                f"the logits of starts and ends are {tuple(logits.shape)}, and the batch {tuple(batch['open'].shape)}"
            )
        logits = logits.masked_fill(batch["open"][:, None] == 0, -torch.inf)
        targets = torch.stack([batch[name] for name in self.targets], 1)
        owner = torch.arange(len(logits), device=logits.device).repeat_interleave(2)
        return Units(logits.flatten(0, 1), targets.flatten(), owner, Classes())

    def answers(self, units: Units, batch: Mapping[str, Tensor], model: PreTrainedModel | None = None) -> list[Spans]:
        """Of each window its best spans, and the score of there being none.

        Raises:
            ValueError: the units were thinned, and a start has no end.
        """
        if len(units) != 2 * len(batch["open"]):
            raise ValueError(
                f"of {len(batch['open'])} windows there are {len(units)} starts and ends, but two each are expected: "
                "lower search.examples"
            )
        starts, ends = units.logits.detach().unflatten(0, (-1, 2)).unbind(1)
        return best_spans(starts, ends, self.best, self.longest)

    def score(self, answers: Sequence[Any], truths: Sequence[Any]) -> dict[str, float]:
        """Exact match and F1 as fractions, by SQuAD's scripts: that of 1.1, or of 2.0 if there are `unanswerable`
        questions, which then gives the scores of those with an answer and of those without, too."""
        threshold = self.threshold if self.unanswerable else None
        metric = f1_or_empty if self.unanswerable else f1
        rows = []
        for golds, windows in _questions(answers, truths):
            texts = self._golds(golds)
            said = answered(windows, threshold)
            rows.append((bool(golds), over_golds(exact_match, said, texts), over_golds(metric, said, texts)))
        table = np.array(rows, dtype=float)
        scores = {"exact_match": float(table[:, 1].mean()), "f1": float(table[:, 2].mean())}
        for name, kept in (("has_answer", table[:, 0] == 1), ("no_answer", table[:, 0] == 0)):
            if self.unanswerable and kept.any():
                scores |= {
                    f"{name}_exact_match": float(table[kept, 1].mean()),
                    f"{name}_f1": float(table[kept, 2].mean()),
                }
        return scores

    def _golds(self, golds: Sequence[str]) -> Sequence[str]:
        """What an answer is compared with: SQuAD 2.0's script leaves out those that have no words."""
        return ([gold for gold in golds if normalised(gold)] if self.unanswerable else golds) or [""]

    def chance(self, truths: Sequence[Any]) -> Chance:
        """Of always answering "no answer", where there are questions without one; else 0."""
        golds = {truth.question: self._golds(truth.golds) for truth in truths}
        share = sum(list(each) == [""] for each in golds.values()) / len(golds)
        return Chance(share, math.sqrt(share * (1 - share) / len(golds)))


def _start(text: str, start: int, context: str, place: str) -> int:
    """Where an answer is in its context: at `start`, or near it."""
    for offset in sorted(range(-NEAR, NEAR + 1), key=abs):
        if text and start + offset >= 0 and context.startswith(text, start + offset):
            return start + offset
    there = context[max(0, start) : max(0, start) + len(text or "")]
    raise ValueError(f"{place}, column 'answers': {text!r} at {start}, where its context has {there!r}")


def _questions(
    answers: Sequence[Spans], truths: Sequence[Window]
) -> list[tuple[tuple[str, ...], list[tuple[Spans, Window]]]]:
    """The gold answers of each question, and what was found in its windows."""
    pairs = sorted(zip(answers, truths, strict=True), key=lambda pair: pair[1].question)
    groups = [list(group) for _, group in groupby(pairs, key=lambda pair: pair[1].question)]
    return [(group[0][1].golds, group) for group in groups]
