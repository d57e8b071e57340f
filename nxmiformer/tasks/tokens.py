"""Tags of words: named entities, parts of speech."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import datasets
import numpy as np
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as of_entities
from sklearn import metrics
from torch import Tensor
from transformers import BatchEncoding, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.errors import unknown
from nxmiformer.tasks.batches import Examples, cut_off, fills, rows_of
from nxmiformer.tasks.chance import blind
from nxmiformer.tasks.order import order_of
from nxmiformer.tasks.outcomes import Classes
from nxmiformer.tasks.table import Table
from nxmiformer.tasks.tagged import UNSEEN, Columns, names_of, numbered
from nxmiformer.tasks.task import Chance, Task
from nxmiformer.tasks.told import Told
from nxmiformer.tasks.units import IGNORED, Outputs, Units, place_units

OUTSIDE = "O"
ENTITY = re.compile(r"[BIESLU]-.")  # of a tag that begins, goes on with, ends or is a whole entity
METRICS = {True: ("f1", "accuracy", "precision", "recall"), False: ("accuracy", "macro_f1")}  # of entities, or others
AS_SEQEVAL = {"L": "E", "U": "S"}  # the same in BILOU, by the letters of IOBES


class Tagged(NamedTuple):
    """The correct tags of a text.

    Attributes:
        tags: of all its words.
        seen: the numbers of the words that the model sees: not truncated, and with a token.
    """

    tags: Sequence[int]
    seen: Sequence[int]


class _Facts(NamedTuple):
    names: tuple[str, ...]  # as the data number them, or would
    labels: tuple[str, ...]  # as a model numbers them
    entities: bool
    metric: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Tokens(Table, Task):
    """A tag for each word of a text that is divided into words.

    The first token of a word predicts its tag. A word that the model does not see, because it is truncated or has no
    token, counts as wrong: it belongs to no entity, and lowers the accuracy whatever its tag is.

    Tags are entities where each is "O" or begins with B-, I-, E-, S- (or L-, U-): then the metric is seqeval's F1 of
    whole entities, with precision, recall and the accuracy over words. Else it is the accuracy over words, with the F1
    in the mean over the tags.

    Attributes:
        name: name in reports.
        words: the column of lists of words.
        tags: the column of lists of tags, their names or their numbers.
        labels: the names of all tags, where the training rows do not have each, or have numbers without names; None:
            as the data name them, else those that are in the training rows, sorted.
        order: the same names in the order of a model; see `in_order`.
        metric: f1 of entities, accuracy, precision, recall, or macro_f1 of other tags.
    """

    name: str = "tokens"
    words: str = "tokens"
    tags: str = "ner_tags"
    labels: Sequence[str] | None = Told()  # type: ignore[assignment]
    order: Sequence[str] | None = None
    metric: str | None = Told()  # type: ignore[assignment]

    head: ClassVar[str] = "AutoModelForTokenClassification"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = vars(self)["labels"]
        if self.words == self.tags:
            raise ValueError(f"task.words={self.words} and task.tags={self.tags}: they are two columns")
        if given is not None and len(set(given)) != max(2, len(given)):
            raise ValueError(f"task.labels={list(given)}: at least two, none twice")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.words, self.tags

    @property
    def _columns(self) -> Columns:
        return Columns(self.words, self.tags)

    @cached_property
    def facts(self) -> _Facts:
        """Facts from the training rows; a ValueError names what does not fit the task."""
        given, split = vars(self), self.train_split
        names = tuple(given["labels"] or names_of(self.rows(split), self._columns, self.where(split)))
        labels = tuple(self.order or names)
        if sorted(labels) != sorted(names):
            raise ValueError(f"task.order={list(labels)}: the tags of {self.name} are {list(names)}")
        entities = all(tag == OUTSIDE or ENTITY.match(tag) for tag in names)
        metric = given["metric"] or METRICS[entities][0]
        if metric not in METRICS[entities]:
            raise unknown(f"task.metric for tags such as {names[-1]}", metric, METRICS[entities])
        return _Facts(names, labels, entities, metric)

    def configure(self) -> dict[str, Any]:
        return {"num_labels": len(self.facts.labels)}

    def in_order(self, names: Sequence[str]) -> "Tokens":
        order = order_of(names, self.facts.labels)
        if order is None:
            return self
        return replace(self, labels=self.facts.names, order=[self.facts.labels[number] for number in order])

    def splits(self) -> datasets.DatasetDict:
        return self._splits

    @cached_property
    def _splits(self) -> datasets.DatasetDict:
        return self.table(self._checked)

    def _checked(self, rows: datasets.Dataset, where: str) -> datasets.Dataset:
        return numbered(rows, self._columns, self.facts.names, self.facts.labels, where)

    def encode(
        self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, config: PretrainedConfig
    ) -> Examples:
        """Texts of at most `max_length` tokens: the first of each word has its tag, others have none."""
        if not tokenizer.is_fast:
            raise ValueError(
                f"task=tokens needs to know which word a token is of, which {type(tokenizer).__name__} does not say: "
                "give a model with a fast tokenizer (tokenizer.json)"
            )
        texts = split[self.words][:]
        encoded = _tokens(texts, tokenizer, max_length)
        features, truths = [], []
        for number, (row, tags) in enumerate(zip(rows_of(encoded), split[self.tags][:], strict=True)):
            first = dict(_first(encoded.word_ids(number)))
            labels = [tags[first[place]] if place in first else IGNORED for place in range(len(row["input_ids"]))]
            features.append({**row, "labels": labels})
            truths.append(Tagged(tags, list(first.values())))
        padding = {**fills(encoded, tokenizer), "labels": IGNORED}
        return Examples(
            features, padding, {}, truths, tokenizer.padding_side, max_length, cut_off(encoded, [texts], tokenizer)
        )

    def units(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Units:
        """One of each word that the model sees; a ValueError for a model of another number of tags."""
        logits, labels = outputs["logits"], batch["labels"]
        if logits.shape != (*labels.shape, len(self.facts.labels)):
            raise ValueError(
                f"of {tuple(labels.shape)} positions the logits are {tuple(logits.shape)}, and the task has "
                f"{len(self.facts.labels)} tags"
            )
        return place_units(logits, labels)

    def answers(
        self, units: Units, batch: Mapping[str, Tensor], model: PreTrainedModel | None = None
    ) -> list[list[int]]:
        """Of each text the tags of the words that the model sees, in order.

        Raises:
            ValueError: the units were thinned, and whose they are is no longer known.
        """
        count = int((batch["labels"] != IGNORED).sum())
        if len(units) != count:
            raise ValueError(f"of {count} words there are {len(units)} units: lower search.examples")
        tags = units.logits.detach().argmax(-1).cpu().numpy()
        lengths = np.bincount(units.owner.cpu().numpy(), minlength=len(batch["labels"]))
        return [part.tolist() for part in np.split(tags, lengths.cumsum()[:-1])]

    def score(self, answers: Sequence[Any], truths: Sequence[Any]) -> dict[str, float]:
        """Of entities precision, recall, F1 and accuracy, as seqeval has them; of other tags accuracy and macro F1."""
        said = [_whole(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
        right = np.array([tag for truth in truths for tag in truth.tags])
        flat = np.array([tag for row in said for tag in row])
        accuracy = float((flat == right).mean())
        if not self.facts.entities:
            named = np.union1d(right, flat[flat != UNSEEN])
            f1 = metrics.f1_score(right, flat, labels=named, average="macro", zero_division=0.0)
            return {"accuracy": accuracy, "macro_f1": float(f1)}
        names = [AS_SEQEVAL.get(tag[0], tag[0]) + tag[1:] for tag in self.facts.labels] + [OUTSIDE]  # the last: UNSEEN
        pair = [[[names[tag] for tag in row] for row in rows] for rows in ([truth.tags for truth in truths], said)]
        precision, recall, f1, _ = of_entities(*pair, average="micro", zero_division=0)
        return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "accuracy": accuracy}

    def chance(self, truths: Sequence[Any]) -> Chance:
        """Of accuracy the share of the most frequent tag; who does not read finds no entity."""
        if self.facts.entities and self.facts.metric != "accuracy":
            return Chance(0.0, 0.0)
        return blind(self.facts.metric, Classes(), np.array([tag for truth in truths for tag in truth.tags]))


def _tokens(texts: list[list[str]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> BatchEncoding:
    """The words as they would be in a text. Some tokenizers take the space before a word for a part of it
    (`add_prefix_space`), and know a word without one as the rest of another."""
    plain, spaced = ["a", "a"], ["a", " a"]
    text, *parted = (tokenizer(each, is_split_into_words=each != "a a")["input_ids"] for each in ("a a", plain, spaced))
    if parted[0] != text and parted[1] == text:
        texts = [[word if not number else f" {word}" for number, word in enumerate(words)] for words in texts]
    return tokenizer(texts, is_split_into_words=True, truncation=True, max_length=max_length)


def _first(words: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """The place of each word's first token, and the word's number."""
    before = None
    for place, word in enumerate(words):
        if word is not None and word != before:
            yield place, word
        before = word


def _whole(answer: Sequence[int], truth: Tagged) -> list[int]:
    """A tag for each word, seen or not."""
    tags = [UNSEEN] * len(truth.tags)
    for number, tag in zip(truth.seen, answer, strict=False):  # a rehearsal has the answers of others
        tags[number] = tag
    return tags
