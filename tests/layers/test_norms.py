"""Norms with quantized products."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from nxmiformer.layers.norms import FEATURES, PARTS, QuantizedNorm, is_norm
from nxmiformer.layers.ranges import RangeQuantizer, Ranges, rounded

WIDTH = 6
NORMS = {
    "layer": lambda: nn.LayerNorm(WIDTH),
    "unscaled": lambda: nn.LayerNorm(WIDTH, elementwise_affine=False),
    "rms": lambda: nn.RMSNorm(WIDTH),
    "llama": lambda: LlamaRMSNorm(WIDTH),
}


def norm(kind, bits=8):
    torch.manual_seed(0)
    made = NORMS[kind]()
    for parameter in made.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    parts = {
        part: RangeQuantizer(Ranges(bits), WIDTH if part in FEATURES else 1, part == "denominator") for part in PARTS
    }
    made.ranges = nn.ModuleDict(parts)
    return made


def inputs():
    return torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_whose_quantizers_are_off_is_the_one_that_it_was_and_released_too(kind):
    plain = norm(kind)
    expected, was = plain(inputs()), type(plain)
    adopted = QuantizedNorm.adopt(plain)
    for quantizer in adopted.ranges.values():
        quantizer.active = False
    assert torch.equal(adopted(inputs()), expected)
    assert isinstance(adopted, was)
    assert type(adopted.release()) is was
    assert torch.equal(plain(inputs()), expected)


@pytest.mark.parametrize("kind", NORMS)
def test_each_step_is_rounded_between_the_ends_of_what_it_gives(kind):
    layer, wide = QuantizedNorm.adopt(norm(kind, 4)).double(), inputs().double()
    found = layer(wide)

    def seen(part, value):
        own = layer.ranges[part]
        return rounded(value, own.low.double(), own.high.double(), 4, own.zero)

    above = wide - wide.mean(-1, keepdim=True) if isinstance(layer, nn.LayerNorm) else wide
    eps = getattr(layer, "variance_epsilon", None) or getattr(layer, "eps", None) or torch.finfo(torch.float64).eps
    y = seen(
        "quotient", seen("numerator", above) / seen("denominator", (above.square().mean(-1, keepdim=True) + eps).sqrt())
    )
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    if weight is not None:
        y = y * rounded(weight.double(), weight.double().min(), weight.double().max(), 4, True)
    torch.testing.assert_close(found, seen("output", y if bias is None else y + bias))


@pytest.mark.parametrize("kind", NORMS)
def test_no_input_is_divided_by_zero(kind):
    """Not even one without any variance, after inputs of a great one."""
    layer = QuantizedNorm.adopt(norm(kind, 2))
    layer(inputs() * 1e4)
    for x in (torch.zeros(1, 2, WIDTH), torch.full((1, 2, WIDTH), 1e-20)):
        assert layer.eval()(x).isfinite().all()


def test_the_gradient_is_that_of_the_norm_where_the_levels_are_fine():
    layer, plain = QuantizedNorm.adopt(norm("layer")), norm("layer")
    grads = []
    for each in (layer, plain):
        x = inputs().requires_grad_()
        each(x).square().sum().backward()
        grads.append((x.grad, *(p.grad for p in each.parameters())))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", NORMS)
def test_a_copy_and_a_pickled_one_are_the_same(kind):
    layer = QuantizedNorm.adopt(norm(kind))
    expected = layer(inputs())
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(again) is type(layer)
        assert torch.equal(again.eval()(inputs()), expected)


def test_a_norm_of_another_formula_is_told_apart_by_what_it_computes():
    other, same = GemmaRMSNorm(WIDTH), LlamaRMSNorm(WIDTH)
    nn.init.uniform_(other.weight, 0.5, 1.5)
    x = inputs()
    assert is_norm(same, x, same(x))
    assert not is_norm(other, x, other(x))
    assert not is_norm(nn.Linear(WIDTH, WIDTH), x, x)
