"""The GLUE tasks (Wang et al. 2019, arXiv 1804.07461)."""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from scipy import stats
from sklearn import metrics

from nxmiformer.errors import unknown
from nxmiformer.tasks.rows import checked
from nxmiformer.tasks.task import Chance, Task, uncorrelated

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
class Glue(Task):
    """A GLUE task with its official metrics.

    Attributes:
        name: cola, sst2, mrpc, stsb, qqp, mnli (the matched validation set), qnli, rte or wnli.
        path: the hub's data set, or a local directory of the same layout.
        share: of the training examples that go to `holdout`, at most
        most: examples. They are the same ones for every seed of a run.
        train_examples: keep only so many training examples (None: all).
    """

    name: str
    path: str = HUB
    share: float = 0.1
    most: int = 2000
    train_examples: int | None = None
    columns: tuple[str, ...] = field(init=False)
    labels: tuple[str, ...] = field(init=False)
    metric: str = field(init=False)
    span: tuple[float, float] | None = field(init=False)

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise unknown("GLUE task", self.name, TASKS)
        if not 0 < self.share < 1 or self.most < 1:
            raise ValueError(
                f"the holdout needs a share in (0, 1) and at least one example, not {self.share}, {self.most}"
            )
        facts = TASKS[self.name]
        for key in ("columns", "labels", "metric", "span"):
            object.__setattr__(self, key, getattr(facts, key))

    def splits(self) -> datasets.DatasetDict:
        """Read from `path`; a ValueError names what is not as the task has it: see `checked`."""
        source = datasets.load_dataset(self.path, self.name, cache_dir=self._cache())
        whole, validation = self._checked(source, "train"), self._checked(source, TASKS[self.name].validation)
        if len(whole) < 2:
            raise ValueError(f"{self.path}, {self.name}: the training split has 1 row, and the holdout is cut from it")
        size = min(self.most, max(1, round(self.share * len(whole))))
        parts = whole.train_test_split(test_size=size, seed=0, shuffle=True)
        train = parts["train"]
        if self.train_examples is not None:
            train = train.select(range(min(self.train_examples, len(train))))
        return datasets.DatasetDict(train=train, holdout=parts["test"], validation=validation)

    def _checked(self, source: datasets.DatasetDict, split: str) -> datasets.Dataset:
        if split not in source:
            raise ValueError(f"{self.path}, {self.name}: there is no split {split!r}; there are {sorted(source)}")
        called = "training" if split == "train" else split.replace("_", " ")
        return checked(source[split], self, f"{self.path}, {self.name}: the {called} split")

    def _cache(self) -> str | None:
        """Where `datasets` keeps its copy of a local directory: two of one name, or with other files, are the same to
        it. None, its own choice, for the hub's data."""
        root = Path(self.path)
        if not root.is_dir():
            return None
        files = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(root.resolve().rglob("*"))]
        return str(Path(datasets.config.HF_DATASETS_CACHE) / hashlib.sha256(repr(files).encode()).hexdigest()[:16])

    def score(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """CoLA: Matthews correlation; STS-B: Pearson and Spearman; MRPC, QQP: F1 and accuracy; else accuracy.

        A constant prediction correlates with nothing: 0, not NaN.
        """
        if not self.labels:
            predicted = logits.squeeze(-1)
            if np.ptp(predicted) == 0:
                return {"pearson": 0.0, "spearman": 0.0}
            pearson, spearman = stats.pearsonr(predicted, labels), stats.spearmanr(predicted, labels)
            return {"pearson": float(pearson.statistic), "spearman": float(spearman.statistic)}
        predicted = logits.argmax(-1)
        accuracy = float((predicted == labels).mean())
        if self.metric == "matthews":
            return {"matthews": float(metrics.matthews_corrcoef(labels, predicted)), "accuracy": accuracy}
        if self.metric == "f1":
            return {"f1": float(metrics.f1_score(labels, predicted, zero_division=0.0)), "accuracy": accuracy}
        return {"accuracy": accuracy}

    def chance(self, labels: np.ndarray) -> Chance:
        """As of any task; for the F1 of the positive class, always answering with it is the best: 2q / (1 + q) at a
        share q, whose error is the share's times 2 / (1 + q)^2."""
        if self.metric == "matthews":
            return uncorrelated(len(labels))
        if self.metric != "f1":
            return super().chance(labels)
        share = float((labels == 1).mean())
        error = math.sqrt(share * (1 - share) / len(labels))
        return Chance(2 * share / (1 + share), 2 * error / (1 + share) ** 2)
