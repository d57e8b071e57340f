"""The studies' commands are made of configurations that compose."""

from pathlib import Path

import hydra
import pandas as pd
import pytest
import yaml

from nxmiformer.cli import build

STUDY = Path(__file__).parents[1] / "experiments" / "glue_uniform"
SWEEP = yaml.safe_load((STUDY / "sweep.yaml").read_text())
COUNTS = {"steps": 10, "admm": 3, "finish": 7}


def compose(tmp_path, overrides):
    words = ["model=pretrained", "model.path=some/model", *SWEEP["common"], *(o.format(**COUNTS) for o in overrides)]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return build(hydra.compose("config", words), tmp_path)


@pytest.mark.parametrize("method", [*SWEEP["methods"], "dense_more"])
def test_every_method_of_the_uniform_study_composes_and_takes_the_same_steps(tmp_path, method):
    overrides = SWEEP["dense_more"] if method == "dense_more" else SWEEP["methods"][method]
    phases = compose(tmp_path, ["recipe.phases.dense.steps=0", *overrides]).recipe.phases
    steps = sum(phase.length(5).steps for phase in phases.values())
    assert steps == (0 if method == "one_shot" else COUNTS["steps"])


@pytest.mark.parametrize("task", SWEEP["tasks"])
@pytest.mark.parametrize("plan", SWEEP["plans"])
def test_every_task_and_plan_of_the_uniform_study_composes(tmp_path, task, plan):
    overrides = [f"task={task}", f"plan={plan}", "recipe=one_shot", *SWEEP["tasks"][task]["dense"]]
    job = compose(tmp_path, overrides)
    assert (job.task.name, job.planning.name) == (task, plan)


def test_no_label_teaches_what_distils_and_no_teacher_what_does_not(tmp_path):
    distils = {
        method: {
            (phase.objective.task > 0, phase.objective.distils) for name, phase in phases.items() if name != "dense"
        }
        for method in SWEEP["methods"]
        for phases in [compose(tmp_path, SWEEP["methods"][method]).recipe.phases]
    }
    assert distils["admm"] == distils["fixed_mask_distill"] == {(False, True)}
    assert distils["admm_no_distill"] == distils["fixed_mask"] == distils["sr_ste"] == {(True, False)}


def test_the_results_of_the_uniform_study_are_cells_of_its_sweep_and_no_cell_is_there_twice():
    results = pd.read_csv(STUDY / "results.csv")
    cell = ["model", "task", "plan", "method", "seed"]
    assert not results.duplicated(cell).any()
    assert set(results.method) <= {*SWEEP["methods"], "dense_more", "modelopt"}
    assert set(results.plan) <= {*SWEEP["plans"], "dense"}
    best = results[results.method == "dense_more"].set_index(["task", "seed"]).score
    for row in results.itertuples():
        against = max(row.dense_score, best.get((row.task, row.seed), 0.0))
        assert row.retention == pytest.approx(row.score / against, abs=2e-6)
