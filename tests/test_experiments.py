"""The studies' commands are made of configurations that compose."""

import json
import re
import runpy
import sys
from pathlib import Path

import hydra
import pandas as pd
import pytest

from nxmiformer.cli import build

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
STUDIES = sorted(file.parent.name for file in EXPERIMENTS.glob("*/sweep.yaml"))
SCRIPT = runpy.run_path(str(EXPERIMENTS / "study.py"))
SWEEPS = {name: SCRIPT["read_sweep"](EXPERIMENTS / name) for name in STUDIES}
SWEEP = SWEEPS["glue_uniform"]
VALUES = {"steps": 10, "admm": 3, "finish": 7, "lr": "1e-4", "dense": "some/dense", "plan": "kron8"}


def compose(tmp_path, sweep, overrides):
    words = ["model=pretrained", "model.path=some/model", *sweep["common"], *SCRIPT["flat"](overrides)]
    words = SCRIPT["last"](word.format(**VALUES, outputs=tmp_path) for word in words)
    for key, _, value in (word.partition("=") for word in words):
        if key == "plan.path":
            Path(value).touch()
        elif key == "model.path" and Path(value).is_relative_to(tmp_path):
            Path(value).mkdir(parents=True)
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return build(hydra.compose("config", words), tmp_path)


def methods():
    for study, sweep in SWEEPS.items():
        yield from ((study, method, overrides) for method, overrides in sweep["methods"].items())
        yield study, "dense_more", sweep["dense_more"]


@pytest.mark.parametrize(("study", "method", "overrides"), list(methods()))
def test_every_method_of_a_study_composes_and_takes_the_same_steps_or_those_that_its_name_says(
    tmp_path, study, method, overrides
):
    phases = compose(tmp_path, SWEEPS[study], ["recipe.phases.dense.steps=0", *overrides]).recipe.phases
    steps = sum(phase.length(5).steps for phase in phases.values())
    said = re.search(r"_(\d+)_steps$", method)
    assert steps == (0 if method == "one_shot" else int(said[1]) if said else VALUES["steps"])


def pairs():
    """Every plan and every task of each study at least once."""
    for study, sweep in SWEEPS.items():
        plans, tasks = list(sweep["plans"]), list(sweep["tasks"])
        for number in range(max(len(plans), len(tasks))):
            yield study, plans[number % len(plans)], tasks[number % len(tasks)]


@pytest.mark.parametrize(("study", "plan", "task"), list(pairs()))
def test_every_task_and_every_plan_of_a_study_composes(tmp_path, study, plan, task):
    sweep = SWEEPS[study]
    fitting = next(each for name, each in sweep["methods"].items() if SCRIPT["takes"](sweep, name, plan))
    recipe = next(word for word in SCRIPT["flat"](fitting) if word.startswith("recipe="))
    given = [*SCRIPT["words"](task, None, str(tmp_path)), *sweep["tasks"][task]["dense"]]
    job = compose(tmp_path, sweep, [*given, recipe, *sweep["plans"][plan]])
    assert job.task.name == {"qamr": "answers"}.get(task, task)
    assert job.budget.given == ("@" in plan)
    assert job.planning.name == plan or job.budget.given


def test_the_tasks_of_a_study_are_those_of_its_base_and_its_own_without_those_that_it_leaves_out():
    assert list(SWEEPS["glue_uniform"]["tasks"]) == ["stsb", "mrpc", "sst2", "rte"]
    assert list(SWEEPS["obert"]["tasks"]) == ["stsb", "mrpc", "sst2", "qamr"]
    assert SWEEPS["obert"]["tasks"]["mrpc"] == SWEEPS["glue_uniform"]["tasks"]["mrpc"]
    assert SWEEPS["kronecker"]["tasks"]["mrpc"]["steps"] == 600


def test_questions_are_refused_without_their_directory():
    with pytest.raises(SystemExit, match="with --data which one holds qamr/"):
        SCRIPT["words"]("qamr", None, None)


def test_no_label_teaches_what_distils_and_no_teacher_what_does_not(tmp_path):
    distils = {
        method: {
            (phase.objective.task > 0, phase.objective.distils) for name, phase in phases.items() if name != "dense"
        }
        for method in SWEEP["methods"]
        for phases in [compose(tmp_path, SWEEP, SWEEP["methods"][method]).recipe.phases]
    }
    assert distils["admm"] == distils["fixed_mask_distill"] == {(False, True)}
    assert distils["admm_no_distill"] == distils["fixed_mask"] == distils["sr_ste"] == {(True, False)}


