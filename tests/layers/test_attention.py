"""Attention with quantized products."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from nxmiformer.layers.attention import FEATURES, SCORES, attend
from nxmiformer.layers.ranges import RangeQuantizer, Ranges, rounded

BATCH, HEADS, TOKENS, WIDTH = 2, 4, 5, 3


def inputs(kv_heads=HEADS):
    draw = torch.Generator().manual_seed(0)
    heads = {"query": HEADS, "key": kv_heads, "value": kv_heads}
    found = {name: torch.randn(BATCH, n, TOKENS, WIDTH, generator=draw) for name, n in heads.items()}
    seen = (
        torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril() & (torch.arange(TOKENS) < torch.tensor([[5], [3]]))[:, None]
    )
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]
    return found, mask


def module(bits=8):
    made = nn.Module()
    counts = dict.fromkeys(FEATURES, HEADS * WIDTH) | dict.fromkeys(SCORES, 1)
    parts = {part: RangeQuantizer(Ranges(bits), count, part == "denominator") for part, count in counts.items()}
    made.ranges = nn.ModuleDict(parts)
    return made


@pytest.mark.parametrize("kv_heads", [HEADS, 2, 1])
def test_without_quantizers_it_is_the_attention_of_torch(kv_heads):
    found, mask = inputs(kv_heads)
    output, weights = attend(nn.Module().eval(), *found.values(), mask, scaling=0.3, dropout=0.5)
    expected = F.scaled_dot_product_attention(*found.values(), attn_mask=mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(output, expected.transpose(1, 2))
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, TOKENS))
    assert output.is_contiguous()


def test_a_soft_cap_is_that_of_gemma_2():
    found, mask = inputs()
    layer = nn.Module().eval()
    layer.num_key_value_groups = 1
    theirs = modeling_gemma2.eager_attention_forward(layer, *found.values(), mask, scaling=3.0, softcap=0.7)
    for ours, each in zip(attend(layer, *found.values(), mask, scaling=3.0, softcap=0.7), theirs, strict=True):
        torch.testing.assert_close(ours, each)


@pytest.mark.parametrize("large", [-2.0, 9.0])
def test_an_attention_sink_is_that_of_gpt_oss(large):
    found, mask = inputs()
    layer = nn.Module().eval()
    layer.num_key_value_groups, layer.sinks = 1, nn.Parameter(torch.linspace(-1.0, 1.0, HEADS) + large)
    theirs = modeling_gpt_oss.eager_attention_forward(layer, *found.values(), mask, scaling=0.3)
    ours = attend(layer, *found.values(), mask, scaling=0.3, s_aux=layer.sinks)
    for mine, each in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, each)
    gradient, expected = (torch.autograd.grad(each[0].sum(), layer.sinks)[0] for each in (ours, theirs))
    torch.testing.assert_close(gradient, expected)


def test_each_step_of_it_is_rounded_between_the_ends_of_what_it_gives():
    """Step by step in float64, with the ends that the quantizers have averaged from one batch."""
    found, mask = inputs()
    layer = module(4)
    output, weights = attend(layer, *(x.double() for x in found.values()), mask)

    def seen(part, x, shape=(1,)):
        own = layer.ranges[part]
        return rounded(x.double(), own.low.double().view(shape), own.high.double().view(shape), 4, own.zero)

    query, key, value = (seen(name, x, (HEADS, 1, WIDTH)) for name, x in found.items())
    scores = query @ key.transpose(-1, -2) * WIDTH**-0.5 + mask
    top = seen("numerator", (scores - scores.amax(-1, keepdim=True)).exp())
    share = seen("weights", top / seen("denominator", top.sum(-1, keepdim=True)))
    torch.testing.assert_close(weights, share)
    torch.testing.assert_close(output, seen("output", (share @ value).transpose(1, 2), (HEADS, WIDTH)))


def test_a_key_that_no_query_sees_moves_no_end():
    found, mask = inputs()
    spoilt = {name: x.clone() for name, x in found.items()}
    for name in ("key", "value"):
        spoilt[name][1, :, 3:] = 1e3
    ends = []
    for each in (found, spoilt):
        layer = module()
        attend(layer, *each.values(), mask)
        ends.append(
            {name: each.clone() for name, each in layer.state_dict().items() if "key" in name or "value" in name}
        )
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_weights_are_quantized_before_the_dropout():
    found, mask = inputs()
    plain, dropping = module(), module()
    attend(plain, *found.values(), mask)
    _, weights = attend(dropping, *found.values(), mask, dropout=0.5)
    assert torch.equal(plain.ranges["weights"].high, dropping.ranges["weights"].high)
    assert weights.max() > plain.ranges["weights"].high  # by 1 / (1 - 0.5)
