"""A mask that is chosen once."""

from dataclasses import dataclass

import torch

from nxmiformer.layers.compressed import Compressed
from nxmiformer.methods.base import Method
from nxmiformer.sets.block import spread, tile_sums


@dataclass(kw_only=True)
class FixedMask(Method):
    """Fix the support of the nearest point at the start of the phase, and train the values.

    From a dense model this is magnitude pruning and retraining (ASP; Mishra et al. 2021, arXiv 2104.08378), from a
    projected one it is the finish phase of ADMM. The grid, if there is one, is trained straight-through.

    Attributes:
        keep_zeros: whether blocks of zeros stay pruned where the set has room for more: the phase before emptied them.
            A layer of nothing but zeros trains all the same.
    """

    keep_zeros: bool = False

    def prepare(self, layer: Compressed) -> None:
        layer.quantizer.freeze(layer.matrix)
        if self.keep_zeros:
            self._keep_zeros(layer)
        if layer.quantizer.mask is not None:
            with torch.no_grad():  # pruned is pruned: no latent value waits behind the mask
                layer.matrix.mul_(layer.quantizer.mask)
        layer.quantizer.seen = layer.quantizer.constraint

    @torch.no_grad()
    def _keep_zeros(self, layer: Compressed) -> None:
        mask, sparsity = layer.quantizer.mask, layer.quantizer.constraint.sparsity
        if mask is not None and sparsity is not None and layer.matrix.any():
            filled = tile_sums((layer.matrix != 0).to(layer.matrix.dtype), sparsity.tile) > 0
            layer.quantizer.hold_mask(mask & spread(filled, sparsity.tile))

    def before_clip(self) -> None:
        self.keep_support()
