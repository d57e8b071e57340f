"""Products of the largest 8-bit codes, whose sums are beyond 16 bits."""

from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from nxmiformer.applied.convert import convert
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.projection import project
from nxmiformer.plan.compression import CompressionPlan, LayerSpec
from nxmiformer.sets import Grid

pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
from nxmiformer.export import onnx  # noqa: E402

ROWS, INNER, OUT = 5, 96, 64


def layer_of_ones():
    """A layer whose codes are all the largest."""
    plain = nn.Linear(INNER, OUT, bias=False)
    nn.init.ones_(plain.weight)
    holder = nn.Sequential(plain.requires_grad_(False))
    convert(holder, CompressionPlan({"0": LayerSpec(Grid(8), (OUT, INNER), Activations(8))}))
    project(holder)
    return holder.eval()[0]


@pytest.mark.parametrize("cut_off", [False, True])
def test_the_slow_product_is_asked_for_where_the_fast_one_saturates_and_only_there(tmp_path, monkeypatch, cut_off):
    asked = []
    options = type("Options", (), {"add_session_config_entry": lambda _, *entry: asked.append(entry)})
    monkeypatch.setattr(onnx, "saturates", lambda: cut_off)
    monkeypatch.setattr(onnxruntime, "SessionOptions", options)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: MagicMock())
    onnx.Onnx().read(tmp_path, 1)
    assert asked == ([("session.x64quantprecision", "1")] if cut_off else [])


@pytest.mark.parametrize("cut_off", [None, True], ids=["as this processor is", "as one that saturates"])
def test_sums_of_the_largest_codes_are_exact(tmp_path, monkeypatch, cut_off):
    if cut_off is not None:
        monkeypatch.setattr(onnx, "saturates", lambda: cut_off)
    x = torch.ones(1, ROWS, INNER)
    onnx.Onnx().write_layer(layer_of_ones(), x, tmp_path)
    found = onnx.Onnx().read(tmp_path, 1)({"x": x})["y"]
    torch.testing.assert_close(found, torch.full((1, ROWS, OUT), float(INNER)), rtol=1e-6, atol=0)
