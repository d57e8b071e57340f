"""Answers as spans of a text: the windows that a model reads, the best spans of each, and the scores of SQuAD."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import datasets
import torch
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nxmiformer.tasks.batches import rows_of

CONTEXT = 1  # the second text of a pair, as `sequence_ids` numbers them
Place = tuple[int, int]  # where a token begins and ends in the context, in characters


class Window(NamedTuple):
    """The correct answer of a window.

    Attributes:
        question: its number in the split; all windows of a question are scored together.
        context: the whole text.
        places: of each token of the window where it is in the context; None for one that is not of the context.
        golds: the texts that are right; none where the question has no answer.
    """

    question: int
    context: str
    places: Sequence[Place | None]
    golds: tuple[str, ...]


class Spans(NamedTuple):
    """The answers of a model in a window.

    Attributes:
        null: the score of there being no answer: the sum of the two logits of the first token.
        best: scores, first and last places of the best spans, the best first.
    """

    null: float
    best: list[tuple[float, int, int]]


class Read(NamedTuple):
    """Questions as windows.

    Attributes:
        features: of each window the rows that the model reads.
        open: of each the places where an answer can begin or end as 1, and others as 0; the first says "no answer".
        ends: of each the first and the last place of the answer; 0 and 0 where it has none, or not the whole.
        truths: of each what its answer is held against.
    """

    features: list[dict[str, list[int]]]
    open: list[list[int]]
    ends: list[Place]
    truths: list[Window]


def read(split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> Read:
    """The questions of a split with their contexts, each in as many windows as its context takes.

    Where an answer is in a window is found as by `run_qa` of `transformers`: from the last token that begins no later
    than it does, to the first that ends no earlier.

    Args:
        stride: tokens of the context that two windows share.

    Raises:
        ValueError: the tokenizer does not say where its tokens are, or a question leaves too little room.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"task=answers needs to know where tokens are in the text, which {type(tokenizer).__name__} does not say: "
            "give a model with a fast tokenizer (tokenizer.json)"
        )
    questions, contexts = [text.lstrip() for text in split["question"][:]], split["context"][:]
    _check_room(questions, contexts, tokenizer, max_length, stride)
    encoded = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
    )
    owners = encoded.pop("overflow_to_sample_mapping")
    found, answers = Read(rows_of(encoded), [], [], []), split["answers"][:]
    for owner, window in zip(owners, encoded.encodings, strict=True):
        places = _places(window)
        texts, starts = answers[owner]["text"], answers[owner]["answer_start"]
        found.open.append([int(number == 0 or place is not None) for number, place in enumerate(places)])
        found.ends.append(_ends(places, starts[0], starts[0] + len(texts[0])) if texts else (0, 0))
        found.truths.append(Window(owner, contexts[owner], places, tuple(texts)))
    return found


