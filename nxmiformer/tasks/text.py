"""Your own table: one or two texts a row, and their labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import datasets

from nxmiformer.errors import unknown
from nxmiformer.tasks.label_column import OUTCOMES, Labelling, understood
from nxmiformer.tasks.labelled import LabelledTexts
from nxmiformer.tasks.metrics import chosen, usual
from nxmiformer.tasks.outcomes import Outcome
from nxmiformer.tasks.rows import check_texts, require
from nxmiformer.tasks.table import Table
from nxmiformer.tasks.told import Told


class _Facts(NamedTuple):
    labelling: Labelling
    labels: tuple[str, ...]
    metric: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Text(Table, LabelledTexts):
    """One text or two of each row, and a class, several labels at once, or a number.

    Attributes:
        columns: the text column, or two of them.
        label: the label column: of classes by name or number, of lists of them, or of numbers; or several columns, of 0
            and 1.
        kind: classes, labels or number; None: names and whole numbers are classes, lists labels, fractions a number.
        labels: the names of the classes in the order of a model's outputs; None: the data set's own, else numbers
            ascending, else names sorted.
        span: the least and the largest number; None: any.
        metric: of tasks.metrics; None: accuracy for classes, micro_f1 for labels, pearson for a number. `f1` is that of
            the second class.
    """

    columns: Sequence[str] = ("text",)
    label: str | Sequence[str] = "label"
    name: str = "text"
    kind: Literal["classes", "labels", "number"] | None = None
    labels: Sequence[str] | None = Told(known=True)  # type: ignore[assignment]
    span: Sequence[float] | None = None
    metric: str | None = Told(known=True)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        label, given = [self.label] if isinstance(self.label, str) else list(self.label), vars(self)["labels"]
        if not 1 <= len(self.columns) <= 2 or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"task.columns={list(self.columns)}: name one text column, or two")
        if not label or len(set(label)) < len(label) or {*label} & {*self.columns}:
            raise ValueError(f"task.label={self.label}: name a label column, or several, none of them twice or a text")
        if self.kind is not None and self.kind not in OUTCOMES:
            raise unknown("task.kind", self.kind, OUTCOMES)
        several, number = not isinstance(self.label, str), self.kind == "number"
        if self.span is not None and not (number and len(self.span) == 2 and self.span[0] < self.span[1]):
            raise ValueError(f"task.span={list(self.span)}: the least and the largest number, with task.kind=number")
        if several and self.kind not in (None, "labels"):
            raise ValueError(f"task.kind={self.kind}: several columns, task.label={label}, are labels")
        if given is not None and (several or number or len(set(given)) < max(2, len(given))):
            why = "the columns name them" if several else "a number has none" if number else "at least two, none twice"
            raise ValueError(f"task.labels={list(given)}: {why}")
        if number or given is not None:
            vars(self)["labels"] = tuple(given or ())

    @cached_property
    def facts(self) -> _Facts:
        """Facts from the training rows; a ValueError names what does not fit the task."""
        rows, where, given = self.rows(self.train_split), self.where(self.train_split), vars(self)
        require(rows, self.columns, where)
        labelling = understood(rows, self.label, self.kind, given["labels"], where, self.span)
        outputs = len(labelling.labels) or 1
        metric = given["metric"] or usual(labelling.outcome, outputs)[0]
        chosen(metric, labelling.outcome, outputs)
        return _Facts(labelling, labelling.labels, metric)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.columns, self.label if isinstance(self.label, str) else ", ".join(self.label))

    @property
    def outcome(self) -> Outcome:
        return self.facts.labelling.outcome if self.kind is None else OUTCOMES[self.kind]

    @property
    def also(self) -> tuple[str, ...]:  # type: ignore[override]
        return usual(self.outcome, self.outputs)

    def splits(self) -> datasets.DatasetDict:
        """Read from `path`; a ValueError names the row that is not as the task has it. What is not read is left out."""
        return self._splits

    @cached_property
    def _splits(self) -> datasets.DatasetDict:
        return self.table(self._checked)

    def _checked(self, rows: datasets.Dataset, where: str) -> datasets.Dataset:
        require(rows, self.columns, where)
        check_texts(rows, self.columns, where)
        labels, feature = self.facts.labelling.read(rows, where)
        return rows.select_columns(list(self.columns)).add_column(self.reads[-1], labels, feature=feature)
