"""All runs below a directory, as tables."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nxmiformer.runs.numbers import METRICS, REPORT, STAGES, Report, read_report, read_rows
from nxmiformer.runs.parse import shaped

RECORD, FAILED, SEARCHED = "run.json", "failed.json", "search.json"
BLOCKWISE, SURVEYED = "blocks.json", "survey.json"
PARTS = ("packed", "dense", "checkpoints", "trials")  # of a run or a search: no run to be compared is in them
WHAT = ("name", "task", "model", "plan", "fingerprint", "phases", "seed")
FOUND = ("status", "error", "report_on", "metric", *STAGES, "above_chance", "retention")
COSTS = tuple(f"compression_{part}" for part in ("values", "indices", "all", "model"))
COSTS += ("packed_bytes", "dense_bytes", "packed_model_bytes", "dense_model_bytes")
COLUMNS = (*FOUND, *COSTS, "gap", "steps", "seconds", "device", "revision")
CONFIGURED = {"name": "name", "seed": "seed", "report_on": "report_on", "task.name": "task", "plan.name": "plan"}
PASSING = ("resume", "tracker")  # no result depends on them


@dataclass(frozen=True)
class Failure:
    """The content of `failed.json`: the error's class, and what it said."""

    error: str
    message: str


@dataclass(frozen=True)
class Record:
    """What counts here of `run.json`."""

    config: dict[str, Any]
    revision: str | None = None


def load_runs(directory: str | Path) -> pd.DataFrame:
    """Every run of `directory`, a row each: a run's own directory, a multirun's, or one that holds many of either. A
    finished search does not count as a run, nor do its trials, nor a decoder that was compressed block by block.

    Columns, missing where a run does not have the value::

        directory: the run's, from the one given; "." for itself.
        name, task, model, plan, fingerprint, phases (in their order), seed.
        config.<key>: the values of the configurations that not all runs share; a list is JSON.
        status: "done"; "failed", with its `error`; "unfinished": there is no report (yet).
        report_on (split), metric, and by that metric dense, one_shot, final, packed; above_chance, whether the dense
            model is; retention = final / dense where it is.
        compression_*: see `Compression`. Bytes: packed_bytes and dense_bytes of the compressed layers,
            packed_model_bytes and dense_model_bytes of whole models, on disk.
        gap: ||W - Z|| / ||W|| after the first phase that has one. steps (optimizer), seconds (wall), device, revision.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a file is damaged; the message names it, and the key.
    """
    places = _places(Path(directory))
    records = [_record(place) for place in places]
    configs = [dict(_flat(record.get("config", {}))) for record in records]
    swept = _differing(configs)
    rows = []
    for place, record, config in zip(places, records, configs, strict=True):
        row = {column: config.get(key) for key, column in CONFIGURED.items()}
        row |= {"phases": _phases(config), "revision": record.get("revision"), **_outcome(place)}
        row |= {f"config.{key}": config.get(key) for key in swept}
        present = {column: value for column, value in row.items() if value is not None}
        rows.append({"directory": place.relative_to(directory).as_posix(), **present})
    return pd.DataFrame(rows, columns=["directory", *WHAT, *(f"config.{key}" for key in swept), *COLUMNS])


def load_metrics(directory: str | Path) -> pd.DataFrame:
    """The metrics that the runs of `directory` logged, a row each.

    Columns: directory (as in `load_runs`), phase, step (of the phase), total_step (of the run), key, value. Keys are
    those of `metrics.jsonl`: "loss", "seconds", "gap", "gap/<parameter>", "holdout/<metric>" and so on.

    Raises:
        FileNotFoundError, ValueError: as `load_runs`.
    """
    place_columns = ["phase", "step", "total_step"]
    rows = [
        (place.relative_to(directory).as_posix(), *(row[column] for column in place_columns), key, float(value))
        for place in _places(Path(directory))
        if (place / METRICS).is_file()
        for row in read_rows(place / METRICS, finished=_status(place) == "done")
        for key, value in row.items()
        if key not in place_columns and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return pd.DataFrame(rows, columns=["directory", *place_columns, "key", "value"])


def _places(root: Path) -> list[Path]:
    """The directories of the runs, in the order of their names; numbers by their value."""
    found = []
    for place, folders, files in os.walk(root):
        if {RECORD, REPORT, FAILED} & set(files):
            folders[:] = [folder for folder in folders if folder not in PARTS]
            if not {SEARCHED, SURVEYED, BLOCKWISE} & set(files) or {REPORT, FAILED} & set(files):
                found.append(Path(place))
    if not found:
        reason = "there is no such directory" if not root.is_dir() else f"nothing in it has {RECORD} or {REPORT}"
        raise FileNotFoundError(f"{root} holds no run: {reason}")
    return sorted(found, key=lambda path: [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in path.parts])


def _status(place: Path) -> str:
    return "failed" if (place / FAILED).is_file() else "done" if (place / REPORT).is_file() else "unfinished"


def _record(place: Path) -> Mapping[str, Any]:
    """The content of `run.json`; nothing where the job failed before it wrote one."""
    path = place / RECORD
    if not path.is_file():
        return {}
    return asdict(shaped(path.read_bytes(), path, Record))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested values by their dotted keys."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list) else value


def _differing(configs: list[dict[str, Any]]) -> list[str]:
    """The keys, in their order, that are not alike in all configurations and have no column of their own."""
    known = [config for config in configs if config]
    keys = dict.fromkeys(key for config in known for key in config)
    return [
        key
        for key in keys
        if key not in CONFIGURED
        and key.split(".")[0] not in PASSING
        and len({json.dumps(config[key]) if key in config else "" for config in known}) > 1
    ]


def _phases(config: Mapping[str, Any]) -> str | None:
    """The names of the recipe's phases, of a flat configuration."""
    names = dict.fromkeys(key.split(".")[2] for key in config if key.startswith("recipe.phases."))
    return ", ".join(names) or None


def _outcome(place: Path) -> dict[str, Any]:
    """The outcome of the run: its status, and its results or its error."""
    status = _status(place)
    if status == "failed":
        failure = shaped((place / FAILED).read_bytes(), place / FAILED, Failure)
        return {"status": status, "error": f"{failure.error}: {failure.message}"}
    return {"status": status, **(_results(read_report(place / REPORT)) if status == "done" else {})}


def _results(report: Report) -> dict[str, Any]:
    storage, metric = report.storage, report.task.metric
    return {
        "name": report.name,
        "task": report.task.name,
        "model": report.model.name,
        "plan": report.plan.name,
        "fingerprint": report.plan.fingerprint,
        "phases": ", ".join(report.phases),
        "seed": report.seed,
        "report_on": report.report_on,
        "metric": metric,
        **{stage: scores.get(metric) for stage, scores in report.scores.items() if stage in STAGES},
        "above_chance": report.above_chance,
        "retention": report.retention if report.above_chance else None,
        **{f"compression_{part}": share for part, share in asdict(storage.compression).items()},
        "packed_bytes": storage.bytes.packed_weights,
        "dense_bytes": storage.dense_bits // 8,
        "packed_model_bytes": storage.bytes.packed_model,
        "dense_model_bytes": storage.bytes.dense_model,
        "gap": next((phase.gap for phase in report.phases.values() if phase.gap), None),
        "steps": sum(phase.steps for phase in report.phases.values()),
        "seconds": report.seconds,
        "device": report.device,
        "revision": report.revision,
    }
