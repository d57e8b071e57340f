"""A packed model through job=bench: who takes part, what is left, and what is refused."""

import json

import hydra
import pytest
import torch
from rich.console import Console

from nxmiformer import cli
from nxmiformer.applied.convert import convert
from nxmiformer.bench import contenders
from nxmiformer.bench.contenders import BASELINE, line_up
from nxmiformer.export import load_packed, save_packed
from nxmiformer.export.format import Format
from nxmiformer.export.manifest import PackedError
from nxmiformer.files import BusyError, alone
from nxmiformer.jobs import bench as benching
from nxmiformer.jobs.bench import bench
from nxmiformer.layers.examples import made_up
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import find_targets
from nxmiformer.models import embedded
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.report.table import bench_summary
from nxmiformer.runs.speeds import FORMAT
from nxmiformer.sets import NM, Grid, Then
from nxmiformer.tasks.grammar import Grammar

FEW = ["bench.batches=[1,2]", "bench.lengths=[4,8]", "bench.repeats=3", "bench.warmup=0", "bench.memory=false"]
FEW += ["name=bench", "job=bench", "train.threads=1", "train.cpu=true"]
CPU = torch.device("cpu")


class Copy(Format):
    """A format that keeps the packed model as it is."""

    name, extra, tolerance = "copy", "copy", 0.0

    def refusals(self, model, plan):
        yield from ()

    def write(self, model, plan, directory):
        save_packed(model, plan, directory / "model")

    def read(self, directory, threads=None):
        model = load_packed(directory / "model")
        return lambda batch: {"logits": model(**batch).logits}


def write_run(directory, hidden=16):
    """A run with a dense model, a packed one, and an export."""
    task = Grammar(train=48, holdout=24, validation=24)
    tokenizer = embedded.tokenizer(task.vocabulary)
    model = embedded.model(tokenizer, task.outputs, seed=0, hidden=hidden, layers=1, heads=2, intermediate=2 * hidden)
    model.eval().save_pretrained(directory / "dense")
    plan = CompressionPlan.uniform(model, find_targets(model), Then(NM(2, 4), Grid(4)), Activations(8))
    convert(model, plan)
    project(model)
    save_packed(model, plan, directory / "packed", tokenizer)
    (directory / "copy").mkdir()
    Copy().write(model, plan, directory / "copy")
    record = {"form": "copy", "plan": plan.fingerprint, "bytes": {"copy": 123}, "agreement": {"equal": 1.0}}
    (directory / "copy" / "export.json").write_text(json.dumps(record))
    return directory / "packed"


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """The packed model of a run; other formats than Copy are not there."""
    monkeypatch.setattr(contenders, "FORMATS", (Copy,))
    monkeypatch.setattr(contenders, "Onnx", Copy)
    return write_run(tmp_path)


def job(packed, *overrides):
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        config = hydra.compose("config", [*FEW, f"path={packed}", *overrides])
    return cli.build(config, packed.parent)


def test_all_there_is_takes_part_dense_first_and_computes_what_it_should(packed, tmp_path):
    (tmp_path / "scratch").mkdir()
    lined = line_up(packed, tmp_path / "scratch", CPU, 1)
    names = [each.name for each in lined.contenders]
    assert names[0] == BASELINE
    assert names[1:] == ["dense bf16", "packed", "packed lazy", "dense onnx", "copy", "copy unpruned"]
    assert lined.left_out == {}
    inputs = made_up(load_packed(packed), 3, 8)
    logits = {each.name: each.load()(inputs)["logits"].float() for each in lined.contenders}
    assert {tuple(each.shape) for each in logits.values()} == {(3, 2)}
    for same in ("packed lazy", "copy"):
        assert torch.equal(logits[same], logits["packed"])
    torch.testing.assert_close(logits["dense onnx"], logits[BASELINE])
    torch.testing.assert_close(logits["dense bf16"], logits[BASELINE], atol=0.1, rtol=0.1)
    for other in ("packed", "copy unpruned"):
        assert not torch.allclose(logits[other], logits[BASELINE], atol=1e-4)
    assert not torch.allclose(logits["copy unpruned"], logits["copy"], atol=1e-4)


def test_the_unpruned_control_has_the_grids_and_no_zeros_of_a_pattern(packed, tmp_path):
    (tmp_path / "scratch").mkdir()
    lined = line_up(packed, tmp_path / "scratch", CPU, 1)
    assert {each.name: each.control for each in lined.contenders if each.control} == {"copy unpruned": "copy"}
    plan = CompressionPlan.load(tmp_path / "scratch" / "copy-unpruned" / "model" / "plan.json")
    assert {str(spec) for spec in plan.layers.values()} == {"int4 a8"}
    assert plan.layers.keys() == CompressionPlan.load(packed / "plan.json").layers.keys()


