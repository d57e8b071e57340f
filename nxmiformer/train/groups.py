"""The learning rate and weight decay of each parameter."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from nxmiformer.methods.base import Method

LEAST = 0.01  # share of the learning rate; INT8 is about as near its set, and a quantized input wants a step without it


def shares(method: Method, errors: Mapping[str, float]) -> dict[str, float]:
    """The share of the learning rate at which each parameter trains, by name.

    The share of a compressed weight is its relative distance from its set. That of all other parameters is the root
    mean square of these distances. None is below `LEAST`.

    Args:
        method: attached to the model.
        errors: ||W - P(W)||^2 / ||W||^2 of each compressed layer, by name.
    """
    sizes = {name: layer.weight.numel() for name, layer in method.layers.items()}
    overall = sum(sizes[name] * error for name, error in errors.items()) / max(1, sum(sizes.values()))
    compressed = {f"{name}.weight": error for name, error in errors.items()}
    return {name: max(LEAST, compressed.get(name, overall) ** 0.5) for name, _ in method.parameters()}


def groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, shares: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: weight matrices with weight decay; biases, norms and scales without;
    Parameters with another `share` of the learning rate have their own groups. The default share is 1."""
    found: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in named:
        matrix = parameter.ndim > 1 and not name.endswith(".scales")
        found[weight_decay if matrix else 0.0, shares.get(name, 1.0)].append(parameter)
    return [{"params": each, "weight_decay": decay, "share": share} for (decay, share), each in found.items()]


def scaled(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer, the learning rate of each of its groups times the group's share."""
    for group in optimizer.param_groups:
        group["lr"] *= group["share"]
    return optimizer
