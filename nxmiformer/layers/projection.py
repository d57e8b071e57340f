"""Move compressed weights to the nearest points of their sets."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nxmiformer.layers.found import distinct_layers
from nxmiformer.layers.weights import WeightQuantizer


@contextmanager
def projected(model: nn.Module) -> Iterator[None]:
    """The model as if training ended here: every compressed weight is projected, and restored afterwards."""
    layers = list(distinct_layers(model).values())
    kept = [([each.detach().clone() for each in layer.stored], layer.quantizer.seen) for layer in layers]
    try:
        project(model)
        yield
    finally:
        with torch.no_grad():
            for layer, (values, seen) in zip(layers, kept, strict=True):
                for tensor, value in zip(layer.stored, values, strict=True):
                    tensor.copy_(value)
                layer.quantizer.seen = seen


class Moved(NamedTuple):
    """How far a projection moved weights: ||W - P(W)|| / ||W||, for each layer and for all together."""

    layers: dict[str, float]
    overall: float


@torch.no_grad()
def project(model: nn.Module, nearest: Callable[[WeightQuantizer, Tensor], Tensor] = WeightQuantizer.project) -> Moved:
    """Project every compressed weight, in place, onto its set; a frozen support stays.

    `nearest` gives the nearest point, or another point to move to, for a layer's quantizer and its weight.

    The forward pass then uses the weights themselves, which are the same, at no cost.

    Raises:
        ValueError: a weight is not finite; the layer is named.
    """
    squares = {}
    for name, layer in distinct_layers(model).items():
        weight = layer.matrix
        try:
            point = nearest(layer.quantizer, weight)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        pair = torch.stack([(weight - point).float().square().sum(), weight.float().square().sum()])
        squares[name] = pair.double().cpu()  # where those of other layers are, which may be on other devices
        layer.take(point)
        layer.quantizer.seen = None
    total = sum(squares.values(), torch.zeros(2, dtype=torch.float64, device="cpu"))
    return Moved({name: _ratio(pair) for name, pair in squares.items()}, _ratio(total))


def _ratio(pair: Tensor) -> float:
    moved, norm = pair.tolist()
    return float((moved / norm) ** 0.5) if norm else 0.0
