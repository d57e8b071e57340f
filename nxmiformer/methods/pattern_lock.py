"""The support that a checkpoint stored, for good."""

from dataclasses import dataclass

import torch

from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.projection import Moved, project
from nxmiformer.layers.support import support_of
from nxmiformer.methods.base import Method


@dataclass(kw_only=True)
class PatternLock(Method):
    """Train the values under the support that the model's checkpoint stored (Zafrir et al. 2021, arXiv 2111.05754,
    section 3.3): that of a sparse language model, in fine-tuning and in quantization-aware training.

    The support is what was stored, not which weights happen to be zero. The set of a layer's plan must have it.

    Attributes:
        grid: whether the forward pass sees weights and inputs quantized; if not, the next phase gets kept weights that
            lie between the levels of their grid.
    """

    grid: bool = True

    def prepare(self, layer: Compressed) -> None:
        quantizer = layer.quantizer
        sparsity = quantizer.constraint.sparsity
        quantizer.seen = quantizer.constraint if self.grid else sparsity
        if sparsity is None:
            return
        support = support_of(layer)
        if support is None:
            raise ValueError(
                f"{self._name(layer)}: its checkpoint stores no support to keep: give model.path a directory that "
                f"job=export format=sparse left, or prune with another recipe"
            )
        if not sparsity.contains(support.float()):
            raise ValueError(f"{self._name(layer)}: the support that its checkpoint stores is none of {sparsity}")
        quantizer.hold_mask(support.clone())
        quantizer.frozen = True
        with torch.no_grad():
            layer.matrix.copy_(torch.where(support, layer.matrix, 0))

    def _name(self, layer: Compressed) -> str:
        return next(name for name, each in self.layers.items() if each is layer)

    def _activate_inputs(self, active: bool) -> None:
        super()._activate_inputs(active and self.grid)

    def before_clip(self) -> None:
        self.keep_support()

    def hand_over(self) -> Moved:
        """Without the grid, leave kept weights between its levels."""
        if self.grid:
            return self.finalize()
        return project(self.model, lambda q, w: w if q.mask is None else torch.where(q.mask, w, 0))
