"""Where the figures of a run go."""

import abc
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from nxmiformer.console.display import SILENT, Display
from nxmiformer.files import append, write_text
from nxmiformer.plan.compression import CompressionPlan

REPORT = "report.json"
LAYER_COLUMNS = ("layer", "set", "bits per weight", "error", "gap", "kept")
APART = {
    "offline": "metrics are kept in {}/wandb until `wandb sync` sends them",
    "disabled": "metrics go to metrics.jsonl only",
}
LONG = ("plans", "frontier", "damages", "interactions", "identity")  # of a search: its figures show them


class Tracker(abc.ABC):
    """Takes rows of figures; used as a context, which ends it in the state that the run ended in."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(failed=kind is not None)

    @abc.abstractmethod
    def log(self, row: Mapping[str, Any]) -> None:
        """One row; `total_step` orders them."""

    def report(self, directory: Path, name: str = REPORT) -> None:  # noqa: B027 (not every tracker keeps reports)
        """The report of a run or a search is the JSON file `name` in `directory`, with its figures beside it."""

    @abc.abstractmethod
    def finish(self, failed: bool) -> None:
        """The run has ended."""


class Jsonl(Tracker):
    """One JSON object a line in `metrics.jsonl`.

    Args:
        directory: the run's.
        resumed_at: `total_step` of the checkpoint that the run continues from. Later rows are dropped, because their
            steps are taken again. None starts a new file.
    """

    def __init__(self, directory: Path, resumed_at: int | None = None) -> None:
        self.path = directory / "metrics.jsonl"
        rows = []
        if resumed_at is not None and self.path.exists():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            rows = [line for line in lines if _step(line) <= resumed_at]
        write_text(self.path, "".join(f"{row}\n" for row in rows))

    def log(self, row: Mapping[str, Any]) -> None:
        """Add the row.

        Raises:
            FileError: the disk is full, or the run's directory is gone.
        """
        append(self.path, json.dumps(dict(row), allow_nan=False))

    def finish(self, failed: bool) -> None:
        """Nothing is left to be done: each row is in the file when it is logged."""


def _step(line: str) -> float:
    """The row's `total_step`; a line cut short by a kill belongs to no step that was kept."""
    try:
        return float(json.loads(line)["total_step"])
    except (ValueError, KeyError):
        return float("inf")


class Wandb(Tracker):
    """A Weights & Biases run: one a job, the same one when the job resumes.

    Args:
        directory: the run's; wandb writes below it, and the run's id is kept there.
        config: plain values.
        options: further arguments of `wandb.init`, such as project, entity or group; a `mode` of None is that of the
            environment's WANDB_MODE, or online.
        display: is told where figures do not go to at once.

    Each row is logged as it comes; at the end the report becomes the summary, its figures images, and its layers the
    table `per_layer`. Of a search, which has no such layers, the summary leaves out what is long.

    Raises:
        ValueError: the package is missing, or cannot begin a run, as where nobody is logged in.
    """

    def __init__(
        self, directory: Path, config: Mapping[str, Any], options: Mapping[str, Any], display: Display = SILENT
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("tracker=wandb needs the wandb package: pip install nxmiformer[wandb]") from error
        identity = directory / "wandb_id"
        if not identity.exists():
            write_text(identity, secrets.token_hex(4))
        mode = options.get("mode") or os.environ.get("WANDB_MODE")
        if mode in APART:
            display.say(f"Weights & Biases is {mode}: {APART[mode].format(directory)}")
        try:
            self.run = wandb.init(
                dir=os.fspath(directory), config=dict(config), id=identity.read_text(), resume="allow", **options
            )
        except wandb.Error as error:
            raise ValueError(
                f"Weights & Biases: {error}; `wandb login` logs in, WANDB_MODE=offline keeps it here"
            ) from error
        self.run.define_metric("*", step_metric="total_step")

    def log(self, row: Mapping[str, Any]) -> None:
        self.run.log(dict(row))

    def report(self, directory: Path, name: str = REPORT) -> None:
        import wandb

        content = json.loads((directory / name).read_text())
        self.run.summary.update({key: value for key, value in content.items() if key not in LONG})
        if "layers" in content:
            layers = wandb.Table(list(LAYER_COLUMNS), _layers(content["layers"], directory / "plan.json"))
            self.run.log({"per_layer": layers})  # "layers" is the report's, in the summary
        self.run.log({path.stem: wandb.Image(os.fspath(path)) for path in sorted(directory.glob("figures/*.png"))})

    def finish(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def _layers(reported: Mapping[str, Mapping[str, Any]], plan: Path) -> list[list[Any]]:
    """A row of `LAYER_COLUMNS` for each layer of a report."""
    specs = CompressionPlan.load(plan).layers
    rows = []
    for name, layer in reported.items():
        rows.append([name, layer["set"], specs[name].bits, layer["error"], layer["gap"], layer["kept"]])
    return rows


class Several(Tracker):
    """Hands everything to each of several trackers."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self.trackers = trackers

    def log(self, row: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.log(row)

    def report(self, directory: Path, name: str = REPORT) -> None:
        for tracker in self.trackers:
            tracker.report(directory, name)

    def finish(self, failed: bool) -> None:
        for tracker in self.trackers:
            tracker.finish(failed)
