"""How far ADMM's W and Z are apart, and how far Z moved."""

from typing import NamedTuple

import torch
from torch import Tensor


class Residuals(NamedTuple):
    """What one update of Z and U did to one weight W.

    Attributes:
        gap: primal residual ||W - Z|| / ||W||.
        dual: dual residual ||Z - Z_before|| / ||W|| (times rho it is Boyd's s, relative to ||W||).
        flips: share of the elements that entered or left the support of Z.
    """

    gap: float
    dual: float
    flips: float


def squares(w: Tensor, z: Tensor, before: Tensor) -> Tensor:
    """Of W - Z, Z - Z_before and W the sums of squares, and how many elements came or went, of how many."""
    norms = [(w - z).float().square().sum(), (z - before).float().square().sum(), w.float().square().sum()]
    flips = ((z != 0) != (before != 0)).sum()
    return torch.stack([*norms, flips.float(), torch.full_like(norms[0], w.numel())])


def relative(row: Tensor) -> Residuals:
    """From sums of squares of W - Z, Z - Z_before and W, the flips and the count, to the relative figures."""
    gap, dual, norm, flips, count = row.tolist()
    scale = max(norm, torch.finfo(torch.float64).tiny)
    return Residuals((gap / scale) ** 0.5, (dual / scale) ** 0.5, flips / max(1.0, count))
