"""Kill a run, an export, a search and a sweep before file operations, and runs and sweeps at random moments: each goes
on, and ends in the same bits.

    python tests/campaign.py run export search sweep random --points 100
    python tests/campaign.py search sweep --every 20                    # before every twentieth operation

A kill before a file operation is a copy of the directory at that moment, which is what it would leave; one at random is
a signal. A process goes on from there. It takes minutes, and keeps the directories of those that went wrong.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from kills import Moment

from nxmiformer import cli
from nxmiformer.export.packed import load_packed
from nxmiformer.files import digests_of
from nxmiformer.jobs import compress
from nxmiformer.jobs import search as searches
from nxmiformer.jobs.compress import run
from nxmiformer.jobs.export import export, is_export
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.search import search

FEW = [
    "name=campaign",
    *("model.hidden=16", "model.heads=2", "model.intermediate=32", "model.layers=1"),
    *("task.train=48", "task.holdout=12", "task.validation=12"),
    *("train.batch_size=12", "train.evaluate_every=0", "train.checkpoint_every=2", "train.cpu=true", "train.threads=1"),
    *("recipe.phases.dense.steps=1", "recipe.phases.admm.steps=3", "recipe.phases.finish.steps=1"),
]
SEARCH = ["job=search", "budget.ratio=0.11", "search.iterations=1", "search.sensitivity.foreseen.iterations=1"]
SEARCH += ["search.examples=8", "search.uniform=2", "search.frontier=0", "search.interactions=0"]
EXPORT = ["job=export", "format=compressed_tensors", "format.tolerance=0.99"]
Work, Outcome = Callable[[Path], Any], Callable[[Path], dict[str, Any]]


def job(directory: Path, *overrides: str) -> Job:
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return cli.build(hydra.compose("config", [*FEW, *overrides]), directory)


def running(directory: Path) -> None:
    """Run, or go on."""
    run(job(directory, "resume=true", "dense_cache=null"))


def searching(directory: Path) -> None:
    search(job(directory, *SEARCH, "resume=true", "dense_cache=null"))


def sweeping(directory: Path) -> None:
    """Two jobs by the command, with a dense model in common."""
    words = ["plan=2of4_int4,int8", "resume=true", f"hydra.sweep.dir={directory}", f"dense_cache={directory / 'dense'}"]
    sys.argv = ["nxmiformer", "-m", *FEW, *words]
    cli.main()


def exporting(directory: Path) -> None:
    export(job(directory, *EXPORT, f"path={directory / 'packed'}"))


def ran(directory: Path) -> dict[str, Any]:
    """What a run leaves that must not depend on how often it was killed; its packed model can be read."""
    load_packed(directory / "packed")
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    timed = ("packed/packed.json", "packed/README.md", "metrics.jsonl", "run.json", "report.")
    files = {name: digest for name, digest in digests_of(directory).items() if not name.startswith(timed)}
    return {
        "files": {name: digest for name, digest in files.items() if not name.startswith(("checkpoints", "figures"))},
        "names": sorted(digests_of(directory)),
        "rows": [{key: value for key, value in row.items() if key != "seconds"} for row in rows],
        "scores": json.loads((directory / "report.json").read_text())["scores"],
    }


def searched(directory: Path) -> dict[str, Any]:
    """What a search leaves that must not depend on how often it was killed."""
    content = json.loads((directory / "search.json").read_text())
    kept = ("plan.json", "dense/")
    return {
        "files": {name: digest for name, digest in digests_of(directory).items() if name.startswith(kept)},
        "found": {key: content[key] for key in ("best", "plans", "frontier", "dense", "identity")},
    }


def swept(directory: Path) -> dict[str, Any]:
    """The same of a sweep; beside its jobs are what Hydra writes and the dense model, and nothing else."""
    jobs = {name: ran(directory / name) for name in ("0", "1")}
    return {"jobs": jobs, "beside": sorted(path.name for path in directory.iterdir())}


def exported(directory: Path) -> dict[str, Any]:
    """What an export leaves that must not depend on how often it was killed."""
    out = directory / "compressed_tensors"
    files = {name: digest for name, digest in digests_of(out).items() if name != "export.json"}
    return {"whole": is_export(out), "files": files, "beside": sorted(path.name for path in directory.iterdir())}


class Snapshots(Moment):
    """Copies the directory before each file operation, as a kill at that moment would leave it."""

    def __init__(self, below: Path, to: Path) -> None:
        super().__init__(below, 0)
        self.to = to

    def meet(self, what: str, path: str, within: bool = False) -> None:
        if not (within or path.startswith(self.below)):
            return
        self.seen.append((what, path))
        Moment.active = None  # copying is none of its operations
        copy = self.to / str(len(self.seen)) / "run"
        shutil.copytree(self.below, copy)
        if what == "half":
            half = copy / Path(path).relative_to(self.below)
            os.truncate(half, half.stat().st_size // 2)
        Moment.active = self


def process(work: Work, directory: Path, to: Path | None = None, seconds: float | None = None) -> int:
    """Do the work in a process of its own, with snapshots in `to`, or killed after so many seconds; give its status."""
    child = os.fork()
    if not child:
        os._exit(_child(work, directory, to))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # which does nothing to one that has ended
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _child(work: Work, directory: Path, to: Path | None) -> int:
    with (directory.parent / "log").open("a") as log:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    try:
        with Snapshots(directory, to) if to is not None else nullcontext():
            work(directory)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush(), sys.stderr.flush()
    return 0


def at_every_operation(place: Path, work: Work, outcome: Outcome, every: int, before: Path | None = None) -> None:
    """Go on from what a kill before each operation of the work, or every so manieth, would leave."""
    whole = fresh(place / "whole", before)
    if process(work, whole, place / "snapshots"):
        sys.exit((whole.parent / "log").read_text())
    expected, snapshots, wrong = outcome(whole), sorted((place / "snapshots").iterdir(), key=lambda x: int(x.name)), 0
    for snapshot in snapshots[::every]:
        status = process(work, snapshot / "run")
        wrong += not right(status == 0 and outcome(snapshot / "run") == expected, snapshot / "run")
    killed = len(snapshots[::every])
    print(
        f"{work.__name__}: {len(snapshots)} file operations, {killed} kills before one: {wrong} went wrong", flush=True
    )


def at_random(place: Path, work: Work, outcome: Outcome, points: int) -> None:
    """Kill the work at random moments, and whatever goes on too, until it ends; anew until there were so many kills."""
    whole, began = fresh(place / "whole", None), time.perf_counter()
    process(work, whole)
    lasts, expected = time.perf_counter() - began, outcome(whole)
    draw, killed, runs, wrong = random.Random(0), 0, 0, 0
    while killed < points:
        directory, runs = fresh(place / str(runs), None), runs + 1
        while (status := process(work, directory, seconds=draw.uniform(0.1, 1.3) * lasts)) == -signal.SIGKILL:
            killed += 1
        wrong += not right(status == 0 and outcome(directory) == expected, directory)
    print(f"{work.__name__}: {killed} kills at random moments in {runs} runs: {wrong} went wrong", flush=True)


def fresh(place: Path, before: Path | None) -> Path:
    """A directory to work in, below `place`, as `before` is, or empty."""
    place.mkdir(parents=True)
    if before is None:
        (place / "run").mkdir()
    else:
        shutil.copytree(before, place / "run")
    return place / "run"


def right(it_is: bool, directory: Path) -> bool:
    """Tell what went wrong, and keep it; remove what did not."""
    if it_is:
        shutil.rmtree(directory.parent)
    else:
        print(f"wrong: {directory.parent}", flush=True)
    return it_is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("run", "export", "search", "sweep", "random"))
    parser.add_argument("--points", type=int, default=100, help="kills at random moments")
    parser.add_argument("--every", type=int, default=1, help="kill before each so manieth operation")
    chosen = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are forked
    # A report takes longer than all else, and is written as everything is.
    compress.write_report = searches.write_search = lambda directory: None
    place = Path(tempfile.mkdtemp(prefix="campaign-"))
    if "run" in chosen.what:
        at_every_operation(place / "run", running, ran, chosen.every)
    if "search" in chosen.what:
        at_every_operation(place / "search", searching, searched, chosen.every)
    if "sweep" in chosen.what:
        at_every_operation(place / "sweep", sweeping, swept, chosen.every)
    if "export" in chosen.what:
        before = fresh(place / "before", None)
        process(running, before)
        at_every_operation(place / "export", exporting, exported, chosen.every, before)
    if "random" in chosen.what:
        at_random(place / "random run", running, ran, chosen.points // 2)
        at_random(place / "random sweep", sweeping, swept, chosen.points - chosen.points // 2)


if __name__ == "__main__":
    main()
