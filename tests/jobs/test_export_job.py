"""A packed model through job=export: agreement, files, and what is refused."""

import json
import shutil
from pathlib import Path

import hydra
import pytest

from nxmiformer import cli
from nxmiformer.applied.convert import convert
from nxmiformer.export import load_packed, save_packed
from nxmiformer.export.agreement import DisagreementError
from nxmiformer.export.format import Format
from nxmiformer.files import BusyError
from nxmiformer.jobs.export import export, is_export
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import find_targets
from nxmiformer.models import embedded
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.report.table import export_summary
from nxmiformer.sets import Grid
from nxmiformer.tasks.grammar import Grammar

TASK = [
    "name=export",
    "job=export",
    "task=grammar",
    "task.train=48",
    "task.holdout=24",
    "task.validation=24",
    "train.threads=1",
]


class Copy(Format):
    """A format that runs the packed model itself, its logits times `sign`."""

    name, extra, tolerance = "copy", "copy", 0.0

    def __init__(self, sign=1, refused=()):
        self.sign, self.refused = sign, refused

    def refusals(self, model, plan):
        yield from self.refused

    def write(self, model, plan, directory):
        save_packed(model, plan, directory / "model")

    def read(self, directory, threads=None):
        model = load_packed(directory / "model")
        return lambda batch: {"logits": model(**batch).logits * self.sign}


@pytest.fixture
def packed(tmp_path):
    """A packed model of the embedded task."""
    task = Grammar(train=48, holdout=24, validation=24)
    tokenizer = embedded.tokenizer(task.vocabulary)
    model = embedded.model(tokenizer, task.outputs, seed=0, hidden=16, layers=1, heads=2, intermediate=32)
    plan = CompressionPlan.uniform(model, find_targets(model), Grid(4), Activations(8))
    convert(model, plan)
    project(model)
    save_packed(model.eval(), plan, tmp_path / "packed", tokenizer)
    return tmp_path / "packed"


def job(packed, form, *overrides):
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        config = hydra.compose("config", [*TASK, f"path={packed}", *overrides])
    built = cli.build(config, packed.parent)
    object.__setattr__(built, "format", form or built.format)
    return built


def test_an_artefact_that_agrees_lies_beside_the_packed_model_with_tokenizer_config_and_record(packed):
    content = export(job(packed, Copy()))
    directory = packed.parent / "copy"
    assert {"config.json", "tokenizer.json", "export.json", "model"} <= {path.name for path in directory.iterdir()}
    assert content.pop("out") == str(directory)
    assert json.loads((directory / "export.json").read_text()) == content
    assert content["agreement"] == {**content["agreement"], "units": 24, "difference": 0.0, "equal": 1.0}
    assert content["scores"]["copy"] == content["scores"]["packed"]
    assert content["bytes"]["packed"] == (packed / "model.safetensors").stat().st_size
    assert not [path for path in packed.parent.iterdir() if path.name.startswith(".")]


SOMEBODYS = {
    "sources": lambda out: (shutil.rmtree(out), out.mkdir(), (out / "main.py").write_text("mine")),
    "sources beside an export.json of their own": lambda out: (
        shutil.rmtree(out),
        out.mkdir(),
        (out / "main.py").write_text("mine"),
        (out / "export.json").write_text("{}"),
    ),
    "a file more": lambda out: (out / "notes.txt").write_text("mine"),
    "a file in a directory": lambda out: (out / "model" / "notes.txt").write_text("mine"),
    "an edited file": lambda out: (out / "config.json").write_text("mine"),
    "a file less": lambda out: (out / "config.json").unlink(),
    "a link": lambda out: (out / "link").symlink_to("nowhere"),
    "a record that is a list": lambda out: (out / "export.json").write_text("[]"),
}


@pytest.mark.parametrize("change", SOMEBODYS.values(), ids=SOMEBODYS)
def test_an_export_replaces_an_export_as_it_was_written_and_nothing_else(packed, change):
    for _ in range(2):
        out = Path(export(job(packed, Copy()))["out"])
    change(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="copy exists and is not an export and nothing else; it is left as it is"):
        export(job(packed, Copy()))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_second_of_two_exports_to_one_place_is_refused_and_the_first_is_whole(packed):
    class Meeting(Copy):
        def write(self, model, plan, directory):
            super().write(model, plan, directory)
            with pytest.raises(BusyError, match=r"is running in .*copy"):
                export(job(packed, Copy()))

    content = export(job(packed, Meeting()))
    assert is_export(Path(content["out"]))
    assert {path.name for path in packed.parent.iterdir()} == {"packed", "copy"}


def test_an_artefact_that_does_not_agree_is_kept_aside_and_leaves_what_was_there(packed):
    export(job(packed, Copy()))
    before = (packed.parent / "copy" / "export.json").read_bytes()
    with pytest.raises(DisagreementError, match=r"copy does not agree with .*: 0.00% of 24 predictions"):
        export(job(packed, Copy(sign=-1)))
    assert (packed.parent / "copy" / "export.json").read_bytes() == before
    kept = json.loads((packed.parent / "copy-differs" / "export.json").read_text())
    assert (kept["agreement"]["equal"], kept["tolerance"]) == (0.0, 0.0)


def test_an_artefact_that_does_not_agree_takes_no_place_and_the_message_says_what_would_take_it(packed):
    told = r"logits differ by .* in a range of .* It is kept as .*copy-differs; format.tolerance=1 would accept it"
    with pytest.raises(DisagreementError, match=told):
        export(job(packed, Copy(sign=-1)))
    assert sorted(path.name for path in packed.parent.iterdir()) == ["copy-differs", "packed"]


def test_what_a_format_cannot_carry_is_told_before_anything_is_written(packed):
    with pytest.raises(ValueError, match=r"copy cannot represent .*packed:\n  first: a\n  second: b"):
        export(job(packed, Copy(refused=["first: a", "second: b"])))
    assert [path.name for path in packed.parent.iterdir()] == ["packed"]


def test_an_export_without_a_path_says_so():
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        built = cli.build(hydra.compose("config", TASK), None)
    with pytest.raises(ValueError, match=r"path=RUN/packed"):
        export(built)


def test_the_console_runs_an_export_to_onnx_and_shows_it(packed, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    monkeypatch.chdir(packed.parent)
    monkeypatch.setattr("sys.argv", ["nxmiformer", *TASK, "path=packed", "hydra.run.dir=run"])
    cli.main()
    told = capsys.readouterr().out
    content = json.loads((packed.parent / "onnx" / "export.json").read_text())
    assert "onnx gives 100.00 % of 24 predictions as the packed model does" in told
    assert "onnx: onnx" in told
    assert content["agreement"]["difference"] < 1e-3
    assert content["bytes"]["onnx"] == (packed.parent / "onnx" / "model.onnx").stat().st_size
    assert len(export_summary(content).renderables) == 3


def test_the_config_of_an_export_to_compressed_tensors_is_the_one_that_its_reader_needs(packed):
    pytest.importorskip("compressed_tensors", reason="the extra compressed-tensors is not installed")
    content = export(job(packed, None, "format=compressed_tensors", "format.activations=false"))
    directory = packed.parent / "compressed_tensors"
    config = json.loads((directory / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert content["bytes"]["compressed_tensors"] == (directory / "model.safetensors").stat().st_size
    assert content["packages"].keys() == {"compressed_tensors"}
