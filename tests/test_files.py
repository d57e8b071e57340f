"""What is written is there whole or not at all; what a kill leaves is put right; nobody else's files are touched."""

import os
import resource
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from kills import full_disk, moments, read_only
from safetensors.torch import save_file

from nxmiformer.errors import FileError
from nxmiformer.files import (
    BusyError,
    alone,
    append,
    digests_of,
    replacing,
    set_aside,
    settle,
    tidy,
    whole,
    write_bytes,
    write_text,
)

TENSORS = {"weight": torch.arange(4096.0)}


def anything(directory):
    return True


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def fill(directory, text):
    """A directory with a file, a file of tensors, and a file in a directory."""
    (directory / "a").write_text(text)
    save_file(TENSORS, directory / "tensors")
    (directory / "below").mkdir()
    (directory / "below" / "b").write_text(text)


def replace(path, text):
    with replacing(path, anything, "a test") as directory:
        fill(directory, text)


@contextmanager
def at_most(size):
    """Let no file grow beyond so many bytes, whoever writes it: what a full disk does, in one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_a_kill_meets_at_any_operation_is_the_old_one_or_the_new_one(tmp_path):
    path, new = tmp_path / "report.json", "new" * 100
    for moment in moments(tmp_path):
        path.write_text("old")
        with moment:
            write_text(path, new)
        assert path.read_text() == ("old" if moment.reached else new)
        tidy(tmp_path)
        assert names(tmp_path) == ["report.json"]
    assert moment.number > 2


def test_a_directory_that_a_kill_meets_at_any_operation_is_the_old_one_or_the_new_one(tmp_path):
    path, found = tmp_path / "packed", []
    for there in (True, False):
        for moment in moments(tmp_path):
            tidy(tmp_path)
            if there:
                replace(path, "old")
            before = digests_of(path) if there else {}
            with moment:
                replace(path, "new")
            settle(path)
            found.append(path.exists() and (path / "a").read_text())
            assert not moment.reached or found[-1] == "new" or (digests_of(path) if path.exists() else {}) == before
            tidy(tmp_path)
            assert names(tmp_path) == (["packed"] if path.exists() else [])
            with suppress(FileNotFoundError):
                path.rename(tmp_path.parent / f"{tmp_path.name}-{there}-{moment.number}")
    assert {*found} == {"old", "new", False}
    assert len(found) > 20


@pytest.mark.parametrize("size", [0, 3, 100, 8000])
def test_a_disk_that_is_full_leaves_the_old_file_or_directory_and_names_the_new_one(size, tmp_path):
    path = tmp_path / "packed"
    replace(path, "old")
    before = digests_of(path)
    write_text(tmp_path / "text", "old")
    with at_most(size):
        with pytest.raises(FileError, match=r"packed cannot be written: File too large; raise the limit"):
            replace(path, "new!")
        with pytest.raises(FileError, match=r"text cannot be written: File too large; raise the limit"):
            write_bytes(tmp_path / "text", bytes(size + 1))
        with (
            pytest.raises(FileError, match=r"state cannot be written: File too large"),
            whole(tmp_path / "state") as new,
            new.open("wb") as file,
        ):
            torch.save(TENSORS, file)
    assert digests_of(path) == before
    assert (tmp_path / "text").read_text() == "old"
    assert names(tmp_path) == ["packed", "text"]


@pytest.mark.parametrize(
    ("fault", "words"), [(full_disk, "No space left on device; free"), (read_only, "Permission denied; make")]
)
def test_every_operation_that_the_disk_refuses_leaves_what_was_there_and_says_what_to_do(fault, words, tmp_path):
    path = tmp_path / "packed"
    for moment in moments(tmp_path, fault):
        replace(path, "old")
        write_text(tmp_path / "text", "old")
        refused = []
        for work in (lambda: replace(path, "new"), lambda: write_text(tmp_path / "text", "new")):
            with moment:
                try:
                    work()
                except FileError as error:
                    refused.append(str(error))
        assert all(words in each and str(tmp_path) in each for each in refused)
        assert (path / "a").read_text() in (("new",) if not refused else ("old", "new"))
        tidy(tmp_path)
        assert names(tmp_path) == ["packed", "text"]
    assert not refused
    assert moment.number > 10


def test_a_directory_that_is_gone_is_not_made_again(tmp_path):
    gone = tmp_path / "run"
    for work in (
        lambda: write_text(gone / "text", "new"),
        lambda: replace(gone / "packed", "new"),
        lambda: append(gone / "metrics", "new"),
    ):
        with pytest.raises(FileError, match="its directory is not there: has it been moved or removed"):
            work()
    assert names(tmp_path) == []


def test_an_error_that_is_not_of_the_disk_that_is_written_to_stays_what_it_is(tmp_path):
    def read():
        with replacing(tmp_path / "packed", anything, "a test"):
            (tmp_path / "absent").read_text()

    with pytest.raises(FileNotFoundError, match="absent") as error:
        read()
    assert not isinstance(error.value, FileError)
    assert names(tmp_path) == []


def test_what_is_not_wholly_ones_own_is_not_replaced_and_nor_is_what_comes_meanwhile(tmp_path):
    path = tmp_path / "mine"

    def own(directory):
        return names(directory) == ["a"]

    path.mkdir()
    (path / "a").touch(), (path / "sources").touch()
    with (
        pytest.raises(FileExistsError, match="mine exists and is not a test and nothing else; it is left as it is"),
        replacing(path, own, "a test"),
    ):
        pytest.fail("it was begun")
    (path / "sources").unlink()
    with pytest.raises(FileExistsError, match="it is left as it is"), replacing(path, own, "a test"):
        (path / "sources").touch()
    assert names(path) == ["a", "sources"]
    assert names(tmp_path) == ["mine"]


def test_only_one_at_a_time_replaces_a_directory_and_the_other_changes_nothing(tmp_path):
    path = tmp_path / "out"
    with replacing(path, anything, "a test") as directory:
        fill(directory, "first")
        with pytest.raises(BusyError, match=rf"process {os.getpid()} on .* is running in .*out: wait for it"):
            replace(path, "second")
        tidy(tmp_path)
        settle(path)
    assert (path / "a").read_text() == "first"
    assert names(tmp_path) == ["out"]


def test_only_one_at_a_time_is_at_work_in_a_directory_and_the_other_changes_nothing(tmp_path):
    place = tmp_path / "runs" / "first"
    with alone(place):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with pytest.raises(BusyError, match=rf"process {os.getpid()} on .* is running in {place}"), alone(place):
            pytest.fail("two are at work")
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert names(tmp_path) == []
    with alone(place):
        (place / "report").touch()
    assert names(place) == ["report"]


def test_a_lock_that_a_killed_process_left_does_not_lock_anybody_out(tmp_path):
    for moment in moments(tmp_path):
        with moment, alone(tmp_path / "run"):
            (tmp_path / "run" / "file").touch()
        with alone(tmp_path / "run"):
            pass
    assert moment.number > 2
    assert names(tmp_path / "run") == ["file"]


def test_what_is_appended_is_a_line_more_and_a_kill_leaves_at_most_a_part_of_it(tmp_path):
    path = tmp_path / "metrics"
    path.touch()
    append(path, "1")
    append(path, "2")
    assert path.read_text() == "1\n2\n"
    with at_most(6), pytest.raises(FileError, match="metrics cannot be written: File too large"):
        append(path, "345")
    assert path.read_text().startswith("1\n2\n")


def test_what_is_set_aside_replaces_nothing(tmp_path):
    for number in (1, 2):
        (tmp_path / "packed").mkdir()
        assert set_aside(tmp_path / "packed") == tmp_path / f"packed.{number}"
    assert names(tmp_path) == ["packed.1", "packed.2"]


def test_tidying_touches_nothing_of_anybody_elses(tmp_path):
    theirs = [".hidden", ".lock", ".packed.tmp", "file.nx", ".git"]
    for name in theirs:
        (tmp_path / name).touch()
    tidy(tmp_path)
    assert names(tmp_path) == sorted(theirs)


def test_a_link_in_a_directory_is_a_file_of_it(tmp_path):
    (tmp_path / "out").mkdir(), (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "a").write_text("a")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "sources")
    with pytest.raises(IsADirectoryError):
        digests_of(tmp_path / "out")


def test_a_name_that_is_no_directory_is_refused_in_words(tmp_path):
    Path(tmp_path / "file").touch()
    with pytest.raises(FileError, match="something else is there"), alone(tmp_path / "file"):
        pytest.fail("it is at work in a file")
