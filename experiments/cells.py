"""The cells of a study whose rows are written as they come: what the scripts of such studies share."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from data import words

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
    """The report of a run. A finished run is not repeated; an unfinished one is run again."""
    report = directory / "report.json"
    if not report.exists():
        shutil.rmtree(directory, ignore_errors=True)
        run(job(directory, overrides))
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    content: dict[str, Any] = json.loads(report.read_text())
    return content


def source(arguments: argparse.Namespace, task: str) -> list[str]:
    """Which model and data: those of the tiny mode, of local directories, or of the hub."""
    if arguments.tiny:
        return TINY
    model = "all-MiniLM-L6-v2"
    path = f"{arguments.models}/{model}" if arguments.models else f"sentence-transformers/{model}"
    return ["model=pretrained", f"model.path={path}", *words(task, arguments.glue, arguments.data)]


def parser_of(study: Path, description: str | None) -> argparse.ArgumentParser:
    """The arguments that every such study takes; `study` is its directory."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="directory with all-MiniLM-L6-v2; without it, from the hub")
    parser.add_argument("--glue", help="directory with the tasks' data; without it, from the hub")
    parser.add_argument("--data", help="directory that holds qamr/")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--report-on", choices=("holdout", "validation"), default="validation")
    parser.add_argument("--outputs", type=Path, default=Path("outputs") / study.name)
    parser.add_argument("--results", type=Path, default=study / "results.csv")
    parser.add_argument("--cpu", action="store_true", help="stay off a GPU")
    parser.add_argument("--tiny", action="store_true", help="try the script out in seconds")
    return parser
