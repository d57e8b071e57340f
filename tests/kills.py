"""Stop code before one of its file operations, as a kill or a fault of the disk does.

Python's audit hooks tell of each operation before it is done. Only one that changes something counts, and only below a
given directory; what a file of tensors is written by is native code, and counts as two: not begun, and half done.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import safetensors.torch

CHANGING = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killed(BaseException):
    """What a kill looks like to the code that it stops."""


def kill(path: str) -> None:
    """A kill within this process, which the test outlives."""
    raise Killed


def full_disk(path: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(path: str) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


class Moment:
    """A context in which `fault` is called before file operation `number` below a directory, counted from 1.

    Attributes:
        seen: the operations so far, each with its path.
        reached: whether it has come to that. After a kill, every other operation is one too.
    """

    active: "Moment | None" = None

    def __init__(self, below: Path, number: int, fault: Callable[[str], None] = kill) -> None:
        self.below, self.number, self.fault = str(below), number, fault
        self.seen: list[tuple[str, str]] = []
        self.reached = False

    def __enter__(self) -> Self:
        Moment.active = self
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        Moment.active = None
        return kind is Killed

    def meet(self, what: str, path: str, within: bool = False) -> None:
        if self.reached and self.fault is kill:
            raise Killed
        if not within and not path.startswith(self.below):
            return
        self.seen.append((what, path))
        if len(self.seen) == self.number:
            self.reached = True
            if what == "half":
                os.truncate(path, os.path.getsize(path) // 2)
            self.fault(path)


def moments(below: Path, fault: Callable[[str], None] = kill) -> Iterator[Moment]:
    """One for each file operation of what is done in them, in order; the last comes after all."""
    number, reached = 0, True
    while reached:
        number += 1
        moment = Moment(below, number, fault)
        yield moment
        reached = moment.reached


def _hook(event: str, arguments: tuple) -> None:
    moment = Moment.active
    if moment is None or not (event in CHANGING or (event == "open" and (arguments[2] or 0) & WRITING)):
        return
    path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
    opened = event in ("os.remove", "os.rmdir") and arguments[-1] not in (None, -1)  # the path is below a handle
    moment.meet(event, path, within=opened)


def _serialize_in_two(tensors, filename, metadata=None):
    if Moment.active is not None:
        Moment.active.meet("tensors", os.fspath(filename))
    _serialize(tensors, filename, metadata)
    if Moment.active is not None:
        Moment.active.meet("half", os.fspath(filename))


sys.addaudithook(_hook)
_serialize, safetensors.torch.serialize_file = safetensors.torch.serialize_file, _serialize_in_two
