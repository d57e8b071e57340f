"""A summary of the data in a few lines, before training."""

import statistics
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from nxmiformer.tasks.batches import Examples
from nxmiformer.tasks.task import Task

WIDTH = 80  # columns of a line
LINES = 3  # of them for the classes, and as many for an example
SPARE = 40  # columns that breaking an example into lines may take


def described_data(
    task: Task, splits: datasets.DatasetDict, data: Mapping[str, Examples], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Sizes of the splits, columns, metric, classes with their counts, lengths in tokens, and an example.

    Args:
        splits: the rows of the task, by split.
        data: the same as it encoded them.
    """
    train = data["train"]
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.items())
    lengths = train.lengths()
    tokens = f"tokens: median {statistics.median_low(lengths):,}, longest {max(lengths):,}"
    told = f"{task.name}: {sizes}; columns {', '.join(task.reads)}; score: {task.metric}"
    if len(train) != len(splits["train"]):
        tokens += f"; {len(train):,} windows in train"
    classes = _truths(task, splits["train"][task.reads[-1]], train.truths)
    parts = told, classes, tokens, _example(task, splits["train"][0], train, tokenizer)
    return [line for part in parts for line in _lines(part)]


def _truths(task: Task, column: Sequence[Any], truths: Sequence[Any]) -> str:
    """The classes, labels, tags or numbers of the training examples; nothing where they are something else.

    Args:
        column: the last that the task reads.
    """
    if task.labels and all(isinstance(truth, int) for truth in truths):
        return f"{len(task.labels)} classes, {_counted(task.labels, Counter(truths))}"
    if task.labels and all(_is_set(truth, len(task.labels)) for truth in truths):
        counts = Counter(number for truth in truths for number, there in enumerate(truth) if there)
        none = sum(not any(truth) for truth in truths)
        return f"{len(task.labels)} labels, {_counted(task.labels, counts)}; {none:,} rows with none"
    if task.labels and _is_tags(column[0]):
        counts = Counter(number for tags in column for number in tags)
        return f"{len(task.labels)} tags, {_counted(task.labels, counts)}"
    if truths and all(isinstance(truth, Real) for truth in truths):
        return f"a number from {min(truths):g} to {max(truths):g}, median {statistics.median(truths):g}"
    return ""


def _is_set(truth: Any, labels: int) -> bool:
    """Whether a truth says of each label whether it is there."""
    return isinstance(truth, list) and len(truth) == labels and all(value in (0, 1) for value in truth)


def _is_tags(value: Any) -> bool:
    """Whether a row has the number of a class for each word."""
    return isinstance(value, list) and all(isinstance(each, int) for each in value)


def _counted(names: Sequence[str], counts: Mapping[int, int]) -> str:
    return ", ".join(f"{name}: {counts.get(number, 0):,}" for number, name in enumerate(names))


def _example(task: Task, row: Mapping[str, Any], examples: Examples, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first training example as the model reads it, and what its last column says, where that is another."""
    rows = examples.features[0]
    tokens = rows.get("input_ids", next(iter(rows.values())))
    kept = [token for token, there in zip(tokens, rows.get("attention_mask", [1] * len(tokens)), strict=True) if there]
    text = str(tokenizer.decode(kept))
    labelled = len(task.reads) > 1 and examples.truths[0] is not None
    answer = f" -> {_named(task, row[task.reads[-1]], examples.truths[0])}" if labelled else ""
    answer = _short(answer, WIDTH)
    return f"an example: {_short(' '.join(text.split()), LINES * WIDTH - len(answer) - SPARE)}{answer}"


def _named(task: Task, value: Any, truth: Any) -> str:
    """What a row is labelled with, by the names of the classes where it is their numbers."""
    if task.labels and isinstance(truth, int):
        return task.labels[truth]
    if task.labels and _is_set(truth, len(task.labels)):
        return ", ".join(name for name, there in zip(task.labels, truth, strict=True) if there) or "none"
    if task.labels and _is_tags(value):
        return " ".join(task.labels[each] for each in value)
    return str(value)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _lines(text: str) -> list[str]:
    """The text in lines of WIDTH; what is beyond LINES is left out."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", max_lines=LINES, placeholder=" ...")
