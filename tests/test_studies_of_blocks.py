"""The scripts of the studies of blocks run from end to end, on a tiny model, and do no cell twice."""

import csv
import runpy
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CELLS = {
    "group_lasso": ["--methods", "reweighted", "--densities", "0.5", "--steps", "3"],
    "movement": ["--methods", "magnitude", "--shares", "0.5", "--steps", "2"],
}


@pytest.mark.parametrize("study", CELLS)
def test_a_study_writes_a_row_for_each_cell_and_runs_none_twice(study, tmp_path, monkeypatch):
    words = ["--tiny", "--cpu", "--seeds", "0", "--tasks", "grammar", *CELLS[study]]
    results = tmp_path / "results.csv"
    places = ["--outputs", str(tmp_path / "outputs"), "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["run.py", *words, *places])
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    for _ in range(2):
        runpy.run_path(str(EXPERIMENTS / study / "run.py"), run_name="__main__")
    with results.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 1
    assert 0 <= float(rows[0]["score"]) <= 1
    if study == "movement":
        assert float(rows[0]["heads"]) == float(rows[0]["dimensions"]) == 0.5
