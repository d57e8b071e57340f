"""How a label column is read, from its training rows: one of several classes, several labels at once, or a number.

Nothing is guessed where a guess could surprise. Whole numbers are classes, others a number, and if a column could be
either, the user must say.
"""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nxmiformer.tasks.outcomes import Classes, Labels, Number, Outcome
from nxmiformer.tasks.rows import UNLABELLED, is_text, refuse, require

OUTCOMES: Mapping[str, Outcome] = {"classes": Classes(), "labels": Labels(), "number": Number()}  # by kind
FEW = 10  # classes that nobody is asked about, however few rows there are
SHOWN = 12  # classes that a message names


class Labelling(abc.ABC):
    """How label columns are read.

    Attributes:
        outcome: how the model's logits are read.
        labels: the names of classes or labels, in order; empty for a number.
    """

    outcome: ClassVar[Outcome]
    labels: tuple[str, ...]

    @abc.abstractmethod
    def read(self, rows: datasets.Dataset, where: str) -> tuple[Any, Any]:
        """The label of each row, as numbers, and the feature that they are of; a ValueError for a row that has none."""


def understood(
    rows: datasets.Dataset,
    label: str | Sequence[str],
    kind: str | None,
    names: Sequence[str] | None,
    where: str,
    span: Sequence[float] | None = None,
) -> Labelling:
    """How the label columns of these training rows are read.

    Args:
        label: a column of classes, lists or numbers; or several, of 0 and 1.
        kind: one of OUTCOMES; None: by the column's type.
        names: names of the classes or labels, in order; None: those of the column.
        span: the least and the largest number; None: any.

    Raises:
        ValueError: a column is missing, or holds nothing that can be read so; the message says what to give.
    """
    if not isinstance(label, str):
        require(rows, label, where)
        return Columns(tuple(label))
    at, column = _column(rows, label, where)
    _refuse_other(column, at)
    refuse(pc.is_null(column, nan_is_null=True), column, at, "a label")
    kind = kind or _kind(column, at)
    if kind == "number":
        if names:
            raise ValueError(f"task.labels={list(names)}: {at} holds numbers, which have no classes: task.kind=classes")
        return Numbers(label, span=None if span is None else (span[0], span[1]))
    if (kind == "labels") != _is_list(column.type):
        raise ValueError(
            f"{at} holds {column.type}, such as {column[0].as_py()!r}: task.kind=labels takes lists of names or "
            f"numbers, or several columns of 0 and 1, task.label=[...]; and task.kind=classes one of them a row"
        )
    found = _names(column, rows.features[label], at)
    there = {name for each in found for name in each} if kind == "labels" else set(found)
    order = _order(there, rows.features[label], names, at)
    number = _numbers(order, there)
    if missing := there - number.keys():
        if pa.types.is_integer(column.type):
            unlabelled = pc.equal(column, UNLABELLED)
            refuse(unlabelled, column, at, f"one of {_shown(order)}")
        raise ValueError(
            f"task.labels={list(order)}: {at} has {_shown(_ascending(missing))} too: name all, in the order of their "
            f"numbers"
        )
    if kind == "labels":
        return Sets(label, order, number)
    if len(order) < 2:
        raise ValueError(f"{at} has the class {order[0]!r} in every row: there is nothing to learn")
    return Names(label, order, number)


def _kind(column: pa.ChunkedArray, at: str) -> str:
    """The kind by the type of a column; a ValueError if the type does not determine it."""
    if _is_list(column.type):
        return "labels"
    distinct = pc.count_distinct(column).as_py()
    if pa.types.is_floating(column.type):
        if pc.all(pc.equal(column, pc.round(column))).as_py():
            raise ValueError(
                f"{at} holds whole numbers that are written as fractions, such as {column[0].as_py()!r}: say whether "
                f"they are classes or a number, task.kind=classes or task.kind=number"
            )
        return "number"
    if distinct > FEW and 2 * distinct > len(column):
        number = " or task.kind=number" if pa.types.is_integer(column.type) else ""
        raise ValueError(
            f"{at} has {distinct:,} different values in {len(column):,} rows, such as {column[0].as_py()!r}: if these "
            f"are labels, say so, task.kind=classes{number}"
        )
    return "classes"


@dataclass(frozen=True)
class _Named(Labelling):
    """Labels that have names.

    Attributes:
        number: of each, by what the rows call it.
    """

    column: str
    labels: tuple[str, ...]
    number: Mapping[str, int]

    def _known(self) -> str:
        """What the rows call the labels, with their names where that is something else."""
        pairs = [(call, self.labels[number]) for call, number in self.number.items()]
        names = [call if call == name else f"{call} ({name})" for call, name in pairs]
        return f"{_shown(names)} (as in the training rows; task.labels=[...] gives others)"

    def _found(self, rows: datasets.Dataset, where: str) -> tuple[str, pa.ChunkedArray, list[Any]]:
        """Where the column is, the column, and its names, or lists of them."""
        at, column = _column(rows, self.column, where)
        return at, column, _names(column, rows.features[self.column], at)


@dataclass(frozen=True)
class Names(_Named):
    """One class a row."""

    outcome: ClassVar[Outcome] = Classes()

    def read(self, rows: datasets.Dataset, where: str) -> tuple[Any, Any]:
        at, column, found = self._found(rows, where)
        refuse(pa.array([name not in self.number for name in found]), column, at, f"one of {self._known()}")
        return np.array([self.number[name] for name in found]), datasets.ClassLabel(names=list(self.labels))


