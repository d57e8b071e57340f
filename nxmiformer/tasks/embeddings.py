"""Embeddings: the vectors that a model without a head gives texts, compared by their cosine."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.errors import unknown
from nxmiformer.layers.ranges import widened
from nxmiformer.sets.fields import check_fields
from nxmiformer.tasks.batches import Examples, cut_off, fills, rows_of
from nxmiformer.tasks.label_column import Numbers
from nxmiformer.tasks.metrics import chosen
from nxmiformer.tasks.outcomes import Direction, Number
from nxmiformer.tasks.rows import check_texts, require
from nxmiformer.tasks.table import Table
from nxmiformer.tasks.task import Chance, Task, uncorrelated
from nxmiformer.tasks.units import Outputs, Units

log = logging.getLogger(__name__)

POOLINGS = ("mean", "first", "last")
CORRELATIONS = ("spearman", "pearson")
RECALL = "recall_at_1"
SECOND = "second_"  # before the names of the rows of a pair's second text
COUNTED = "counted"  # 1 for a token of a text, 0 for padding; some models take no `attention_mask`
CHUNK = 2**24  # cosines that are computed at once, at most


@dataclass(frozen=True, kw_only=True)
class Embeddings(Table, Task):
    """The embeddings of pairs of texts, by a model without a head.

    There is no loss of the task's own: the dense model is the checkpoint as it is, and the compressed one learns its
    embeddings by distillation, from texts alone. How good they are is measured on pairs of texts. With a label, by the
    rank correlation of the cosine of a pair with it, as on STS (Reimers and Gurevych 2019, arXiv 1908.10084, section
    4.1). Without one, by how often a text finds the other of its pair: `recall_at_1`.

    Attributes:
        columns: the text columns of a pair; or one column of plain text, each text of which is cut in two halves that
            make a pair, much as in the inverse cloze task (Lee et al. 2019, arXiv 1906.00300, section 4). Texts of
            fewer than two words are then left out.
        label: the column of a number that says how similar a pair is; None: there is none.
        pooling: what is the vector of a text: the mean of its tokens, or its first or last one.
        metric: spearman or pearson with a label, recall_at_1 without; None: the first of these that fits.
    """

    head: ClassVar[str] = "AutoModel"
    targets: ClassVar[tuple[str, ...]] = ()
    learns: ClassVar[bool] = False
    unseen: ClassVar[tuple[str, ...]] = (COUNTED, SECOND + COUNTED)
    name: str = "embeddings"
    columns: Sequence[str] = ("text",)
    label: str | None = None
    pooling: Literal["mean", "first", "last"] = "mean"
    metric: str | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        if not 1 <= len(self.columns) <= 2 or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"task.columns={list(self.columns)}: name one text column, or the two of a pair")
        if self.pooling not in POOLINGS:
            raise unknown("task.pooling of embeddings", self.pooling, POOLINGS)
        if self.label is not None and len(self.columns) < 2:
            raise ValueError(
                f"task.label={self.label} says how similar two texts are, and task.columns={list(self.columns)} names "
                "one: name two columns, or leave the label out"
            )
        metrics = CORRELATIONS if self.label is not None else (RECALL,)
        if self.metric not in (None, *metrics):
            given = "without task.label" if self.label is None else "with task.label"
            raise unknown(f"task.metric of embeddings {given}", self.metric, metrics)
        object.__setattr__(self, "metric", self.metric or metrics[0])

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.columns, *([self.label] if self.label is not None else []))

    def splits(self) -> datasets.DatasetDict:
        """Read from `path`; a ValueError names the row that is not as the task has it."""
        return self.table(self._checked)

    def _checked(self, rows: datasets.Dataset, where: str) -> datasets.Dataset:
        require(rows, self.columns, where)
        check_texts(rows, self.columns, where)
        kept = rows.select_columns(list(self.columns))
        if self.label is not None:
            labels, feature = Numbers(self.label).read(rows, where)
            kept = kept.add_column(self.label, labels, feature=feature)
        if len(self.columns) == 2:
            return kept
        whole = kept.select([i for i, text in enumerate(kept[self.columns[0]][:]) if len(text.split()) > 1])
        if short := len(kept) - len(whole):
            log.info("%s: %d texts of fewer than two words have no halves, and are left out", where, short)
        return whole

    def encode(
        self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, config: PretrainedConfig
    ) -> Examples:
        """Pairs of texts, each truncated to `max_length` tokens, and the shorter padded to the length of the longer: on
        the right, whichever side the tokenizer pads, for absolute positions move with padding on the left.

        Raises:
            ValueError: the model has an encoder and a decoder, so that it is not clear which of them embeds; or no text
                has two words.
        """
        if config.is_encoder_decoder:
            raise ValueError(
                f"task=embeddings: a model of type {config.model_type} has an encoder and a decoder, and embeddings "
                "are of one of them: save that part as a model of its own, such as model.get_encoder()"
            )
        columns = self._pairs(split)
        if not columns[0]:
            raise ValueError(f"task.path={self.path}: no text of a split has two words, to be cut in two")
        found = [tokenizer(texts, truncation=True, max_length=max_length) for texts in columns]
        padding = {**fills(found[0], tokenizer), COUNTED: 0}
        features = []
        for first, second in zip(*map(rows_of, found), strict=True):
            width = max(len(first["input_ids"]), len(second["input_ids"]))
            each, other = (
                {name: row + [padding[name]] * (width - len(row)) for name, row in {**rows, COUNTED: real}.items()}
                for rows, real in ((text, [1] * len(text["input_ids"])) for text in (first, second))
            )
            features.append({**each, **{SECOND + name: row for name, row in other.items()}})
        truths = [None] * len(features) if self.label is None else split[self.label][:]
        cut = sum(cut_off(*each, tokenizer) for each in zip(found, ([texts] for texts in columns), strict=True))
        both = {**padding, **{SECOND + name: fill for name, fill in padding.items()}}
        return Examples(features, both, {}, truths, "right", max_length, cut)

    def _pairs(self, split: datasets.Dataset) -> list[list[str]]:
        """The first and the second texts."""
        if len(self.columns) == 2:
            return [split[column][:] for column in self.columns]
        halves = [_halves(text) for text in split[self.columns[0]][:]]
        return [[first for first, _ in halves], [second for _, second in halves]]

    def told(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first texts, and below them the second ones."""
        return {name: _below(batch, name) for name in batch if not name.startswith(SECOND) and name not in self.unseen}

    def units(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Units:
        """The vector of each text, of length 1."""
        states = outputs["last_hidden_state"]
        mask = _below(batch, COUNTED)
        if states.shape[:2] != mask.shape:
            raise ValueError(
                f"task=embeddings: of texts {tuple(mask.shape)} the model gives states {tuple(states.shape)}, which "
                "are not one a token"
            )
        vectors = F.normalize(pooled(widened(states), mask, self.pooling), dim=-1)
        count = len(vectors) // 2
        owner = torch.arange(count, device=vectors.device).repeat(2)
        return Units(vectors, vectors.new_zeros(len(vectors), 0), owner, Direction())

    def answers(
        self, units: Units, batch: Mapping[str, Tensor], model: PreTrainedModel | None = None
    ) -> list[np.ndarray]:
        """The two vectors of each pair, (2, width)."""
        first, second = units.logits.detach().cpu().chunk(2)
        return list(torch.stack([first, second], 1).numpy())

    def score(self, answers: Sequence[Any], truths: Sequence[Any]) -> dict[str, float]:
        """The correlations of the cosine of a pair with its label; or the share of texts, of all that are one of a
        pair, to which no other text is nearer than the second of the pair."""
        pairs = np.stack(answers)
        if self.label is None:
            return {RECALL: recall(torch.from_numpy(pairs))}
        cosines = (pairs[:, 0] * pairs[:, 1]).sum(-1)
        true = np.asarray(truths)
        return {name: chosen(name, Number(), 1)(true, cosines) for name in CORRELATIONS}

    def chance(self, truths: Sequence[Any]) -> Chance:
        if self.label is not None:
            return uncorrelated(len(truths))
        others = max(1, 2 * len(truths) - 1)
        return Chance(1 / others, math.sqrt((1 - 1 / others) / others / (2 * len(truths))))

    def measured(self, max_length: int) -> str:
        return f"by the {self.pooling} of the last hidden states of at most {max_length} tokens"


def pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector a text, (texts, width), of the states (texts, tokens, width) that the mask (texts, tokens) counts."""
    counted = mask.bool()
    if pooling == "mean":
        kept = states.masked_fill(~counted[..., None], 0.0)
        return kept.sum(1) / counted.sum(1, keepdim=True).clamp(min=1)
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    place = places.masked_fill(~counted, mask.shape[1]).amin(1) if pooling == "first" else (places * counted).amax(1)
    return states[torch.arange(len(states), device=states.device), place.clamp(max=mask.shape[1] - 1)]


def recall(pairs: Tensor) -> float:
    """The share of texts whose nearest other text, by the cosine, is the one they are paired with.

    Args:
        pairs: (pairs, 2, width), vectors of length 1, on the CPU. A tie is not a find.
    """
    count = len(pairs)
    texts = pairs.transpose(0, 1).flatten(0, 1)
    partner = torch.arange(2 * count, device="cpu").roll(count)
    found = 0
    for rows in torch.arange(2 * count, device="cpu").split(max(1, CHUNK // (2 * count))):
        cosines = texts[rows] @ texts.t()
        theirs = cosines.gather(1, partner[rows, None])
        others = cosines.scatter(1, torch.stack([rows, partner[rows]], 1), -math.inf)
        found += int((theirs[:, 0] > others.amax(1)).sum())
    return found / (2 * count)


def _halves(text: str) -> tuple[str, str]:
    """The first and the second half of its words."""
    words = text.split()
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def _below(batch: Mapping[str, Tensor], name: str) -> Tensor:
    """The rows of the first texts, and below them those of the second ones."""
    return torch.cat([batch[name], batch[SECOND + name]])
