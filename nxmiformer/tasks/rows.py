"""Checks whether the rows of a data set fit a task. A row that does not is named; none is cast or left out."""

import logging
from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nxmiformer.tasks.labelled import LabelledTexts
from nxmiformer.tasks.order import plain

log = logging.getLogger(__name__)

UNLABELLED = -1  # as the test splits of GLUE have it


def checked(rows: datasets.Dataset, task: LabelledTexts, where: str) -> datasets.Dataset:
    """The rows, with labels as the task numbers its classes. Labels that are names, or are numbered in another order,
    are renumbered, which is logged.

    Args:
        where: the data set and the split, for messages.

    Raises:
        ValueError: a column is missing, there are no rows, a text or a label is missing or of another type, or a label
            is not one of the task's. The message has the split, the first such row, its value and the task's labels.
    """
    require(rows, (*task.columns, "label"), where)
    if not len(rows):
        raise ValueError(f"{where} has no rows")
    check_texts(rows, task.columns, where)
    labels = rows.with_format("arrow")[:]["label"]
    refuse(pc.is_null(labels, nan_is_null=True), labels, f"{where}, column 'label'", _has(task))
    return _classes(rows, labels, task, where) if task.labels else _numbers(rows, labels, task, where)


def require(rows: datasets.Dataset, columns: Sequence[str], where: str) -> None:
    """A ValueError where the rows have not all of these columns, with those that they have."""
    if missing := {*columns} - set(rows.column_names):
        raise ValueError(f"{where} has no column {sorted(missing)}; it has {rows.column_names}")


def check_texts(rows: datasets.Dataset, columns: Sequence[str], where: str) -> None:
    """A ValueError for the first row of these columns that holds no text."""
    for column in columns:
        texts = rows.with_format("arrow")[:][column]
        refuse(pc.is_null(texts), texts, f"{where}, column {column!r}", "a text")
        if not is_text(texts.type):
            raise ValueError(f"{where}, column {column!r} holds {texts.type}, such as {texts[0].as_py()!r}, not texts")


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _classes(rows: datasets.Dataset, labels: pa.ChunkedArray, task: LabelledTexts, where: str) -> datasets.Dataset:
    """Rows whose labels are the numbers of the task's classes."""
    ids, feature = {plain(name): number for number, name in enumerate(task.labels)}, rows.features["label"]
    if is_text(labels.type):
        names = [plain(name) for name in labels.to_pylist()]
        refuse(pa.array([name not in ids for name in names]), labels, f"{where}, column 'label'", _has(task))
        log.info("%s: its labels are names, which are numbered %s", where, _has(task))
        return _with(rows, [ids[name] for name in names], task)
    if not pa.types.is_integer(labels.type):
        raise ValueError(_other_type(labels, task, where))
    own = [plain(name) for name in feature.names] if isinstance(feature, datasets.ClassLabel) else []
    named = bool(own) and not all(name.isdecimal() for name in own)
    if named and sorted(own) != sorted(ids):
        raise ValueError(f"{where} names its labels {feature.names}, and {task.name} has {_has(task)}")
    outside = pc.or_(pc.less(labels, 0), pc.greater_equal(labels, len(ids)))
    refuse(outside, labels, f"{where}, column 'label'", _has(task))
    if not named or own == list(ids):
        return rows
    log.info("%s: it numbers its labels %s, which become %s", where, feature.names, _has(task))
    return _with(rows, np.array([ids[name] for name in own])[labels.to_numpy()].tolist(), task)


def _numbers(rows: datasets.Dataset, labels: pa.ChunkedArray, task: LabelledTexts, where: str) -> datasets.Dataset:
    """Rows whose labels are finite numbers within the task's span."""
    if not (pa.types.is_integer(labels.type) or pa.types.is_floating(labels.type)):
        raise ValueError(_other_type(labels, task, where))
    values = pc.cast(labels, pa.float64())
    outside = pc.invert(pc.is_finite(values))
    if task.span is not None:
        beyond = pc.or_(pc.less(values, task.span[0]), pc.greater(values, task.span[1]))
        outside = pc.or_(outside, beyond)
    refuse(outside, labels, f"{where}, column 'label'", _has(task))
    return rows


def _with(rows: datasets.Dataset, labels: Sequence[int], task: LabelledTexts) -> datasets.Dataset:
    feature = datasets.ClassLabel(names=list(task.labels))
    return rows.remove_columns("label").add_column("label", np.asarray(labels), feature=feature)


def refuse(bad: pa.ChunkedArray, values: pa.ChunkedArray, where: str, has: str) -> None:
    """A ValueError that names the first of the rows that are `bad`, where there is one."""
    count = pc.sum(bad).as_py() or 0
    if not count:
        return
    row = pc.index(bad, True).as_py()
    value = values[row].as_py()
    text = f"{where}, row {row} (the first is 0): {value!r}, but {has} is expected"
    text += f"; so in {count} of {len(values)} rows"
    if value == UNLABELLED:
        text += f". {UNLABELLED} marks a row without a label: leave those rows out of the file"
    raise ValueError(text)


def _other_type(labels: pa.ChunkedArray, task: LabelledTexts, where: str) -> str:
    return (
        f"{where}, column 'label', row 0: {labels[0].as_py()!r} is of type {labels.type}, but {_has(task)} is expected"
    )


def _has(task: LabelledTexts) -> str:
    """What a label of the task is, in words."""
    if task.labels:
        return ", ".join(f"{number} ({name})" for number, name in enumerate(task.labels))
    return "a number" + (f" from {task.span[0]:g} to {task.span[1]:g}" if task.span is not None else "")
