"""Files and directories that are there whole or not at all, and one process at a time in a directory.

What is written lies under a hidden name beside its place until it is whole and on the disk. A kill leaves such names,
which `tidy` removes, or a directory on its way to be replaced, which `settle` puts back.
"""

import errno
import fcntl
import hashlib
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nxmiformer.errors import RefusedError, telling

NEW, OLD, BUSY = ".nx-new", ".nx-old", ".nx-lock"  # the ends of hidden names
LOCK = ".lock"  # of a directory, in it
CHUNK = 2**24  # bytes that are hashed at once, without the interpreter: more, and less often, than `hashlib` does


class BusyError(RefusedError):
    """A directory that another process is at work in."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file under, which takes the place of `path` when the block ends.

    If the block fails, `path` is as it was.

    A FileError says why it cannot be written: the disk is full, the directory may not be written or is gone.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}{NEW}")
    with telling(path, new):
        try:
            yield new
            _sync(new)
            os.replace(new, path)
            _sync(path.parent)
        except BaseException:
            with suppress(OSError):
                new.unlink()
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `whole` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, as `whole` does."""
    with whole(path) as new:
        new.write_bytes(content)


def append(path: Path, line: str) -> None:
    """Add a line to a file that is there; a FileError where it is gone, or the disk is full.

    A kill in it leaves a part of a line, at the end.
    """
    rest = f"{line}\n".encode()
    with telling(path), open(os.open(path, os.O_WRONLY | os.O_APPEND), "wb", buffering=0) as file:  # and makes no file
        while rest:
            rest = rest[file.write(rest) :]


@contextmanager
def replacing(path: Path, own: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """A new, empty directory to write to, which takes the place of `path` when the block ends.

    If the block fails, `path` is as it was; after a kill, it is once `settle` has looked at it.

    Args:
        path: below a directory that is there.
        own: whether a directory may be replaced, for there is nothing of anybody else's in it.
        what: such a directory is, in words.

    Raises:
        FileExistsError: `path` is there, and may not be replaced.
        BusyError: another process is replacing it.
        FileError: the disk is full, the directory cannot be written, or is gone.
    """
    new, old = _beside(path, NEW), _beside(path, OLD)
    with _locked(_beside(path, BUSY), path):
        _settle(path)
        _refuse(path, own, what)
        try:
            with telling(path, new):
                new.mkdir()
                yield new
            _refuse(path, own, what)  # which may have come meanwhile
            with telling(path):
                for each in sorted(new.rglob("*")):
                    _sync(each)
                if path.exists():
                    os.rename(path, old)
                os.rename(new, path)
                _sync(path.parent)
        except BaseException:
            _settle(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def settle(path: Path) -> None:
    """Put a directory back that a kill caught on its way to be replaced; a BusyError if it is on that way right now."""
    if not path.exists() and _beside(path, OLD).exists():
        with _locked(_beside(path, BUSY), path):
            _settle(path)


def tidy(directory: Path) -> None:
    """Remove what a kill left half-made in a directory, and put back what it left half-replaced.

    What another process is at work on is left to it. Directories below are not looked into.
    """
    for left in sorted(directory.glob(".*")):
        if left.suffix == BUSY or (left.suffix in (NEW, OLD) and left.is_dir()):
            path = directory / left.name.removeprefix(".").removesuffix(left.suffix)
            with suppress(BusyError), _locked(_beside(path, BUSY), path):
                _settle(path)
        elif left.suffix == NEW:
            left.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Move a file or directory out of the way, to `NAME.1` or the next number that is free; give its new path."""
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    with telling(path):
        os.rename(path, free)
    return free


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep other processes out of the directory while the block runs; where it was not there, it is made.

    What is made of it and stays empty is removed again. The lock is the system's: it ends with the process, however
    that ends.

    Raises:
        BusyError: another process is running in it. The message names it, and nothing has been written.
        FileError: the directory cannot be written.
    """
    made = [each for each in (directory, *directory.parents) if not each.exists()]
    with telling(directory):
        directory.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(directory / LOCK, directory):
            yield
    finally:
        with suppress(OSError):
            for each in made:
                each.rmdir()


def files_in(directory: Path) -> list[Path]:
    """Every file below the directory, and everything else in it that is no directory of its own, such as a link."""
    return sorted(file for file in directory.rglob("*") if file.is_symlink() or not file.is_dir())


def digest_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(CHUNK, file.stat().st_size)))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def digests_of(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file below the directory, by its path in it."""
    return {file.relative_to(directory).as_posix(): digest_of(file) for file in files_in(directory)}


def _refuse(path: Path, own: Callable[[Path], bool], what: str) -> None:
    if path.exists() and not own(path):
        kept = "it is left as it is: give another, or move it away"
        raise FileExistsError(f"{path} exists and is not {what} and nothing else; {kept}")


def _beside(path: Path, end: str) -> Path:
    return path.with_name(f".{path.name}{end}")


def _settle(path: Path) -> None:
    """Remove what a replacing of `path` left, and put `path` back if it had been moved. Its lock is the caller's."""
    new, old = _beside(path, NEW), _beside(path, OLD)
    if old.exists() and not path.exists():
        os.rename(old, path)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the system write a file, or the names in a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot, of a directory
            raise
    finally:
        os.close(handle)


@contextmanager
def _locked(lock: Path, directory: Path) -> Iterator[None]:
    """Hold the lock file while the block runs; it is there only as long as that."""
    handle = _lock(lock, directory)
    try:
        with suppress(OSError):  # a full disk: then it does not say who
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        try:
            with suppress(OSError):  # then it stays there, and locks nobody out
                if _is(handle, lock):
                    lock.unlink()
        finally:
            os.close(handle)


def _lock(lock: Path, directory: Path) -> int:
    """The handle of the lock file, locked."""
    while True:
        with telling(directory):
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = os.pread(handle, 1000, 0).decode() or "another process"
            os.close(handle)
            raise BusyError(f"{who} is running in {directory}: wait for it, or stop it") from error
        if _is(handle, lock):
            return handle
        os.close(handle)  # whoever had it has ended, and removed it: this one would lock nobody out


def _is(handle: int, path: Path) -> bool:
    """Whether an open file is the one that has the name still."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False
