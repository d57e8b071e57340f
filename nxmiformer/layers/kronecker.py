"""Layers that compute with the factors of their weight, without the weight."""

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from nxmiformer.layers.straight import straight
from nxmiformer.sets.products import Products, kron


class Multiplier(NamedTuple):
    """What `multiply` multiplies by, in the order of fewer multiplications.

    Attributes:
        first, second: (n, terms m) and (terms k, p), of the right factors and then the left, or the other way round.
        terms: of the sum.
        right: whether the right factors come first.
    """

    first: Tensor
    second: Tensor
    terms: int
    right: bool

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> Self:
        """Of left (terms, m1, n1) and right (terms, m2, n2)."""
        first, then = (right, left) if (ahead := _right_first(left, right)) else (left, right)
        return cls(first.flatten(0, 1).t(), then.transpose(1, 2).flatten(0, 1), left.shape[0], ahead)

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., n k) times the transpose of the matrix."""
        (n, wide), (deep, p) = self.first.shape, self.second.shape
        m, k = wide // self.terms, deep // self.terms
        rows = x.reshape(-1, k, n) if self.right else x.reshape(-1, n, k).transpose(1, 2)
        half = (rows @ self.first).view(-1, k, self.terms, m).permute(0, 3, 2, 1).reshape(-1, deep)
        y = (half @ self.second).view(-1, m, p)
        return (y.transpose(1, 2) if self.right else y).reshape(*x.shape[:-1], m * p)


def multiply(x: Tensor, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., n1 n2) times the transpose of the sum of left[k] (m1, n1) (x) right[k] (m2, n2), and the bias.

    With x as matrices X (n1, n2), the row of one is A X B^T (m1, m2). The order of the two products is that of fewer
    multiplications; each is one product of two matrices, of all rows and terms at once.
    """
    y = Multiplier.of(left, right)(x)
    return y if bias is None else y + bias


def _right_first(left: Tensor, right: Tensor) -> bool:
    (_, m1, n1), (_, m2, n2) = left.shape, right.shape
    return bool(m2 * n1 * (n2 + m1) <= m1 * n2 * (n1 + m2))


def multiplications(left: Tensor, right: Tensor) -> int:
    """Those of one row of `multiply`."""
    (terms, m1, n1), (_, m2, n2) = left.shape, right.shape
    return int(terms) * min(m2 * n1 * (n2 + m1), m1 * n2 * (n1 + m2))


class Tables(NamedTuple):
    """What `look_up` looks up in.

    Attributes:
        above: (m1, n1 terms), of the left factors.
        below: (m2, terms n2), of the right ones; (terms, n2) where they have one row.
        terms: of the sum.
        rows: m2.
    """

    above: Tensor
    below: Tensor
    terms: int
    rows: int

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> Self:
        """Of left (terms, m1, n1) and right (terms, m2, n2)."""
        terms, rows, _ = right.shape
        below = right[:, 0] if rows == 1 else right.transpose(0, 1).flatten(1)
        return cls(left.permute(1, 2, 0).flatten(1), below, terms, rows)

    def __call__(self, ids: Tensor) -> Tensor:
        """The rows (..., n1 n2) with these numbers."""
        if self.rows == 1:  # one matrix for all rows
            above, below = nn.functional.embedding(ids, self.above), self.below
        else:
            above = nn.functional.embedding(ids // self.rows, self.above)
            below = nn.functional.embedding(ids % self.rows, self.below).unflatten(-1, (self.terms, -1))
        return (above.unflatten(-1, (-1, self.terms)) @ below).flatten(-2)


def look_up(ids: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The rows (..., n1 n2) with these numbers of the sum of left[k] (m1, n1) (x) right[k] (m2, n2)."""
    return Tables.of(left, right)(ids)


class Factors(nn.Module):
    """The factors of a weight, trained in its place: (terms, m1, n1) and (terms, m2, n2).

    Attributes:
        rounding: the set that rounds the factors in the forward pass; None leaves them as they are.
    """

    def __init__(self, left: Tensor, right: Tensor, rounding: Products | None = None) -> None:
        super().__init__()
        self.left, self.right, self.rounding = nn.Parameter(left), nn.Parameter(right), rounding

    @classmethod
    def balanced(cls, left: Tensor, right: Tensor, rounding: Products | None = None) -> Self:
        """Those of one norm in each term, whose product is the same: their gradients are of one size."""
        norms = left.flatten(1).norm(dim=1), right.flatten(1).norm(dim=1)
        share = torch.where(norms[1] > 0, norms[0] / norms[1], 1).sqrt()[:, None, None]
        share = torch.where(share > 0, share, 1)
        return cls(left / share, right * share, rounding)

    def seen(self) -> tuple[Tensor, Tensor]:
        """The factors that the layer computes with; the gradient passes straight through their rounding."""
        if self.rounding is None:
            return self.left, self.right
        exact = self.left.detach(), self.right.detach()
        left, right = self.rounding.rounded(*exact)
        return (
            self.left if left is exact[0] else straight(self.left, left),
            self.right if right is exact[1] else straight(self.right, right),
        )

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What a linear layer with the weight computes."""
        return multiply(x, *self.seen(), bias)

    def look_up(self, ids: Tensor) -> Tensor:
        """What an embedding with the weight looks up."""
        with torch.autocast(ids.device.type, enabled=False):  # which leaves the rows of an embedding as they are
            return look_up(ids, *self.seen())

    @torch.no_grad()
    def weight(self) -> Tensor:
        """The weight (m1 m2, n1 n2), detached."""
        return kron(*self.seen())
