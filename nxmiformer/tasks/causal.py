"""Causal language modelling: the next token of a text, from those before it."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from nxmiformer.sets.fields import check_fields
from nxmiformer.tasks.batches import Examples, fills
from nxmiformer.tasks.plain import PlainText, Tally, foreseen, unigram
from nxmiformer.tasks.task import Chance
from nxmiformer.tasks.units import IGNORED, Outputs, Units, place_units


@dataclass(frozen=True, kw_only=True)
class Causal(PlainText):
    """Causal language modelling on plain text.

    All texts, joined, are cut into windows of `train.max_length` tokens. A window's first token has nothing before it,
    and is not predicted.

    Attributes:
        stride: tokens from the start of a window to that of the next; None: `train.max_length`, so that windows do not
            overlap. Of a window that overlaps, only the new tokens are scored, each with at least `train.max_length`
            less `stride` tokens before it. All tokens are trained on.
    """

    head: ClassVar[str] = "AutoModelForCausalLM"
    metric = "perplexity"
    name: str = "causal"
    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"task.stride={self.stride}: a window begins at least 1 token after the one before")

    def encode(
        self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, config: PretrainedConfig
    ) -> Examples:
        """Windows of tokens, padded on the right, whichever side the tokenizer pads.

        Raises:
            ValueError: a window would have one token, windows would not meet, or no token separates documents.
        """
        stride = max_length if self.stride is None else self.stride
        if max_length < 2:
            raise ValueError(f"train.max_length={max_length}: a token and the next are 2")
        if stride > max_length:
            raise ValueError(f"task.stride={stride}: windows of train.max_length={max_length} would leave tokens out")
        ids = self.stream(split, tokenizer, tokenizer.eos_token_id)
        features, truths = [], []
        for first in range(0, max(1, len(ids) - max_length + stride), stride):
            window, known = ids[first : first + max_length], max_length - stride if first else 0
            if len(window) < 2:
                continue
            labels = array("i", [IGNORED] * known) + window[known:]
            features.append({"input_ids": window, "attention_mask": array("i", [1] * len(window)), "labels": labels})
            truths.append(window[max(1, known) :])
        if not features:
            raise ValueError(f"task.path={self.path}: a split has {len(ids)} tokens, and none follows another")
        padding = {**fills(features[0], tokenizer), "labels": IGNORED}
        vary = None if stride == max_length else _all_counted
        return Examples(features, padding, {}, truths, limit=max_length, vary=vary)

    def units(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Units:
        """One of each token that is scored, of the logits at the place before it."""
        return place_units(outputs["logits"], F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED))

    def score(self, answers: Sequence[Tally], truths: Sequence[Any]) -> dict[str, float]:
        """The loss of a token in nats, and the perplexity e ** loss.

        Windows have `train.max_length` tokens, `task.stride` apart. The report has both, as a perplexity falls with
        the tokens that come before. It is by token, and not comparable with that of another tokenizer.
        """
        return foreseen(answers)

    def measured(self, max_length: int) -> str:
        apart = max_length if self.stride is None else self.stride
        return f"by token, in windows of {max_length} tokens, {apart} apart"

    def chance(self, truths: Sequence[Any]) -> Chance:
        """The perplexity of how often each token occurs in these windows; see `unigram`."""
        return unigram(truths, self.metric)


def _all_counted(batch: dict[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:
    """The batch with every token to be learned from, those that overlap the window before too."""
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}
