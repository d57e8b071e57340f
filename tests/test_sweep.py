"""Sweeps: what fails does not stop them."""

import json
import sys

import pytest

from nxmiformer import cli

SIZES = ["model.hidden=32", "model.heads=2", "model.intermediate=64", "model.layers=1"]
SIZES += ["task.train=48", "task.holdout=24", "task.validation=24"]
TINY = [*SIZES, "recipe=one_shot", "recipe.phases.dense.steps=2", "train.batch_size=12", "train.cpu=true"]


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run the console script here: exit status, and what it wrote to stderr."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["nxmiformer", *words, *TINY])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.chdir(tmp_path)
        try:
            cli.main()
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


@pytest.fixture
def sweep(command, tmp_path):
    """Run a sweep in `tmp_path / "sweep"`, a batch for each job."""

    def call(*words):
        return command("-m", "hydra.sweep.dir=sweep", "hydra.sweeper.max_batch_size=1", *words)

    return call


def read(path):
    return json.loads(path.read_text())


def test_a_failed_job_does_not_stop_the_others_and_is_named(sweep, tmp_path):
    place = tmp_path / "sweep"
    status, told = sweep("seed=0,abc,1")
    assert status == 1
    message = "seed=abc: its value must be of type int"
    assert read(place / "1" / "failed.json") == {"error": "ValueError", "message": message}
    (line,) = [line for line in told.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: sweep/1: seed=abc ")
    assert told.splitlines()[-1] == f"  ValueError: {message}"
    assert [read(place / name / "report.json")["seed"] for name in ("0", "2")] == [0, 1]
    assert len(list(place.rglob("failed.json"))) == 1


def test_a_job_that_fails_returns_no_number_to_the_sweeper(sweep, tmp_path, monkeypatch):
    (tmp_path / "returns.py").write_text(
        "from hydra.experimental.callback import Callback\n"
        "found = []\n"
        "class Returns(Callback):\n"
        "    def on_job_end(self, config, job_return, **kwargs):\n"
        "        found.append(job_return.return_value)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sweep("seed=abc,0", "+hydra.callbacks.returns._target_=returns.Returns")
    failed, done = sys.modules.pop("returns").found
    assert failed != failed
    assert done == read(tmp_path / "sweep" / "1" / "report.json")["scores"]["packed"]["accuracy"]


def test_a_single_run_tells_its_failure_as_before_and_leaves_it_until_it_succeeds(command, tmp_path):
    failed = tmp_path / "run" / "failed.json"
    status, told = command("hydra.run.dir=run", "seed=abc")
    assert (status, told.splitlines()[-1]) == (2, "nxmiformer: seed=abc: its value must be of type int")
    assert read(failed)["error"] == "ValueError"
    status, told = command("hydra.run.dir=run", "seed=0", "resume=true")
    assert (status, "there is no checkpoint 'latest'" in told) == (2, True)
    assert "there is no checkpoint" in read(failed)["message"]
    assert command("hydra.run.dir=run", "seed=0")[0] == 0
    assert not failed.exists()
