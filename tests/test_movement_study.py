"""The script of the study of heads and dimensions runs from end to end, on a tiny model, and does no cell twice."""

import csv
import runpy
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def test_the_study_writes_a_row_for_each_cell_and_runs_none_twice(tmp_path, monkeypatch):
    words = [
        "--tiny",
        "--cpu",
        "--seeds",
        "0",
        "--tasks",
        "grammar",
        "--methods",
        "magnitude",
        "admm",
        "--shares",
        "0.5",
    ]
    results = tmp_path / "results.csv"
    places = ["--steps", "2", "--outputs", str(tmp_path / "outputs"), "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["run.py", *words, *places])
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    for _ in range(2):
        runpy.run_path(str(EXPERIMENTS / "movement" / "run.py"), run_name="__main__")
    with results.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["method"] for row in rows] == ["magnitude", "admm"]
    for row in rows:
        assert 0 <= float(row["score"]) <= 1
        assert float(row["heads"]) == float(row["dimensions"]) == 0.5
    timing = ["--time", "--length", "16", "--batches", "1", "--repeats", "3"]
    monkeypatch.setattr(sys, "argv", ["run.py", *words, *timing, *places])
    for _ in range(2):
        runpy.run_path(str(EXPERIMENTS / "movement" / "run.py"), run_name="__main__")
    with (tmp_path / "speeds.csv").open(newline="") as opened:
        timed = [(row["method"], row["contender"]) for row in csv.DictReader(opened)]
    assert len(timed) == len(set(timed)) == 2 * len({contender for _, contender in timed}) == 10
