"""The files of a finished run: `plan.json`, `metrics.jsonl` and `report.json`."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.runs.parse import parse, shaped
from nxmiformer.tasks.task import Chance

PLAN, METRICS, REPORT = "plan.json", "metrics.jsonl", "report.json"
STAGES = {"dense": "dense", "one_shot": "one-shot", "final": "final", "packed": "packed, reloaded"}


@dataclass(frozen=True)
class Task:
    """What was learned; `train`, `holdout` and `validation` count examples, `metric` names the score that matters, and
    `measured` says what else it depends on."""

    name: str
    metric: str
    train: int
    holdout: int
    validation: int
    measured: str = ""


@dataclass(frozen=True)
class Model:
    """The model; `parameters` counts all of them, dense."""

    name: str
    parameters: int


@dataclass(frozen=True)
class Planned:
    """The plan's name, and `CompressionPlan.fingerprint`."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class Compression:
    """1 - stored / dense float32 bits: by values alone, with indices, with scales too (`all`), of the whole model."""

    values: float
    indices: float
    all: float
    model: float


@dataclass(frozen=True)
class DiskBytes:
    """Bytes of the files, as measured."""

    dense_model: int
    packed_model: int
    packed_weights: int


@dataclass(frozen=True)
class StorageReport:
    """Bits of the compressed layers, dense and packed, and of the rest of the model; bytes measured on disk. Of the
    rest, also the bits of embeddings and head, by the key of the plan that packs them."""

    dense_bits: int
    value_bits: int
    index_bits: int
    scale_bits: int
    rest_bits: int
    compression: Compression
    bytes: DiskBytes
    left: Mapping[str, int] = field(default_factory=dict)

    @property
    def packed_bits(self) -> int:
        """Bits of the compressed layers: values, indices and scales."""
        return self.value_bits + self.index_bits + self.scale_bits


@dataclass(frozen=True)
class LayerReport:
    """A compressed layer: its `set` in words, and the share of its weights that may be non-zero (`kept`).

    `error` is ||W_dense - W_final||^2 / ||W_dense||^2, None where the dense model is a teacher of another size;
    `projection_error` is that of the one-shot projection. `gap` is ||W - Z|| / ||W|| when ADMM ended, None without it.
    """

    set: str
    error: float | None
    gap: float | None
    kept: float
    projection_error: float | None = None


@dataclass(frozen=True)
class PhaseReport:
    """A phase: its method's class, the steps of its optimizer, and its wall time, with calibration and evaluations.

    `step_seconds` is the mean time of a step alone; `gap` is ||W - Z|| / ||W|| of all compressed weights when it ended,
    0 where its method has no sets; `memory` is the most that the process had in memory, or torch had of a GPU's, in
    bytes. Any of the three is None where it was not taken.
    """

    method: str
    steps: int
    seconds: float
    step_seconds: float | None = None
    gap: float | None = None
    memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of `report.json`.

    `scores` has the metrics (fractions) of "dense", and of "one_shot", "final" and "packed" where they were taken;
    `report_on` is the split that they were taken on, and `chance` what answers that do not look at the text score
    there. `retention` is final / dense, None where the dense model is no better than chance; `cut` counts the texts of
    each split that were cut off; `units` has the heads and dimensions of each layer that add anything, and how many it
    had, where any adds nothing; `seconds` is the wall time of the run from its start to its report; of the starts
    before it was resumed, that of their phases.
    """

    format: Literal[1] = 1
    name: str
    command: str
    seed: int
    task: Task
    model: Model
    plan: Planned
    scores: Mapping[str, Mapping[str, float]]
    retention: float | None
    storage: StorageReport
    layers: Mapping[str, LayerReport]
    phases: Mapping[str, PhaseReport]
    versions: Mapping[str, str]
    revision: str | None
    device: str
    seconds: float
    report_on: str = "validation"
    chance: Chance | None = None
    cut: Mapping[str, int] | None = None
    units: Mapping[str, Mapping[str, tuple[int, int]]] | None = None

    @property
    def above_chance(self) -> bool:
        """Whether the dense model is better than chance; if the report has no chance level, better than 0."""
        dense = self.scores["dense"][self.task.metric]
        return (Chance(0.0, 0.0) if self.chance is None else self.chance).beaten(dense)

    def kept(self, stage: str) -> float | None:
        """The share of the dense model's score that a stage (a key of `STAGES`) has; None where it was not taken, or
        the dense model is no better than chance."""
        score = self.scores.get(stage, {}).get(self.task.metric)
        return None if score is None or not self.above_chance else score / self.scores["dense"][self.task.metric]


@dataclass(frozen=True)
class Place:
    """What every row of the metrics has: where in the run it was taken, and after how many seconds of training."""

    phase: str
    step: int
    total_step: int
    seconds: float


class Span(NamedTuple):
    """A phase's part of the run: after step `start`, up to step `stop`."""

    phase: str
    start: float
    stop: float