def test_without_a_dense_model_the_packed_weights_are_the_dense_ones_and_there_is_no_control(packed, tmp_path):
    (tmp_path / "dense").rename(tmp_path / "elsewhere")
    (tmp_path / "scratch").mkdir()
    first, *others = line_up(packed, tmp_path / "scratch", CPU, 1).contenders
    assert (first.name, first.nbytes) == (BASELINE, None)
    assert "from the packed weights" in first.how
    assert [each.name for each in others if each.control] == []
    model = load_packed(packed)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and getattr(layer, "inputs", None) is not None:
            layer.inputs.active = False
    inputs = made_up(model, 2, 8)
    torch.testing.assert_close(first.load()(inputs)["logits"], model(**inputs).logits)


def test_an_export_that_is_not_of_the_packed_model_or_of_no_known_form_is_left_out_and_told(packed, tmp_path):
    for name, change in (("old", {"plan": "0123"}), ("odd", {"form": "gguf"})):
        record = json.loads((tmp_path / "copy" / "export.json").read_text())
        (tmp_path / name).mkdir()
        (tmp_path / name / "export.json").write_text(json.dumps({**record, **change}))
    (tmp_path / "scratch").mkdir()
    lined = line_up(packed, tmp_path / "scratch", CPU, 1)
    assert "an export of plan 0123, and the packed model is of" in lined.left_out["old"]
    assert "its form is 'gguf'; the forms that can be timed: copy" in lined.left_out["odd"]


@pytest.mark.usefixtures("packed")
def test_a_gpu_has_sparse_tensor_cores_take_part_where_they_can(tmp_path):
    for hidden in (16, 64):
        (tmp_path / f"scratch{hidden}").mkdir()
        (tmp_path / f"{hidden}").mkdir()
        path = write_run(tmp_path / f"{hidden}", hidden)
        lined = line_up(path, tmp_path / f"scratch{hidden}", torch.device("cuda"), 1)
        sparse = {"packed 2:4 bf16", "packed 2:4 int8"}
        if hidden == 16:
            assert lined.left_out.keys() == sparse
            assert "its weight is 16 x 16" in lined.left_out["packed 2:4 bf16"]
        else:
            assert lined.left_out == {}
            assert sparse < {each.name for each in lined.contenders}


@pytest.mark.cuda
@pytest.mark.usefixtures("packed")
def test_every_contender_runs_on_a_gpu(tmp_path):
    (tmp_path / "run").mkdir()
    path = write_run(tmp_path / "run", hidden=64)
    content = bench(job(path, "train.cpu=false", "bench.memory=true"))
    assert {"packed 2:4 bf16", "packed 2:4 int8"} < content["contenders"].keys()
    assert content["memory"]["packed 2:4 int8"]["device"] > 0


def test_a_dense_model_of_another_shape_is_an_error(packed, tmp_path):
    task = Grammar(train=48, holdout=24, validation=24)
    tokenizer = embedded.tokenizer(task.vocabulary)
    other = embedded.model(tokenizer, task.outputs, seed=0, hidden=32, layers=1, heads=2, intermediate=32)
    other.save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match=r"dense is not the dense model of .*packed: they differ in bert"):
        bench(job(packed))


