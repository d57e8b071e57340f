"""The cells of a study whose rows are written as they come: what the scripts of such studies share."""

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra

from nxmiformer.cli import build
from nxmiformer.jobs.compress import run
from nxmiformer.jobs.job import Job

TINY = ["model=embedded", "model.hidden=64", "model.layers=1", "model.intermediate=128", "task=grammar"]
TINY += ["task.train=96", "task.holdout=48", "task.validation=48", "train.batch_size=24", "train.max_length=64"]
COMMON = ["train.evaluate_every=0", "train.checkpoint_every=0"]


def job(directory: Path, overrides: Sequence[str]) -> Job:
    """A job of the command, from Python."""
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return build(hydra.compose("config", [f"name={directory.name}", *COMMON, *overrides]), directory)


def trained(directory: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The report of a run, which is not run again where it is finished; half a run of before is run anew."""
    report = directory / "report.json"
    if not report.exists():
        shutil.rmtree(directory, ignore_errors=True)
        run(job(directory, overrides))
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    content: dict[str, Any] = json.loads(report.read_text())
    return content


class Rows:
    """A table in a file, whose rows are found by the values of its first columns."""

    def __init__(self, file: Path, cell: Sequence[str], values: Sequence[str]) -> None:
        self.file, self.cell, self.columns = file, tuple(cell), (*cell, *values)

    def done(self, cell: Mapping[str, Any]) -> bool:
        """Whether there is a row of this cell."""
        key = [str(cell[name]) for name in self.cell]
        return any([row[name] for name in self.cell] == key for row in self.read())

    def read(self) -> list[dict[str, str]]:
        """All rows."""
        if not self.file.exists():
            return []
        with self.file.open(newline="") as opened:
            return list(csv.DictReader(opened))

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, and see to it that it is on the disk."""
        first = not self.file.exists()
        with self.file.open("a", newline="") as opened:
            writer = csv.DictWriter(opened, self.columns)
            if first:
                writer.writeheader()
            writer.writerow(row)
            opened.flush()
            os.fsync(opened.fileno())
        print({name: row[name] for name in self.columns}, flush=True)


def source(models: str | None, glue: str | None, task: str, tiny: bool) -> list[str]:
    """Which model and data: those of the tiny mode, of local directories, or of the hub."""
    if tiny:
        return TINY
    model = "all-MiniLM-L6-v2"
    path = f"{models}/{model}" if models else f"sentence-transformers/{model}"
    return [f"task={task}", "model=pretrained", f"model.path={path}", *([f"task.path={glue}/{task}"] if glue else [])]
