"""Projection without training."""

from dataclasses import dataclass

from nxmiformer.layers.compressed import Compressed
from nxmiformer.methods.base import Method


@dataclass(kw_only=True)
class OneShot(Method):
    """Project the dense weights without training; a phase with this method takes no steps."""

    def prepare(self, layer: Compressed) -> None:
        layer.quantizer.seen = layer.quantizer.constraint
