"""The table of architectures is what was found, and what it says holds for one of each head."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
SCRIPT = runpy.run_path(str(ROOT / "experiments" / "architectures" / "run.py"))


def test_the_table_in_the_documentation_is_that_of_the_results():
    assert SCRIPT["TABLE"].read_text(encoding="utf-8") == SCRIPT["table"](SCRIPT["read"]())


def test_every_architecture_has_been_looked_at():
    assert SCRIPT["read"]().keys() == SCRIPT["KINDS"].keys()


@pytest.mark.parametrize("name", ["distilbert", "qwen2", "marian"])
def test_an_architecture_goes_as_far_as_the_table_says(name):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    kept = SCRIPT["read"]()[name]
    assert SCRIPT["look"](name) == {step: kept[step] for step in SCRIPT["STEPS"]}


def test_the_results_page_counts_what_the_table_has():
    rows = SCRIPT["read"]().values()
    converted = [row for row in rows if row["converts"].startswith("yes")]
    scored = [row for row in converted if row["trains: attention"] == "yes"]
    others = [step for step in SCRIPT["STEPS"] if step != "trains: attention"]
    whole = [row for row in converted if all(row[step].startswith("yes") for step in others)]
    told = re.search(r"Of (\d+) arch.*? (\d+) can be .*? (\d+) go .*? In (\d+), att", RESULTS, flags=re.DOTALL)
    assert [int(count) for count in told.groups()] == [len(rows), len(converted), len(whole), len(scored)]
