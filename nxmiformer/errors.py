"""Errors that name the value, its place and what could have been meant."""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # what writing to an open file meets
REMEDIES = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some of your quota, or choose another place",
    errno.EFBIG: "raise the limit on the size of files, or choose another place",
    errno.EACCES: "make its directory writable, or choose another place",
    errno.EPERM: "make its directory writable, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EEXIST: "something else is there: move it away, or choose another place",
    errno.ENOENT: "its directory is not there: has it been moved or removed?",
    errno.ENOTDIR: "its directory is a file: choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def unknown(what: str, value: object, valid: Iterable[str]) -> ValueError:
    """A ValueError for a name that is not among the valid ones, with the nearest of those."""
    names = [str(name) for name in valid]
    near = difflib.get_close_matches(str(value), names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names[:12]) or 'none'}"
    return ValueError(f"unknown {what} {value!r}: {hint}")


class RefusedError(ValueError):
    """A refused start, because of existing files; nothing has been changed."""


class FileError(OSError):
    """A file that cannot be written; the message names it, and says what to do."""


@contextmanager
def telling(path: Path, new: Path | None = None) -> Iterator[None]:
    """Turn an error of the disk in the block, in Python or in native code, into a FileError that names `path`.

    If `new` is given, the block may be any code that writes to `new`. Errors of files that it reads are left.
    """
    try:
        yield
    except FileError as error:
        raise FileError(str(error).replace(str(new), str(path))) from error  # as it will be called
    except Exception as error:
        number = _refused(error, new)
        if number is None:
            raise
        remedy = REMEDIES.get(number, "check the disk")
        raise FileError(f"{path} cannot be written: {os.strerror(number)}; {remedy}") from error


def _refused(error: BaseException | None, new: Path | None) -> int | None:
    """The system's error number behind an error: Rust's libraries give it in words, torch hides an OSError."""
    while error is not None:
        told, place = re.search(r"\(os error (\d+)\)", str(error)), getattr(error, "filename", None)
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if number is not None and (
            new is None
            or number in FULL
            or (Path(os.fsdecode(place)).is_relative_to(new) if isinstance(place, str | bytes) else not new.exists())
        ):
            return number
        error = error.__cause__ or error.__context__
    return None
