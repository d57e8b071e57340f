"""Masked language modelling (Devlin et al. 2019, arXiv 1810.04805)."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import datasets
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from nxmiformer.errors import unknown
from nxmiformer.sets.fields import check_fields
from nxmiformer.tasks.batches import Examples, fills
from nxmiformer.tasks.plain import PlainText, Tally, foreseen, right, unigram
from nxmiformer.tasks.task import Chance
from nxmiformer.tasks.units import IGNORED, Outputs, Units, place_units

METRICS = ("accuracy", "perplexity", "loss")
HIDDEN, KEPT = 0.8, 0.1  # shares of the masked tokens that the mask takes the place of, and that stay as they are


@dataclass(frozen=True, kw_only=True)
class Masked(PlainText):
    """Masked language modelling on plain text.

    In training, other tokens are masked each time that a window is seen. Elsewhere they are always the same, determined
    by the number of the window.

    Attributes:
        packed: join all texts and cut them into windows of `train.max_length` tokens (as Liu et al. 2019, arXiv
            1907.11692, section 4.2, FULL-SENTENCES). Otherwise each text is a window, truncated there, and blank texts
            are left out.
        share_masked: share of a window's tokens that are masked, at least one token; special tokens are never masked.
        metric: accuracy, perplexity or loss, of the masked tokens.
    """

    head: ClassVar[str] = "AutoModelForMaskedLM"
    name: str = "masked"
    packed: bool = True
    share_masked: float = 0.15
    metric: Literal["accuracy", "perplexity", "loss"] = "accuracy"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        if self.metric not in METRICS:
            raise unknown("task.metric of masked words", self.metric, METRICS)
        if not 0 < self.share_masked < 1:
            raise ValueError(
                f"task.share_masked={self.share_masked}: a share of the tokens is in (0, 1); BERT has 0.15"
            )
        if self.between is not None and not self.packed:
            raise ValueError(
                f"task.between={self.between!r} joins texts, and task.packed=false keeps them apart: leave one out"
            )

    @property
    def joint(self) -> str | None:
        return super().joint if self.packed else None

    def encode(
        self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, config: PretrainedConfig
    ) -> Examples:
        """Windows, some of whose tokens are masked.

        Raises:
            ValueError: the tokenizer has no mask token, or the special tokens leave no position for another.
        """
        if tokenizer.mask_token_id is None:
            raise ValueError(
                "the tokenizer has no mask token, which replaces the masked words: give a model that was "
                "trained with one, such as bert-base-uncased, or take task=causal"
            )
        windows, cut = self._windows(split, tokenizer, max_length)
        masking = Masking(tokenizer, self.share_masked)
        features, truths = [], []
        for number, window in enumerate(windows):
            ids, labels = masking(torch.tensor([window], device="cpu"), torch.Generator().manual_seed(number))
            rows = {"input_ids": ids[0], "labels": labels[0], "attention_mask": torch.ones_like(ids[0])}
            if "token_type_ids" in tokenizer.model_input_names:
                rows["token_type_ids"] = torch.zeros_like(ids[0])
            features.append({name: array("i", row.tolist()) for name, row in rows.items()})
            truths.append(array("i", labels[labels != IGNORED].tolist()))
        if not features:
            raise ValueError(f"task.path={self.path}: the texts of a split are all blank")
        padding = {**fills(features[0], tokenizer), "labels": IGNORED}
        return Examples(features, padding, {}, truths, limit=max_length, cut=cut, vary=masking.again)

    def _windows(
        self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> tuple[list[Sequence[int]], int]:
        """The tokens of each window, and how many texts were cut off."""
        before, after = _frame(tokenizer)
        room = max_length - len(before) - len(after)
        if room < 1:
            raise ValueError(
                f"train.max_length={max_length}: {len(before) + len(after)} special tokens leave no position for a word"
            )
        texts = self._packed(split, tokenizer, room) if self.packed else self.texts(split, tokenizer)
        windows: list[Sequence[int]] = []
        cut = 0
        for ids in texts:
            cut += len(ids) > room
            windows.append([*before, *ids[:room], *after])
        return windows, cut

    def _packed(
        self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, room: int
    ) -> Iterator[Sequence[int]]:
        end = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
        ids = self.stream(split, tokenizer, end)
        yield from (ids[first : first + room] for first in range(0, len(ids), room))

    def units(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Units:
        """One of each masked token."""
        return place_units(outputs["logits"], batch["labels"])

    def everywhere(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Units:
        return place_units(outputs["logits"], batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED))

    def score(self, answers: Sequence[Tally], truths: Sequence[Any]) -> dict[str, float]:
        """The share of masked tokens that are predicted correctly, their loss in nats, and the perplexity e ** loss."""
        return {"accuracy": right(answers), **foreseen(answers)}

    def chance(self, truths: Sequence[Any]) -> Chance:
        """Of answering with how often each token is masked; see `unigram`."""
        return unigram(truths, self.metric)


class Masking:
    """Masks tokens as BERT does: 80 % of the chosen tokens become the mask token, 10 % a random word, and 10 % stay
    (Devlin et al. 2019, arXiv 1810.04805, section 3.1).

    As in BERT's own code, every row has its share of masked tokens, and at least one: a batch without any would have a
    loss of NaN. The collator of `transformers` draws for each token alone.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, share: float) -> None:
        self.mask, self.words, self.share = tokenizer.mask_token_id, len(tokenizer), share
        self.special = torch.tensor(sorted(tokenizer.all_special_ids), device="cpu")

    def __call__(self, ids: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """The tokens (rows, places) with masks, and as labels those that were masked; both on the CPU."""
        ordinary = ~torch.isin(ids, self.special)
        count = (self.share * ordinary.sum(-1, keepdim=True)).round().clamp(min=1)
        order = torch.rand(ids.shape, generator=draw, device="cpu").masked_fill(~ordinary, 2.0).argsort(-1).argsort(-1)
        chosen = ordinary & (order < count)
        how = torch.rand(ids.shape, generator=draw, device="cpu")
        others = torch.randint(self.words, ids.shape, generator=draw, device="cpu")
        hidden = ids.masked_fill(chosen & (how < HIDDEN), self.mask)
        return torch.where(chosen & (how >= HIDDEN + KEPT), others, hidden), ids.masked_fill(~chosen, IGNORED)

    def again(self, batch: dict[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:
        """The batch with other tokens masked."""
        ids, labels, device = batch["input_ids"], batch["labels"], batch["labels"].device
        masked, hidden = self(torch.where(labels == IGNORED, ids, labels).cpu(), draw)
        return {**batch, "input_ids": masked.to(device), "labels": hidden.to(device)}


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before a text, and those after."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    first = special.index(0)
    last = len(special) - special[::-1].index(0)
    return ids[:first], ids[last:]
