"""Who may begin in a directory, and what a job that fails leaves there."""

import os
import sys

import pytest

from nxmiformer import cli
from nxmiformer.errors import RefusedError
from nxmiformer.files import BusyError, alone
from nxmiformer.jobs.place import claimed, occupied, recorded


def everything(directory):
    """Every file and directory: its bytes, and when it was written."""
    return {
        path: (path.is_file() and path.read_bytes(), path.stat().st_mtime_ns)
        for path in [directory, *directory.rglob("*")]
    }


def inside(directory):
    """The same of what is in the directory, by its path there."""
    return {path.relative_to(directory): state for path, state in everything(directory).items() if path != directory}


@pytest.fixture
def run(tmp_path):
    """The directory of a run that has ended, with a log of its user's."""
    place = tmp_path / "run"
    (place / "packed").mkdir(parents=True)
    (place / ".hydra").mkdir()
    for name in ("run.json", "packed/model.safetensors", ".hydra/config.yaml", "log.txt"):
        (place / name).write_text(f"old {name}")
    return place


def begin(place):
    (place / "run.json").write_text("new")


def attempt(place, end, begun, **how):
    """A job that ends with an exception, after it has begun or before."""
    with alone(place), recorded(place), claimed(place, "a run", **how):
        if begun:
            begin(place)
        raise end


def test_a_directory_with_a_run_is_refused_whole_and_both_ways_on_are_named(run):
    before = inside(run)
    with pytest.raises(RefusedError, match=r"has a run already: resume=true .* overwrite=true"):
        attempt(run, KeyboardInterrupt, True, resume=False, overwrite=False)
    assert inside(run) == before


def test_a_run_that_is_overwritten_is_moved_aside_whole_and_told_before_the_first_new_byte(run, capsys):
    before = inside(run)
    for number in (1, 2):
        aside = run.with_name(f"run.{number}")
        with alone(run), claimed(run, "a run", resume=False, overwrite=True):
            assert [path.name for path in run.iterdir()] == [".lock"]
            assert f"is moved to {aside}" in capsys.readouterr().out
            with pytest.raises(BusyError), alone(run):
                pass
            begin(run)
        assert [path.name for path in run.iterdir()] == ["run.json"]
    assert inside(run.with_name("run.1")) == before


def test_what_was_moved_aside_is_put_back_where_nothing_is_begun_and_stays_aside_where_something_is(run):
    before = inside(run)
    with pytest.raises(KeyboardInterrupt):
        attempt(run, KeyboardInterrupt, False, resume=False, overwrite=True)
    assert inside(run) == before
    with pytest.raises(ZeroDivisionError):
        attempt(run, ZeroDivisionError, True, resume=False, overwrite=True)
    assert {path.name for path in run.iterdir()} == {"run.json", "failed.json"}
    assert (run.with_name("run.1") / "run.json").read_text() == "old run.json"


def test_files_of_others_keep_no_run_from_beginning(tmp_path):
    for name in ("log.txt", "failed.json", ".lock"):
        (tmp_path / name).touch()
    assert not occupied(tmp_path)
    with claimed(tmp_path, "a run", resume=False, overwrite=False):
        begin(tmp_path)
    assert occupied(tmp_path)


def test_a_failure_is_recorded_where_the_job_has_begun_and_a_success_takes_it_away(run):
    before = everything(run)
    with pytest.raises(ZeroDivisionError), recorded(run, first=True):  # what is there is another's
        raise ZeroDivisionError
    assert everything(run) == before
    with pytest.raises(ValueError, match="lower it"):
        attempt(run, ValueError("lower it"), True, resume=True, overwrite=False)
    assert "lower it" in (run / "failed.json").read_text()
    with recorded(run):
        pass
    assert not (run / "failed.json").exists()


def test_a_job_that_never_began_is_recorded_in_a_sweep_and_nowhere_else(tmp_path):
    for first in (False, True):
        with pytest.raises(ZeroDivisionError), recorded(tmp_path, first):
            raise ZeroDivisionError
        assert (tmp_path / "failed.json").exists() == first


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run the console script here: exit status, and what it wrote to stderr."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["nxmiformer", *words])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err

    return call


def test_a_second_start_into_a_directory_at_work_changes_nothing_at_all(command, run, tmp_path):
    (tmp_path / "sweep" / "0").mkdir(parents=True)
    (tmp_path / "sweep" / "multirun.yaml").write_text("old")
    (tmp_path / "sweep" / "0" / "run.json").write_text("old")
    with alone(run), alone(tmp_path / "sweep" / "0"):
        before = everything(tmp_path)
        for words in (["hydra.run.dir=run", "resume=true"], ["hydra.run.dir=run", "overwrite=true"]):
            status, told = command(*words)
            assert (status, f"process {os.getpid()} on " in told) == (2, True)
            assert everything(tmp_path) == before
        status, told = command("-m", "seed=0", "hydra.sweep.dir=sweep", "overwrite=true")
        assert (status, "running in sweep/0" in told) == (2, True)
    with alone(tmp_path / "sweep"):
        before = everything(tmp_path)
        status, told = command("-m", "seed=0", "hydra.sweep.dir=sweep", "resume=true")
        assert (status, f"process {os.getpid()} on " in told) == (2, True)
        assert everything(tmp_path) == before


def test_a_value_that_is_rejected_leaves_no_directory(command, tmp_path):
    for words in (["name=x", "seed=abc"], ["name=x", "resume=true"], ["name=x", "resume=true", "overwrite=true"]):
        assert command(*words)[0] == 2
        assert list(tmp_path.iterdir()) == []
    assert command("-m", "plan=2of4_int4,nowhere", "hydra.sweep.dir=sweep")[0] == 2
    assert list(tmp_path.iterdir()) == []
