"""The study of every kind of task: its commands compose, and its results are cells of it."""

import csv
import json
import runpy
from pathlib import Path

import hydra
import pytest
import yaml

from nxmiformer.cli import build

STUDY = Path(__file__).parents[1] / "experiments" / "kinds"
SWEEP = yaml.safe_load((STUDY / "kinds.yaml").read_text())
KINDS = SWEEP["kinds"]
VALUES = {
    "steps": 10,
    "admm": 3,
    "finish": 7,
    "lr": "1e-4",
    "data": "data",
    "models": "models",
    "prepared": "prepared",
    "precision": "no",
}
METHODS = ["one_shot", "admm"]
UNTRAINED = ("one_shot", "reconstructed")


def compose(tmp_path, kind, *overrides):
    facts = KINDS[kind]
    words = ["model=pretrained", f"model.path={facts['model']}", *SWEEP["common"], *facts["task"], *facts["data"]]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return build(hydra.compose("config", [word.format(**VALUES) for word in (*words, *overrides)]), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_trained_methods_of_a_kind_take_equal_steps_after_its_dense_model(tmp_path, kind):
    assert compose(tmp_path, kind, "recipe=one_shot", "plan=int8", *KINDS[kind]["dense"]).task is not None
    for plan in KINDS[kind]["plans"]:
        for method in KINDS[kind]["methods"]:
            overrides = [*SWEEP["plans"][plan], *SWEEP["methods"][method], "recipe.phases.dense.steps=0"]
            phases = compose(tmp_path, kind, *overrides).recipe.phases
            steps = sum(phase.length(5).steps for phase in phases.values())
            assert steps == (0 if method in UNTRAINED else VALUES["steps"])


def test_the_results_are_cells_of_the_study_and_no_cell_is_there_twice():
    with (STUDY / "results.csv").open(newline="") as file:
        rows = [(row["kind"], row["plan"], row["method"], int(row["seed"])) for row in csv.DictReader(file)]
    cells = {
        (kind, plan, method, seed)
        for kind, facts in KINDS.items()
        for seed in facts["seeds"]
        for plan, method in [("int8", "one_shot"), *((p, m) for p in facts["plans"] for m in facts["methods"])]
    }
    assert rows
    assert len(set(rows)) == len(rows)
    assert set(rows) <= cells


def test_the_table_of_the_study_is_made_of_its_results(tmp_path, monkeypatch):
    script = runpy.run_path(str(STUDY / "figure.py"))
    for name in ("results.csv", "kinds.yaml", "README.md"):
        (tmp_path / name).write_text((STUDY / name).read_text())
    monkeypatch.setitem(script["main"].__globals__, "HERE", tmp_path)
    script["main"]()
    assert (tmp_path / "README.md").read_text() == (STUDY / "README.md").read_text()


def test_a_cell_that_has_its_row_is_not_run_again(tmp_path):
    script = runpy.run_path(str(STUDY / "run.py"))
    sweep = {"kinds": {"text": {"plans": ["a", "b"], "methods": METHODS}}}
    results = tmp_path / "results.csv"
    results.write_text("kind,plan,method,seed\ntext,a,admm,0\n")
    arguments = script["argparse"].Namespace(
        outputs=tmp_path, results=results, data="", models="", prepared="", precision="", plans="ab", methods=METHODS
    )
    study = script["Study"](sweep, arguments)
    left = [("text", "a", "one_shot", 0), ("text", "b", "admm", 0), ("text", "b", "one_shot", 0)]
    assert study.cells("text", 0) == left


def test_a_run_gives_the_row_of_its_projection_too(tmp_path):
    script = runpy.run_path(str(STUDY / "run.py"))
    arguments = script["argparse"].Namespace(
        outputs=tmp_path, results=tmp_path / "results.csv", data="", models="", prepared="", precision="", plans="a",
        methods=METHODS,
    )  # fmt: skip
    study = script["Study"](SWEEP, arguments)
    scores = {name: {"f1": value} for name, value in [("dense", 0.9), ("one_shot", 0.5), ("packed", 0.8)]}
    report = {
        "task": {"metric": "f1"},
        "scores": scores,
        "phases": {"dense": {"steps": 0, "seconds": 0.0}, "admm": {"steps": 7, "seconds": 9.0}},
        "storage": {"compression": {"all": 0.9}},
        "device": "cpu",
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    study._write(("answers", "2of4_int4", "admm", 0), tmp_path)
    study._write(("answers", "2of4_int4", "one_shot", 0), tmp_path, "one_shot")
    rows = {row["method"]: (row["score"], row["dense"], row["steps"], row["seconds"]) for row in study.rows.read()}
    assert rows == {"admm": ("0.8", "0.9", "7", "9.0"), "one_shot": ("0.5", "0.9", "0", "0")}


def test_no_dense_model_is_trained_where_every_chosen_cell_has_its_row(tmp_path):
    script = runpy.run_path(str(STUDY / "run.py"))
    sweep = {"kinds": {"text": {"plans": ["a", "b"], "methods": METHODS}}}
    results = tmp_path / "results.csv"
    results.write_text("kind,plan,method,seed\ntext,a,admm,0\ntext,int8,one_shot,0\ntext,a,admm,1\n")
    arguments = script["argparse"].Namespace(
        outputs=tmp_path, results=results, data="", models="", prepared="", precision="", plans="a", methods=["admm"]
    )
    study = script["Study"](sweep, arguments)
    assert [study.left("text", seed) for seed in (0, 1, 2)] == [False, True, True]
