"""Where a model and its tokenizer come from."""

import abc
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.console.quiet import quiet
from nxmiformer.models import embedded
from nxmiformer.tasks.grammar import Grammar
from nxmiformer.tasks.task import Task


class Source(abc.ABC):
    """Gives a sequence classifier, and the tokenizer that goes with it.

    Attributes:
        name: how reports call it.
    """

    name: str

    @abc.abstractmethod
    def tokenizer(self, task: Task) -> PreTrainedTokenizerBase:
        """The tokenizer."""

    @abc.abstractmethod
    def model(self, task: Task, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
        """The float32 model with one output for each class of `task`; new weights depend on `seed` alone."""


@dataclass(frozen=True)
class Pretrained(Source):
    """A checkpoint that `transformers` reads: a name on the hub, or a local directory.

    A head that the checkpoint lacks, or that has another number of outputs, is drawn anew.
    """

    path: str
    name: str = ""

    def __post_init__(self) -> None:
        if self.path.startswith((".", "/", "~")) and not Path(self.path).expanduser().is_dir():
            raise ValueError(f"model.path={self.path}: there is no such directory")
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).name)

    @property
    def _place(self) -> str:
        """What `transformers` is given: the expanded path of a directory, or the name on the hub."""
        local = Path(self.path).expanduser()
        return str(local) if local.is_dir() else self.path

    def tokenizer(self, task: Task) -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(self._place)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a directory without its files
            raise ValueError(f"model.path={self.path}: there is no tokenizer, or one without words")
        return tokenizer

    def model(self, task: Task, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
        transformers.set_seed(seed)
        with quiet():
            return AutoModelForSequenceClassification.from_pretrained(
                self._place,
                dtype=torch.float32,
                num_labels=task.outputs,
                problem_type="single_label_classification" if task.labels else "regression",
                ignore_mismatched_sizes=True,
                **labels(task),
            )


@dataclass(frozen=True)
class Embedded(Source):
    """The small BERT of the embedded task, randomly initialised: nothing to download.

    Attributes:
        hidden, layers, heads, intermediate: its sizes.
    """

    hidden: int = 64
    layers: int = 3
    heads: int = 2
    intermediate: int = 256
    name: str = "embedded BERT"

    def tokenizer(self, task: Task) -> PreTrainedTokenizerBase:
        if not isinstance(task, Grammar):
            raise ValueError(
                f"model=embedded knows the words of task=grammar only, not those of {task.name!r}: give a model that "
                f"reads them, model=pretrained model.path=bert-base-uncased or the directory of another"
            )
        return embedded.tokenizer(task.vocabulary)

    def model(self, task: Task, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
        model = embedded.model(
            tokenizer,
            task.outputs,
            seed=seed,
            hidden=self.hidden,
            layers=self.layers,
            heads=self.heads,
            intermediate=self.intermediate,
        )
        model.config.update({**labels(task), "problem_type": "single_label_classification"})
        return model


def labels(task: Task) -> dict[str, dict]:
    """The names of a task's classes, as a `transformers` config takes them."""
    if not task.labels:
        return {}
    return {
        "id2label": dict(enumerate(task.labels)),
        "label2id": {name: number for number, name in enumerate(task.labels)},
    }