def _check_room(
    questions: list[str], contexts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> None:
    """A ValueError for the first question beside which a window cannot move along its context."""
    special = tokenizer.num_special_tokens_to_add(pair=True)
    if stride >= max_length - special:
        raise ValueError(
            f"task.stride={stride}: train.max_length={max_length} has positions for {max_length - special} tokens of a "
            "question and a context, and two windows share fewer"
        )
    counts = [len(ids) for ids in tokenizer(questions, add_special_tokens=False)["input_ids"]]
    for row, count in enumerate(counts):
        room = max_length - special - count
        if room > stride:
            continue
        if len(tokenizer(contexts[row], add_special_tokens=False)["input_ids"]) > room:
            raise ValueError(
                f"row {row} (the first is 0): its question has {count} tokens, {questions[row][:60]!r}. Of "
                f"train.max_length={max_length} it leaves {max(0, room)} to a longer context, which needs more than "
                f"task.stride={stride}: raise train.max_length, or lower task.stride"
            )


def _places(window: Encoding) -> list[Place | None]:
    pairs = zip(window.offsets, window.sequence_ids, strict=True)
    return [place if owner == CONTEXT else None for place, owner in pairs]


def _ends(places: Sequence[Place | None], start: int, end: int) -> Place:
    """The first and last place of what stands at these characters; 0 and 0 where it is not in the window as a whole."""
    known = [(number, place) for number, place in enumerate(places) if place is not None]
    before = [number for number, place in known if place[0] <= start]
    after = [number for number, place in known if place[1] >= end]
    return (before[-1], after[0]) if before and after and before[-1] <= after[0] else (0, 0)


def best_spans(starts: Tensor, ends: Tensor, best: int, longest: int) -> list[Spans]:
    """Of each window the spans between its `best` first and last places whose logits sum to most, at most `best`.

    Args:
        starts, ends: logits (windows, places); -inf where no answer can begin or end. The first place is "no answer".
        longest: tokens of a span, at most.
    """
    null = (starts[:, 0] + ends[:, 0]).tolist()
    count = min(best, starts.shape[1])
    (first, begins), (last, stops) = (logits.topk(count, -1) for logits in (starts, ends))
    scores = first[:, :, None] + last[:, None, :]
    length = stops[:, None, :] - begins[:, :, None] + 1
    allowed = (length >= 1) & (length <= longest) & (begins[:, :, None] > 0)
    scores, places = scores.masked_fill(~allowed, -torch.inf).flatten(1).topk(min(best, count * count), -1)
    begins = begins.gather(1, places.div(count, rounding_mode="floor"))
    stops = stops.gather(1, places % count)
    rows = zip(null, scores.tolist(), begins.tolist(), stops.tolist(), strict=True)
    return [Spans(no, [each for each in zip(*row, strict=True) if each[0] > -torch.inf]) for no, *row in rows]


def answered(windows: Iterable[tuple[Spans, Window]], threshold: float | None) -> str:
    """The answer to a question, from what was found in its windows: the text of the best span of all.

    Args:
        threshold: "no answer" is the answer if its lowest score over the windows is better than the best span by more
            than this. None: the answer is a span if there is one.
    """
    windows = list(windows)
    spans = [(score, window, first, last) for found, window in windows for score, first, last in found.best]
    for score, window, first, last in sorted(spans, key=lambda each: -each[0]):
        if (text := _text(window, first, last)) is None:
            continue
        if threshold is not None and min(found.null for found, _ in windows) - score > threshold:
            return ""
        return text
    return ""


def _text(window: Window, first: int, last: int) -> str | None:
    """What stands between two places; None where that is nothing, or they are outside the context."""
    if last >= len(window.places):
        return None
    begin, end = window.places[first], window.places[last]
    return None if begin is None or end is None else window.context[begin[0] : end[1]] or None


def exact_match(answer: str, gold: str) -> float:
    """Whether the two are the same but for case, signs, articles and spaces: 1 or 0."""
    return float(normalised(answer) == normalised(gold))


def f1(answer: str, gold: str) -> float:
    """The F1 of the words that the two have in common, as SQuAD 1.1's script has it: 0 where there are no words."""
    said, right = normalised(answer).split(), normalised(gold).split()
    common = (Counter(said) & Counter(right)).total()
    return 2 * common / (len(said) + len(right)) if common else 0.0


def f1_or_empty(answer: str, gold: str) -> float:
    """The same as SQuAD 2.0's script has it: where either has no words, whether neither has."""
    said, right = normalised(answer).split(), normalised(gold).split()
    return f1(answer, gold) if said and right else float(said == right)


def normalised(text: str) -> str:
    """Lower case, without signs, articles and superfluous spaces, as SQuAD's scripts have it."""
    bare = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def over_golds(metric: Callable[[str, str], float], answer: str, golds: Sequence[str]) -> float:
    """The score against the gold answer that is nearest."""
    return max(metric(answer, gold) for gold in golds)
