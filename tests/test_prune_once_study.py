"""The study of sparse language models: its commands compose, and it runs them in their order and none twice."""

import csv
import json
import runpy
from pathlib import Path

import hydra
import pytest
import yaml

from nxmiformer.cli import build

STUDY = Path(__file__).parents[1] / "experiments" / "prune_once"
SWEEP = yaml.safe_load((STUDY / "prune_once.yaml").read_text())
SCRIPT = runpy.run_path(str(STUDY / "run.py"))


@pytest.fixture
def study(tmp_path, monkeypatch):
    words = ["run.py", "--models", "models", "--data", "data", "--outputs", str(tmp_path), "--upstream", "6"]
    words += ["--results", str(tmp_path / "results.csv"), "--precision", "no", "--seeds", "0", "--tasks", "stsb"]
    monkeypatch.setattr(SCRIPT["sys"], "argv", words)
    return SCRIPT["Study"](SWEEP, SCRIPT["_arguments"](SWEEP))


def phases(words, directory):
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return build(hydra.compose("config", ["name=x", *words]), directory).recipe.phases


@pytest.mark.parametrize("task", SWEEP["tasks"])
def test_every_method_takes_the_same_steps_of_a_task(study, tmp_path, task):
    for method, overrides in SWEEP["methods"].items():
        words = study.words_of_task(task, 0, [*SWEEP["plans"]["2of4"]["task"], *overrides])
        steps = sum(phase.length(5).steps for phase in phases(words, tmp_path).values())
        assert steps == SWEEP["tasks"][task]["steps"], method


@pytest.mark.parametrize("plan", SWEEP["plans"])
def test_the_corpus_is_seen_as_long_before_pruning_as_while_it_prunes(study, tmp_path, plan):
    before = phases(study.words_of_corpus(6, SWEEP["model"], SWEEP["prepared"]), tmp_path)
    pruned = phases(
        study.words_of_corpus(6, SWEEP["model"], [*SWEEP["plans"][plan]["corpus"], *SWEEP["pruned"]]), tmp_path
    )
    assert sum(phase.length(5).steps for phase in before.values()) == 6
    assert sum(phase.length(5).steps for phase in pruned.values()) == 6


def test_a_sparse_model_comes_before_the_tasks_that_begin_with_it_and_nothing_is_run_twice(
    study, tmp_path, monkeypatch
):
    ran = []

    def run(command, **_):
        values = dict(word.split("=", 1) for word in command[1:])
        folder = Path(values["path"] if values.get("job") == "export" else values["hydra.run.dir"])
        if values.get("job") == "export":
            assert (folder / "report.json").exists()
            (folder / "sparse").mkdir()
            return SCRIPT["subprocess"].CompletedProcess(command, 0)
        for key in ("model.path", "model.teacher"):
            assert values.get(key, "models").startswith("models") or Path(values[key]).is_dir()
        (folder / "dense").mkdir(parents=True)
        ran.append(folder.name)
        scores = {"dense": {"pearson": 0.8}, "packed": {"pearson": 0.7}}
        found = {"task": {"metric": "pearson"}, "storage": {"compression": {"all": 0.9}}, "device": "cpu"}
        report = {**found, "scores": scores, "phases": {"finish": {"steps": 4, "seconds": 1.0}}}
        (folder / "report.json").write_text(json.dumps(report))
        return SCRIPT["subprocess"].CompletedProcess(command, 0)

    monkeypatch.setattr(SCRIPT["subprocess"], "run", run)
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            SCRIPT["main"]()
        assert not end.value.code
    assert len(ran) == len(set(ran)) == 2 + 3 + 3 * 3
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 + 3 * 3
    assert {row["retention"] for row in rows} == {"0.875"}
