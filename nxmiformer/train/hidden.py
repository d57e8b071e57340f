"""Distillation of hidden states: which a model has, and how far they are from a teacher's."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PretrainedConfig

from nxmiformer.layers.ranges import widened
from nxmiformer.ranks import ranks
from nxmiformer.tasks.units import IGNORED

DECODER = "decoder_hidden_states"
STATES = ("hidden_states", "encoder_hidden_states", DECODER)  # as outputs call those of all layers


class HiddenStatesError(ValueError):
    """Hidden states that cannot be compared with a teacher's."""


def hidden_error(student: Any, teacher: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean over two models' hidden states, of encoders and of decoders, of their mean squared errors; of several
    processes, this one's part of it.

    Args:
        student: the outputs of a model that was asked for its hidden states.
        teacher: those of the other.
        batch: what they were given. What its `attention_mask` (batch, tokens) leaves out does not count, and of a
            decoder that is given a text of its own, what `decoder_attention_mask` leaves out, or has no target. A state
            of another number of tokens, as models have that pool, counts whole; so do all where there is no mask.

    Raises:
        HiddenStatesError: the student has no hidden states, or not those that the teacher has.
    """
    (names, ours), (_, theirs) = _states(student), _states(teacher)
    if not ours:
        raise HiddenStatesError("the model gives no hidden states that could be distilled")
    shapes = [[tuple(state.shape) for state in states] for states in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise HiddenStatesError(f"the student's hidden states are {shapes[0]}, and the teacher's {shapes[1]}")
    attention = batch.get("attention_mask")
    masks = {DECODER: _written(batch) if "decoder_input_ids" in batch else attention}
    pairs = [_compared(s, t, masks.get(name, attention)) for name, s, t in zip(names, ours, theirs, strict=True)]
    errors = [F.mse_loss(*pair) for pair in pairs]
    return torch.stack(ranks().parts(errors, lambda: [len(pair[0]) for pair in pairs])).mean()


def _states(outputs: Any) -> tuple[list[str], list[Tensor]]:
    """The hidden states, and of each the name under which it is."""
    found = [(name, state) for name in STATES for state in getattr(outputs, name, None) or ()]
    return [name for name, _ in found], [state for _, state in found]


def _written(batch: Mapping[str, Tensor]) -> Tensor | None:
    """What counts of the text that a decoder is given, (batch, tokens)."""
    mask, labels = batch.get("decoder_attention_mask"), batch.get("labels")
    return mask if mask is not None or labels is None else labels != IGNORED


def _compared(student: Tensor, teacher: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor]:
    """What of two states counts."""
    if attention is not None and student.ndim == 3 and student.shape[:2] == attention.shape:
        real = attention.bool()
        student, teacher = student[real], teacher[real]
    return widened(student), widened(teacher)


def check_every_layer_runs(config: PretrainedConfig, remedy: str) -> None:
    """Raise a HiddenStatesError for a model that skips layers at random while it trains (LayerDrop, Fan et al. 2020,
    arXiv 1909.11556), as the number of its hidden states is then random."""
    skipping = {name: share for name, share in _values(config.to_dict()) if "layerdrop" in name and share}
    if skipping:
        told = ", ".join(f"{name}={share}" for name, share in skipping.items())
        raise HiddenStatesError(f"the model skips layers at random ({told}) unless {remedy}")


def _values(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys and values of a configuration, and of those in it."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _values(value)
        else:
            yield str(name), value
