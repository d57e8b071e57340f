"""A search under a budget of latency, in a directory of its own."""

import json

import pytest
import torch
import transformers
from test_search_job import Killed, job, without_figures

from nxmiformer.jobs import latency
from nxmiformer.jobs import search as planner
from nxmiformer.jobs.search import search
from nxmiformer.layers.targets import Target, find_targets
from nxmiformer.plan.compression import CompressionPlan

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

from nxmiformer.export.onnx import Onnx

SETS = "search.candidates.sets=[dense,int8,2:4+int4]"
SHORT = ["job=search", "budget.length=16", "search.frontier=2", "search.interactions=0", SETS]
DENSE, PER_CALL = 100_000, {"dense": 10_000, "int8": 4_000}


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    without_figures(monkeypatch)


@pytest.fixture
def made_up(monkeypatch):
    """Times that nothing was measured for; and how often they were asked for."""
    asked = []

    def measured(job, model, given, pairs, threads):
        asked.append(pairs)
        return DENSE, {(call, words): PER_CALL[words] for call, words in pairs}

    monkeypatch.setattr(latency, "_measured", measured)
    return asked


def test_a_dense_plan_fits_into_the_time_that_was_measured_of_the_dense_model(tmp_path):
    content = search(job(tmp_path, *SHORT, "budget.latency=1.0"))
    assert set(content["best"]["sets"].values()) == {"dense"}
    timed = content["latency"]
    assert content["best"]["cost"] + timed["rest"] == timed["dense"] > 0
    assert (timed["batch"], timed["length"], timed["threads"]) == (1, 16, 1)
    assert all(each["cost"] > 0 for each in content["frontier"])


@pytest.mark.parametrize("ranges", ["ema", "static"])
def test_a_layer_that_is_timed_has_fixed_ranges_where_the_plan_has_and_can_be_written(ranges, tmp_path):
    planned = job(tmp_path, f"plan.activations.ranges={ranges}")
    layer = latency._layer(planned, ((3, 16), (8, 16)), "int8")
    assert all(each.isfinite().all() and each.any() for each in layer.inputs.state_dict().values())
    Onnx().write_layer(layer, torch.randn(3, 16), tmp_path)
    run = Onnx().read(tmp_path, 1)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    torch.testing.assert_close(run({"x": x})["y"], layer(x), rtol=1e-4, atol=1e-5)


def test_a_plan_within_the_budget_is_the_best_of_those_that_are(tmp_path, made_up):
    content = search(job(tmp_path, *SHORT, "budget.latency=0.8"))
    best, timed, layers = content["best"], content["latency"], len(content["damages"])
    counts = [list(best["sets"].values()).count(words) for words in ("dense", "int8", "2:4+int4")]
    assert timed["rest"] == DENSE - layers * PER_CALL["dense"]
    assert best["cost"] == counts[0] * PER_CALL["dense"] + (layers - counts[0]) * PER_CALL["int8"] <= content["budget"]
    assert counts == [layers - 4, 4, 0]  # four of the layers must be faster; none is worth a set that is not
    plan = CompressionPlan.load(tmp_path / "plan.json")
    assert sum(spec.weight.storage(spec.shape).nbytes * 8 for spec in plan.layers.values()) < best["bits"]


def test_times_are_measured_once_and_kept_for_a_search_that_goes_on(tmp_path, made_up, monkeypatch):
    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(planner, "evidence_of", killed)
        with pytest.raises(Killed):
            search(job(tmp_path, *SHORT, "budget.milliseconds=0.09"))
    content = search(job(tmp_path, *SHORT, "budget.milliseconds=0.09", "resume=true"))
    assert len(made_up) == 1
    assert content["budget"] + content["latency"]["rest"] == 90_000
    (file,) = (tmp_path / "cache").glob("latency-*.json")
    assert json.loads(file.read_text())["dense"] == DENSE


def test_layers_may_stay_dense_whatever_the_candidates(tmp_path, made_up):
    words = [each for each in SHORT if each != SETS]
    content = search(job(tmp_path, *words, "search.candidates.sets=[int8,int4]", "budget.latency=0.8"))
    assert set(content["best"]["sets"].values()) == {"int8", "dense"}


def test_a_head_on_a_grid_is_timed_so(tmp_path, made_up):
    plain, packed = (
        search(job(tmp_path / name, *SHORT, "budget.latency=1.0", *more))["latency"]
        for name, more in (("plain", []), ("packed", ["plan.head=int8"]))
    )
    heads = (plain["rest"] - packed["rest"]) / (PER_CALL["dense"] - PER_CALL["int8"])
    assert heads == int(heads) >= 1


def test_each_call_of_a_module_is_counted_once_whatever_its_names(made_up):
    config = transformers.AlbertConfig(
        vocab_size=30,
        embedding_size=8,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        num_hidden_layers=3,
    )
    model = transformers.AlbertForSequenceClassification(config)
    inputs = {"input_ids": torch.ones(2, 5, dtype=torch.long)}
    calls = latency._calls(model, find_targets(model).layers, inputs)
    assert set(map(len, calls.values())) == {3}
    twice = torch.nn.ModuleList([torch.nn.Linear(4, 4)] * 2)
    named = Target("0", (4, 4), aliases=("1",))
    twice.forward = lambda x: twice[1](twice[0](x))
    twice.device = torch.device("cpu")
    assert latency._calls(twice, [named], {"x": torch.ones(3, 4)}) == {"0": [((3, 4), (4, 4))] * 2}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget.latency=0.5"], r"budget 0.5 of the latency is too small: the least is budget\.latency=0\.\d+$"),
        (["budget.milliseconds=0.01"], r"budget 0.01 ms is too small: the least is budget\.milliseconds=0\.\d+$"),
        (["budget.latency=0.9", "search.candidates.sets=[2:4]"], r"the set 2:4 has float values, .*give it a grid"),
        (["budget.latency=0.9", "budget.length=999"], "budget.length=999: the model has positions for 64 tokens"),
        (["budget.ratio=0.9"], "budget.length=16 is timed under a budget of latency, and has no effect here"),
        (["budget.latency=0.9", "plan=fullyqt"], "leave out plan.everything, or give a budget of bytes"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained_or_written(tmp_path, made_up, overrides, message):
    with pytest.raises(ValueError, match=message):
        search(job(tmp_path / "here", *SHORT, *overrides))
    assert not (tmp_path / "here" / "cache").exists()
