"""The reweighted group Lasso: its groups are the blocks of a matrix, its penalty the sum of weighted norms."""

from math import inf

import torch
from torch import Tensor

from nxmiformer.sets.base import Shape
from nxmiformer.sets.block import spread, tile_sums


def norms(w: Tensor, tile: Shape) -> Tensor:
    """The Frobenius norm of each block of rows x cols of a matrix (out, in): (out / rows, in / cols).

    Its gradient at a block of zeros is zero.
    """
    if tile == (1, 1):
        return w.abs()
    squares = tile_sums(w.square(), tile)
    positive = squares > 0
    return torch.where(positive, squares.where(positive, 1).sqrt(), 0)  # the root of 0 has an infinite slope


def weights(norms: Tensor, power: int, epsilon: float) -> Tensor:
    """gamma = 1 / (norm**power + epsilon) of each group (Candes, Wakin and Boyd 2008, eq. 9, by groups); 1 for a power
    of 0, which is the plain group Lasso. They are constants: no gradient goes through them."""
    if power == 0:
        return torch.ones_like(norms)
    return 1 / (norms.detach() ** power + epsilon)


def shrink(w: Tensor, thresholds: Tensor, tile: Shape) -> Tensor:
    """The proximal point of the sum of thresholds * norms: each block times max(0, 1 - threshold / norm).

    Args:
        w: (out, in).
        thresholds: one a block, (out / rows, in / cols), >= 0.
    """
    lengths = norms(w, tile)
    factors = (1 - thresholds / lengths.where(lengths > 0, inf)).clamp_(min=0)
    return w * spread(factors, tile)


def slope(w: Tensor, thresholds: Tensor, tile: Shape) -> Tensor:
    """The gradient of the sum of thresholds * norms, of w's shape; zero in a block of zeros."""
    lengths = norms(w, tile)
    return w * spread(thresholds / lengths.where(lengths > 0, inf), tile)
