"""The directory of a job: who may start in it, and what a job that failed leaves there.

A refused start changes nothing in it, as it may belong to a running job, or to a finished one.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nxmiformer.errors import RefusedError
from nxmiformer.files import LOCK, alone, set_aside, write_text
from nxmiformer.runs.many import BLOCKWISE, FAILED, RECORD, SURVEYED

MARKS = (  # what a run or a search leaves
    *(RECORD, "plan.json", "metrics.jsonl", "report.json", "search.json", SURVEYED, BLOCKWISE),
    *("checkpoints", "dense", "packed", "search", "trials", "blocks", "activations", "survey"),
)


def occupied(directory: Path) -> bool:
    """Whether a job has started in the directory; other files, such as a log, do not count."""
    return any((directory / name).exists() for name in MARKS)


@contextmanager
def claimed(
    directory: Path, what: str, there: Callable[[Path], bool] = occupied, *, resume: bool, overwrite: bool
) -> Iterator[None]:
    """The directory, locked by the caller, is the job's while the block runs.

    With `overwrite`, the whole directory is moved aside. If the block fails before it has started anything, it is moved
    back.

    Args:
        what: what may exist already, in words.
        there: whether it exists.

    Raises:
        RefusedError: it exists, and neither `resume` nor `overwrite` is given.
    """
    if not there(directory) or resume:
        yield
    elif not overwrite:
        raise RefusedError(
            f"{directory} has {what} already: resume=true continues it, overwrite=true moves it aside and starts "
            f"again; or give another name"
        )
    else:
        aside = set_aside(directory)
        (aside / LOCK).unlink(missing_ok=True)
        print(f"{directory} had {what} already, which is moved to {aside}", flush=True)
        try:
            with alone(directory):
                yield
        except BaseException:
            if not there(directory):
                with suppress(OSError):  # somebody has put something else there
                    if directory.exists():
                        directory.rmdir()
                    aside.rename(directory)
                    print(f"nothing was started: {aside} is {directory} again", flush=True)
            raise


@contextmanager
def recorded(directory: Path, first: bool = False) -> Iterator[None]:
    """Leave the error that ends the block in `failed.json`; a block that ends well removes it.

    If the job fails before it has started anything, nothing is left, except with `first` if no other job has started
    there.
    """
    before = _beginnings(directory)
    try:
        yield
    except Exception as error:
        if _beginnings(directory) != before or (first and not occupied(directory)):
            content = {"error": type(error).__name__, "message": str(error)}
            with suppress(OSError):  # a full disk, or a directory that is gone: it is told all the same
                write_text(directory / FAILED, json.dumps(content, indent=1) + "\n")
        raise
    (directory / FAILED).unlink(missing_ok=True)


def _beginnings(directory: Path) -> list[tuple[int, int]]:
    """What tells whether a job, or the search that it begins with, has begun since: it writes its record first."""
    found = [path.stat() for path in (directory / RECORD, directory / "search" / RECORD) if path.exists()]
    return [(each.st_ino, each.st_mtime_ns) for each in found]
