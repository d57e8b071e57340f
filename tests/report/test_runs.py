"""Every run below a directory is a row, whatever became of it."""

import json
import math
import shutil

import pandas as pd
import pytest
from fabricated import GAPS, write_run

from nxmiformer.runs.many import load_metrics, load_runs
from nxmiformer.runs.numbers import read_run

FAILURE = {"error": "ValueError", "message": "the loss is nan at step 12", "step": 12}


def fail(directory, **changes):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "failed.json").write_text(json.dumps({**FAILURE, **changes}))


def config(directory, **values):
    """A run that has begun, with this configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    plain = {"name": "n", "seed": 0, "report_on": "validation", "task": {"name": "rte"}, "plan": {"name": "2of4"}}
    (directory / "run.json").write_text(json.dumps({"revision": "abc", "config": {**plain, **values}}))


def swept(frame):
    return {column.removeprefix("config.") for column in frame if column.startswith("config.")}


def test_a_row_says_what_the_runs_report_says(tmp_path):
    report = read_run(write_run(tmp_path)).report
    (row,) = load_runs(tmp_path).to_dict("records")
    assert (row["directory"], row["status"]) == (".", "done")
    same = ("name", "seed", "report_on", "retention", "seconds", "device", "revision")
    assert {key: row[key] for key in same} == {key: getattr(report, key) for key in same}
    assert (row["task"], row["metric"], row["model"]) == ("sst2", "accuracy", "bert-tiny")
    assert (row["plan"], row["fingerprint"]) == (report.plan.name, report.plan.fingerprint)
    assert {stage: row[stage] for stage in report.scores} == {
        stage: scores["accuracy"] for stage, scores in report.scores.items()
    }
    sizes = (row["packed_bytes"], row["packed_model_bytes"], row["dense_model_bytes"])
    measured = report.storage.bytes
    assert sizes == (measured.packed_weights, measured.packed_model, measured.dense_model)
    assert row["packed_bytes"] / row["dense_bytes"] == pytest.approx(1 - row["compression_all"], abs=1e-4)
    assert (row["steps"], row["phases"], row["gap"]) == (600, "dense, admm, finish", GAPS["admm"])
    assert math.isnan(row["error"])


def test_the_gap_is_missing_where_no_phase_has_one(tmp_path):
    write_run(tmp_path, phases={"dense": ("Dense", 3)})
    assert load_runs(tmp_path).gap.isna().all()


def test_runs_of_many_directories_are_found_and_told_apart_by_where_they_are(tmp_path):
    write_run(tmp_path / "outputs" / "single")
    for number in range(11):
        config(tmp_path / "multirun" / "night" / str(number), seed=number)
    frame = load_runs(tmp_path)
    assert list(frame.directory) == [*(f"multirun/night/{number}" for number in range(11)), "outputs/single"]
    assert list(frame.seed) == [*range(11), 7]
    alone = load_runs(tmp_path / "multirun" / "night")
    assert list(alone.directory) == [str(number) for number in range(11)]


@pytest.mark.parametrize("part", ["packed", "dense", "checkpoints"])
def test_the_parts_of_a_run_are_not_searched_but_a_run_may_have_their_names(tmp_path, part):
    write_run(tmp_path / part)
    write_run(tmp_path / part / part / "copied")
    assert list(load_runs(tmp_path).directory) == [part]


def test_a_search_and_its_trials_are_no_runs_to_compare(tmp_path):
    write_run(tmp_path / "run")
    config(tmp_path / "search")
    write_run(tmp_path / "search" / "trials" / "first")
    assert list(load_runs(tmp_path).directory) == ["run", "search"]  # it has not ended
    (tmp_path / "search" / "search.json").write_text("{}")
    assert list(load_runs(tmp_path).directory) == ["run"]
    fail(tmp_path / "search")
    assert list(load_runs(tmp_path).status) == ["done", "failed"]


def test_what_the_configurations_do_not_share_is_a_column_and_nothing_else_is(tmp_path):
    common = {"train": {"batch_size": 32, "clip": None}, "tracker": {"wandb": {"name": "a"}}}
    first = {"recipe": {"phases": {"admm": {"method": {"rho": 0.1}}}}, "plan": {"exclude": ["a", "b"]}}
    config(tmp_path / "0", **common, **first)
    config(tmp_path / "1", **common, recipe={"phases": {"admm": {"method": {"rho": 1.0}}}}, plan={"exclude": []})
    common["tracker"] = {"wandb": {"name": "b"}}
    config(tmp_path / "2", **common, recipe={"phases": {"finish": {"steps": None}}}, plan={"exclude": []}, seed=5)
    frame = load_runs(tmp_path)
    rho, steps = "recipe.phases.admm.method.rho", "recipe.phases.finish.steps"
    assert swept(frame) == {rho, steps, "plan.exclude"}  # that one phase has no steps and the others no such phase
    assert frame[f"config.{rho}"].fillna(-1).tolist() == [0.1, 1.0, -1]
    assert frame["config.plan.exclude"].tolist() == ['["a", "b"]', "[]", "[]"]
    assert frame.phases.tolist() == ["admm", "admm", "finish"]


def test_one_run_has_nothing_that_differs(tmp_path):
    config(tmp_path, train={"batch_size": 1})
    assert swept(load_runs(tmp_path)) == set()


def test_a_run_that_failed_is_a_row_with_its_error(tmp_path):
    write_run(tmp_path / "0")
    config(tmp_path / "1", seed=4)
    fail(tmp_path / "1")
    fail(tmp_path / "2")  # before it had a configuration
    write_run(tmp_path / "3")
    fail(tmp_path / "3")  # the report is that of an earlier run in the same directory
    frame = load_runs(tmp_path)
    assert frame.status.tolist() == ["done", "failed", "failed", "failed"]
    assert frame.error.isna().tolist() == [True, False, False, False]
    assert set(frame.error.dropna()) == {"ValueError: the loss is nan at step 12"}
    assert frame.packed.notna().tolist() == [True, False, False, False]
    assert frame.loc[1, ["task", "plan", "seed", "revision"]].tolist() == ["rte", "2of4", 4, "abc"]


def test_a_run_without_a_report_is_unfinished_and_has_no_results(tmp_path):
    write_run(tmp_path / "0")
    config(tmp_path / "1")
    frame = load_runs(tmp_path)
    assert frame.status.tolist() == ["done", "unfinished"]
    results = frame.loc[:, "metric":"device"]
    assert results.loc[1].isna().all()
    assert not results.drop(columns="retention").loc[0].isna().any()


@pytest.mark.parametrize("name", ["report.json", "run.json", "failed.json"])
@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    write_run(tmp_path / "0")
    (tmp_path / "0" / name).write_text(damage)
    with pytest.raises(ValueError, match=rf"0/{name}: "):
        load_runs(tmp_path)


@pytest.mark.parametrize("load", [load_runs, load_metrics])
def test_a_directory_without_runs_is_told(tmp_path, load):
    with pytest.raises(FileNotFoundError, match=r"holds no run: nothing in it has run\.json"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere holds no run: there is no such directory"):
        load(tmp_path / "nowhere")


def test_metrics_are_the_numbers_of_the_rows_one_by_one(tmp_path):
    runs = [read_run(write_run(tmp_path / name, phases={"admm": ("admm", 60)}, seed=i)) for i, name in enumerate("ab")]
    frame = load_metrics(tmp_path)
    assert set(frame.key) >= {"loss", "gap", "flips", "seconds", "holdout/accuracy"}
    assert (frame.phase == "admm").all()
    for run in runs:
        mine = frame[frame.directory == run.directory.name]
        for key in set(mine.key):
            rows = mine[mine.key == key]
            assert (rows.total_step.tolist(), rows.value.tolist()) == run.series(key)


@pytest.mark.parametrize("cut", ["", '{"phase": "admm", "st'])
def test_the_last_line_of_a_run_that_was_killed_may_be_cut(tmp_path, cut):
    write_run(tmp_path, phases={"admm": ("admm", 5)})
    whole = load_metrics(tmp_path)
    (tmp_path / "report.json").unlink()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(cut)
    pd.testing.assert_frame_equal(load_metrics(tmp_path), whole)


def test_a_cut_line_of_a_finished_run_is_an_error(tmp_path):
    write_run(tmp_path, phases={"admm": ("admm", 5)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "admm", "st')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 6: this is not JSON"):
        load_metrics(tmp_path)


def test_a_job_that_failed_before_its_first_step_has_no_metrics(tmp_path):
    write_run(tmp_path / "0", phases={"admm": ("admm", 2)})
    fail(tmp_path / "1")
    assert set(load_metrics(tmp_path).directory) == {"0"}
    shutil.rmtree(tmp_path / "0")
    assert load_metrics(tmp_path).empty
