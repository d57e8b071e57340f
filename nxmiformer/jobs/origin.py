"""Where a packed model comes from: the run beside it knows its task, its data and the length of its texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from nxmiformer.export.manifest import MANIFEST
from nxmiformer.jobs.place import RECORD
from nxmiformer.runs.parse import parse

KEPT = ("max_length", "eval_batch_size")  # of its `train`


def packed_of(path: str | Path) -> Path:
    """The packed model that is meant: the directory itself, or `packed/` in that of a run."""
    place = Path(path).expanduser().resolve()
    within = place / "packed"
    return within if not (place / MANIFEST).is_file() and (within / MANIFEST).is_file() else place


def as_trained(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a job that reads a packed model, with the task and the lengths of the run that left it.

    Args:
        config: composed; its `path` is the packed model's, or the run's.
        overrides: of the command line: what is asked for there stays.

    Raises:
        ValueError: no run lies beside the model, and an export, which compares scores, is given no task.
    """
    if config.path is None:
        return config
    named = {word.lstrip("+~").partition("=")[0] for word in overrides}
    record = packed_of(config.path).parent / RECORD
    if not record.is_file():
        if config.job == "export" and "task" not in named:
            raise ValueError(
                f"path={config.path}: there is no {RECORD} beside the packed model, so its task is unknown; give it, "
                f"as in task=stsb task.path=./glue train.max_length=128"
            )
        return config
    content = parse(record.read_bytes(), str(record))
    theirs, config = content.get("config", {}), config.copy()
    if "task" not in named and isinstance(theirs.get("task"), dict):
        asked = {
            name.removeprefix("task."): OmegaConf.select(config, name) for name in named if name.startswith("task.")
        }
        with open_dict(config):
            config.task = {**_placed(theirs["task"], content.get("directory")), **asked}
    for name in KEPT:
        if f"train.{name}" not in named and "train" not in named and name in theirs.get("train", {}):
            config.train[name] = theirs["train"][name]
    return config


def _placed(task: dict[str, Any], directory: str | None) -> dict[str, Any]:
    """The task, a path in it that was relative to the directory that the run was started in made absolute."""
    path = task.get("path")
    if directory is None or not isinstance(path, str) or not (found := Path(directory) / path).exists():
        return task
    return {**task, "path": str(found)}
