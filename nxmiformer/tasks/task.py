"""The interface of a task: its head, its data, the units of the outputs that are compared, and its score.

Every part of the program uses a task through this interface alone.
"""

import abc
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.tasks.batches import Examples
from nxmiformer.tasks.scale import Better, better
from nxmiformer.tasks.units import Outputs, Units

log = logging.getLogger(__name__)

MARGIN = 2.0  # standard errors by which a score must be better than chance to tell of a model that reads


@dataclass(frozen=True)
class Chance:
    """The score of the best answer that does not look at the text, and its standard error on so many examples."""

    score: float
    error: float
    better: Better = "higher"

    @property
    def limit(self) -> float:
        """What such an answer may score: a model that scores no better is no better than chance."""
        return self.score + (MARGIN if self.better == "higher" else -MARGIN) * self.error

    def beaten(self, score: float) -> bool:
        """Whether a score is better than chance."""
        return score > self.limit if self.better == "higher" else score < self.limit


class Task(abc.ABC):
    """A task.

    Attributes:
        name: short lower-case name, as it appears in reports.
        metric: the key of `score`'s result that tables show; see `scale` for how it is read.
        reads: the columns of its splits that it reads.
        labels: the class names, in the order of a model's outputs; empty where there are no classes.
        vocabulary: all words of its texts; empty: they may be any.
        head: the name of the `Auto` class of `transformers` that gives the model.
        targets: the parts of a batch that are the model's targets, not inputs.
        unseen: the parts that are never passed to a model: `units` reads them.
        learns: whether a model of this head gives a loss of its own. Otherwise the dense model is the checkpoint as it
            is, and the compressed one learns by distillation alone.
    """

    name: str
    metric: str
    reads: tuple[str, ...]
    labels: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    head: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = ("labels",)
    unseen: ClassVar[tuple[str, ...]] = ()
    learns: ClassVar[bool] = True

    @abc.abstractmethod
    def splits(self) -> datasets.DatasetDict:
        """The splits `train`, `holdout` and `validation`.

        `holdout` is cut from the training data. All choices by score (an interval, a checkpoint, a learning rate) are
        made on it. `validation` is read for the reported score only.
        """

    @abc.abstractmethod
    def encode(
        self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, config: PretrainedConfig
    ) -> Examples:
        """The examples of a split, of at most `max_length` tokens each, for a model of this configuration."""

    @abc.abstractmethod
    def units(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Units:
        """The units of a model's outputs on a batch with its targets.

        The model's own loss is a mean over them: by their number several processes weigh theirs.
        """

    def everywhere(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Units:
        """As `units`, but for every token except padding, for a task that scores only some."""
        return self.units(outputs, batch)

    @abc.abstractmethod
    def answers(self, units: Units, batch: Mapping[str, Tensor], model: PreTrainedModel | None = None) -> list[Any]:
        """What `score` needs of each example of a batch, in order.

        Args:
            model: what gave the units, for a task whose answers are written token by token; None where there are only
                its outputs, as of an export: then what is answered comes from the units.
        """

    @abc.abstractmethod
    def score(self, answers: Sequence[Any], truths: Sequence[Any]) -> dict[str, float]:
        """The metrics, from the answers of all examples and their `Examples.truths`; shares are fractions of 1."""

    def chance(self, truths: Sequence[Any]) -> Chance:
        """By `metric`, on examples with these truths; 0 where nothing is right by chance."""
        return Chance(0.0, 0.0)

    def measured(self, max_length: int) -> str:
        """What else a score depends on, in words for the report: such as the windows of a perplexity. Empty: nothing.

        Args:
            max_length: tokens of an example, at most.
        """
        return ""

    def configure(self) -> dict[str, Any]:
        """The changes to the model's configuration: labels, kind of problem."""
        return {}

    def in_order(self, names: Sequence[str]) -> "Task":
        """The task with its classes numbered as a model numbers them, whose classes have these names; itself where that
        is its own order, or where the names are not the task's."""
        return self

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch without its targets: keyword arguments of the model."""
        return {name: tensor for name, tensor in self.told(batch).items() if name not in self.targets}

    def told(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch with its targets: keyword arguments of a model that is to give its loss."""
        return {name: tensor for name, tensor in batch.items() if name not in self.unseen}

    def improves(self, score: float, best: float | None) -> bool:
        """Whether a score by `metric` is better than the best so far; None is worse than any."""
        return best is None or (score > best if better(self.metric) == "higher" else score < best)


def encode_splits(
    splits: datasets.DatasetDict,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    config: PretrainedConfig,
) -> dict[str, Examples]:
    """The splits of a task by name, tokenised; how many of their texts are cut off is logged."""
    data = {name: task.encode(split, tokenizer, max_length, config) for name, split in splits.items()}
    if any(examples.cut for examples in data.values()):
        told = [f"{examples.cut:,} of {len(examples):,} in {name}" for name, examples in data.items()]
        log.info("train.max_length=%d cuts texts off: %s", max_length, ", ".join(told))
    return data


def uncorrelated(examples: int) -> Chance:
    """A correlation of what has nothing to do with the labels: under independence, its variance is 1 / (n - 1)."""
    return Chance(0.0, 1 / math.sqrt(max(1, examples - 1)))
