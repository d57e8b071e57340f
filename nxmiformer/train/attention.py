"""Distillation of attention scores before the softmax (Tahaei et al. 2022, arXiv 2109.06243, eq. 14)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nxmiformer.console.quiet import quiet
from nxmiformer.layers.attention import attend
from nxmiformer.layers.mode import checkpointing, evaluating
from nxmiformer.layers.ranges import widened
from nxmiformer.layers.wrapped import unwrapped
from nxmiformer.ranks import ranks

PREFIX = "nxmiformer_scores_of_"  # of the attention that keeps scores, before the name of the one that computes
_kept: ContextVar[list[Tensor] | None] = ContextVar("kept", default=None)


class ScoresError(ValueError):
    """Attention scores that cannot be compared with a teacher's."""


@contextmanager
def keeping_scores(*models: nn.Module) -> Iterator[list[Tensor]]:
    """While models compute, a list that gets their scores, (batch, heads, queries, keys) of each attention, without any
    mask added.

    The attention is what it was, with a step before it. In the place of an eager one, which is code of the model's own
    file, is `attend`.
    """
    kept: list[Tensor] = []
    found = {id(each): each for each in map(unwrapped, models) if isinstance(each, PreTrainedModel)}
    before = {key: each.config._attn_implementation for key, each in found.items()}
    own = [(config, config._attn_implementation) for each in found.values() for config in _configs(each)]
    token = _kept.set(kept)
    try:
        with quiet():  # which would tell of a model that has no place for an attention
            for key, each in found.items():
                each.set_attn_implementation(_registered(before[key] or "eager"))
        yield kept
    finally:
        _kept.reset(token)
        for key, each in found.items():
            each.set_attn_implementation(before[key])
        for config, name in own:  # of which the line above has made one and the same
            config._attn_implementation = name


def scores_error(student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """The mean squared error of the scores of each attention, in the mean over attentions.

    It is over the heads, and over the pairs of a query and a key that are no padding by the batch's `attention_mask`
    (batch, tokens). Pairs that a causal attention hides count as equal. Of several processes, this one's part of it.

    Raises:
        ScoresError: there are no scores, or not those that the teacher has.
    """
    shapes = [[tuple(each.shape) for each in scores] for scores in (student, teacher)]
    if not student or shapes[0] != shapes[1]:
        raise ScoresError(f"the student's attention scores are {shapes[0]}, and the teacher's {shapes[1]}")
    real = batch.get("attention_mask")
    pairs = [_compared(s, t, real) for s, t in zip(student, teacher, strict=True)]
    errors = [F.mse_loss(*pair) for pair in pairs]
    return torch.stack(ranks().parts(errors, lambda: [pair[0].numel() for pair in pairs])).mean()


@torch.no_grad()
def check_scores(model: PreTrainedModel, batch: Mapping[str, Any]) -> None:
    """Raise a ScoresError for a model whose attention scores cannot be had: whose attention is code of its own, is of
    another text than its queries, or computes something else where it is replaced."""
    kind, layers = type(model).__name__, model.config.get_text_config().num_hidden_layers
    if model.config.is_encoder_decoder:
        raise ScoresError(f"a {kind} has an encoder and a decoder, whose scores are of several texts")
    if "input_ids" in batch and batch["input_ids"].ndim != 2:
        raise ScoresError(f"a {kind} reads several texts an example")
    if checkpointing(model):
        raise ScoresError("gradient checkpointing computes attentions again, when nobody keeps their scores")
    with evaluating(model):
        own = _told(model(**batch))
        with keeping_scores(model) as scores:
            ours = _told(model(**batch))
    if len(scores) < layers:
        raise ScoresError(
            f"{layers - len(scores)} of the {layers} layers of a {kind} compute their attention by code of their own"
        )
    sizes = {tuple(each.shape[-2:]) for each in scores}
    tokens = batch["input_ids"].shape[-1] if "input_ids" in batch else None
    if tokens is not None and sizes != {(tokens, tokens)}:
        raise ScoresError(
            f"the scores of a {kind} are of {sorted(sizes)} queries and keys, and its tokens are {tokens}"
        )
    apart, most = (own - ours).abs().max().item(), own.abs().max().item()
    if not apart <= most * (1e-4 if model.dtype.itemsize > 2 else 0.1):
        raise ScoresError(f"a {kind} computes something else where its attention is replaced, by up to {apart:g}")


def _told(outputs: Mapping[str, Tensor]) -> Tensor:
    """What a model says."""
    found = [outputs[name] for name in ("logits", "start_logits", "last_hidden_state") if name in outputs]
    if not found:
        raise ScoresError(f"of its outputs {sorted(outputs)} none is compared")
    return found[0]


def _configs(model: nn.Module) -> Iterator[PretrainedConfig]:
    """Those of a model and of the models in it, with the ones that they have: of each only after what it is in."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            yield module.config
            found = (getattr(module.config, name) for name in module.config.sub_configs)
            yield from (each for each in found if each is not None)  # as ESM's, of a part that only some have


def _registered(name: str) -> str:
    """The name, for configurations, of an attention that keeps its scores, and is otherwise the named one."""
    scored = f"{PREFIX}{name}"
    if scored not in ALL_ATTENTION_FUNCTIONS:
        function, mask = (attend, eager_mask) if name == "eager" else _found(name)
        AttentionInterface.register(scored, partial(_scored, function))
        AttentionMaskInterface.register(scored, mask)
    return scored


def _found(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return ALL_ATTENTION_FUNCTIONS[name], ALL_MASK_ATTENTION_FUNCTIONS[name]


def _scored(
    function: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **rest: Any,
) -> Any:
    kept = _kept.get()
    if kept is not None:
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = torch.matmul(query, keys.transpose(-1, -2)) * scale
        if (bias := rest.get("position_bias")) is not None:  # of T5
            scores = scores + bias
        # Of what a query does not see nothing is learned.
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == scores.ndim:
            sees = attention_mask if attention_mask.dtype == torch.bool else attention_mask >= 0
            scores = scores.masked_fill(~sees, 0)
        if getattr(module, "is_causal", False) and query.shape[2] == key.shape[2]:
            scores = scores.tril()
        kept.append(scores)
    return function(module, query, key, value, attention_mask, scaling=scaling, **rest)


def _compared(student: Tensor, teacher: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """What of the scores of one attention counts."""
    if real is not None and (real.shape[0], real.shape[1], real.shape[1]) == (student.shape[0], *student.shape[2:]):
        both = real.bool()[:, :, None] & real.bool()[:, None, :]
        student, teacher = (scores.transpose(0, 1)[:, both] for scores in (student, teacher))
    return widened(student), widened(teacher)