@pytest.mark.parametrize("study", [name for name in STUDIES if (EXPERIMENTS / name / "results.csv").exists()])
def test_the_results_of_a_study_are_cells_of_its_sweep_and_no_cell_is_there_twice(study):
    results, sweep = pd.read_csv(EXPERIMENTS / study / "results.csv"), SWEEPS[study]
    cell = ["model", "task", "plan", "method", "seed"]
    assert not results.duplicated(cell).any()
    assert set(results.method) <= {*sweep["methods"], "dense_more", "modelopt"}
    assert set(results.plan) <= {*sweep["plans"], "dense"}
    best = results[results.method == "dense_more"].set_index(["task", "seed"]).score
    for row in results.itertuples():
        against = max(row.dense_score, best.get((row.task, row.seed), 0.0))
        assert row.retention == pytest.approx(row.score / against, abs=2e-6)


def test_a_finished_cell_keeps_its_report_and_packed_model_alone(tmp_path, monkeypatch):
    made = []

    def job(folder, overrides):
        made.append(folder.name)
        for name in ("checkpoints", "dense", "packed"):
            (folder / name).mkdir(parents=True)
        phases = {"dense": {"steps": 4, "seconds": 1.0}, "finish": {"steps": 4, "seconds": 1.0, "gap": 0.1}}
        storage = {"compression": dict.fromkeys(("values", "indices", "all"), 0.9)}
        found = {"scores": {"dense": {"pearson": 0.8}, "packed": {"pearson": 0.7}}, "phases": phases}
        report = {"task": {"metric": "pearson"}, "storage": storage, "device": "cpu", **found}
        (folder / "report.json").write_text(json.dumps(report))
        return True

    monkeypatch.setitem(SCRIPT["Study"].chain.__globals__, "_job", job)
    monkeypatch.setattr(sys, "argv", ["study.py", "glue_uniform", "--methods", "one_shot", "--outputs", str(tmp_path)])
    study = SCRIPT["Study"](SWEEP, SCRIPT["_arguments"](SWEEP), tmp_path / "results.csv")
    for _ in range(2):
        study.chain("2of4_int4", "stsb", 0)
    assert made == ["stsb-dense-0", "stsb-dense-dense_more-0", "stsb-2of4_int4-one_shot-0"]
    left = {folder: sorted(each.name for each in (tmp_path / folder).iterdir()) for folder in made}
    kept = ["packed", "report.json"]
    assert left == {made[0]: ["dense", *kept], made[1]: kept, made[2]: kept}
    rows = pd.read_csv(tmp_path / "results.csv")
    assert list(rows.method) == ["dense_more", "one_shot"]
    assert list(rows.retention) == [1.0, pytest.approx(0.875)]


def test_the_figure_and_table_of_obert_have_every_task_and_plan_of_its_rows_and_no_dense_model(tmp_path, monkeypatch):
    study = EXPERIMENTS / "obert"
    script = runpy.run_path(str(study / "figure.py"))
    for name in ("sweep.yaml", "README.md"):
        (tmp_path / name).write_text((study / name).read_text())
    cells = [("stsb", "2of4", "one_shot", 0.5), ("stsb", "sparse_70", "obert", 0.75), ("rte", "1x4_half", "admm", 0.25)]
    rows = [(*cell, 0.8, 0.5) for cell in cells] + [("stsb", "dense", "dense_more", 1.0, 0.8, 0.0)]
    columns = ["task", "plan", "method", "retention", "dense_score", "compression_all"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "results.csv", index=False)
    monkeypatch.setitem(script["main"].__globals__, "HERE", tmp_path)
    script["main"]()
    table = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[:2] for line in table] == [
        ["| rte", "1x4_half"],
        ["| stsb", "2of4"],
        ["| stsb", "sparse_70"],
    ]
    assert ["25.0 |" in table[0], "50.0 |" in table[1], "75.0 |" in table[2]] == [True] * 3
    assert (tmp_path / "figure.png").stat().st_size > 1000
