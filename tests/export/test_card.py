import json

import pytest
import torch
import yaml
from tiny import CARD, JOINT, MANIFEST, WEIGHTS, bert, compressed, gpt2, seeded

from nxmiformer.applied.convert import convert
from nxmiformer.export import add_results, load_packed, save_packed
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import find_targets
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import Grid

RESULTS = {"task": "rte, validation", "accuracy, dense": "66.43 %", "command": "`nxmiformer plan.{a|b}=1`"}


def mixed():
    """A model of which some layers are points of one set, some of another, and the others dense."""
    model = seeded(bert)
    targets = find_targets(model)
    sets = {each.name: (JOINT, Grid(8), None)[i % 3] for i, each in enumerate(targets.layers)}
    plan = CompressionPlan.assigned(model, targets, sets, Activations(8))
    convert(model, plan)
    project(model)
    return model, plan


def read(directory):
    """The YAML header, and the cells of the tables by their sections' titles."""
    _, header, text = (directory / CARD).read_text(encoding="utf-8").split("---\n", 2)
    sections = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    rows = {title: [line for line in body.splitlines() if line.startswith("|")] for title, body in sections.items()}
    cells = {title: [[cell.strip() for cell in line[1:-1].split(" | ")] for line in rows[title][2:]] for title in rows}
    return yaml.safe_load(header), text, cells


@pytest.mark.parametrize("make", [bert, gpt2])
def test_the_card_has_the_hubs_header_and_the_models_name(make, tmp_path):
    model, plan = compressed(make)
    save_packed(model, plan, tmp_path / "packed")
    header, text, _ = read(tmp_path / "packed")
    assert header["library_name"] == "transformers"
    assert "nxmiformer" in header["tags"]
    assert text.lstrip().startswith(f"# {type(model).__name__}, ")
    assert "{" not in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cards_numbers_are_those_of_the_plan_and_of_the_files(dtype, tmp_path):
    model, plan = mixed()
    model.to(dtype)
    project(model)
    size = save_packed(model, plan, tmp_path / "packed")
    _, _, cells = read(tmp_path / "packed")
    layers = {weights: int(count) for weights, inputs, count in cells["Plan"] if inputs == "a8"}
    assert layers == {str(kind): sum(s.weight == kind for s in plan.layers.values()) for kind in (JOINT, Grid(8))}
    told = {name: int(count) for name, count in cells["Size"]}
    assert told["values"] + told["indices"] + told["scales"] == told["compressed layers"] == size.weights
    assert told["scales"] * 8 == plan.storage().scales
    assert told["indices"] * 8 == plan.storage().indices
    assert told["the same in float32"] == 4 * sum(rows * columns for rows, columns in map(shape, plan.layers.values()))
    assert told["the whole model in float32"] == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert told["file of weights, on disk"] == (tmp_path / "packed" / WEIGHTS).stat().st_size


def shape(spec):
    return spec.shape


def test_the_lines_that_load_it_run_and_give_the_model(tmp_path, monkeypatch):
    model, plan = compressed()
    save_packed(model, plan, tmp_path / "this" / "directory")
    code = (tmp_path / "this" / "directory" / CARD).read_text().split("```python\n")[1].split("```")[0]
    lines = [line for line in code.splitlines() if "Tokenizer" not in line]
    monkeypatch.chdir(tmp_path)
    for end in (4, 5):
        names = {}
        exec("\n".join(lines[:end]), names)
        assert all(torch.equal(names["model"].state_dict()[key], value) for key, value in model.state_dict().items())


def test_results_are_added_and_nothing_else_changes(tmp_path):
    save_packed(*compressed(), tmp_path / "packed")
    before = read(tmp_path / "packed")
    add_results(tmp_path / "packed", RESULTS)
    header, _, cells = read(tmp_path / "packed")
    assert dict(cells.pop("Results")) == {**RESULTS, "command": RESULTS["command"].replace("|", "\\|")}
    assert (header, cells) == (before[0], before[2])
    load_packed(tmp_path / "packed")


def test_a_card_with_results_is_replaced_with_its_model_and_an_edited_one_is_not(tmp_path):
    model, plan = compressed()
    save_packed(model, plan, tmp_path / "packed")
    first = (tmp_path / "packed" / CARD).read_bytes()
    add_results(tmp_path / "packed", RESULTS)
    save_packed(model, plan, tmp_path / "packed")
    assert (tmp_path / "packed" / CARD).read_bytes() == first
    (tmp_path / "packed" / CARD).write_text("years of work")
    with pytest.raises(FileExistsError, match="it is left as it is"):
        save_packed(model, plan, tmp_path / "packed")
    assert (tmp_path / "packed" / CARD).read_text() == "years of work"


@pytest.mark.parametrize("change", [lambda card: card.write_text("mine"), lambda card: card.unlink()])
def test_a_model_whose_card_was_edited_is_read(change, tmp_path):
    model, plan = compressed()
    save_packed(model, plan, tmp_path / "packed")
    change(tmp_path / "packed" / CARD)
    assert CARD not in json.loads((tmp_path / "packed" / MANIFEST).read_text())["files"]
    assert torch.equal(load_packed(tmp_path / "packed").classifier.weight, model.classifier.weight)
