"""Sparse-refined straight-through estimation."""

from dataclasses import dataclass

from nxmiformer.methods.ste_qat import SteQat


@dataclass(kw_only=True)
class SrSte(SteQat):
    """SR-STE (Zhou et al. 2021, arXiv 2102.04010, eq. 8): `decay` * W is added to the gradient of each pruned weight,
    so that pruned weights shrink and the mask settles. Combines with any grid.

    Attributes:
        decay: lambda_W of the paper.
        refresh: 1 is the paper's: the mask is updated at every step.
    """

    decay: float = 2e-4
    refresh: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < float("inf"):
            raise ValueError(f"decay must be a number that is not negative, not {self.decay}")

    def before_clip(self) -> None:
        for layer in self.layers.values():
            mask, gradient = layer.quantizer.mask, layer.weight.grad
            if mask is not None and gradient is not None:
                outside = ~(mask.t() if layer.transposed else mask)
                gradient.add_(layer.weight.detach() * outside, alpha=self.decay)
