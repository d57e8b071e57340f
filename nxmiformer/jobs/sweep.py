"""The jobs of a sweep: what an earlier one has finished is not run again, and what fails does not stop the others."""

import json
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from nxmiformer.files import write_text
from nxmiformer.jobs.job import PASSING, Job
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.report.document import write_report
from nxmiformer.runs.parse import parse
from nxmiformer.train.checkpoint import Checkpoints, difference

FAILED = "failed.json"


@contextmanager
def recorded(directory: Path) -> Iterator[None]:
    """Leave the error that ends the block in `failed.json`; a block that ends well removes it."""
    try:
        yield
    except Exception as error:
        content = {"error": type(error).__name__, "message": str(error)}
        with suppress(OSError):  # of a full disk, which is likely to be the error
            write_text(directory / FAILED, json.dumps(content, indent=1) + "\n")
        raise
    (directory / FAILED).unlink(missing_ok=True)


@contextmanager
def survived() -> Iterator[None]:
    """Print the error that ends the block, as a single run does, and go on after it.

    Out of a job, it would end the sweep after the batch, and would have to be pickled on its way out of a worker.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError | OSError) and not os.environ.get("NXMIFORMER_TRACEBACK"):
            print(f"nxmiformer: {error}", file=sys.stderr)
        else:
            traceback.print_exc()


def resumable(job: Job) -> Job:
    """The job of a sweep that is run again: it resumes only where there is a checkpoint to go on from."""
    return replace(job, resume=job.resume and Checkpoints(job.directory, {}).path("latest") is not None)


def finished(job: Job) -> dict[str, Any] | None:
    """The content of the `report.json` that this very job left in its directory; None where it is (still) to be run.

    Raises:
        ValueError: another job left it; the message shows the difference.
    """
    path = job.directory / "report.json"
    if not (job.resume and path.exists()):
        return None
    content, started = parse(path.read_bytes(), str(path)), job.directory / "run.json"
    theirs = {"config": parse(started.read_bytes(), str(started))["config"], "plan": content["plan"]["fingerprint"]}
    # The file of a plan may have changed under its name; any other plan is a matter of the configuration.
    planned = job.planning.path and CompressionPlan.load(job.planning.path).fingerprint
    ours = {"config": job.config, "plan": planned or theirs["plan"]}
    differences = difference(_lasting(theirs), _lasting(ours), whose="the finished job")
    if differences:
        lines = "\n  ".join(differences)
        raise ValueError(f"{job.directory} is that of another job; give another hydra.sweep.dir:\n  {lines}")
    if not (job.directory / "report.html").exists():  # a kill came between the two
        write_report(job.directory)
    return content


def _lasting(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity as JSON has it, without what changes no score."""
    passing = PASSING - {"report_on"}
    kept: dict[str, Any] = json.loads(json.dumps(identity))
    return {**kept, "config": {key: value for key, value in kept["config"].items() if key not in passing}}


class Failures(Callback):
    """At the end of a multirun: name the jobs that failed in it, and end with status 1 if there are any."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note what earlier sweeps left in the directory."""
        self.earlier = _failures(config)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print each failed job's directory, overrides and error."""
        failed = [path for path, written in _failures(config).items() if self.earlier.get(path) != written]
        for path in failed:
            content = json.loads(path.read_text())
            print(f"failed: {path.parent}: {_overrides(path.parent)}", file=sys.stderr)
            print(f"  {content['error']}: {content['message']}", file=sys.stderr)
        if failed:
            sys.exit(1)  # Hydra makes a mere warning of any other exception


def _failures(config: DictConfig) -> dict[Path, int]:
    """Every `failed.json` of the sweep, with the time of its writing in nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in sorted(Path(config.hydra.sweep.dir).rglob(FAILED))}


def _overrides(directory: Path) -> str:
    """What the job was given, as Hydra keeps it beside the job's files."""
    path = directory / ".hydra" / "overrides.yaml"
    return shlex.join(map(str, OmegaConf.load(path))) if path.exists() else "its overrides are not kept"
