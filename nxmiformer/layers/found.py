"""The compressed layers that a model has, by name."""

from collections.abc import Iterator

from torch import nn

from nxmiformer.layers.compressed import Compressed, own_forwards
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.wrapped import unwrapped


def compressed_layers(model: nn.Module) -> dict[str, Compressed]:
    """The compressed layers by module name, aliases included, in the model's order."""
    named = unwrapped(model).named_modules(remove_duplicate=False)
    return {name: module for name, module in named if isinstance(module, Compressed)}


def distinct_layers(model: nn.Module) -> dict[str, Compressed]:
    """The compressed layers by module name, one for each weight."""
    first: dict[int, str] = {}
    layers = compressed_layers(model)
    for name, layer in layers.items():
        first.setdefault(id(layer.weight), name)
    return {name: layers[name] for name in first.values()}


def linear_layers(model: nn.Module) -> dict[str, CompressedLinear]:
    """Those of `distinct_layers` that multiply by their weight."""
    return {name: layer for name, layer in distinct_layers(model).items() if isinstance(layer, CompressedLinear)}


def foreign(model: nn.Module) -> Iterator[str]:
    """The compressed layers that compute more than a linear layer or an embedding does, a line each."""
    for name, layer in compressed_layers(model).items():
        if own_forwards(layer.plain):
            yield f"{name}: it is a {layer.plain.__name__}, whose own forward is not carried over"
