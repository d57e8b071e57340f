"""The study that tunes values of a run."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from nxmiformer.jobs import compress as jobs

pytest.importorskip("optuna", reason="optuna, which the studies are made with, is missing")
SCRIPT = Path(__file__).parents[1] / "experiments" / "tune" / "run.py"
TINY = ["model.hidden=32", "model.heads=2", "model.intermediate=64", "model.layers=1"]
TINY += ["task.train=48", "task.holdout=36", "task.validation=24", "recipe=one_shot", "recipe.phases.dense.steps=24"]
TINY += ["plan=int8", "train.batch_size=12", "train.evaluate_every=0", "train.cpu=true"]
RATE, CLIP = "recipe.phases.dense.optimizer.lr=tag(log,interval(1e-4,1e-1))", "train.clip=0.5,1.0"


class Killed(BaseException):
    """What a kill looks like to the code that it stops."""


@pytest.fixture
def tune(monkeypatch, tmp_path, capsys):
    """Run the script in `tmp_path`: exit status, and what it wrote."""
    spec = importlib.util.spec_from_file_location("tune", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def call(*words):
        capsys.readouterr()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setattr(jobs, "write_report", lambda directory: None)  # it takes long to draw
        monkeypatch.setattr(sys, "argv", ["run.py", *words, *TINY])
        try:
            script.main()
        except SystemExit as end:
            return end.code, "".join(capsys.readouterr())
        return 0, capsys.readouterr().out

    return call


def reports(study):
    return {path.relative_to(study).parts[:2]: json.loads(path.read_text()) for path in study.glob("*/*/report.json")}


def told(output):
    return [line for line in output.splitlines() if line.startswith(("trial ", "best ", "  recipe"))]


def test_a_study_scores_its_trials_on_the_holdout_over_the_seeds_and_names_the_best(tune, tmp_path):
    status, output = tune("study", "--trials=3", "--seeds=2", RATE, CLIP)
    assert status == 0
    found = reports(tmp_path / "study")
    assert sorted(found) == [(str(trial), str(seed)) for trial in range(3) for seed in range(2)]
    assert {(report["report_on"], report["seed"]) for report in found.values()} == {("holdout", 0), ("holdout", 1)}
    means = [sum(found[str(t), str(s)]["scores"]["packed"]["accuracy"] for s in range(2)) / 2 for t in range(3)]
    assert len(set(means)) > 1
    *trials, best, values = told(output)
    assert [line.split(" with ")[0] for line in trials] == [f"trial {t}: {mean:.4f}" for t, mean in enumerate(means)]
    assert best == f"best on the holdout: {max(means):.4f} of trial {means.index(max(means))}:"
    assert values.strip() == trials[means.index(max(means))].split(" with ")[1]
    for trial, line in enumerate(trials):
        ran = json.loads((tmp_path / "study" / str(trial) / "1" / "run.json").read_text())
        assert line.split(" with ")[1] in ran["command"]


def test_a_study_that_was_killed_goes_on_as_if_it_had_not_been(tune, tmp_path, monkeypatch):
    _, whole = tune("whole", "--trials=3", RATE, CLIP)
    train, calls = jobs.train, []

    def kill_the_second(*words):
        calls.append(words)
        if len(calls) == 2:
            raise Killed
        train(*words)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "train", kill_the_second)
        with pytest.raises(Killed):
            tune("study", "--trials=3", RATE, CLIP)
    finished = (tmp_path / "study" / "0" / "0" / "report.json").stat().st_mtime_ns
    status, output = tune("study", "--trials=3", RATE, CLIP)
    assert status == 0
    assert told(output) == told(whole)[1:]
    assert (tmp_path / "study" / "0" / "0" / "report.json").stat().st_mtime_ns == finished
    assert tune("study", "--trials=3", RATE, CLIP)[1].splitlines() == told(whole)[3:]  # there is nothing left to do


def test_a_trial_that_fails_is_kept_as_failed_and_the_next_goes_on(tune, tmp_path):
    status, output = tune("study", "--trials=4", "train.clip=0.5,abc")
    assert status == 0
    failed = {path.parents[1].name for path in (tmp_path / "study").glob("*/0/failed.json")}
    scored = {trial for trial, _ in reports(tmp_path / "study")}
    assert failed | scored == set("0123")
    assert failed
    assert not failed & scored
    assert told(output)[-1].startswith("best on the holdout")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("report_on=validation", "report_on=validation: a study always has report_on=holdout"),
        ("report_on=holdout,validation", "a study always has report_on=holdout"),
        ("seed=0,1", "seed=0,1: give --seeds"),
        ("resume=false", "a study always has resume=true"),
        ("train.batch=3", "train.batch"),
        ("recipe.phases.dense.optimizer.lr=-1", "Invalid learning rate: -1"),
        ("train.clip=interval(", "interval("),
    ],
)
def test_what_no_study_can_be_made_of_is_refused_before_there_is_one(tune, tmp_path, word, message):
    status, output = tune("study", CLIP.replace("train.clip", "recipe.phases.dense.weight_decay"), word)
    assert status == 2
    assert message in output
    assert not (tmp_path / "study").exists()


def test_a_study_of_nothing_is_refused(tune):
    status, output = tune("study")
    assert (status, "nothing is searched" in output) == (2, True)


def test_a_study_does_not_go_on_with_other_values(tune, tmp_path):
    assert tune("study", "--trials=1", CLIP)[0] == 0
    status, output = tune("study", "--trials=2", CLIP, "recipe.phases.dense.weight_decay=0.1")
    assert status == 2
    assert "recipe.phases.dense.weight_decay=0.1" in output
    assert len(reports(tmp_path / "study")) == 1
