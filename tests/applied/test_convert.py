import copy
import pickle

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from nxmiformer.applied.convert import convert, strip, verify
from nxmiformer.layers.found import compressed_layers, distinct_layers
from nxmiformer.layers.inputs import RANGES, Activations
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.projection import project, projected
from nxmiformer.layers.targets import find_targets
from nxmiformer.layers.weights import WeightQuantizer
from nxmiformer.plan.compression import CompressionPlan, LayerSpec
from nxmiformer.sets import NM, Grid, Then

JOINT = Then(NM(2, 4), Grid(4))
TINY = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TINY))


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2))


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY, num_key_value_heads=1))


MODELS = pytest.mark.parametrize("make", [bert, gpt2, llama])


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def example():
    return {"input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]])}


def plan_for(model, weight=JOINT, activations=None):
    return CompressionPlan.uniform(model, find_targets(model), weight, activations)


def latest(model):
    """Where the quantized layers keep the input that they saw last."""
    return {id(layer.inputs.latest) for layer in compressed_layers(model).values()}


def test_the_layers_of_one_model_share_their_latest_input_and_those_of_its_copy_another():
    model = seeded(bert)
    convert(model, plan_for(model, activations=Activations()))
    model(**example())
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert [len(latest(each)) for each in (model, copied, pickled)] == [1, 1, 1]
    assert len(latest(model) | latest(copied) | latest(pickled)) == 3


def see(model):
    """Make every forward pass go through the projected weights."""
    for layer in compressed_layers(model).values():
        layer.quantizer.seen = layer.quantizer.constraint
        layer.quantizer.refresh(layer.matrix)


def copies(model):
    return {name: w.detach().clone() for name, w in model.named_parameters()}


@MODELS
def test_the_same_parameters_stay_under_the_same_names(make):
    model = seeded(make)
    parameters, keys = dict(model.named_parameters()), list(model.state_dict())
    plan = plan_for(model)
    assert convert(model, plan, example()) is model
    assert list(compressed_layers(model)) == list(plan.layers)
    assert list(model.state_dict()) == keys
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameters[name] for name in after)


@MODELS
@pytest.mark.parametrize("training", [True, False])
def test_with_inactive_quantizers_outputs_and_gradients_are_bit_equal_to_the_plain_model(make, training):
    plain = seeded(make).train(training)
    model = copy.deepcopy(plain)
    convert(model, plan_for(model, activations=Activations()))
    for layer in compressed_layers(model).values():
        layer.inputs.active = False
        assert layer.training == training
    outputs, grads = [], []
    for each in (plain, model):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            logits = each(**example()).logits
            logits.square().sum().backward()
        outputs.append(logits)
        grads.append([p.grad for p in each.parameters()])
    assert torch.equal(*outputs)
    if make is not gpt2:  # Conv1D forms the transposed product, whose sums may be taken in another order
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(*grads, strict=True))
    torch.testing.assert_close(grads[0], grads[1])


@MODELS
def test_strip_gives_back_plain_layers_with_the_same_parameters(make):
    model = seeded(make).eval()
    types = {name: type(module) for name, module in model.named_modules()}
    parameters, logits = dict(model.named_parameters()), model(**example()).logits
    assert strip(convert(model, plan_for(model, activations=Activations(8, "ema")))) is model
    assert {name: type(module) for name, module in model.named_modules()} == types
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert torch.equal(model(**example()).logits, logits)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_with_the_seen_weight_and_the_quantized_input(bias):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear, x = nn.Linear(8, 4, bias=bias), torch.randn(3, 8)
    layer = CompressedLinear.adopt(linear, WeightQuantizer(JOINT), Activations(8))
    layer.quantizer.seen = JOINT
    layer.quantizer.refresh(layer.matrix)
    scale = x.abs().amax(1, keepdim=True) / 127
    expected = nn.functional.linear((x / scale).round() * scale, JOINT.project(linear.weight.detach()), linear.bias)
    torch.testing.assert_close(layer(x), expected)


def test_a_conv1d_is_compressed_in_its_transpose():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv, x = Conv1D(12, 8), torch.randn(3, 8)
    layer = CompressedLinear.adopt(conv, WeightQuantizer(JOINT))
    assert (layer.in_features, layer.out_features) == (8, 12)
    layer.quantizer.seen = JOINT
    layer.quantizer.refresh(layer.matrix)
    torch.testing.assert_close(layer(x), x @ JOINT.project(conv.weight.detach().t()).t() + conv.bias)


@pytest.mark.parametrize("ranges", RANGES)
def test_autocast_to_bfloat16_keeps_dtypes_and_gradients_finite(ranges):
    model = seeded(bert)
    convert(model, plan_for(model, activations=Activations(8, ranges)))
    see(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**example(), labels=torch.tensor([0, 1]))
    logits.loss.backward()
    assert logits.logits.dtype == torch.bfloat16
    assert logits.loss.isfinite()
    compressed = [layer.weight for layer in compressed_layers(model).values()]
    assert {w.grad.dtype for w in compressed} == {torch.float32}
    assert all(w.grad.isfinite().all() and w.grad.any() for w in compressed)


