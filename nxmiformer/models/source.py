"""Where a model and its tokenizer come from."""

import abc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nxmiformer.console.quiet import quiet
from nxmiformer.errors import unknown
from nxmiformer.layers.support import take_supports
from nxmiformer.models import embedded
from nxmiformer.models.checkpoint import check_loaded
from nxmiformer.models.labels import class_names, name_classes
from nxmiformer.models.shallow import shallow
from nxmiformer.tasks.task import Task

DTYPES = ("float32", "bfloat16")


class Source(abc.ABC):
    """Gives a model for a task, and the tokenizer that goes with it.

    Attributes:
        name: name in reports.
        finetuned: whether the model is already fine-tuned on the task. Then the dense phases take no step.
    """

    name: str
    finetuned: bool = False

    @abc.abstractmethod
    def tokenizer(self, task: Task) -> PreTrainedTokenizerBase:
        """The tokenizer."""

    @abc.abstractmethod
    def model(self, task: Task, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
        """The float32 model with the head that `task` asks for; new weights depend on `seed` alone."""

    def taught(self, task: Task, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | None:
        """The dense model of the task that is the teacher and the baseline, if it is not that of the dense phases."""
        return None


@dataclass(frozen=True)
class Pretrained(Source):
    """A checkpoint that `transformers` reads: a name on the hub, or a local directory.

    A head that the checkpoint lacks, or that has another number of outputs, is newly initialized. Code that comes with
    a checkpoint is not run.

    Attributes:
        revision: revision of the checkpoint on the hub: a branch, a tag or a commit; None: the main one.
        dtype: of the weights in training and in the packed model, "float32" or "bfloat16". The second is for models
            that are not trained, and `convert` warns about it.
        labels: the task's class names in the order of the model's outputs; None: as the checkpoint names them.
        finetuned: the checkpoint is already fine-tuned on this task: its head is used, and no dense model is trained
            first.
        teacher: the directory of a dense model of this architecture and task, of any size; see `taught`.
        keep_layers: numbers of the layers that stay, from 0; None: all; see `shallow`.
    """

    path: str
    name: str = ""
    revision: str | None = None
    dtype: str = "float32"
    labels: Sequence[str] | None = None
    finetuned: bool = False
    teacher: str | None = None
    keep_layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.path.startswith((".", "/", "~")) and not Path(self.path).expanduser().is_dir():
            raise ValueError(f"model.path={self.path}: there is no such directory")
        if self.dtype not in DTYPES:
            raise unknown("model.dtype", self.dtype, DTYPES)
        if self.finetuned and self.keep_layers is not None:
            raise ValueError(
                "model.finetuned=true takes no dense step, and model.keep_layers needs some: leave out one of them"
            )
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).name)

    @property
    def _place(self) -> str:
        """What `transformers` is given: the expanded path of a directory, or the name on the hub."""
        local = Path(self.path).expanduser()
        return str(local) if local.is_dir() else self.path

    @property
    def _revision(self) -> str:
        return self.revision or "main"

    def tokenizer(self, task: Task) -> PreTrainedTokenizerBase:
        try:
            with self._own_code():
                tokenizer = AutoTokenizer.from_pretrained(self._place, revision=self._revision, trust_remote_code=False)
        except ImportError as error:
            if "sentencepiece" not in str(error).lower():
                raise
            remedy = "pip install 'nxmiformer[translation]'"
            raise ValueError(f"model.path={self.path}: its tokenizer needs sentencepiece: {remedy}") from error
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a directory without its files
            raise ValueError(f"model.path={self.path}: there is no tokenizer, or one without words")
        return tokenizer

    def model(self, task: Task, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
        """See `Source.model`, `check_loaded` and `class_names`.

        Raises:
            ValueError: the checkpoint does not supply everything but a head, or its classes are not the task's.
        """
        if self.keep_layers is not None and not task.learns:
            raise ValueError(
                f"model.keep_layers: task={task.name} trains no dense model, and a model without some of its layers "
                "needs training: leave it out"
            )
        transformers.set_seed(seed)
        with quiet(), self._own_code():
            own = AutoConfig.from_pretrained(self._place, revision=self._revision, trust_remote_code=False).id2label
            model, report = getattr(transformers, task.head).from_pretrained(
                self._place,
                revision=self._revision,
                dtype=getattr(torch, self.dtype),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
                **task.configure(),
            )
        loaded = check_loaded(model, report, self.path)
        if self.finetuned and not loaded:
            raise ValueError(
                f"model.finetuned=true: {self.path} has no {type(model).__name__} for {task.name}, whose head would be "
                "newly initialized: leave it out, and the dense phase trains one"
            )
        if task.labels:
            theirs = [own[number] for number in sorted(own)]
            name_classes(model.config, class_names(theirs, task, loaded, self.labels, self.path))
        take_supports(model, Path(self._place))
        return model if self.keep_layers is None else self._shallow(model)

    def _shallow(self, model: PreTrainedModel) -> PreTrainedModel:
        assert self.keep_layers is not None
        try:
            return shallow(model, list(self.keep_layers))
        except ValueError as error:
            raise ValueError(f"model.keep_layers: {error}") from error

    def taught(self, task: Task, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | None:
        if self.teacher is None:
            return None
        source = replace(self, path=self.teacher, name="", teacher=None, finetuned=True, keep_layers=None)
        if (Path(self.teacher) / "tokenizer.json").is_file() and (
            source.tokenizer(task).get_vocab() != tokenizer.get_vocab()
        ):
            raise ValueError(
                f"model.teacher={self.teacher} has another tokenizer than model.path={self.path}: the teacher would "
                f"read other words"
            )
        return source.model(task, tokenizer, 0)

    @contextmanager
    def _own_code(self) -> Iterator[None]:
        """Of a checkpoint that comes with code of its own, `transformers` says to trust it, which is not done."""
        try:
            yield
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise ValueError(
                f"model.path={self.path}: this checkpoint needs code that comes with it, which is never run: give one "
                "of an architecture that the installed transformers has"
            ) from error


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
        if not task.vocabulary:
            raise ValueError(
                f"model=embedded knows the words of task=grammar only, not those of {task.name!r}: give a model that "
                f"reads them, model=pretrained model.path=bert-base-uncased or the directory of another"
            )
        return embedded.tokenizer(task.vocabulary)

    def model(self, task: Task, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
        model = embedded.model(
            tokenizer,
            len(task.labels),
            seed=seed,
            hidden=self.hidden,
            layers=self.layers,
            heads=self.heads,
            intermediate=self.intermediate,
        )
        name_classes(model.config, task.labels)
        model.config.problem_type = task.configure()["problem_type"]
        return model
