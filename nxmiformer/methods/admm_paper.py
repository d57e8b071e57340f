"""ADMM as in the paper's code: a baseline."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from nxmiformer.layers.compressed import Compressed
from nxmiformer.methods.base import Method
from nxmiformer.optim import ADMM, Constant
from nxmiformer.sets import ConstraintSet, Transposed


@dataclass(kw_only=True)
class AdmmPaper(Method):
    """NxMiFormer's ADMM with STE-based QAT (Holmes et al. 2022, arXiv 2206.15014; details after the ADMM-DS code).

    The projection is onto N:M sparsity, and the grid is straight-through in the forward pass. The penalty has a
    constant rho and is added to the gradient before clipping. Z and U are updated once an epoch, and once before
    training, so that U starts at W - Z. Only weights and biases of the compressed layers train. No finish phase follows
    the hard projection.

    Attributes:
        rho: constant; the code's sweep is 1e-3, 4e-3, 1e-2.
    """

    rho: float = 4e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        Constant(self.rho)  # checks it

    def prepare(self, layer: Compressed) -> None:
        layer.quantizer.frozen = False
        layer.quantizer.seen = layer.quantizer.constraint.grid

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((f"{n}.{part}", p) for n, layer in self.layers.items() for part, p in layer.named_parameters())

    def optimizer(self, base: torch.optim.Optimizer) -> torch.optim.Optimizer:
        sets: dict[str, ConstraintSet] = {}
        for name, layer in self.layers.items():
            constraint = layer.quantizer.constraint.sparsity
            if constraint is not None:
                sets[f"{name}.weight"] = Transposed(constraint) if layer.transposed else constraint
        named = self.model.named_parameters()
        self.admm = ADMM(super().optimizer(base), named, sets, rho=self.rho, interval=self.length.epoch, pull="manual")
        self.admm.update()
        return self.admm

    def before_clip(self) -> None:
        self.admm.add_penalty()

    def metrics(self, layers: bool = False) -> dict[str, float]:
        return self.admm.metrics(layers) if self.admm.residuals else {}
