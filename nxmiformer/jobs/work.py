"""One job of the command line, from taking its directory to the last lines on the console."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rich.console import Console

from nxmiformer.console import ending
from nxmiformer.errors import RefusedError
from nxmiformer.files import alone
from nxmiformer.jobs.bench import bench
from nxmiformer.jobs.blockwise import blockwise
from nxmiformer.jobs.compress import finished, follow, run
from nxmiformer.jobs.export import export
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.place import claimed, occupied, recorded
from nxmiformer.jobs.search import found, planned, search
from nxmiformer.jobs.sweep import Ended
from nxmiformer.jobs.together import check_together
from nxmiformer.ranks import ranks
from nxmiformer.report.table import bench_summary, blockwise_summary, export_summary, search_summary, summary
from nxmiformer.runs.many import BLOCKWISE
from nxmiformer.runs.numbers import read_run
from nxmiformer.runs.speeds import best
from nxmiformer.runs.words import outcome


def work(kind: str, build: Callable[[], Job], directory: Path, ended: Ended, sweeping: bool) -> None:
    """Build the job and do what its `kind` is, alone in its directory; note how it ended.

    Raises:
        RefusedError: the job may not start or continue in the directory, and nothing there has been changed.
    """
    if not ranks().writes:
        _follow(kind, build())
        return
    with alone(directory), recorded(directory, first=sweeping):
        job = build()
        check_together(kind, job)
        with _place(kind, job, sweeping):
            lines = KINDS[kind](job, ended)
    for line in lines[: lines.index(ending.NEXT)] if sweeping else lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


def _place(kind: str, job: Job, sweeping: bool) -> AbstractContextManager[None]:
    """The job's directory, where it leaves something there; what a sweep is to overwrite has been moved already."""
    if kind not in ("compress", "search", "blockwise"):
        return nullcontext()
    if job.resume and not sweeping and not occupied(job.directory):
        raise RefusedError(f"there is nothing in {job.directory} to continue: leave out resume=true to start it")
    return claimed(job.directory, "a run", resume=job.resume, overwrite=job.overwrite and not sweeping)


def _compress(job: Job, ended: Ended) -> list[str]:
    """Run the job, unless it is finished; its value is the score of the packed model. Each of these gives its last
    lines."""
    content, console = finished(job), Console()
    ranks().first(content is None)  # which the others wait for
    if content is None:
        content = run(planned(job))
        console.print(summary(read_run(job.directory)))
    else:
        ended.state = "skipped"
    ended.figures = outcome(content)
    ended.value = float(content["scores"]["packed"][content["task"]["metric"]])
    return ending.compressed(job.directory)


def _follow(kind: str, job: Job) -> None:
    """The share of a process that is not the first, which does what `_compress` does and says whether it is done."""
    check_together(kind, job)
    if ranks().first(False):  # the first knows
        follow(job)


def _search(job: Job, ended: Ended) -> list[str]:
    """Search, unless it is finished; its value is the score of the plan that is found."""
    content, console = found(job), Console()
    if content is None:
        content = search(job)
    else:
        ended.state = "skipped"
    console.print(search_summary(content))
    ended.value = float(content["best"]["score"])
    return ending.searched(job.directory, ended.overrides, job.name)


def _export(job: Job, ended: Ended) -> list[str]:
    """Export a packed model; its value is the score of the artefact."""
    content, console = export(job), Console()
    console.print(export_summary(content))
    scores = content["scores"][content["form"]]
    ended.value = float(scores[content["task"]["metric"]]) if scores else math.nan
    return ending.exported(content["form"], Path(content["out"]), str(job.path), job.task.head)


def _bench(job: Job, ended: Ended) -> list[str]:
    """Time a packed model; its value is the most that any way to run it gains over the dense one."""
    content, console = bench(job), Console()
    console.print(bench_summary(content))
    ended.value = best(content).ratio
    return ending.benched(Path(content["out"]), str(job.path))


def _blockwise(job: Job, ended: Ended) -> list[str]:
    """Compress a decoder block by block, unless it is done; its value is the score of the packed model."""
    before = job.resume and (job.directory / BLOCKWISE).exists()  # `blockwise` refuses it where it is another job's
    content, console = blockwise(job), Console()
    if before:
        ended.state = "skipped"
    console.print(blockwise_summary(content))
    ended.value = float(content["scores"]["packed"][content["task"]["metric"]])
    return ending.compressed(job.directory, "blocks.json")


KINDS: dict[str, Callable[[Job, Ended], list[str]]] = {
    "compress": _compress,
    "search": _search,
    "export": _export,
    "bench": _bench,
    "blockwise": _blockwise,
}
