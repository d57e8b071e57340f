"""ONNX files of models whose layers have Kronecker factors."""

import numpy as np
import pytest
import transformers
from test_onnx import A8, check_agrees, written
from tiny import WORDS, seeded

from nxmiformer.applied.convert import convert
from nxmiformer.export import load_packed, save_packed
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import Targets, find_embeddings, find_targets
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import Grid, Kronecker

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
from nxmiformer.export.onnx import FILE  # noqa: E402

LOOKED_UP = [Kronecker(1, 4, 2), Kronecker(2, 4, 2), Kronecker(1, 8)]


def bert():
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**WORDS, **sizes))


def gpt2():
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 24, "num_labels": 3}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes, **tokens))


def exported(make, linear, path, activations=None):
    """A model of such sets as it is read from its packed files, its plan, and its ONNX file's content and reader."""
    model = seeded(make)
    found, embeddings = find_targets(model), find_embeddings(model)
    sets = {t.name: linear[i % len(linear)] for i, t in enumerate(found.layers)}
    sets |= {t.name: LOOKED_UP[i % len(LOOKED_UP)] for i, t in enumerate(embeddings)}
    plan = CompressionPlan.assigned(model, Targets((*found.layers, *embeddings), {}), sets, activations)
    convert(model, plan)
    project(model)
    save_packed(model.eval(), plan, path / "packed")
    model = load_packed(path / "packed")
    return model, plan, *written(model, plan, path)


def test_the_file_has_the_factors_the_graph_two_products_a_layer_and_onnx_runtime_the_logits(tmp_path):
    linear = [Kronecker(2, 4), Kronecker(4, 2, 2), Kronecker(8, 16), Kronecker(16, 2)]
    model, plan, content, run = exported(bert, linear, tmp_path)
    check_agrees(model, run)
    assert {node.domain for node in content.graph.node} == {""}
    products = sum(node.op_type in ("MatMul", "Gemm") for node in content.graph.node)
    layers = [name for name in plan.layers if "embeddings" not in name]
    assert products == 2 * len(layers) + len(LOOKED_UP) + 2 + 2  # of the attention; pooler and classifier
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in content.graph.initializer}
    for name in layers:
        parts = [stored[f"model.{name}.{end}"] for end in ("first", "second")]
        assert {each.dtype for each in parts} == {np.dtype(np.float32)}
        assert 32 * sum(each.size for each in parts) == plan.layers[name].weight.storage(plan.layers[name].shape).values
    storage = plan.storage()
    floats = sum(each.size for each in stored.values() if each.dtype == np.float32)
    assert 32 * floats <= storage.total + storage.rest + 32 * 16  # some constants
    assert (tmp_path / FILE).stat().st_size < 4 * floats + 50_000


def test_factors_beside_grids_and_with_quantized_inputs_are_computed_as_in_the_packed_model(tmp_path):
    model, _, content, run = exported(gpt2, [Kronecker(2, 4), Grid(4)], tmp_path, A8)
    check_agrees(model, run)
    assert sum(node.op_type == "MatMulInteger" for node in content.graph.node) == 2
