"""The GLUE tasks (Wang et al. 2019, arXiv 1804.07461)."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets

from nxmiformer.errors import unknown
from nxmiformer.tasks.labelled import LabelledTexts
from nxmiformer.tasks.rows import checked
from nxmiformer.tasks.table import Table

HUB = "nyu-mll/glue"


class _Facts(NamedTuple):
    columns: tuple[str, ...]
    metric: str
    labels: tuple[str, ...]
    validation: str = "validation"
    span: tuple[float, float] | None = None


ENTAILMENT = ("entailment", "not_entailment")
PARAPHRASE = ("not_equivalent", "equivalent")
PAIR = ("sentence1", "sentence2")

TASKS = {
    "cola": _Facts(("sentence",), "matthews", ("unacceptable", "acceptable")),
    "sst2": _Facts(("sentence",), "accuracy", ("negative", "positive")),
    "mrpc": _Facts(PAIR, "f1", PARAPHRASE),
    "stsb": _Facts(PAIR, "pearson", (), span=(0.0, 5.0)),
    "qqp": _Facts(("question1", "question2"), "f1", ("not_duplicate", "duplicate")),
    "mnli": _Facts(
        ("premise", "hypothesis"), "accuracy", ("entailment", "neutral", "contradiction"), "validation_matched"
    ),
    "qnli": _Facts(("question", "sentence"), "accuracy", ENTAILMENT),
    "rte": _Facts(PAIR, "accuracy", ENTAILMENT),
    "wnli": _Facts(PAIR, "accuracy", ("not_entailment", "entailment")),
}


@dataclass(frozen=True)
class Glue(Table, LabelledTexts):
    """A GLUE task with its official metrics: Matthews correlation for CoLA, Pearson and Spearman for STS-B, F1 and
    accuracy for MRPC and QQP, accuracy for the others.

    Attributes:
        name: cola, sst2, mrpc, stsb, qqp, mnli (the matched validation set), qnli, rte or wnli.
        path: the hub's data set, or a local directory of the same layout.
    """

    name: str
    path: str = field(default=HUB, kw_only=True)
    configuration: str | None = field(init=False)
    validation_split: str | None = field(init=False)
    columns: tuple[str, ...] = field(init=False)
    labels: tuple[str, ...] = field(init=False)
    metric: str = field(init=False)
    also: tuple[str, ...] = field(init=False)
    span: tuple[float, float] | None = field(init=False)

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise unknown("GLUE task", self.name, TASKS)
        super().__post_init__()
        facts = TASKS[self.name]
        values: dict[str, Any] = {
            "configuration": self.name,
            "validation_split": facts.validation,
            "columns": facts.columns,
        }
        values |= {"labels": facts.labels, "metric": facts.metric, "span": facts.span}
        values |= {"also": ("accuracy",) if facts.labels else ("spearman",)}
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def splits(self) -> datasets.DatasetDict:
        """Read from `path`; a ValueError names what is not as the task has it: see `checked`."""
        return self.table(lambda rows, where: checked(rows, self, where))