@dataclass(frozen=True)
class Sets(_Named):
    """A list of labels a row."""

    outcome: ClassVar[Outcome] = Labels()

    def read(self, rows: datasets.Dataset, where: str) -> tuple[Any, Any]:
        at, column, found = self._found(rows, where)
        wrong = [len(set(each)) < len(each) or not self.number.keys() >= set(each) for each in found]
        refuse(pa.array(wrong), column, at, f"a list, each at most once, of {self._known()}")
        table = np.zeros((len(found), len(self.labels)), dtype=np.int8)
        for row, each in enumerate(found):
            table[row, [self.number[name] for name in each]] = 1
        return table.tolist(), datasets.List(datasets.Value("int8"))


@dataclass(frozen=True)
class Columns(Labelling):
    """A column of 0 and 1 for each label."""

    labels: tuple[str, ...]
    outcome: ClassVar[Outcome] = Labels()

    def read(self, rows: datasets.Dataset, where: str) -> tuple[Any, Any]:
        table = [self._zero_or_one(*_column(rows, name, where)) for name in self.labels]
        return np.stack(table, -1).tolist(), datasets.List(datasets.Value("int8"))

    def _zero_or_one(self, at: str, column: pa.ChunkedArray) -> np.ndarray:
        wanted = "0 or 1"
        refuse(pc.is_null(column, nan_is_null=True), column, at, wanted)
        if not (_is_number(column.type) or pa.types.is_boolean(column.type)):
            raise ValueError(f"{at}, row 0: {column[0].as_py()!r} is of type {column.type}, but {wanted} is expected")
        numbers = pc.cast(column, pa.float64())
        refuse(pc.invert(pc.is_in(numbers, pa.array([0.0, 1.0]))), column, at, wanted)
        return np.asarray(numbers.to_numpy(), dtype=np.int8)


@dataclass(frozen=True)
class Numbers(Labelling):
    """A number a row."""

    column: str
    labels: tuple[str, ...] = ()
    span: tuple[float, float] | None = None
    outcome: ClassVar[Outcome] = Number()

    def read(self, rows: datasets.Dataset, where: str) -> tuple[Any, Any]:
        (at, column), wanted = _column(rows, self.column, where), "a number"
        if self.span is not None:
            wanted += f" from {self.span[0]:g} to {self.span[1]:g}"
        refuse(pc.is_null(column, nan_is_null=True), column, at, wanted)
        if not _is_number(column.type):
            raise ValueError(f"{at}, row 0: {column[0].as_py()!r} is of type {column.type}, but {wanted} is expected")
        numbers = pc.cast(column, pa.float64())
        refuse(pc.invert(pc.is_finite(numbers)), column, at, wanted.replace("number", "finite number", 1))
        if self.span is not None:
            refuse(pc.or_(pc.less(numbers, self.span[0]), pc.greater(numbers, self.span[1])), column, at, wanted)
        return numbers.to_numpy(), datasets.Value("float64")


def _column(rows: datasets.Dataset, name: str, where: str) -> tuple[str, pa.ChunkedArray]:
    """How messages call a column, and its values; of categories, what they stand for."""
    require(rows, [name], where)
    stored = rows.with_format("arrow")[:][name]
    plain = pc.cast(stored, stored.type.value_type) if pa.types.is_dictionary(stored.type) else stored
    return f"{where}, column {name!r}", plain


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _refuse_other(column: pa.ChunkedArray, at: str) -> None:
    """A ValueError for a column of neither names nor numbers nor lists of them."""
    kind = column.type.value_type if _is_list(column.type) else column.type
    if not (is_text(kind) or _is_number(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"{at} holds {column.type}, such as {column[0].as_py()!r}, and no names or numbers")


def _names(column: pa.ChunkedArray, feature: Any, at: str) -> list[Any]:
    """The name, or list of names, of each row; a ValueError for the first row that has none.

    Args:
        feature: as `datasets` has it: of a ClassLabel, numbers stand for its names.
    """
    _refuse_other(column, at)
    name = _namer(_inner(feature))
    raw = column.to_pylist()
    found = [[name(each) for each in row] if isinstance(row, list) else name(row) for row in raw]
    absent = [None in row if isinstance(row, list) else row is None for row in found]
    refuse(pa.array(absent), column, at, "a label")
    return found


def _namer(feature: Any) -> Callable[[Any], str | None]:
    """From a stored value to the name of its class; None where it has none."""
    if isinstance(feature, datasets.ClassLabel):
        own = list(feature.names)
        return lambda value: own[value] if value is not None and 0 <= value < len(own) else None

    def name(value: Any) -> str | None:
        if isinstance(value, float):
            return f"{value:.15g}" if np.isfinite(value) else None
        return None if value is None or not str(value).strip() else str(value)

    return name


def _order(there: set[str], feature: Any, names: Sequence[str] | None, at: str) -> tuple[str, ...]:
    """The names of the classes: those given, those of a ClassLabel, else numbers ascending, or names sorted."""
    if names is not None:
        return tuple(names)
    inner = _inner(feature)
    if isinstance(inner, datasets.ClassLabel):
        return tuple(inner.names)
    if not there:
        raise ValueError(f"{at} has no label in any row")
    return tuple(_ascending(there))


def _ascending(names: Iterable[str]) -> list[str]:
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)


def _numbers(labels: tuple[str, ...], there: set[str]) -> dict[str, int]:
    """The number of each class by what the rows call it: its name; or, where they call all by numbers that none of them
    is named by, that number."""
    by_name = {name: number for number, name in enumerate(labels)}
    by_number = {str(number): number for number in range(len(labels))}
    return by_number if there and there <= by_number.keys() and not there & by_name.keys() else by_name


def _inner(feature: Any) -> Any:
    """What a list is of, as `datasets` has it; anything else is itself."""
    return feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else feature


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" or another of {len(names)}" if len(names) > SHOWN else "")
