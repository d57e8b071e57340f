"""Straight-through training through the projection."""

from dataclasses import dataclass

from nxmiformer.layers.compressed import Compressed
from nxmiformer.methods.base import Method


@dataclass(kw_only=True)
class SteQat(Method):
    """The forward pass sees the nearest point of the set, support included; the gradient reaches every weight.

    For a grid alone this is quantization-aware training (Jacob et al. 2018, arXiv 1712.05877). With a sparsity set the
    mask follows the dense weights, as in straight-through N:M training.
    """

    def prepare(self, layer: Compressed) -> None:
        layer.quantizer.frozen = False
        layer.quantizer.seen = layer.quantizer.constraint