def test_a_bench_leaves_its_times_and_its_figure_and_shows_them(packed, tmp_path):
    content = bench(job(packed, "bench.lengths=[4,8,65]"))
    assert content.pop("out") == str(tmp_path / "bench")
    assert json.loads((tmp_path / "bench" / "bench.json").read_text()) == content
    assert (tmp_path / "bench" / "figures" / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert sorted((cell["batch"], cell["length"]) for cell in content["cells"]) == [(1, 4), (1, 8), (2, 4), (2, 8)]
    assert content["too_long"] == [65]
    for cell in content["cells"]:
        assert cell["timings"].keys() == content["contenders"].keys()
        assert {len(timing["seconds"]) for timing in cell["timings"].values()} == {3}
    assert content["contenders"]["copy"]["bytes"] == 123
    assert content["contenders"]["packed"]["bytes"] == (packed / "model.safetensors").stat().st_size
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(bench_summary(content))
    assert max(map(len, capture.get().splitlines())) <= 80
    assert "Too long for the model: 65 tokens" in capture.get()


def test_a_killed_bench_keeps_what_it_measured_and_resumes_with_the_rest(packed, tmp_path, monkeypatch):
    calls = []

    def killed(runs, settings, **shown):
        calls.append(list(runs))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return timed(runs, settings, **shown)

    timed = benching.interleaved
    monkeypatch.setattr(benching, "interleaved", killed)
    with pytest.raises(KeyboardInterrupt):
        bench(job(packed))
    kept = json.loads((tmp_path / "bench" / "bench.json").read_text())["cells"]
    assert len(kept) == 2
    content = bench(job(packed, "resume=true"))
    assert content["cells"][:2] == kept
    assert len(content["cells"]) == 4
    assert len(calls) == 3 + 2
    bench(job(packed, "resume=true"))
    assert len(calls) == 5


def test_a_bench_can_be_extended_by_further_shapes(packed):
    first = bench(job(packed))["cells"]
    content = bench(job(packed, "resume=true", "bench.batches=[3]", "bench.lengths=[8,70]"))
    assert content["cells"][:-1] == first
    assert (content["cells"][-1]["batch"], content["cells"][-1]["length"]) == (3, 8)
    assert content["too_long"] == [70]


def test_another_bench_is_not_resumed_and_the_difference_is_shown(packed):
    bench(job(packed))
    with pytest.raises(ValueError, match=r"has the results of another bench:\n  repeats: 3 in the bench there, 4 now"):
        bench(job(packed, "resume=true", "bench.repeats=4"))


def test_a_bench_that_is_begun_anew_keeps_what_was_measured_before(packed, tmp_path):
    out = tmp_path / "bench"
    first = bench(job(packed, "bench.batches=[1]", "bench.lengths=[4]"))["cells"]
    bench(job(packed, "bench.batches=[2]", "bench.lengths=[4]"))
    assert json.loads((out / "bench.json.1").read_text())["cells"] == first
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.json.1", "figures"]


@pytest.mark.parametrize("theirs", ["{}", "[]", "mine", '{"format": 1}'])
def test_a_file_of_somebody_elses_that_is_called_as_a_bench_is_left_as_it_is(packed, tmp_path, theirs):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "bench.json").write_text(theirs)
    with pytest.raises(FileExistsError, match="bench exists and is not a bench; it is left as it is"):
        bench(job(packed))
    assert (tmp_path / "bench" / "bench.json").read_text() == theirs


def test_two_benches_are_not_at_work_in_one_place(packed, tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "bench.json").write_text(json.dumps({"format": FORMAT, "cells": []}))
    with alone(tmp_path / "bench"), pytest.raises(BusyError, match=r"is running in .*bench"):
        bench(job(packed))


def test_what_cannot_be_timed_is_told_before_anything_is_written(packed, tmp_path):
    with pytest.raises(ValueError, match=r"bench.lengths=\[65, 70\]: the model has positions for 64 tokens"):
        bench(job(packed, "bench.lengths=[65,70]"))
    with pytest.raises(PackedError, match="nowhere"):
        bench(job(tmp_path / "nowhere"))
    with pytest.raises(FileExistsError, match="dense exists and is not a bench"):
        bench(job(packed, f"out={tmp_path / 'dense'}"))
    with pytest.raises(ValueError, match="path=RUN/packed"):
        bench(job(packed, "path=null"))
    assert not (tmp_path / "bench").exists()


def test_peak_memory_is_measured_of_every_contender(packed, monkeypatch):
    shapes = []

    def measured(work, imports):
        shapes.append(work.args[1]["input_ids"].shape)
        return {"host": 5_000_000, "device": None}

    monkeypatch.setattr(benching, "peak_memory", measured)
    content = bench(job(packed, "bench.memory=true"))
    assert content["memory"] == {name: {"host": 5_000_000, "device": None} for name in content["contenders"]}
    assert set(shapes) == {(2, 8)}  # the largest


def test_the_console_times_onnx_files_and_what_it_takes_to_measure_can_be_sent_to_a_process(
    packed, monkeypatch, capsys
):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    monkeypatch.undo()
    monkeypatch.chdir(packed.parent)
    few = ["bench.batches=[1]", "bench.lengths=[4]"]
    monkeypatch.setattr("sys.argv", ["nxmiformer", *FEW, *few, "bench.memory=true", "path=packed", "hydra.run.dir=run"])
    cli.main()
    told = capsys.readouterr().out
    content = json.loads((packed.parent / "bench" / "bench.json").read_text())
    assert "dense onnx" in content["contenders"]
    assert "copy" in content["left_out"]
    assert all(each["host"] > 0 for each in content["memory"].values())
    assert content["memory"].keys() == content["contenders"].keys()
    assert "bench: bench" in told
