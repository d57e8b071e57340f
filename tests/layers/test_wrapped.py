"""Models in wrappers, and with adapters in them."""

import types

import pytest
import torch
import transformers
from torch import nn

from nxmiformer import ADMM, save_packed
from nxmiformer.applied.convert import convert, strip, verify
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import find_embeddings, find_head, find_targets
from nxmiformer.layers.wrapped import unwrapped
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Grid, Then

JOINT = Then(NM(2, 4), Grid(4))
TINY = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TINY))


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPERS = pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda model: compiled(nn.DataParallel(model))])


@WRAPPERS
def test_a_wrapper_counts_for_the_model_inside_from_the_targets_to_the_packed_file(wrap, tmp_path):
    model = bert()
    wrapper = wrap(model)
    assert unwrapped(wrapper) is model
    for find in (find_targets, find_head, find_embeddings):
        assert find(wrapper) == find(model)
    plan = CompressionPlan.uniform(wrapper, find_targets(wrapper), JOINT)
    assert plan == CompressionPlan.uniform(model, find_targets(model), JOINT)
    assert convert(wrapper, plan) is wrapper
    assert list(compressed_layers(wrapper)) == list(compressed_layers(model)) == list(plan.layers)
    base = torch.optim.SGD(wrapper.parameters(), lr=0.1)
    optimizer = ADMM(base, wrapper.named_parameters(), plan.sets(), rho=0.1)
    assert all(optimizer.weights[name] is model.get_parameter(name) for name in plan.sets())
    project(wrapper)
    verify(wrapper, plan)
    assert save_packed(wrapper, plan, tmp_path / "one") == save_packed(model, plan, tmp_path / "two")
    strip(wrapper)
    assert not compressed_layers(model)


def test_what_is_called_as_a_wrapper_calls_its_model_is_left_alone():
    model = nn.ModuleDict({"module": nn.ModuleList([nn.Linear(8, 8)])})
    plan = CompressionPlan.uniform(model, find_targets(model), JOINT)
    assert list(plan.layers) == ["module.0"]
    optimizer = ADMM(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), plan.sets(), rho=0.1)
    assert optimizer.weights["module.0.weight"] is model["module"][0].weight


class Lora(nn.Module):
    """A layer with an adapter, as peft has it."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, base.out_features, bias=False)})


def with_adapters(model):
    attention = model.bert.encoder.layer[0].attention.self
    attention.query, attention.value = Lora(attention.query), Lora(attention.value)
    return model


def test_adapters_and_what_they_are_around_are_no_targets_and_say_why():
    targets = find_targets(with_adapters(bert()))
    assert not any("query" in target.name or "value" in target.name for target in targets.layers)
    inside = [name for name in targets.skipped if "query" in name]
    assert [name.rpartition("query.")[2] for name in inside] == ["base_layer", "lora_A.default", "lora_B.default"]
    assert all("it is in an adapter" in targets.skipped[name] for name in inside)


def test_a_model_with_adapters_is_not_converted_nor_packed(tmp_path):
    model = bert()
    plan = CompressionPlan.uniform(model, find_targets(model), JOINT)
    convert(model, plan)
    project(model)
    with_adapters(model)
    message = r"adapters around 2 layers, such as bert\.encoder\.layer\.0\.attention\.self\.query: compress it without"
    with pytest.raises(ValueError, match=message):
        save_packed(model, plan, tmp_path / "packed")
    model = with_adapters(bert())
    with pytest.raises(ValueError, match=message):
        convert(model, CompressionPlan.uniform(model, find_targets(model), JOINT))


def test_a_model_of_peft_counts_for_its_base_model(monkeypatch):
    class PeftModel(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_model = nn.ModuleDict({"model": base})

        def get_base_model(self):
            return self.base_model["model"]

    monkeypatch.setitem(__import__("sys").modules, "peft", types.SimpleNamespace(PeftModel=PeftModel))
    model = bert()
    assert unwrapped(PeftModel(model)) is model
    assert find_targets(compiled(PeftModel(model))) == find_targets(model)
