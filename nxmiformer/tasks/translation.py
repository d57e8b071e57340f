"""Translation, or any other text from a text, by a model with an encoder and a decoder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import datasets
from torch import Tensor
from transformers import BatchEncoding, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nxmiformer.console.quiet import quiet
from nxmiformer.errors import unknown
from nxmiformer.sets.fields import check_fields
from nxmiformer.tasks.batches import Examples, fills, rows_of
from nxmiformer.tasks.rows import check_texts, require
from nxmiformer.tasks.table import Table
from nxmiformer.tasks.task import Task
from nxmiformer.tasks.units import IGNORED, Outputs, Units, place_units

PAIRS = "translation"  # the column of data sets whose rows are {"en": ..., "de": ...}
METRICS = ("bleu", "chrf")


class Reference(NamedTuple):
    """The reference of a translation, and the tokenizer that decodes its tokens."""

    text: str
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Translation(Table, Task):
    """Translation of texts.

    The model is trained, and compared, on the reference: each token of it is predicted from those before it. The score
    is that of the text that the model generates.

    Attributes:
        columns: columns of the texts and of their translations, or their keys in the column `translation`.
        prefix: text before each input, such as "translate English to German: " for T5.
        beams: beams of the beam search; 1: greedy decoding.
        max_new_tokens: maximum length of a translation.
        metric: bleu (Papineni et al. 2002) or chrf (Popovic 2015).
    """

    head: ClassVar[str] = "AutoModelForSeq2SeqLM"
    name: str = "translation"
    columns: Sequence[str]
    prefix: str = ""
    beams: int = 1
    max_new_tokens: int = 128
    metric: Literal["bleu", "chrf"] = "bleu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        if len(self.columns) != 2 or self.columns[0] == self.columns[1]:
            raise ValueError(
                f"task.columns={list(self.columns)}: give two columns, of the texts and of their translations, such as "
                f"task.columns=[en,de]"
            )
        if self.metric not in METRICS:
            raise unknown("task.metric of a translation", self.metric, METRICS)
        for key in ("beams", "max_new_tokens"):
            if getattr(self, key) < 1:
                raise ValueError(f"task.{key}={getattr(self, key)}: it must be at least 1")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.columns)

    def splits(self) -> datasets.DatasetDict:
        """Read from `path`; a ValueError names the first row that is no pair of texts."""
        return self.table(self._checked)

    def _checked(self, rows: datasets.Dataset, where: str) -> datasets.Dataset:
        names = {f"{PAIRS}.{column}": column for column in self.columns}
        if PAIRS in rows.column_names and not set(self.columns) <= set(rows.column_names):
            rows = rows.flatten()
            if names.keys() <= set(rows.column_names):
                rows = rows.select_columns(list(names)).rename_columns(names)
        require(rows, self.columns, where)
        check_texts(rows, self.columns, where)
        return rows

    def encode(
        self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, config: PretrainedConfig
    ) -> Examples:
        """Texts and translations of at most `max_length` tokens each, padded on the right.

        The decoder is given the translation, shifted right, as the model's own `prepare_decoder_input_ids_from_labels`
        does it.

        Raises:
            ValueError: the model does not say what its decoder begins with, or has fewer than `max_new_tokens`
                positions.
        """
        begin = self._begin(config)
        sources, targets = (split[column][:] for column in self.columns)
        texts = [self.prefix + text for text in sources]

        def read(texts: list[str], **limit: Any) -> BatchEncoding:
            return tokenizer(texts, return_token_type_ids=False, return_attention_mask=True, verbose=False, **limit)

        def written(texts: list[str], **limit: Any) -> BatchEncoding:
            return tokenizer(text_target=texts, return_token_type_ids=False, verbose=False, **limit)

        encoded = read(texts, truncation=True, max_length=max_length)
        labels = written(targets, truncation=True, max_length=max_length)["input_ids"]
        features = [
            {**row, "decoder_input_ids": [begin, *target[:-1]], "labels": target}
            for row, target in zip(rows_of(encoded), labels, strict=True)
        ]
        padding = fills(features[0], tokenizer)
        padding |= {"decoder_input_ids": padding["input_ids"], "labels": IGNORED}
        cut = _cut(read, texts, encoded["input_ids"], max_length) | _cut(written, targets, labels, max_length)
        truths = [Reference(text, tokenizer) for text in targets]
        return Examples(features, padding, {}, truths, limit=max_length, cut=len(cut))

    def _begin(self, config: PretrainedConfig) -> int:
        """The token that the decoder of a model of this configuration begins with."""
        begin = getattr(config, "decoder_start_token_id", None)
        if not isinstance(begin, int):
            raise ValueError(
                f"decoder_start_token_id={begin} in config.json: give the token that the decoder begins with, such as "
                f"the padding token for T5 and Marian"
            )
        places = getattr(config, "max_position_embeddings", None)
        if places is not None and self.max_new_tokens >= places:
            raise ValueError(
                f"task.max_new_tokens={self.max_new_tokens}: the model has positions for {places} tokens, and the "
                f"first is taken by what it begins with: give at most {places - 1}"
            )
        return begin

    def units(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Units:
        """One of each token of a translation."""
        return place_units(outputs["logits"], batch["labels"])

    def answers(
        self, units: Units, batch: Mapping[str, Tensor], model: PreTrainedModel | None = None
    ) -> list[list[int]]:
        """The tokens of the translation that a model writes; without one, the likeliest at each place of the reference.

        Raises:
            ValueError: without a model, units are missing.
        """
        if model is None:
            return self._likeliest(units, batch["labels"])
        inputs = {name: each for name, each in self.inputs(batch).items() if not name.startswith("decoder_")}
        options = {"num_beams": self.beams, "max_new_tokens": self.max_new_tokens, "do_sample": False}
        with quiet():  # its own max_length is passed over
            tokens: Tensor = model.generate(**inputs, **options)  # type: ignore[operator]
        rows: list[list[int]] = tokens[:, 1:].tolist()
        return rows

    @staticmethod
    def _likeliest(units: Units, labels: Tensor) -> list[list[int]]:
        counts = (labels != IGNORED).sum(-1).tolist()
        if len(units) != sum(counts):
            raise ValueError(
                f"a translation is read off all of its tokens, and {len(units)} of {sum(counts)} are kept: lower "
                f"search.examples"
            )
        tokens: list[list[int]] = [part.tolist() for part in units.logits.argmax(-1).split(counts)]
        return tokens

    def score(self, answers: Sequence[Sequence[int]], truths: Sequence[Reference]) -> dict[str, float]:
        """BLEU and chrF of all texts together, 0 to 100, as sacrebleu computes them by default (Post 2018, arXiv
        1804.08771), special tokens left out."""
        from sacrebleu.metrics import BLEU, CHRF

        written = truths[0].tokenizer.batch_decode([list(each) for each in answers], skip_special_tokens=True)
        references = [[truth.text for truth in truths]]
        scorers = {"bleu": BLEU(force=True), "chrf": CHRF()}  # force: without a word about texts that look tokenised
        return {name: each.corpus_score(written, references).score for name, each in scorers.items()}


def _cut(
    tokenise: Callable[..., BatchEncoding], texts: Sequence[str], rows: Sequence[Sequence[int]], most: int
) -> set[int]:
    """The numbers of the texts that did not fit into `most` tokens; only those that fill them are looked at again."""
    full = [number for number, row in enumerate(rows) if len(row) >= most]
    whole = tokenise([texts[number] for number in full])["input_ids"] if full else []
    return {number for number, row in zip(full, whole, strict=True) if len(row) > most}
