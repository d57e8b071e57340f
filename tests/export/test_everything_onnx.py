"""ONNX files of models of which everything that is multiplied is quantized."""

import warnings

import pytest
import torch
from kinds import batch, made

from nxmiformer.applied.convert import convert
from nxmiformer.layers.projection import project
from nxmiformer.layers.ranges import RangeQuantizer, Ranges
from nxmiformer.plan.origin import Planning
from nxmiformer.sets import Grid

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
from nxmiformer.export.onnx import FILE, Onnx  # noqa: E402
from nxmiformer.export.symbolic import SymbolicRange  # noqa: E402


def converted():
    model = made("bert")
    torch.nn.init.normal_(model.bert.embeddings.word_embeddings.weight)
    plan = Planning("whole", Grid(8), everything="int8")(model)
    return convert(model, plan), plan


def test_an_encoder_is_carried_whole_with_a_pair_of_operators_for_each_input_of_a_product(tmp_path):
    model, plan = converted()
    model(**batch("bert"))
    project(model.eval())
    form = Onnx()
    assert list(form.refusals(model, plan)) == []
    form.write(model, plan, tmp_path)
    content = onnx.load(tmp_path / FILE)
    onnx.checker.check_model(content, full_check=True)
    kinds = [node.op_type for node in content.graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == plan.everything.count
    assert "LayerNormalization" not in kinds
    assert "Softmax" not in kinds
    run = form.read(tmp_path, threads=1)
    for seed in (0, 1):
        given = batch("bert", seed) if seed else {name: each[:2, :5] for name, each in batch("bert").items()}
        logits = model(**given).logits
        torch.testing.assert_close(run(given)["logits"], logits, rtol=1e-4, atol=1e-5 * logits.abs().max().item())


KINDS = [
    RangeQuantizer(Ranges(5), 4),
    RangeQuantizer(Ranges(8, zero=False), 4),
    RangeQuantizer(Ranges(3)),
    RangeQuantizer(Ranges(8), positive=True),
]


class Each(torch.nn.ModuleList):
    """What each of the modules gives."""

    def forward(self, x):
        return tuple(module(x) for module in self)


def test_a_quantizer_gives_the_same_levels_in_operators(tmp_path):
    x = torch.rand(2, 30, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([-0.4, 0.1, -0.9, 0.0])
    for quantizer in KINDS:
        quantizer.train()(x.abs() + 0.1 if quantizer.positive else x)
        quantizer.eval()
    path, far = tmp_path / "ranges.onnx", x * 1.5
    symbolic = Each(map(SymbolicRange, KINDS)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own old calls
        torch.onnx.export(symbolic, (far,), path, input_names=["x"], opset_version=21, dynamo=True, verbose=False)
    found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": far.numpy()})
    for quantizer, y in zip(KINDS, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(y), quantizer(far), rtol=1e-6, atol=1e-6)


def test_ends_that_have_seen_nothing_are_refused_by_name():
    model, plan = converted()
    told = list(Onnx().refusals(model, plan))
    assert len(told) == plan.everything.count
    assert "classifier.ranges.input: it has seen no input" in "".join(told)
