"""A sweep: a job that fails does not stop it, and at its end every job is listed.

How a job ended is noted beside the jobs, in `.jobs`, not in its directory: that of a refused job is not changed.
"""

import json
import math
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from nxmiformer.console.ending import interrupted
from nxmiformer.errors import RefusedError
from nxmiformer.files import LOCK, alone, write_text
from nxmiformer.jobs.place import claimed, occupied
from nxmiformer.ranks import ranks
from nxmiformer.report.table import sweep_summary

SWEPT, NOTES = "multirun.yaml", ".jobs"
HELD = ExitStack()  # what a sweep holds until the command ends, however it does


@dataclass
class Ended:
    """How a job of a sweep ended.

    Attributes:
        directory: the job's.
        overrides: what it was given.
        state: "done", "skipped" (it was done before), "failed" or "refused" (nothing of it has been changed).
        value: the value for a sweeper; NaN if there is none.
        figures: scores and sizes for the table, by name, as text.
        error, message: of one that failed or was refused.
    """

    directory: str = ""
    overrides: list[str] = field(default_factory=list)
    state: str = "done"
    value: float = math.nan
    figures: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    message: str = ""


@contextmanager
def noted(directory: Path) -> Iterator[Ended]:
    """Note how the job of a sweep in `directory` ended, and continue after an error, which is printed as by a single
    run.

    Out of a job, it would end the sweep after the batch, and would have to be pickled on its way out of a worker.
    """
    config = HydraConfig.get()
    ended = Ended(os.path.relpath(directory), list(config.overrides.task))
    try:
        yield ended
    except Exception as error:
        ended.state = "refused" if isinstance(error, RefusedError) else "failed"
        ended.error, ended.message = type(error).__name__, str(error)
        if isinstance(error, ValueError | OSError) and not os.environ.get("NXMIFORMER_TRACEBACK"):
            print(f"nxmiformer: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
    with suppress(OSError):  # Hydra makes it, and not every job leaves something in it
        directory.rmdir()
    notes = Path(config.sweep.dir) / NOTES
    notes.mkdir(parents=True, exist_ok=True)
    write_text(notes / f"{config.job.num}.json", json.dumps(asdict(ended)) + "\n")


class Around(Callback):
    """Callbacks around a run and around a sweep. Hydra makes a mere warning of any exception here but SystemExit."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Note which directories are not there yet."""
        self.made: list[Path] = []
        with suppress(OmegaConfBaseException):  # a value that the name is made of is missing, and is asked for later
            directory = Path(config.hydra.run.dir).absolute()
            self.made = [each for each in (directory, *directory.parents) if not each.exists()]

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        """Remove those that Hydra has made and the job has left nothing in, as where its values were refused."""
        with suppress(OSError):
            for each in self.made:
                each.rmdir()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Take the sweep's directory, before Hydra writes to it; end with status 2 where it cannot be had."""
        if ranks().count > 1:
            print(f"nxmiformer: WORLD_SIZE={ranks().count}: a sweep takes one process, without -m", file=sys.stderr)
            sys.exit(2)
        directory = Path(config.hydra.sweep.dir)
        resume, overwrite = config.get("resume") is True, config.get("overwrite") is True
        try:
            HELD.enter_context(alone(directory))
            if overwrite:
                _check_idle(directory)
            HELD.enter_context(claimed(directory, "a sweep", _swept, resume=resume, overwrite=overwrite))
            HELD.callback(_clear, directory)
            HELD.push(partial(_stopped, directory))
        except (RefusedError, OSError) as error:
            print(f"nxmiformer: {error}", file=sys.stderr)
            sys.exit(2)
        shutil.rmtree(directory / NOTES, ignore_errors=True)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print each job that failed, and a table of all; end with status 1 if any did."""
        notes = sorted(Path(config.hydra.sweep.dir, NOTES).glob("*.json"), key=lambda path: int(path.stem))
        jobs = [Ended(**json.loads(path.read_text(encoding="utf-8"))) for path in notes]
        failed = [job for job in jobs if job.error]
        for job in failed:
            print(f"{job.state}: {job.directory}: {shlex.join(job.overrides)}", file=sys.stderr)
            print(f"  {job.error}: {job.message}", file=sys.stderr)
        if jobs:
            Console().print(sweep_summary([asdict(job) for job in jobs]))
        shutil.rmtree(Path(config.hydra.sweep.dir, NOTES), ignore_errors=True)
        if failed:
            sys.exit(1)


def _stopped(directory: Path, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
    """If the sweep is stopped, say how to continue it, and end with status 130; with 1, if Slurm has lost a job."""
    stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
    lost = kind is not None and kind.__name__ == "UncompletedJobError"  # of submitit, which may not be installed
    if lost:
        print(f"nxmiformer: {directory}: {' '.join(str(error).splitlines()[:2])}", file=sys.stderr)
    if stopped or lost:
        print(interrupted(sys.argv[1:], f"hydra.sweep.dir={directory}"), file=sys.stderr)
        sys.exit(130 if stopped else 1)


def _clear(directory: Path) -> None:
    """Remove what Hydra has left of a sweep that began no job, as where a value was refused."""
    with suppress(OSError):
        if {path.name for path in directory.iterdir()} <= {SWEPT, LOCK}:
            (directory / SWEPT).unlink()


def _swept(directory: Path) -> bool:
    """Whether a sweep has started a job in the directory."""
    return (directory / SWEPT).exists() and any(occupied(each) for each in directory.iterdir())


def _check_idle(directory: Path) -> None:
    """Raise a RefusedError if a job of the sweep is running: a launcher's workers may outlive the command."""
    for lock in directory.rglob(LOCK):
        if lock.parent != directory:
            with alone(lock.parent):
                pass
