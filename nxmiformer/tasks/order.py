"""A task whose classes are numbered as a model numbers them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from nxmiformer.tasks.task import Chance, Task


def plain(name: str) -> str:
    """A label's name without case and signs: "Not-Entailment" is "not_entailment"."""
    return "".join(sign for sign in str(name).casefold() if sign.isalnum())


def in_order(task: Task, names: Mapping[Any, str] | None) -> Task:
    """The task with its classes in the order of a model's `id2label`; the task itself where that is its own order, or
    where the names are not the task's."""
    place = {plain(name): number for number, name in enumerate(task.labels)}
    theirs = [plain(name) for _, name in sorted((names or {}).items())]
    if sorted(theirs) != sorted(place) or theirs == list(place):
        return task
    return Reordered(task, tuple(place[name] for name in theirs))


@dataclass(frozen=True)
class Reordered(Task):
    """A task of classes in another order.

    Attributes:
        inner: the task, which scores.
        order: for each class of this one, the number that `inner` gives it.
    """

    inner: Task
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        labels = tuple(self.inner.labels[number] for number in self.order)
        for key, value in (("name", self.inner.name), ("columns", self.inner.columns), ("metric", self.inner.metric)):
            object.__setattr__(self, key, value)
        object.__setattr__(self, "labels", labels)

    def splits(self) -> datasets.DatasetDict:
        return datasets.DatasetDict({name: self._renumbered(rows) for name, rows in self.inner.splits().items()})

    def _renumbered(self, rows: datasets.Dataset) -> datasets.Dataset:
        labels = np.argsort(self.order)[np.asarray(rows["label"])]
        feature = datasets.ClassLabel(names=list(self.labels))
        return rows.remove_columns("label").add_column("label", labels, feature=feature)

    def score(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return self.inner.score(logits[:, np.argsort(self.order)], np.asarray(self.order)[labels])

    def chance(self, labels: np.ndarray) -> Chance:
        return self.inner.chance(np.asarray(self.order)[labels])
