"""What a task is: its text columns, its labels, its splits and its official score."""

import abc
import math
from dataclasses import dataclass

import datasets
import numpy as np

MARGIN = 2.0  # standard errors by which a score must be above chance to tell of a model that reads


@dataclass(frozen=True)
class Chance:
    """The score of the best answer that does not look at the text, and its standard error on so many examples."""

    score: float
    error: float

    @property
    def most(self) -> float:
        """What such an answer may score: a model that scores no more is no better than chance."""
        return self.score + MARGIN * self.error


class Task(abc.ABC):
    """A labelled text task.

    Attributes:
        name: short lower-case name, as it appears in reports.
        columns: the one or two text columns, in the order the tokenizer takes them.
        labels: the class names, in label order; empty for a regression task.
        metric: the key of `score`'s result that stands for the task in every table.
        span: the least and the largest label of a regression; None: any number.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str
    span: tuple[float, float] | None = None

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

    def chance(self, labels: np.ndarray) -> Chance:
        """By `metric`, on examples with these labels (examples,): the share of the largest class, which is what always
        answering with it scores in accuracy; 0 for a correlation."""
        if not self.labels:
            return uncorrelated(len(labels))
        most = float(np.bincount(labels).max() / len(labels))
        return Chance(most, math.sqrt(most * (1 - most) / len(labels)))


def uncorrelated(examples: int) -> Chance:
    """A correlation of what has nothing to do with the labels: under independence, its variance is 1 / (n - 1)."""
    return Chance(0.0, 1 / math.sqrt(max(1, examples - 1)))
