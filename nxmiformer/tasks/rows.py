"""Checks whether the rows of a data set fit a task. A row that does not is named; none is cast or left out."""

from collections.abc import Sequence

import datasets
import pyarrow as pa
import pyarrow.compute as pc

UNLABELLED = -1  # as the test splits of GLUE have it


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
