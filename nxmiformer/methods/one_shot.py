"""Projection without training."""

from dataclasses import dataclass

from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.methods.base import Method


@dataclass(kw_only=True)
class OneShot(Method):
    """Project the dense weights, and leave it at that; a phase with this method takes no steps."""

    def prepare(self, layer: CompressedLinear) -> None:
        layer.quantizer.seen = layer.quantizer.constraint
