"""The notebooks run, from a fabricated run."""

import json
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
sys.path.append(str(Path(__file__).parent / "report"))
from fabricated import write_run  # noqa: E402 (the fabricated run belongs to the report's tests)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path, tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "outputs" / "demo").mkdir(parents=True)
    write_run(tmp_path / "outputs" / "demo")
    monkeypatch.chdir(tmp_path / "notebooks")
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    names: dict[str, object] = {}
    for cell in cells:
        lines = "".join(cell["source"]).splitlines()
        code = "\n".join(line for line in lines if not line.startswith("%"))  # magics are the notebook's own
        exec(compile(code, path.name, "exec"), names)
    assert names["run"].report.layers


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_logic_and_keeps_its_outputs(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    assert not any(word in source for word in ("def ", "class ", "lambda"))
    assert any(cell["outputs"] for cell in cells)
