"""A mask that is chosen once."""

from dataclasses import dataclass

import torch

from nxmiformer.layers.compressed import Compressed
from nxmiformer.methods.base import Method


@dataclass(kw_only=True)
class FixedMask(Method):
    """Fix the support of the nearest point at the start of the phase, and train the values.

    From a dense model this is magnitude pruning and retraining (ASP; Mishra et al. 2021, arXiv 2104.08378), from a
    projected one it is the finish phase of ADMM. The grid, if there is one, is trained straight-through.
    """

    def prepare(self, layer: Compressed) -> None:
        layer.quantizer.freeze(layer.matrix)
        if layer.quantizer.mask is not None:
            with torch.no_grad():  # pruned is pruned: no latent value waits behind the mask
                layer.matrix.mul_(layer.quantizer.mask)
        layer.quantizer.seen = layer.quantizer.constraint

    def before_clip(self) -> None:
        self.keep_support()
