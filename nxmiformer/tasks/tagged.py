"""Rows of words with a tag each: their columns, the names of their tags, and the numbers of these."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from nxmiformer.tasks.rows import is_text

UNSEEN = -1  # the number of no tag


class Columns(NamedTuple):
    """What the columns are called."""

    words: str
    tags: str


def names_of(rows: datasets.Dataset, columns: Columns, where: str) -> tuple[str, ...]:
    """The names of the tags: as the column has them, else those that there are, sorted.

    Raises:
        ValueError: a column is not as `check_columns` has it, or there are no two names.
    """
    check_columns(rows, columns, where)
    own, values = _own_names(rows, columns.tags), _column(rows, columns.tags)
    if own is not None:
        return tuple(own)
    if not is_text(values.type.value_type):
        raise ValueError(
            f"{where}, column {columns.tags!r} has numbers, such as {values[0].as_py()}, and no names: give them in "
            "their order, task.labels=[O,B-PER,...]"
        )
    names = tuple(sorted(pc.unique(pc.list_flatten(values)).to_pylist()))
    if len(names) < 2:
        raise ValueError(f"{where}, column {columns.tags!r} has no tags but {list(names)}; two or more are expected")
    return names


def numbered(
    rows: datasets.Dataset, columns: Columns, names: Sequence[str], labels: Sequence[str], where: str
) -> datasets.Dataset:
    """The rows, with the numbers of their tags by the order of `labels`.

    Args:
        names: of the numbers 0, 1, ... in a column that does not name them itself.

    Raises:
        ValueError: a column is not as `check_columns` requires, a row has not one tag for each word, or a tag is not
            one of the labels. The message has the first such row and its value.
    """
    check_columns(rows, columns, where)
    words, tags = (_column(rows, name).to_pylist() for name in columns)
    for number, (ours, theirs) in enumerate(zip(words, tags, strict=True)):
        if len(ours) != len(theirs):
            raise ValueError(
                f"{_row(where, number)} has {len(ours)} in {columns.words!r} and {len(theirs)} in {columns.tags!r}: a "
                "tag for each word is expected"
            )
    keys: dict[Any, int] = {name: number for number, name in enumerate(labels)}
    has = ", ".join(labels)
    if not is_text(_column(rows, columns.tags).type.value_type):
        own = _own_names(rows, columns.tags) or names
        keys = {number: keys.get(name, UNSEEN) for number, name in enumerate(own)}
        has = ", ".join(f"{number} ({name})" for number, name in enumerate(own) if name in labels)
    found = [[keys.get(tag, UNSEEN) for tag in row] for row in tags]
    for number, row in enumerate(found):
        if UNSEEN in row:
            raise ValueError(
                f"{_row(where, number)}, column {columns.tags!r}: {tags[number][row.index(UNSEEN)]!r}, but one of "
                f"{has} is expected; task.labels=[...] names all that there are"
            )
    feature = datasets.List(datasets.ClassLabel(names=list(labels)))
    return rows.select_columns([columns.words]).add_column(columns.tags, found, feature=feature)


def check_columns(rows: datasets.Dataset, columns: Columns, where: str) -> None:
    """Raise a ValueError where there is no list of words, or none of tags, in each row."""
    for field, name in columns._asdict().items():
        if name not in rows.column_names:
            raise ValueError(f"task.{field}={name}: {where} has no such column; it has {rows.column_names}")
    for field, name in columns._asdict().items():
        lists = _column(rows, name)
        kind = lists.type.value_type if isinstance(lists.type, pa.ListType | pa.LargeListType) else None
        if not (kind is not None and (is_text(kind) or (field == "tags" and pa.types.is_integer(kind)))):
            raise ValueError(
                f"{where}, column {name!r} holds {lists.type}, such as {lists[0].as_py()!r}, but in each row a list of "
                f"{field} is expected"
            )
        for number, row in enumerate(lists.to_pylist()):
            if row is None or None in row:
                raise ValueError(f"{_row(where, number)}, column {name!r}: {row!r}, but a list of {field} is expected")


def _own_names(rows: datasets.Dataset, tags: str) -> Sequence[str] | None:
    """The names that a column has of its numbers."""
    inner = rows.features[tags].feature
    return list(inner.names) if isinstance(inner, datasets.ClassLabel) else None


def _column(rows: datasets.Dataset, name: str) -> pa.ChunkedArray:
    return rows.with_format("arrow")[:][name]


def _row(where: str, number: int) -> str:
    return f"{where}, row {number} (the first is 0)"
