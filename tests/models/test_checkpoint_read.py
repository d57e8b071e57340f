"""A checkpoint gives everything but a head, or it is refused with what is wrong."""

import ast
import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from glue_tasks import glue
from safetensors.torch import load_file, save_file

import nxmiformer
from nxmiformer.models.source import Pretrained

RTE = glue("rte")
SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
GPT2 = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2)
T5 = transformers.T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)


@pytest.fixture(autouse=True)
def _logged(caplog):
    caplog.set_level(logging.INFO, "nxmiformer")


def save(directory, kind=transformers.BertModel, config=None):
    kind(config or transformers.BertConfig(**SIZES)).save_pretrained(directory)
    return directory


def rewrite(directory, change):
    """Change the weights of a checkpoint: from a dictionary of tensors to another."""
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def read(directory, task=RTE):
    return Pretrained(str(directory)).model(task, None, 0)


@pytest.mark.parametrize(
    ("kind", "config", "told"),
    [
        (transformers.BertModel, None, "classifier.weight"),
        (transformers.BertForMaskedLM, None, "bert.pooler.dense.weight"),
        (transformers.RobertaForMaskedLM, transformers.RobertaConfig(**SIZES), "classifier.out_proj.weight"),
        (transformers.GPT2LMHeadModel, GPT2, "score.weight"),
        (transformers.GPT2Model, GPT2, "score.weight"),
        (transformers.T5ForConditionalGeneration, T5, "classification_head.out_proj.weight"),
    ],
)
def test_only_a_head_is_drawn_anew_and_that_is_told(kind, config, told, tmp_path, caplog):
    save(tmp_path, kind, config)
    read(tmp_path)
    (line,) = [record.getMessage() for record in caplog.records if "newly initialized" in record.getMessage()]
    assert told in line
    assert "layer" not in line


def test_the_head_of_another_task_is_not_read_and_that_is_told(tmp_path, caplog):
    read(save(tmp_path, transformers.BertForMaskedLM))
    assert "a head of another task is not read: cls.predictions.bias" in caplog.text


@pytest.mark.parametrize(
    ("rename", "prefix", "whose"),
    [
        (lambda name: f"_orig_mod.{name}", "_orig_mod.", "torch.compile"),
        (lambda name: f"module.{name}", "module.", "DataParallel"),
        (lambda name: f"module._orig_mod.bert.{name}", "module._orig_mod.", "DataParallel"),
        (lambda name: name.replace("layer.", "layer._orig_mod."), "_orig_mod.", "torch.compile"),
        (lambda name: f"student.{name}", "student.", "a wrapper"),
    ],
)
def test_names_with_a_wrappers_prefix_are_refused_with_the_prefix_and_the_remedy(rename, prefix, whose, tmp_path):
    save(tmp_path)
    rewrite(tmp_path, lambda weights: {rename(name): weight for name, weight in weights.items()})
    with pytest.raises(ValueError, match="not in the checkpoint") as refused:
        read(tmp_path)
    assert "bert.encoder.layer.*.output.dense.weight (2)" in str(refused.value)
    assert f"{prefix!r} in them, which {whose} puts there" in str(refused.value)
    assert f".replace({prefix!r}, '')" in str(refused.value)


def without(weights):
    del weights["encoder.layer.1.output.dense.weight"]
    return weights


def narrow(weights):
    return {**weights, "encoder.layer.0.output.dense.bias": torch.zeros(8)}


def deeper(weights):
    return {**weights, "encoder.layer.2.output.dense.bias": torch.zeros(16)}


def endless(weights):
    weights["embeddings.LayerNorm.weight"][3:5] = torch.tensor([float("nan"), float("inf")])
    return weights


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without, r"not in the checkpoint \(1\): bert\.encoder\.layer\.\*\.output\.dense\.weight"),
        (narrow, r"of another shape .*\(1\): bert\.encoder\.layer\.\*\.output\.dense\.bias: \(8,\), not \(16,\)"),
        (deeper, r"unknown to the model \(1\): encoder\.layer\.\*\.output\.dense\.bias"),
        (endless, r"not finite: bert\.embeddings\.LayerNorm\.weight has 2"),
    ],
)
def test_a_weight_below_the_head_that_is_not_as_it_was_saved_is_named(change, told, tmp_path):
    save(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=told):
        read(tmp_path)


def test_a_classifier_keeps_its_classes_where_only_the_pooler_is_drawn_anew(tmp_path):
    config = transformers.BertConfig(**SIZES, id2label={0: "not_entailment", 1: "entailment"})
    save(tmp_path, transformers.BertForSequenceClassification, config)
    rewrite(tmp_path, lambda weights: {name: weight for name, weight in weights.items() if "pooler" not in name})
    assert read(tmp_path).config.id2label == {0: "not_entailment", 1: "entailment"}


def test_what_a_module_without_parameters_once_saved_is_no_weight(tmp_path, caplog):
    save(tmp_path)
    rewrite(tmp_path, lambda weights: {**weights, "encoder.layer.0.attention.self.mask": torch.zeros(1, 8, 8)})
    read(tmp_path)
    assert "mask" not in caplog.text


def test_a_checkpoint_that_needs_code_of_its_own_is_refused_and_asks_nothing(tmp_path, monkeypatch):
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = ("AutoConfig", "AutoModelForSequenceClassification")
    config |= {"model_type": "strange", "auto_map": dict.fromkeys(names, "code.Strange")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('this ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    with pytest.raises(ValueError, match="needs code that comes with it, which is never run"):
        read(tmp_path)


def test_no_code_of_a_checkpoint_is_ever_trusted():
    calls = [
        (path.name, node)
        for path in Path(nxmiformer.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("from_pretrained", "from_config")
    ]
    automatic = [(name, node) for name, node in calls if ast.unparse(node.func).startswith("Auto")]
    assert len(automatic) >= 4
    for name, node in automatic:
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert said.get("trust_remote_code") == "False", f"{name}: {ast.unparse(node)}"
    assert "trust_remote_code=True" not in "".join(ast.unparse(node) for _, node in calls)
