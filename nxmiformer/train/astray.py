"""Training that diverged: it is found before a checkpoint replaces the last good one."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from nxmiformer.train.checkpoint import Checkpoints


def check_finite(
    phase: str,
    step: int,
    row: Mapping[str, float],
    model: nn.Module,
    state: Callable[[], Mapping[str, Any]],
    due: bool,
    checkpoints: Checkpoints,
) -> None:
    """Raise a ValueError if a metric is not finite or, if `due`, a weight, or a tensor of the state.

    A gradient that is not finite spoils the weights and the optimizer's state. The loss shows it only at the next step.

    Args:
        step: optimizer steps taken in the phase.
        row: the metrics of the step, with "loss" among them.
        state: gives what a checkpoint would hold besides the model.
        due: whether the model is to be scored or kept after this step.
        checkpoints: those to continue from.
    """
    if not math.isfinite(row["loss"]):
        what = f"the loss of phase {phase!r} is {row['loss']}"
    else:
        odd = not_finite(model, state()) if due or not all(map(math.isfinite, row.values())) else []
        if not odd:
            return
        what = f"in phase {phase!r}, {odd[0]}{f' and {len(odd) - 1} more are' if odd[1:] else ' is'} not finite"
    latest = checkpoints.path("latest")
    kept = f"; or continue from {latest}, which is kept, with resume=true and the values as they are" if latest else ""
    raise ValueError(
        f"{what} at step {step}: lower its learning rate, recipe.phases.{phase}.optimizer.lr, and start again{kept}"
    )


def not_finite(model: nn.Module, state: Any) -> list[str]:
    """What holds a NaN or an infinite value: parameters of the model by name, and tensors of a state by their place."""
    tensors = dict(model.named_parameters()) | dict(_tensors(state))
    finite = {name: each.detach().isfinite().all() for name, each in tensors.items() if each.is_floating_point()}
    devices = {each.device for each in finite.values()}
    if all(torch.stack([each for each in finite.values() if each.device == device]).all() for device in devices):
        return []  # and each device was waited for once
    return [name for name, each in finite.items() if not each]


def _tensors(state: Any, where: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in a tree of dictionaries and lists."""
    if isinstance(state, torch.Tensor):
        yield where, state
    elif isinstance(state, Mapping | list | tuple):
        for key, value in state.items() if isinstance(state, Mapping) else enumerate(state):
            yield from _tensors(value, f"{where}.{key}".lstrip("."))
