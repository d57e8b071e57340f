"""What a task is: its text columns, its labels, its splits and its official score."""

import abc

import datasets
import numpy as np


class Task(abc.ABC):
    """A labelled text task.

    Attributes:
        name: short lower-case name, as it appears in reports.
        columns: the one or two text columns, in the order the tokenizer takes them.
        labels: the class names, in label order; empty for a regression task.
        metric: the key of `score`'s result that stands for the task in every table.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str

    @property
    def outputs(self) -> int:
        """Number of model outputs: one per class, one for a regression."""
        return len(self.labels) or 1

    @abc.abstractmethod
    def splits(self) -> datasets.DatasetDict:
        """The splits `train`, `holdout` and `validation`, each with the text columns and `label`.

        `holdout` is cut from the training data: every choice that is made by looking at a score (an interval, a
        checkpoint, a learning rate) looks at it. `validation` is read for the reported figure only.
        """

    @abc.abstractmethod
    def score(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The official metrics, as fractions (not per cent), from logits (examples, outputs) and labels (examples,)."""
