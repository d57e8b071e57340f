"""The task of one's own that docs/tasks.md shows is a task as any other, by the command that stands there."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import tables

from nxmiformer import cli
from nxmiformer.jobs import compress
from nxmiformer.jobs.values import mistakes
from nxmiformer.tasks.task import Task

TEXT = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL))
PYTHON, YAML, COMMAND = BLOCKS["python"], BLOCKS["yaml"], BLOCKS[""]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The files of the documentation, in a directory that is the current one and on Python's path."""
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "parity.yaml").write_text(YAML)
    (tmp_path / "parity.py").write_text(PYTHON)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "parity", raising=False)
    return tmp_path


def test_the_documented_lines_run_by_the_documented_command(written, monkeypatch):
    assert len([line for line in PYTHON.splitlines() if line and "import " not in line]) == 10
    path, *words = shlex.split(COMMAND)
    assert path == "PYTHONPATH=."
    model = tables.checkpoint(written / "model")
    words = [f"model.path={model}" if word.startswith("model.path=") else word for word in words]
    tiny = ["name=run", "dense_cache=null", "train.batch_size=8", "train.cpu=true", "train.max_length=16"]
    monkeypatch.setattr(sys, "argv", [*words, *tiny, "recipe=one_shot", "recipe.phases.dense.steps=1"])
    monkeypatch.setattr(compress, "write_report", lambda _: None)  # whose figures take longer than all else
    cli.main()
    content = json.loads((written / "outputs" / "run" / "report.json").read_text())
    assert content["task"] | {"name": "parity", "train": 24, "holdout": 12, "validation": 12} == content["task"]
    assert content["scores"]["packed"].keys() == {"accuracy"}


def test_a_file_that_cannot_be_imported_is_told_with_the_reason(written):
    (written / "parity.py").write_text("import nothing_of_that_name\n")
    (told,) = mistakes({"_target_": "parity.Parity"}, Task, "task")
    assert told.startswith("task._target_=parity.Parity: it cannot be imported: ModuleNotFoundError: No module named")
