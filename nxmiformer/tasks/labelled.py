"""The common part of all tasks with one or two labelled texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.tasks.batches import Examples, cut_off, fills, rows_of
from nxmiformer.tasks.chance import blind
from nxmiformer.tasks.metrics import chosen, predictions
from nxmiformer.tasks.order import order_of
from nxmiformer.tasks.outcomes import Classes, Labels, Number, Outcome
from nxmiformer.tasks.task import Chance, Task
from nxmiformer.tasks.units import Outputs, Units, whole_units

PROBLEMS = {"Classes": "single_label_classification", "Labels": "multi_label_classification", "Number": "regression"}


class LabelledTexts(Task):
    """A label, several labels or a number for each text, or pair of texts.

    Attributes:
        columns: the one or two text columns, in the order the tokenizer takes them.
        labels: the class names, in label order; empty for a regression.
        also: metrics that a score has besides `metric`.
    """

    head: ClassVar[str] = "AutoModelForSequenceClassification"
    columns: Sequence[str]
    also: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The text columns, and last the labels."""
        return (*self.columns, "label")

    @property
    def outcome(self) -> Outcome:
        """How the model's logits are read."""
        return Classes() if self.labels else Number()

    @property
    def outputs(self) -> int:
        """Number of model outputs: one a class, one for a regression."""
        return len(self.labels) or 1

    def configure(self) -> dict[str, Any]:
        return {"num_labels": self.outputs, "problem_type": PROBLEMS[type(self.outcome).__name__]}

    def encode(
        self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, config: PretrainedConfig
    ) -> Examples:
        """Texts truncated to `max_length` tokens, padded where the tokenizer pads."""
        columns = [split[column][:] for column in self.columns]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length)
        labels = self.targets_of(split)
        return Examples(
            rows_of(encoded),
            fills(encoded, tokenizer),
            {"labels": labels},
            labels.tolist(),
            tokenizer.padding_side,
            max_length,
            cut_off(encoded, columns, tokenizer),
        )

    def targets_of(self, split: datasets.Dataset) -> Tensor:
        """The labels of a split as the outcome has them: (examples,), or of several at once (examples, outputs)."""
        kind = torch.int64 if isinstance(self.outcome, Classes) else torch.float32
        return torch.tensor(split[self.reads[-1]][:], dtype=kind, device="cpu")

    def units(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Units:
        """One of each example; a ValueError for a model of another number of outputs."""
        shape, count = tuple(outputs["logits"].shape), len(batch["labels"])
        if shape != (count, self.outputs):
            raise ValueError(f"of {count} examples the logits are {shape}, and the task has {self.outputs} each")
        return whole_units(outputs, batch, self.outcome)

    def answers(
        self, units: Units, batch: Mapping[str, Tensor], model: PreTrainedModel | None = None
    ) -> list[np.ndarray]:
        """The row of logits of each example."""
        return list(units.logits.detach().cpu().numpy())

    def score(self, answers: Sequence[Any], truths: Sequence[Any]) -> dict[str, float]:
        """`metric` and those of `also`, by tasks.metrics."""
        true, said = np.asarray(truths), predictions(np.asarray(answers), self.outcome)
        wanted = dict.fromkeys((self.metric, *self.also))
        return {name: chosen(name, self.outcome, self.outputs)(true, said) for name in wanted}

    def chance(self, truths: Sequence[Any]) -> Chance:
        """By `metric`: see tasks.chance."""
        return blind(self.metric, self.outcome, np.asarray(truths))

    def in_order(self, names: Sequence[str]) -> "LabelledTexts":
        order = order_of(names, self.labels)
        return self if order is None else Reordered(self, order)


@dataclass(frozen=True)
class Reordered(LabelledTexts):
    """A task of classes, or of labels, in another order.

    Attributes:
        inner: the task, which scores.
        order: for each class of this one, the number that `inner` gives it.
    """

    inner: LabelledTexts
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        labels = tuple(self.inner.labels[number] for number in self.order)
        for key, value in (("name", self.inner.name), ("columns", self.inner.columns), ("metric", self.inner.metric)):
            object.__setattr__(self, key, value)
        object.__setattr__(self, "labels", labels)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.reads

    @property
    def outcome(self) -> Outcome:
        return self.inner.outcome

    def splits(self) -> datasets.DatasetDict:
        return datasets.DatasetDict({name: self._renumbered(rows) for name, rows in self.inner.splits().items()})

    def _renumbered(self, rows: datasets.Dataset) -> datasets.Dataset:
        column = self.reads[-1]
        theirs = np.asarray(rows[column])
        if isinstance(self.outcome, Labels):
            labels, feature = theirs[:, list(self.order)].tolist(), rows.features[column]
        else:
            labels, feature = np.argsort(self.order)[theirs], datasets.ClassLabel(names=list(self.labels))
        return rows.remove_columns(column).add_column(column, labels, feature=feature)

    def score(self, answers: Sequence[Any], truths: Sequence[Any]) -> dict[str, float]:
        back = np.argsort(self.order)
        return self.inner.score([np.asarray(row)[back] for row in answers], self._inner_truths(truths))

    def chance(self, truths: Sequence[Any]) -> Chance:
        return self.inner.chance(self._inner_truths(truths))

    def _inner_truths(self, truths: Sequence[Any]) -> list[Any]:
        """The truths as `inner` numbers them."""
        ours = np.asarray(truths)
        if isinstance(self.outcome, Labels):
            return ours[:, np.argsort(self.order)].tolist()
        return np.asarray(self.order)[ours].tolist()
