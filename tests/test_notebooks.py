"""The notebooks run, from fabricated runs."""

import json
import re
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MADE = {"01_sets_and_projections": "packed", "02_reading_a_run": "runs"}  # a name that the notebook ends with
MADE |= {"03_frontiers_and_plans": "runs", "04_sensitivity": "pairs"}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
sys.path.append(str(Path(__file__).parent / "report"))
from fabricated import write_found, write_run, write_sweep  # noqa: E402 (the fabricated runs belong to the report's tests)


def code_cells(path):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@each_notebook
def test_a_notebook_runs_from_its_first_cell_to_its_last(path, tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    write_run(tmp_path / "outputs" / "demo")
    write_found(tmp_path / "outputs" / "search")
    for sweep in ("plans", "budgets"):
        write_sweep(tmp_path / "multirun" / sweep, tasks={"grammar": "accuracy"}, seeds=2)
    monkeypatch.chdir(tmp_path / "notebooks")
    names: dict[str, object] = {}
    for cell in code_cells(path):
        lines = "".join(cell["source"]).splitlines()
        code = "\n".join(line for line in lines if not line.startswith("%"))  # magics are the notebook's own
        exec(compile(code, path.name, "exec"), names)
    assert len(names[MADE[path.stem]]) > 0


@each_notebook
def test_a_notebook_holds_no_logic_and_keeps_its_outputs(path):
    cells = code_cells(path)
    source = "\n".join("".join(cell["source"]) for cell in cells)
    assert not any(word in source for word in ("def ", "class ", "lambda"))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells[1:])


@each_notebook
def test_the_outputs_of_a_notebook_have_no_warnings_and_no_places_of_a_machine(path):
    outputs = [output for cell in code_cells(path) for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"execute_result", "display_data"}
    texts = ["".join(text) for output in outputs for kind, text in output["data"].items() if kind.startswith("text/")]
    assert not [text for text in texts if re.search(r"/(home|root|tmp|usr|Users)/", text)]
