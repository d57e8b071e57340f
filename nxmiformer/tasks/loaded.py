"""Your own batches, such as those of a DataLoader, as a task."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from nxmiformer.tasks.batches import Examples, fills
from nxmiformer.tasks.labelled import LabelledTexts
from nxmiformer.tasks.metrics import metrics_of

MASK = "attention_mask"


@dataclass(frozen=True, eq=False)
class Loaded(LabelledTexts):
    """Tokenised examples with a class or a number each, taken once from batches, whose order does not matter.

    Attributes:
        train: batches by name: `input_ids`, `attention_mask` and whatever else the model takes, (batch, tokens), and
            `labels` (batch,), integers for classes, floats for numbers.
        evaluation: batches of the reported score; None: a tenth of the examples of `train`.
        labels: the names of the classes, in the order of the model's outputs; none for numbers.
    """

    train: Iterable[Mapping[str, Tensor]]
    evaluation: Iterable[Mapping[str, Tensor]] | None = None
    labels: tuple[str, ...] = ()
    name: str = "batches"
    metric: str = field(init=False)
    columns: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", "accuracy" if self.labels else "pearson")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("row", "label")

    def splits(self) -> datasets.DatasetDict:
        """A `row` of tokens by name and a `label` an example.

        Raises:
            ValueError: a batch has no labels, not one a row, or a label that is not a class.
        """
        whole = self._rows(self.train, "train_data")
        found = {} if self.evaluation is None else {"validation": self._rows(self.evaluation, "eval_data")}
        for name in ("holdout", "validation"):
            if name not in found:
                if len(whole) < 2:
                    raise ValueError(f"train_data: of {len(whole)} examples no {name} can be cut")
                parts = whole.train_test_split(test_size=max(1, len(whole) // 10), seed=0)
                whole, found[name] = parts["train"], parts["test"]
        return datasets.DatasetDict(train=whole, holdout=found["holdout"], validation=found["validation"])

    def _rows(self, batches: Iterable[Mapping[str, Tensor]], where: str) -> datasets.Dataset:
        rows: list[dict[str, Any]] = []
        for number, batch in enumerate(batches):
            rows += self._of(batch, f"{where}, batch {number} (the first is 0)")
        return datasets.Dataset.from_list(rows)

    def _of(self, batch: Mapping[str, Tensor], where: str) -> list[dict[str, Any]]:
        names = [name for name in batch if name != "labels"]
        labels = batch.get("labels")
        if labels is None or "input_ids" not in names:
            raise ValueError(f"{where} has {sorted(batch)}, but input_ids and labels are expected")
        if labels.ndim != 1:
            raise ValueError(
                f"{where}: labels are {tuple(labels.shape)}, but one an example is expected: give a Dataset"
            )
        bad = [each for each in labels.tolist() if self.labels and each not in range(len(self.labels))]
        if bad:
            raise ValueError(f"{where}: label {bad[0]} is none of the {len(self.labels)} classes, {list(self.labels)}")
        real = batch[MASK].bool() if MASK in batch else torch.ones_like(batch["input_ids"]).bool()
        return [
            {"row": {name: batch[name][i][real[i]].tolist() for name in names}, "label": labels[i].item()}
            for i in range(len(labels))
        ]

    def encode(
        self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, config: PretrainedConfig
    ) -> Examples:
        """The rows as they are: a ValueError names the first that is longer than `max_length`."""
        rows, labels = split["row"][:], self.targets_of(split)
        long = [number for number, row in enumerate(rows) if len(row["input_ids"]) > max_length]
        if long:
            raise ValueError(
                f"an example has {len(rows[long[0]]['input_ids'])} tokens, and train.max_length={max_length}; so have "
                f"{len(long)} of {len(rows)}"
            )
        padding = fills(rows[0], tokenizer)
        return Examples(rows, padding, {"labels": labels}, labels.tolist(), tokenizer.padding_side, max_length)

    def score(self, answers: Sequence[Any], truths: Sequence[Any]) -> dict[str, float]:
        """By the metrics of classes, or of numbers."""
        rows, known = np.asarray(answers), np.asarray(truths)
        predicted = rows.argmax(-1) if self.labels else rows[:, 0]
        names = ("accuracy", "macro_f1") if self.labels else ("pearson", "spearman")
        metrics = metrics_of(self.outcome, self.outputs)
        return {name: metrics[name](known, predicted) for name in names}
