"""Attention whose products have quantized inputs, in the place that `transformers` has for an attention of one's own.

A model asks two tables for what its configuration names: one for the attention, one for the mask. Without the second it
would get no mask at all, and see padding and the future without a word of it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from nxmiformer.layers.ranges import widened

NAME = "nxmiformer"  # of the attention, in the configuration of a model
FEATURES = ("query", "key", "value", "output")  # parts of which each feature may have ends of its own
SCORES = ("numerator", "denominator", "weights")  # of the softmax: one pair of ends each


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention with the quantizers that `module.ranges` has; without any it is the ordinary one.

    Args:
        module: of the model, which calls this.
        query, key, value: (batch, heads, tokens, features); keys and values may have fewer heads, each for several.
        attention_mask: (batch, 1, queries, keys), added to the scores: 0 where a query sees a key.
        scaling: of the scores; None: 1 / sqrt(features).
        dropout: of the weights, once they are quantized.
        position_bias: added to the scores, as T5 has it.
        softcap: c of c tanh(scores / c), as Gemma 2 has it (arXiv 2408.00118, section 2).
        s_aux: (heads,), the score of a key of each head that has no value, an attention sink: weights then sum to less
            than 1.

    Returns:
        The output (batch, queries, heads, features), contiguous, and the weights (batch, heads, queries, keys).
    """
    parts = getattr(module, "ranges", NONE)
    sees = None if attention_mask is None else attention_mask[:, 0] == 0
    query = _by_feature(parts["query"], query, None)
    key, value = (_by_feature(parts[name], each, sees) for name, each in (("key", key), ("value", value)))
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = torch.matmul(query, key.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    for added in (position_bias, attention_mask):
        scores = scores if added is None else scores + added
    scores = widened(scores.transpose(1, 2))  # (batch, queries, heads, keys): padding is told of queries
    sinks = None if s_aux is None else widened(s_aux)[:, None]
    top = scores.detach().amax(-1, keepdim=True)
    top = top if sinks is None else torch.maximum(top, sinks.detach())
    numerator = parts["numerator"]((scores - top).exp())
    total = numerator.sum(-1, keepdim=True)
    denominator = parts["denominator"](total if sinks is None else total + (sinks - top).exp())
    weights = parts["weights"](numerator / denominator).transpose(1, 2).to(value.dtype)
    weights = F.dropout(weights, dropout, training=module.training)
    output = torch.matmul(weights, value).transpose(1, 2)
    return parts["output"](output.flatten(-2)).unflatten(-1, output.shape[-2:]).contiguous(), weights


def _by_feature(part: Any, x: Tensor, sees: Tensor | None) -> Tensor:
    """`part` of x (batch, heads, tokens, features), the features of all heads in a row."""
    rows = x.transpose(1, 2)
    y: Tensor = part(rows.flatten(-2), sees)
    return y.unflatten(-1, rows.shape[-2:]).transpose(1, 2)


class _Nothing(Mapping[str, Any]):
    """Parts of an attention that quantize nothing."""

    def __getitem__(self, part: str) -> Any:
        return lambda x, sees=None: x

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


NONE = _Nothing()
AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, eager_mask)
