"""Ctrl-C, and errors that nobody foresaw: one message, and how to go on."""

import shlex
import sys
from pathlib import Path

import pytest

from nxmiformer import cli
from nxmiformer.console.ending import STOPPED
from nxmiformer.jobs.work import KINDS


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run the console script here, with jobs that end at once in an error: exit status, and what went to stderr."""

    def call(error, *words, begun=True):
        def job(job, _):
            if begun:
                job.directory.mkdir(parents=True, exist_ok=True)
                (job.directory / "run.json").write_text("{}")
            raise error

        for kind in KINDS:
            monkeypatch.setitem(KINDS, kind, job)
        monkeypatch.setattr(sys, "argv", ["nxmiformer", *words])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err.splitlines()

    return call


def how_to_go_on(line):
    """The words of the command in the line."""
    return shlex.split(line.partition("this continues it: nxmiformer ")[2])


def test_a_run_that_is_stopped_says_in_one_line_how_to_go_on(command):
    status, (line,) = command(KeyboardInterrupt(), "seed=3", "plan.include=['*.query']")
    assert status == 130
    *words, name, resume = how_to_go_on(line)
    assert (words, resume) == (["seed=3", "plan.include=['*.query']"], "resume=true")
    assert (Path("outputs") / name.removeprefix("name=") / "run.json").exists()


@pytest.mark.parametrize("given", ["name=a", "hydra.run.dir=elsewhere/a"])
def test_the_place_that_was_given_is_kept_and_what_would_begin_anew_is_not(command, given):
    status, (line,) = command(KeyboardInterrupt(), given, "overwrite=true")
    assert (status, sorted(how_to_go_on(line))) == (130, sorted([given, "resume=true"]))


def test_what_is_stopped_before_it_has_begun_says_so(command):
    assert command(KeyboardInterrupt(), "seed=3", begun=False) == (130, [STOPPED])


def test_a_bench_that_is_stopped_goes_on_where_it_was(command):
    status, (line,) = command(KeyboardInterrupt(), "job=bench", "path=nowhere", begun=False)
    assert (status, how_to_go_on(line)) == (130, ["job=bench", "path=nowhere", "resume=true"])


def test_a_sweep_that_is_stopped_says_in_one_line_how_to_go_on(command):
    status, (line,) = command(KeyboardInterrupt(), "-m", "seed=0,1", "hydra.sweep.dir=sweep")
    assert (status, how_to_go_on(line)) == (130, ["-m", "seed=0,1", "hydra.sweep.dir=sweep", "resume=true"])


def test_an_error_that_nobody_foresaw_is_one_message_and_what_led_to_it_is_kept(command, monkeypatch):
    status, lines = command(KeyError("[red]x"), "seed=3")
    assert status == 1
    hydras, told, where = lines
    assert hydras.startswith("Error executing job with overrides")
    assert told == "nxmiformer: KeyError: '[red]x'"
    kept = Path(where.rpartition(" ")[2])
    assert "in job\n" in kept.read_text()
    kept.unlink()
    monkeypatch.setenv("NXMIFORMER_TRACEBACK", "1")
    with pytest.raises(KeyError, match="red"):
        command(KeyError("[red]x"), "seed=3", "name=again")  # the name of before may be of this very second


def test_an_error_that_was_foreseen_is_its_message_alone(command):
    hydras = "Error executing job with overrides: ['seed=3']"
    assert command(ValueError("lower it"), "seed=3") == (2, [hydras, "nxmiformer: lower it"])