class Attention(nn.Module):
    """Its attention reads the weight of `out_proj` directly."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"mix": nn.MultiheadAttention(8, 2), "out": nn.Linear(8, 8)})])

    def forward(self, x):
        for block in self.blocks:
            x = block["out"](block["mix"](x, x, x)[0])
        return x


def test_a_layer_that_the_forward_pass_does_not_call_is_named():
    model = Attention()
    plan = plan_for(model)
    assert list(plan.layers) == ["blocks.0.mix.out_proj", "blocks.0.out"]
    with pytest.raises(ValueError, match=r"does not call them .*exclude them: blocks\.0\.mix\.out_proj$"):
        convert(model, plan, {"x": torch.zeros(3, 1, 8)})
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_an_excluded_layer_is_not_missed():
    model = Attention()
    plan = CompressionPlan.uniform(model, find_targets(model, exclude=["*.out_proj"]), JOINT)
    convert(model, plan, {"x": torch.zeros(3, 1, 8)})
    assert list(compressed_layers(model)) == ["blocks.0.out"]


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.layers[2].weight = self.layers[0].weight

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def test_aliases_are_converted_and_stripped_and_stay_tied():
    model = Shared()
    plan = plan_for(model)
    assert list(plan.layers) == ["layers.0", "layers.1"]
    convert(model, plan, {"x": torch.zeros(1, 8)})
    assert list(compressed_layers(model)) == ["layers.0", "layers.1", "layers.2"]
    assert list(distinct_layers(model)) == ["layers.0", "layers.1"]
    assert model.layers[0].weight is model.layers[2].weight
    assert model.layers[0].quantizer is model.layers[2].quantizer
    project(model)
    verify(model, plan)
    strip(model)
    assert {type(layer) for layer in model.layers} == {nn.Linear}
    assert model.layers[0].weight is model.layers[2].weight


def test_a_plan_of_another_model_changes_nothing():
    plan = plan_for(seeded(gpt2))
    model = seeded(bert)
    with pytest.raises(ValueError, match="the model has no such layer"):
        convert(model, plan)
    assert not compressed_layers(model)


@MODELS
def test_a_model_is_not_converted_twice(make):
    model = seeded(make)
    plan = plan_for(model)
    convert(model, plan)
    before = {name: layer.quantizer for name, layer in compressed_layers(model).items()}
    with pytest.raises(ValueError, match="only plain linear layers") as error:
        convert(model, plan)
    assert str(error.value).splitlines()[1:] == [f"  {name}: it is a CompressedLinear" for name in plan.layers]
    assert {name: layer.quantizer for name, layer in compressed_layers(model).items()} == before
    convert(strip(model), plan)
    assert not any(layer.quantizer in before.values() for layer in compressed_layers(model).values())


def test_a_plan_over_something_that_is_not_linear_changes_nothing():
    model = nn.ModuleDict({"linear": nn.Linear(8, 8), "bilinear": nn.Bilinear(8, 1, 8)})
    model["bilinear"].weight = nn.Parameter(torch.zeros(8, 8))
    plan = CompressionPlan({name: LayerSpec(JOINT, (8, 8)) for name in model})
    with pytest.raises(ValueError, match="bilinear: it is a Bilinear"):
        convert(model, plan)
    assert not compressed_layers(model)


@MODELS
def test_project_makes_every_weight_a_member_that_the_forward_pass_sees_as_it_is(make):
    model = seeded(make).eval()
    plan = plan_for(model)
    convert(model, plan)
    see(model)
    before, logits = copies(model), model(**example()).logits
    project(model)
    verify(model, plan)
    for name, spec in plan.layers.items():
        layer = model.get_submodule(name)
        assert layer.quantizer.seen is None
        old = before[f"{name}.weight"]
        assert torch.equal(layer.matrix, spec.weight.project(old.t() if spec.transposed else old))
    torch.testing.assert_close(model(**example()).logits, logits)
    compressed = {f"{name}.weight" for name in plan.layers}
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters() if name not in compressed)


@MODELS
def test_projected_shows_members_and_restores_weights_bit_for_bit(make):
    model = seeded(make).eval()
    plan = plan_for(model)
    convert(model, plan)
    see(model)
    before, logits = copies(model), model(**example()).logits
    with projected(model):
        verify(model, plan)
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())
    assert torch.equal(model(**example()).logits, logits)
    assert all(layer.quantizer.seen == JOINT for layer in compressed_layers(model).values())


def test_projected_restores_after_an_exception_inside():
    model = seeded(bert)
    plan = plan_for(model)
    convert(model, plan)
    see(model)
    before = copies(model)

    def fail_inside():
        with projected(model):
            verify(model, plan)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())
    assert all(layer.quantizer.seen == JOINT for layer in compressed_layers(model).values())


def test_projected_restores_and_names_the_layer_that_cannot_be_projected():
    model = seeded(bert)
    convert(model, plan_for(model))
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    before = copies(model)
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.1\.output\.dense: weight holds 1 NaN"):
        projected(model).__enter__()
    assert all(torch.equal(w.nan_to_num(), before[name].nan_to_num()) for name, w in model.named_parameters())


def test_verify_names_every_offender_and_its_set_converted_or_not():
    model = seeded(bert)
    plan = plan_for(model)
    for name, spec in plan.layers.items():
        weight = model.get_submodule(name).weight
        weight.data.copy_(spec.weight.project(weight.detach()))
    verify(model, plan)
    convert(model, plan)
    verify(model, plan)
    offenders = [name for name in plan.layers if name.endswith("query")]
    for name in offenders:
        model.get_submodule(name).weight.data.add_(0.01)
    with pytest.raises(ValueError, match="not points of their sets") as error:
        verify(model, plan)
    assert str(error.value).splitlines()[1:] == [f"  {name}: not in 2:4+int4" for name in offenders]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_of_16_bits_that_would_be_trained_are_warned_of_with_the_remedy(dtype):
    model = seeded(bert).to(dtype)
    with pytest.warns(UserWarning, match=rf"12 weights .* is {dtype}.* dtype=torch\.float32"):
        convert(model, plan_for(model))
    trained = convert(seeded(bert), plan_for(seeded(bert)))
    frozen = seeded(bert).to(dtype).requires_grad_(False)
    assert len(compressed_layers(convert(frozen, plan_for(frozen)))) == len(compressed_layers(trained)) == 12