class Series(NamedTuple):
    """One column of the metrics: `values` at `steps` (over the run)."""

    steps: list[int]
    values: list[float]

    def inside(self, span: Span) -> "Series":
        """The values of a part of the run."""
        found = [place for place in zip(*self, strict=True) if span.start < place[0] <= span.stop]
        return Series([step for step, _ in found], [value for _, value in found])


@dataclass(frozen=True)
class Run:
    """A finished run, as `read_run` found it; `rows` are those of `metrics.jsonl`, in its order."""

    directory: Path
    plan: CompressionPlan
    rows: tuple[Mapping[str, Any], ...]
    report: Report

    def series(self, key: str) -> Series:
        """The finite numbers under `key`, by step; empty where no row has any."""
        found = [(row["total_step"], float(row[key])) for row in self.rows if _finite(row.get(key))]
        return Series([step for step, _ in found], [value for _, value in found])

    def layered(self, key: str) -> dict[str, Series]:
        """The series `<key>/<parameter>` by parameter name."""
        names = dict.fromkeys(name for row in self.rows for name in row if name.startswith(f"{key}/"))
        return {name.removeprefix(f"{key}/"): self.series(name) for name in names}

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The phases that left metrics, in their order."""
        found: list[Span] = []
        for row in self.rows:
            if found and found[-1].phase == row["phase"]:
                found[-1] = found[-1]._replace(stop=max(found[-1].stop, row["total_step"]))
            else:
                found.append(Span(row["phase"], max(0, row["total_step"] - row["step"]), row["total_step"]))
        return tuple(found)

    @cached_property
    def sets(self) -> Counter[str]:
        """How many layers each set has."""
        return Counter(layer.set for layer in self.report.layers.values())

    def score(self, stage: str) -> float | None:
        """The task's metric of a stage (a key of `STAGES`), a fraction; None where it was not taken."""
        return self.report.scores.get(stage, {}).get(self.report.task.metric)

    @property
    def dense_on_holdout(self) -> float | None:
        """The task's metric of the dense model on the holdout: the last one of its own phases, or the report's, where
        that is of the holdout; None where neither is there."""
        metric, phases = self.report.task.metric, self.report.phases
        if self.report.report_on == "holdout":
            return self.score("dense")
        dense = [name for name, phase in phases.items() if phase.method.lower() == "dense"]
        taken = [row[f"holdout/{metric}"] for row in self.rows if row["phase"] in dense and f"holdout/{metric}" in row]
        return float(taken[-1]) if taken else None

    @property
    def shrinkage(self) -> float:
        """How many times larger the dense model's file is than the packed one's."""
        measured = self.report.storage.bytes
        return measured.dense_model / max(1, measured.packed_model)


def read_run(path: str | Path) -> Run:
    """Read the directory of a finished run.

    Raises:
        FileNotFoundError: the directory, or one of its three files, is not there.
        ValueError: a file is damaged, lacks a key, or belongs to another plan; the message names the file and the key.
    """
    directory = Path(path)
    report = read_report(directory / REPORT)
    plan = CompressionPlan.load(directory / PLAN)
    missing = [name for name in plan.layers if name not in report.layers]
    if missing:
        raise ValueError(f"{directory / REPORT}: the key 'layers.{missing[0]}' is missing, {PLAN} has that layer")
    return Run(directory, plan, read_rows(directory / METRICS), report)


def read_report(path: Path) -> Report:
    """Read a `report.json`; errors as `read_run`."""
    report = shaped(path.read_bytes(), path, Report)
    if report.task.metric not in report.scores.get("dense", {}):
        raise ValueError(f"{path}: the key 'scores.dense.{report.task.metric}' is missing")
    return report


def read_rows(path: Path, finished: bool = True) -> tuple[Mapping[str, Any], ...]:
    """Read a `metrics.jsonl`; errors as `read_run`.

    The last line of a run that is not `finished` counts only if it has an end: a kill may have cut it.
    """
    rows, content = [], path.read_bytes()
    whole = content if finished else content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        shaped(line, where, Place)
        rows.append(parse(line, where))
    return tuple(rows)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
