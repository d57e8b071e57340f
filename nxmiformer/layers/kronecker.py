"""Layers that compute with the factors of their weight, without the weight."""

import torch
from torch import Tensor, nn

from nxmiformer.sets.kronecker import kron


def multiply(x: Tensor, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., n1 n2) times the transpose of the sum of left[k] (m1, n1) (x) right[k] (m2, n2), and the bias.

    With x as matrices X (n1, n2), the row of one is A X B^T (m1, m2). The order of the two products is that of fewer
    multiplications; each is one product of two matrices, of all rows and terms at once.
    """
    (terms, m1, n1), (_, m2, n2) = left.shape, right.shape
    rows = x.reshape(-1, n1, n2)
    if m2 * n1 * (n2 + m1) <= m1 * n2 * (n1 + m2):
        half = rows @ right.reshape(terms * m2, n2).t()  # (tokens, n1, terms m2)
        half = half.view(-1, n1, terms, m2).permute(0, 3, 2, 1).reshape(-1, terms * n1)
        y = half @ left.transpose(1, 2).reshape(terms * n1, m1)  # (tokens m2, m1)
        y = y.view(-1, m2, m1).transpose(1, 2)
    else:
        half = rows.transpose(1, 2) @ left.reshape(terms * m1, n1).t()  # (tokens, n2, terms m1)
        half = half.view(-1, n2, terms, m1).permute(0, 3, 2, 1).reshape(-1, terms * n2)
        y = (half @ right.transpose(1, 2).reshape(terms * n2, m2)).view(-1, m1, m2)
    y = y.reshape(*x.shape[:-1], m1 * m2)
    return y if bias is None else y + bias


def multiplications(left: Tensor, right: Tensor) -> int:
    """Those of one row of `multiply`."""
    (terms, m1, n1), (_, m2, n2) = left.shape, right.shape
    return int(terms) * min(m2 * n1 * (n2 + m1), m1 * n2 * (n1 + m2))


def look_up(ids: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The rows (..., n1 n2) with these numbers of the sum of left[k] (m1, n1) (x) right[k] (m2, n2)."""
    above = nn.functional.embedding(ids // right.shape[1], left.transpose(0, 1).flatten(1))  # (..., terms n1)
    below = nn.functional.embedding(ids % right.shape[1], right.transpose(0, 1).flatten(1))
    above, below = (each.unflatten(-1, (left.shape[0], -1)) for each in (above, below))
    return torch.einsum("...ki,...kj->...ij", above, below).flatten(-2)


class Factors(nn.Module):
    """The factors of a weight, trained in its place: (terms, m1, n1) and (terms, m2, n2)."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        super().__init__()
        # of one norm in each term: the gradients of the two are then of one size
        norms = left.flatten(1).norm(dim=1), right.flatten(1).norm(dim=1)
        share = torch.where(norms[1] > 0, norms[0] / norms[1], 1).sqrt()[:, None, None]
        share = torch.where(share > 0, share, 1)
        self.left, self.right = nn.Parameter(left / share), nn.Parameter(right * share)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What a linear layer with the weight computes."""
        return multiply(x, self.left, self.right, bias)

    def look_up(self, ids: Tensor) -> Tensor:
        """What an embedding with the weight looks up."""
        return look_up(ids, self.left, self.right)

    @torch.no_grad()
    def weight(self) -> Tensor:
        """The weight (m1 m2, n1 n2), detached."""
        return kron(self.left, self.right)
